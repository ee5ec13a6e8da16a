"""``mirror export`` and ``mirror have``."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Commands
from tests.support.scripted import Scripted

PLATFORMS = ("--platform", "linux/amd64")


def members(tar: Path | bytes) -> dict[str, bytes]:
    """What a bundle holds, in order; each name once, no links, no directories."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(tar if isinstance(tar, bytes) else tar.read_bytes())) as opened:
        for member in opened:
            assert member.isreg() and (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert member.name not in found
            file = opened.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def blobs(found: dict[str, bytes]) -> set[str]:
    """The digests in a bundle, each compared with the bytes under it."""
    digests = set()
    for name, content in found.items():
        if name.startswith("blobs/"):
            _, algorithm, hex_ = name.split("/")
            assert hashlib.new(algorithm, content).hexdigest() == hex_
            digests.add(f"{algorithm}:{hex_}")
    return digests


def checked(tar: Path | bytes) -> tuple[dict[str, bytes], Any]:
    """A bundle's members and its bundle.json, with SHA256SUMS compared with all of them."""
    found = members(tar)
    sums = {line[66:]: line[:64] for line in found["SHA256SUMS"].decode().splitlines()}
    for name, content in found.items():
        if name not in ("SHA256SUMS", "bundle.sig") and not name.startswith("blobs/sha512/"):
            assert sums.pop(name) == hashlib.sha256(content).hexdigest()
    assert not sums
    return found, json.loads(found["bundle.json"])


@pytest.fixture
def commands(upstream: Scripted, tmp_path: Path) -> Commands:
    return Commands(tmp_path / "cache", upstream)


async def test_a_bundle_holds_what_was_asked_for_byte_for_byte(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """What is missing is fetched, each blob once; of an index only the wanted platform; both are exact. A second run asks upstream for no content and writes the same bytes."""
    one = upstream.add_image("library/one", "1", layers=[os.urandom(70_000), os.urandom(513)])
    amd = upstream.add_image("library/two", layers=[os.urandom(30_000)])
    arm = upstream.add_image("library/two", layers=[os.urandom(30_000)])
    index, body = upstream.add_index("library/two", "2", [amd, arm])
    tar = tmp_path / "lab.tar"
    await commands("export", "one:1", "two:2", *PLATFORMS, "-o", str(tar))
    found, described = checked(tar)
    wanted = {one.digest, one.config, *one.layers, index, amd.digest, amd.config, *amd.layers}
    assert blobs(found) == {str(digest) for digest in wanted}
    assert found[f"blobs/sha256/{index.hex}"] == body
    assert [image["name"] for image in described["images"]] == ["docker.io/library/one:1", "docker.io/library/two:2"]
    assert described["images"][1]["digest"] == str(index)
    assert [entry["RepoTags"] for entry in json.loads(found["manifest.json"])] == [
        ["docker.io/library/one:1"],
        ["docker.io/library/two:2"],
    ]
    assert not list(tmp_path.glob(".writing-*"))
    for digest in wanted:
        assert upstream.count("GET", f"/blobs/{digest}") + upstream.count("GET", f"/manifests/{digest}") <= 1
    asked = upstream.count("GET", "/blobs/")
    again = tmp_path / "again.tar"
    await commands("export", "one:1", "two:2", *PLATFORMS, "-o", str(again))
    assert upstream.count("GET", "/blobs/") == asked
    assert again.read_bytes() == tar.read_bytes()
