"""``mirror ls``, ``show``, ``stats``, ``pin``, ``unpin`` and ``rm``, beside a running mirror and without one."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.commands import Commands, mirror
from tests.support.filled import each, fill
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.scripted import Image, Scripted


async def pull(running: Mirror, image: Image, tag: str, repository: str = "app") -> None:
    await running.get(f"/v2/{repository}/manifests/{tag}")
    for blob in (image.config, *image.layers):
        await running.get(f"/v2/{repository}/blobs/{blob}")
        await running.until_cached(blob)


@pytest.fixture(params=["beside", "alone"])
async def commands(request: pytest.FixtureRequest, start: StartMirror, upstream: Scripted) -> Commands:
    """On a cache that has library/app:1 and library/other:1, which share a layer; the mirror still runs, or does not."""
    running: Mirror = await start()
    base = os.urandom(20_000)
    await pull(running, upstream.add_image("library/app", "1", layers=[base, os.urandom(10_000)]), "1")
    await pull(running, upstream.add_image("library/other", "1", layers=[base]), "1", "other")
    # A file is there a moment before its row is.
    with closing(sqlite3.connect(running.directory / "catalog" / "content.sqlite")) as db:
        await until(lambda: db.execute("SELECT count(*) FROM content").fetchone() == (6,))
    if request.param == "alone":
        await running.stop()
    return Commands(running.directory)


async def test_ls_lists_searches_sorts_and_limits(commands: Commands) -> None:
    """A line an image; every word must fit; the largest first where that is asked for; JSON says the same and more."""
    lines = (await commands("ls")).splitlines()
    assert lines[0].split() == ["IMAGE", "PLATFORM", "SIZE", "SHARED", "FETCHED", "PULLED", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == ["docker.io/library/app:1", "docker.io/library/other:1"]
    assert "fresh" in lines[1]
    assert "stale" in (await commands("ls", MIRROR_CACHE__TAG_TTL="0")).splitlines()[1]
    assert len((await commands("ls", "APP", "1")).splitlines()) == 2
    found = await commands.json("ls", "--sort", "size", "--limit", "1")
    assert found["total"] == 2
    (image,) = found["images"]
    assert (image["image"], image["shared"], image["fresh"], image["pinned"]) == ("docker.io/library/app:1", 20_000, True, False)
    assert image["size"] > 30_000
    assert (await commands.run("ls", "--sort", "nonsense")).returncode == 2


async def test_show_tells_what_an_image_is_made_of(commands: Commands) -> None:
    """Layers with their sizes, and who shares them; by digest too; what is not cached is status 1, what is no name 2."""
    text = await commands("show", "app:1")
    for expected in ("docker.io/library/app:1", "19.5 KiB", "in 2 images", "docker.io/library/other:1", "fresh"):
        assert expected in text, text
    found = await commands.json("show", "app:1")
    (variant,) = found["variants"]
    assert [(layer["size"], layer["cached"], layer["images"]) for layer in variant["layers"]] == [
        (20_000, True, 2),
        (10_000, True, 1),
    ]
    assert variant["complete"]
    assert [(other["image"], other["size"]) for other in found["shares"]] == [("docker.io/library/other:1", 20_000)]
    assert (await commands.json("show", f"app@{found['digest']}"))["image"] == "docker.io/library/app:1"
    done = await commands.run("show", "app:2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "docker.io/library/app:2 is not cached" in done.stderr
    assert (await commands.run("show", "https://app")).returncode == 2


async def test_stats_are_the_cache_in_figures(commands: Commands) -> None:
    """Images, content, sizes, and what was saved."""
    figures = await commands.json("stats")
    assert (figures["images"], figures["repositories"], figures["manifests"], figures["blobs"]) == (2, 2, 2, 4)
    assert 30_000 < figures["size"] < 50_000
    text = await commands("stats")
    assert "2 in 2 repositories, 0 pinned" in text


async def test_pins_and_removal(commands: Commands) -> None:
    """A pin shows, also one of what is not cached; what is pinned is deleted by force alone; what others share stays; statuses tell."""
    text = await commands("pin", "app:1", "later")
    assert "docker.io/library/app:1 is pinned\n" in text
    assert "docker.io/library/later:latest is pinned; it is not cached yet" in text
    assert (await commands.json("ls", "app"))["images"][0]["pinned"]
    assert (await commands.json("stats"))["pinned"] == 1
    done = await commands.run("rm", "app:1", "absent")
    assert done.returncode == 1
    assert "docker.io/library/app:1 is pinned: unpin it first" in done.stderr
    assert "nothing is cached of docker.io/library/absent:latest" in done.stderr
    assert "no longer pinned" in await commands("unpin", "app:1")
    assert "was not pinned" in (await commands.run("unpin", "app:1")).stderr
    await commands("unpin", "app:1", status=1)
    (gone,) = await commands.json("rm", "app:1")
    assert gone["deleted"]
    assert gone["kept"] == 20_000
    assert [image["image"] for image in (await commands.json("ls"))["images"]] == ["docker.io/library/other:1"]
    await commands("pin", "other:1")
    assert "deleted: " in await commands("rm", "--force", "other:1")
    assert (await commands.json("stats"))["size"] == 0


async def test_a_running_mirror_stops_serving_what_was_removed(mirror: Mirror, upstream: Scripted) -> None:
    """Soon, though it had it in memory and upstream no longer has it."""
    await pull(mirror, upstream.add_image("library/app", "1"), "1")
    upstream.manifests.clear()
    assert (await mirror.get("/v2/app/manifests/1")).status == 200
    await Commands(mirror.directory)("rm", "app:1")
    while (await mirror.get("/v2/app/manifests/1")).status == 200:
        await asyncio.sleep(0.1)


def test_where_there_is_no_cache_none_is_made(tmp_path: Path) -> None:
    """A mistyped directory is an error that names it, with status 1; wrong settings are status 2, with every fault."""
    for command in (["ls"], ["show", "app"], ["stats"]):
        done = mirror(*command, "--cache-dir", str(tmp_path / "typo"))
        assert done.returncode == 1
        assert f"there is no cache in {tmp_path / 'typo'}" in done.stderr
    assert not (tmp_path / "typo").exists()
    (tmp_path / "file").write_text("")
    for command in (["pin", "app"], ["rm", "app"]):
        done = mirror(*command, "--cache-dir", str(tmp_path / "file" / "cache"))
        assert done.returncode == 1
        assert str(tmp_path / "file") in done.stderr
    for command in (["ls"], ["show", "app"], ["stats"], ["pin", "app"], ["unpin", "app"], ["rm", "app"]):
        done = mirror(*command, "--upstream", "nonsense")
        assert done.returncode == 2
        assert "REGISTRY=URL" in done.stderr
    for command in (["show"], ["pin"], ["unpin"], ["rm"], ["ls", "--nonsense"], ["ls", "--limit", "9" * 30]):
        assert mirror(*command).returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
def test_root_leaves_no_files_of_root_in_another_users_cache(tmp_path: Path) -> None:
    """Which a mirror that runs as that user could not write."""
    # pytest's own folders, below the system's for temporary files.
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    directory = tmp_path / "cache"
    directory.mkdir()
    os.chown(directory, 12345, 12345)
    done = mirror("pin", "app", "--cache-dir", str(directory))
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in directory.rglob("*")} == {12345}


def test_many_images_are_listed(tmp_path: Path) -> None:
    """All of them, by name."""
    fill(tmp_path, 500)
    found = json.loads(mirror("ls", "--cache-dir", str(tmp_path), "--json").stdout)
    assert sorted(image["image"] for image in found["images"]) == sorted(each(500))


async def test_what_is_not_there_is_said_in_words_and_as_json(commands: Commands) -> None:
    """A search without a match prints no head of a table; an error is JSON where JSON was asked for; pins are told as JSON too."""
    done = await commands.run("ls", "zzz")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no cached image matches 'zzz'" in done.stderr
    assert "nosuch" in (await commands.json("show", "nosuch", status=1))["error"]
    assert await commands.json("pin", "app:1", "later:1") == [
        {"image": "docker.io/library/app:1", "pinned": True, "cached": True},
        {"image": "docker.io/library/later:1", "pinned": True, "cached": False},
    ]
    assert await commands.json("unpin", "app:1", "never:1", status=1) == [
        {"image": "docker.io/library/app:1", "unpinned": True},
        {"image": "docker.io/library/never:1", "unpinned": False},
    ]
