"""What is no regular file, under every name that a mirror opens in its cache directory: nothing waits for it, and it costs only what would be there."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from mirror.errors import CatalogFailed
from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted

NAMES = (
    "catalog/asking.lock",
    "catalog/eviction.lock",
    "catalog/mend.lock",
    "catalog/scrub.lock",
    "catalog/max-size",
    "catalog/content.damaged",
    "live/1.json",
    "ended-sessions/9999999999.aa",
    "admin-token",
    "spool/SHA.part",
    "spool/SHA.have",
    "spool/SHA.sources",
    "blobs/HEX",
    "blobs/sha256/.writing-abc",
)


def make(kind: str, path: Path) -> None:
    """Puts something there. A link leads to a file that must not be touched."""
    path.parent.mkdir(exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.parent.parent.parent / "precious" if kind == "link" else "/dev/tty")


def blob(digest: Digest) -> str:
    return f"/v2/app/blobs/{digest}"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in ("fifo", "folder", "link", "link to a device")
        for name in NAMES
        if (kind, name) != ("folder", "admin-token")
    ],
)
async def test_nothing_waits_for_what_is_no_file(
    start: StartMirror, upstream: Scripted, tmp_path: Path, kind: str, name: str
) -> None:
    """The mirror starts, serves what is cached and what is not, and stops; what a link leads to is as it was."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(50_000)])
    new = upstream.add_blob(os.urandom(50_000))
    (tmp_path / "precious").write_text("precious")
    mirror: Mirror = await start()
    assert (await mirror.get("/v2/app/manifests/1")).status == 200
    assert (await mirror.get(blob(image.layers[0]))).status == 200
    await mirror.until_cached(image.layers[0])
    await mirror.stop()
    path = mirror.directory / name.replace("SHA", f"sha256-{new.hex}").replace("HEX", f"sha256/{new.hex}")
    if path.exists():
        path.unlink()
    make(kind, path)
    async with asyncio.timeout(PATIENCE):
        mirror = await start(mirror.directory)
        for _ in range(2):
            assert (await mirror.get("/v2/app/manifests/1")).body == image.body
            assert (await mirror.get(blob(image.layers[0]))).cache == "mirror; hit"
            assert (await mirror.get(blob(new))).digest() == new
        for page in ("/healthz", "/readyz", "/metrics", "/"):
            assert (await mirror.get(page)).status == 200
        await mirror.stop()
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    "name",
    [
        *("catalog/content.sqlite", "catalog/content.sqlite-wal", "catalog/content.sqlite-shm", "catalog/content.sqlite-journal"),
        *("catalog/documents/cache.db", "catalog/documents/cache.db-wal", "catalog/open.lock", "admin-token"),
    ],
)
@pytest.mark.parametrize("kind", ["fifo", "folder"])
async def test_what_must_be_a_file_and_is_none_ends_the_start_in_words(
    start: StartMirror, upstream: Scripted, kind: str, name: str
) -> None:
    """Or it is made anew; nothing waits."""
    mirror: Mirror = await start()
    await mirror.stop()
    path = mirror.directory / name
    shutil.rmtree(mirror.directory)
    path.parent.mkdir(parents=True)
    make(kind, path)
    async with asyncio.timeout(PATIENCE):
        try:
            mirror = await start(mirror.directory)
        except (OSError, CatalogFailed) as error:
            said = str(error)
        else:
            said = str(path.parent)
            assert (await mirror.get("/healthz")).status == 200
            await mirror.stop()
    assert str(path.parent).removesuffix("/documents") in said
