"""What a receiver has: a list of digests, or an earlier bundle. A bundle for it leaves those layers out.

A list has one digest in a line, and ``#`` before comments.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mirror.bundles.layout import BUNDLE, LONG_SUMS, SUMS
from mirror.errors import DigestInvalid
from mirror.names import Digest

_LARGEST = 256 * 1024 * 1024
"""Bytes of a member that is read into memory."""
_HEADER = "# mirror have 1"


class HaveUnreadable(ValueError):
    """The file is no list of digests, or no bundle. The message says what is wrong, and where."""


def list_of(digests: Iterable[Digest]) -> Iterator[str]:
    """Yields the lines of a list."""
    yield _HEADER
    yield from sorted(map(str, digests))


def read_list(path: Path) -> set[Digest]:
    """Reads a list. Raises HaveUnreadable, OSError."""
    found = set()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise HaveUnreadable(f"{path} is no text: a list that `mirror have` printed is expected") from None
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            try:
                found.add(Digest.parse(text))
            except DigestInvalid as error:
                raise HaveUnreadable(f"{path}, line {number}: {error.message}") from None
    return found


def read_bundle(path: Path) -> set[Digest]:
    """Reads the digests in an earlier bundle, and those that it left out since its receiver had them. The first piece of a bundle is enough. Raises HaveUnreadable, OSError."""
    found: set[Digest] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.name not in (BUNDLE, LONG_SUMS, SUMS):
                    continue
                file = tar.extractfile(member)
                if file is None or member.size > _LARGEST:
                    break
                content = file.read()
                if member.name == BUNDLE:
                    found |= {Digest.parse(entry["digest"]) for entry in json.loads(content)["omitted"]}
                    continue
                found |= set(_blobs(content.decode()))
                if member.name == SUMS:
                    return found
    except (tarfile.TarError, ValueError, LookupError, TypeError, AttributeError, DigestInvalid) as error:
        raise HaveUnreadable(f"{path} is no bundle that `mirror export` wrote: {error}") from None
    raise HaveUnreadable(f"{path} is no bundle that `mirror export` wrote: {SUMS} is not in it")


def _blobs(sums: str) -> Iterator[Digest]:
    for line in sums.splitlines():
        folder, _, name = line.partition("  ")[2].rpartition("/")
        if folder.startswith("blobs/"):
            yield Digest.parse(f"{folder.partition('/')[2]}:{name}")
