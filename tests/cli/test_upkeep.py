"""``mirror gc`` and ``mirror verify``, beside a running mirror and without one."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mirror.disk_room import default_limit
from mirror.names import Digest
from tests.support.commands import Commands
from tests.support.commands import mirror as command
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror, until
from tests.support.scripted import Image, Scripted

KIB = 1024


@pytest.fixture(autouse=True)
def uses_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that runs does not record, at whatever time, that images were used which `age` has made old."""
    monkeypatch.setattr("mirror.storage.disk.store._FLUSH", 3600)


async def pull(running: Mirror, image: Image, repository: str) -> None:
    await running.get(f"/v2/{repository}/manifests/1")
    for blob in (image.config, *image.layers):
        await running.get(f"/v2/{repository}/blobs/{blob}")
        await running.until_cached(blob)


@pytest.fixture
async def images(mirror: Mirror, upstream: Scripted) -> dict[str, Image]:
    """Cached by a mirror that runs: library/one, two and three, with a layer of 100 KiB each; tag 1."""
    made = {name: upstream.add_image(f"library/{name}", "1", layers=[os.urandom(100 * KIB)]) for name in ("one", "two", "three")}
    for name, image in made.items():
        await pull(mirror, image, name)
    # A file is there a moment before its row is.
    with closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as db:
        await until(lambda: db.execute("SELECT count(*) FROM content").fetchone() == (9,))
    return made


@pytest.fixture(params=["beside", "alone"])
async def commands(request: pytest.FixtureRequest, mirror: Mirror, upstream: Scripted, images: dict[str, Image]) -> Commands:
    """On the cache of these images; the mirror still runs, or does not."""
    if request.param == "alone":
        await mirror.stop()
    return Commands(mirror.directory, upstream)


def age(mirror: Mirror, digests: list[Digest], seconds: float) -> None:
    """As if they had not been used for so long."""
    with closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as db, db:
        db.executemany("UPDATE content SET used = used - ? WHERE digest = ?", [(seconds, str(digest)) for digest in digests])


def files(mirror: Mirror) -> set[str]:
    return {file.name for file in (mirror.directory / "blobs" / "sha256").iterdir()}


def damage(mirror: Mirror, digest: Digest) -> None:
    """Turns a bit on the disk, as years may."""
    file = mirror.directory / "blobs" / "sha256" / digest.hex
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


async def test_gc_removes_what_a_dry_run_has_told(
    commands: Commands, mirror: Mirror, images: dict[str, Image], tmp_path: Path
) -> None:
    """What has expired, what is of no image, what was given up, and what is too much, each in bytes; what is pinned stays."""
    await commands("pin", "three:1")
    one = images["one"]
    orphan = Digest.of(b"of no image")
    (mirror.directory / "blobs" / "sha256" / orphan.hex).write_bytes(b"of no image")
    with closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as db, db:
        db.execute("INSERT INTO content (digest, size, used) VALUES (?, 11, 0)", (str(orphan),))
    age(mirror, [one.digest, one.config, *one.layers], 3 * 86400)
    given_up = mirror.directory / "spool" / f"sha256-{'0' * 64}.part"
    given_up.write_bytes(b"x" * 8192)
    os.utime(given_up, (0, 0))
    config = tmp_path / "mirror.toml"
    config.write_text('[cache]\nmax_size = "150KiB"\n[[cache.expire]]\nrepositories = "library/*"\nafter = "1d"\n')
    before = files(mirror)
    told = await commands.json("gc", "--dry-run", "--config", str(config))
    assert files(mirror) == before
    assert given_up.exists()
    assert told["dry_run"]
    sizes = {name: 100 * KIB + len(image.body) for name, image in images.items()}
    assert told["expired"]["count"] == 3
    assert told["expired"]["size"] > sizes["one"]
    assert told["orphans"] == {"count": 1, "size": 11}
    assert told["unfinished"] == {"count": 1, "size": 8192}
    assert told["evicted"]["size"] > 100 * KIB
    assert "WOULD BE REMOVED" in await commands("gc", "--dry-run", "--config", str(config))
    done = await commands.json("gc", "--config", str(config))
    assert {**done, "dry_run": True} == told
    three = images["three"]
    assert files(mirror) == {digest.hex for digest in (three.digest, three.config, *three.layers)} | (
        files(mirror) & {images["two"].digest.hex}
    )
    assert not given_up.exists()
    assert await commands.json("gc", "--config", str(config)) == {
        "dry_run": False,
        **{reason: {"count": 0, "size": 0} for reason in ("expired", "orphans", "unfinished", "evicted")},
        "hosted": {"tags": [], "manifests": 0, "blobs": 0, "size": 0, "uploads": 0},
    }


async def test_commands_know_the_size_that_the_mirror_keeps(
    mirror: Mirror, start: StartMirror, images: dict[str, Image], tmp_path: Path
) -> None:
    """As it was last started with, running or not: no command throws away by a default what `serve --max-size` keeps. What they are told counts more."""
    commands = Commands(mirror.directory)
    for size in (10 * 1024 * KIB, 20 * 1024 * KIB):
        await mirror.stop()
        mirror = await start(max_size=size)
        assert (await commands.json("stats"))["max_size"] == size
    assert (await commands.json("gc", "--dry-run"))["evicted"]["count"] == 0
    await mirror.stop()
    assert (await commands.json("stats"))["max_size"] == size
    config = tmp_path / "mirror.toml"
    config.write_text('[cache]\nmax_size = "150KiB"\n')
    assert (await commands.json("gc", "--dry-run", "--config", str(config)))["evicted"]["count"] > 0
    (mirror.directory / "catalog" / "max-size").write_text("nonsense")
    assert (await commands.json("stats"))["max_size"] == default_limit(mirror.directory)


