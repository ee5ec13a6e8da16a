"""What was pushed outlives the catalog: a second copy of what hosted repositories have (mirror/storage/disk/catalog/kept.py)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from tests.support.mirrors import StartMirror
from tests.support.pushes import HOSTED, manifest_of, push_blob, push_image, put_manifest, say
from tests.support.scripted import Scripted


def lose(directory: Path) -> None:
    for file in (directory / "catalog").glob("content.sqlite*"):
        file.unlink()


def damage(directory: Path) -> None:
    for file in (directory / "catalog").glob("content.sqlite-*"):
        file.unlink()
    (directory / "catalog" / "content.sqlite").write_bytes(b"not a database" * 1000)


def lose_folder(directory: Path) -> None:
    for file in sorted((directory / "catalog").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def damage_copy(directory: Path) -> None:
    for file in (directory / "hosted").glob("hosted.sqlite-*"):
        file.unlink()
    (directory / "hosted" / "hosted.sqlite").write_bytes(b"not a database" * 1000)


def damage_a_page_of_the_copy(directory: Path) -> None:
    """Its tables can be opened, and not be read."""
    path = directory / "hosted" / "hosted.sqlite"
    with closing(sqlite3.connect(path)) as copy:
        copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(page,)] = copy.execute("SELECT rootpage FROM sqlite_master WHERE name = 'kept_tag'")
        [(size,)] = copy.execute("PRAGMA page_size")
    with open(path, "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("harm", [lose, damage, lose_folder, damage_copy, damage_a_page_of_the_copy])
async def test_what_was_pushed_is_there_after_the_catalog_is_lost(
    start: StartMirror, upstream: Scripted, harm: Callable[[Path], None]
) -> None:
    """Tags, manifests, referrers, and who has what; not what was deleted. It is served at once, goes on to be never evicted, and can be pushed to as before. Damage to
    the copy is mended from the catalog."""
    upstream.add_image("library/cached", "1")
    first = await start(settings={"hosted": HOSTED})
    assert (await first.get("/v2/library/cached/manifests/1")).status == 200
    digest, body = await push_image(first.session, "team/app", "1", b"layer" * 1000)
    subject = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(body)}
    signature, _ = await push_image(first.session, "team/app", "signed", b"signature", subject=subject)
    await push_image(first.session, "team/app", "moved", b"old")
    moved, _ = await push_image(first.session, "team/app", "moved", b"new")
    await push_image(first.session, "team/app", "gone", b"gone")
    await push_image(first.session, "class/other", "1", b"other")
    assert (await say(first.session, "DELETE", "/v2/team/app/manifests/gone")).status == 202
    await first.stop()
    harm(first.directory)
    for again in (False, True):
        if again and harm in (damage_copy, damage_a_page_of_the_copy):
            # From the copy that was made anew.
            lose(first.directory)
        mirror = await start(settings={"hosted": HOSTED})
        assert json.loads((await mirror.get("/v2/team/app/tags/list")).body)["tags"] == ["1", "moved", "signed"]
        assert (await mirror.get("/v2/team/app/manifests/1")).body == body
        assert (await mirror.head("/v2/team/app/manifests/moved")).headers["Docker-Content-Digest"] == str(moved)
        assert (await mirror.get(f"/v2/team/app/blobs/{Digest.of(b'layer' * 1000)}")).body == b"layer" * 1000
        assert (await mirror.get(f"/v2/class/other/blobs/{Digest.of(b'layer' * 1000)}")).status == 404
        listed = json.loads((await mirror.get(f"/v2/team/app/referrers/{digest}")).body)["manifests"]
        assert [one["digest"] for one in listed] == [str(signature)]
        await mirror.mended()
        done = await put_manifest(mirror.session, "team/app", "new", manifest_of(b"{}", b"layer" * 1000))
        assert done.status == 201, done
        assert (await say(mirror.session, "DELETE", "/v2/team/app/manifests/new")).status == 202
        with closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as database:
            [(cached,)] = database.execute(
                "SELECT count(*) FROM content WHERE queue != 6 AND digest IN (SELECT digest FROM hosted)"
            )
        assert cached == 0
        await mirror.stop()


async def test_the_copy_has_nothing_of_other_registries(start: StartMirror, upstream: Scripted) -> None:
    """Tags of registries are asked for again: writing them twice would be for nothing."""
    upstream.add_image("library/cached", "1")
    mirror = await start(settings={"hosted": HOSTED})
    assert (await mirror.get("/v2/library/cached/manifests/1")).status == 200
    await push_blob(mirror.session, "team/app", b"layer")
    await mirror.stop()
    with closing(sqlite3.connect(mirror.directory / "hosted" / "hosted.sqlite")) as copy:
        assert copy.execute("SELECT count(*) FROM kept_tag").fetchone() == (0,)
        assert copy.execute("SELECT path, who FROM kept_hosted").fetchall() == [("team/app", "127.0.0.1")]
