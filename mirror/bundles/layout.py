"""The bytes of a bundle, before any is read: a tar whose members, order, sizes and offsets follow from its contents alone.

::

    oci-layout            OCI image-layout (image-spec 1.1, "image-layout.md")
    index.json            every image with its full name: containerd, dockerd since 29, skopeo, crane
    manifest.json         one platform of every image: dockerd before 29, podman
    bundle.json           what is in it, for people and for `mirror import`: see `bundle_document`
    SHA512SUMS            only with blobs whose digest is a sha512
    SHA256SUMS            of the members before it and of all blobs, for ``sha256sum --check``
    bundle.sig            only of a signed bundle: see signing.py
    blobs/sha256/<hex>    manifests, configurations, then layers, each once

The same contents give the same bytes, so an interrupted download can be resumed, and copies can be compared. So its only times are those since when tags have
meant what they mean, in bundle.json: on one mirror they stay. Headers are ustar's (POSIX.1-2017, "pax"), with an extended header only for members of 8 GiB and
for digests that are too long.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from mirror.bundles.images import Contents
from mirror.manifests import OCI_INDEX, Descriptor
from mirror.names import Digest, Tag, image_name

INDEX, DOCKER_MANIFEST, BUNDLE, SUMS, LONG_SUMS, SIGNATURE = (
    "index.json",
    "manifest.json",
    "bundle.json",
    "SHA256SUMS",
    "SHA512SUMS",
    "bundle.sig",
)
MARKER = "oci-layout"
VERSION = 1
"""Of bundle.json."""
_BLOCK = tarfile.BLOCKSIZE
_YEAR_10000 = 253_402_300_800.0
_END = bytes(2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Stored:
    """Content that is read from the cache when it is sent. `size` in bytes."""

    digest: Digest
    size: int


Piece = bytes | Stored


class Layout:
    """A bundle's pieces in order; `size` in bytes. `etag` identifies its bytes."""

    def __init__(self, contents: Contents, sign: Callable[[bytes], bytes] | None = None) -> None:
        """`sign` returns the content of bundle.sig for that of SHA256SUMS."""
        self.pieces = tuple(_joined(_members(contents, sign)))
        sizes = [piece.size if isinstance(piece, Stored) else len(piece) for piece in self.pieces]
        self._starts = [0, *accumulate(sizes)]
        self.size = self._starts.pop()
        hasher = hashlib.sha256()
        for piece in self.pieces:
            # Headers hold the name and the size of the content that follows them.
            if isinstance(piece, bytes):
                hasher.update(piece)
        self.etag = f'"{hasher.hexdigest()[:32]}"'

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Piece, int, int]]:
        """Yields the pieces of the bytes ``[start, stop)``, with the part ``[first, last)`` of each that is within."""
        stop = self.size if stop is None else min(stop, self.size)
        for number in range(max(bisect_right(self._starts, start) - 1, 0), len(self.pieces)):
            piece, begins = self.pieces[number], self._starts[number]
            if begins >= stop:
                return
            length = piece.size if isinstance(piece, Stored) else len(piece)
            first, last = max(start - begins, 0), min(stop - begins, length)
            if first < last:
                yield piece, first, last


def _members(contents: Contents, sign: Callable[[bytes], bytes] | None) -> Iterator[Piece]:
    files = {
        MARKER: b'{"imageLayoutVersion":"1.0.0"}',
        INDEX: _json(_index(contents)),
        DOCKER_MANIFEST: _json(_docker_manifest(contents)),
        BUNDLE: _json(bundle_document(contents)),
    }
    if any(digest.algorithm == "sha512" for digest in contents.blobs):
        files[LONG_SUMS] = _sums({blob_path(digest): digest.hex for digest in contents.blobs if digest.algorithm == "sha512"})
    sums = {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}
    sums.update({blob_path(digest): digest.hex for digest in contents.blobs if digest.algorithm == "sha256"})
    files[SUMS] = _sums(sums)
    if sign is not None:
        files[SIGNATURE] = sign(files[SUMS])
    for name, body in files.items():
        yield _header(name, len(body)) + body + _padding(len(body))
    for digest, blob in contents.blobs.items():
        size = len(blob) if isinstance(blob, bytes) else blob
        yield _header(blob_path(digest), size)
        yield blob if isinstance(blob, bytes) else Stored(digest, blob)
        yield _padding(size)
    yield _END


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Joins bytes that follow each other, so that they are sent at once."""
    waiting: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            waiting.append(piece)
        elif piece.size:
            yield b"".join(waiting)
            waiting = []
            yield piece
    yield b"".join(waiting)


def blob_path(digest: Digest) -> str:
    """Where a blob is in the tar."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def bundle_document(contents: Contents) -> dict[str, Any]:
    """The content of bundle.json.

    ``images`` are in index.json as well. ``referrers`` (signatures, attestations, SBOMs) are only here: tools that load images would take them for images without
    a name. ``omitted`` are the layers that its images have and the bundle does not, because the receiver has them. Sizes are in bytes. ``seen`` is when the
    mirror that wrote the bundle first learnt that the tag means the digest, and null for digests.
    """
    images = [
        {
            "name": image_name(image.repository, image.reference),
            **_descriptor(image.root),
            "platforms": list(image.platforms),
            "seen": moment(image.seen),
        }
        for image in contents.images
    ]
    referrers = [
        {
            "name": image_name(referrer.repository, referrer.reference),
            **_descriptor(referrer.root),
            "subject": str(referrer.subject),
            "seen": moment(referrer.seen),
        }
        for referrer in contents.referrers
    ]
    omitted = [{"digest": str(digest), "size": size} for digest, size in contents.omitted.items()]
    return {"version": VERSION, "images": images, "referrers": referrers, "omitted": omitted}


def moment(when: float | None) -> str | None:
    """Formats seconds since the epoch as in bundle.json (RFC 3339, in UTC); None for what no calendar has, as a damaged catalog may."""
    if when is None or not 0 <= when < _YEAR_10000:
        return None
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _index(contents: Contents) -> dict[str, Any]:
    manifests = []
    for image in contents.images:
        name = image_name(image.repository, image.reference)
        # Docker and containerd use the second, skopeo and crane the first.
        annotations = {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
        manifests.append({**_descriptor(image.root), "annotations": annotations})
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}


def _docker_manifest(contents: Contents) -> list[dict[str, Any]]:
    """Returns what ``docker save`` writes: the first platform of each image. An image with only a digest has no name here, since Docker refuses such names."""
    found: dict[Digest, dict[str, Any]] = {}
    for image in contents.images:
        if image.docker is None:
            continue
        config, layers = image.docker
        entry = found.setdefault(
            config, {"Config": blob_path(config), "RepoTags": [], "Layers": [blob_path(layer) for layer in layers]}
        )
        if isinstance(image.reference, Tag):
            entry["RepoTags"].append(image_name(image.repository, image.reference))
    return list(found.values())


def _descriptor(root: Descriptor) -> dict[str, Any]:
    return {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _sums(sums: dict[str, str]) -> bytes:
    return "".join(f"{hex_}  {path}\n" for path, hex_ in sums.items()).encode()


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