async def test_verify_repairs_what_is_damaged(
    commands: Commands, mirror: Mirror, upstream: Scripted, images: dict[str, Image]
) -> None:
    """A layer with a wrong bit, a manifest with one, a file cut short, a file that is gone: fetched again, and right; once."""
    damage(mirror, images["one"].layers[0])
    damage(mirror, images["two"].digest)
    os.truncate(mirror.directory / "blobs" / "sha256" / images["two"].layers[0].hex, 5)
    (mirror.directory / "blobs" / "sha256" / images["three"].config.hex).unlink()
    told = await commands.json("verify")
    assert told["checked"] == 9
    found = {damaged["digest"]: damaged for damaged in told["damaged"]}
    broken = [images["one"].layers[0], images["two"].digest, images["two"].layers[0], images["three"].config]
    assert set(found) == {str(digest) for digest in broken}
    assert all(damaged["repaired"] for damaged in found.values())
    assert found[str(images["two"].digest)]["repository"] == "docker.io/library/two"
    for digest in broken:
        assert Digest.of((mirror.directory / "blobs" / "sha256" / digest.hex).read_bytes()) == digest
    assert "9 files" in await commands("verify")
    assert (await commands.json("verify"))["damaged"] == []
    assert [image["missing"] for image in (await commands.json("ls"))["images"]] == [0, 0, 0]


async def test_what_cannot_be_repaired_is_told(
    commands: Commands, mirror: Mirror, upstream: Scripted, images: dict[str, Image]
) -> None:
    """With status 1 and the reason; it is removed, so that nobody gets it. With --no-repair it is only looked at."""
    layer = images["one"].layers[0]
    damage(mirror, layer)
    text = await commands("verify", "--no-repair", status=1)
    assert f"{layer} of docker.io/library/one is damaged; not repaired" in text
    assert layer.hex in files(mirror)
    del upstream.blobs[str(layer)]
    (told,) = (await commands.json("verify", status=1))["damaged"]
    assert not told["repaired"]
    assert str(layer) in told["fault"]
    assert layer.hex not in files(mirror)


async def test_clients_are_served_while_everything_is_verified(mirror: Mirror, upstream: Scripted, start: StartMirror) -> None:
    """And get what is right, from a manifest in memory and from the disk."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(100 * KIB)])
    await pull(mirror, image, "app")
    damage(mirror, image.layers[0])
    await Commands(mirror.directory, upstream)("verify")
    answer = await mirror.get(f"/v2/app/blobs/{image.layers[0]}")
    assert (answer.digest(), answer.cache) == (image.layers[0], "mirror; hit")
    assert upstream.count("GET", str(image.layers[0])) == 2


async def test_commands_use_what_the_running_mirror_was_told(upstream: Scripted, tmp_path: Path) -> None:
    """Its cache directory and upstreams, by flags and by a file, with workers or without; no real registry is asked for want of a flag. Nothing stays behind."""
    run_folder = {"MIRROR_RUN_FOLDER": str(tmp_path / "run")}
    (tmp_path / "run").mkdir()
    image = upstream.add_image("library/app", "1")
    config = tmp_path / "mirror.toml"
    config.write_text(
        '[cache]\ntag_ttl = "7s"\n[registries."lan:5000"]\nendpoints = ["http://127.0.0.1:1"]\nusername = "u"\npassword = "secret"\n'
    )
    record = tmp_path / "run" / "running.json"
    for workers in ("1", "2"):
        directory = tmp_path / f"cache-{workers}"
        arguments = ["--config", str(config), "--workers", workers]
        with MirrorProcess(directory, {"docker.io": upstream.url}, *arguments, RUN_FOLDER=str(tmp_path / "run")) as running:
            await until(record.exists)
            assert "secret" not in record.read_text()
            done = await asyncio.to_thread(command, "pull", "app:1", **run_folder)
            assert done.returncode == 0, done.stderr
            stats = json.loads((await asyncio.to_thread(command, "stats", "--json", **run_folder)).stdout)
            assert stats["directory"] == str(directory)
            told = json.loads(
                (
                    await asyncio.to_thread(
                        command, "configure", "docker", "--json", "--root", str(tmp_path / "root"), **run_folder
                    )
                ).stdout
            )
            assert told["mirrors"] == [running.url]
            # By the cache directory alone, as where /run is not shared; and flags still win.
            done = await asyncio.to_thread(command, "pull", "app:1", "--cache-dir", str(directory))
            assert done.returncode == 0, done.stderr
            other = await asyncio.to_thread(command, "stats", "--cache-dir", str(tmp_path / "other"), **run_folder)
            assert str(tmp_path / "other") in other.stderr
            assert await asyncio.to_thread(running.terminate) == 0
        assert not record.exists()
        assert not (directory / "running.json").exists()
    assert upstream.count("GET", f"/manifests/{image.digest}") + upstream.count("GET", "/manifests/1") == 2
