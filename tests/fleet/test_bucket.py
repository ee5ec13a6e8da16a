"""A bucket behind mirrors, of a real S3 server: what it keeps, what it is asked for, and that it is never the reason that a pull fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from mirror.storage.disk.catalog.schema import FILE
from mirror.upstream import bucket
from mirror.upstream import objects as objects_of_a_bucket
from mirror.upstream.objects import Objects, blob_key
from tests.fleet.test_fleet import of, pull
from tests.support.members import StartMembers
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.s3 import ENVIRONMENT, S3
from tests.support.scripted import Image, Scripted

MIB = 1024 * 1024


def image_of(upstream: Scripted, layers: int = 2, tag: str = "1") -> Image:
    return upstream.add_image("library/app", tag, layers=[os.urandom(MIB) for _ in range(layers)])


async def written(s3: S3, image: Image, tag: str = "1") -> None:
    """Waits until the bucket has all of an image."""
    paths = [s3.manifest(image.digest), *(s3.blob(digest) for digest in (image.config, *image.layers))]
    await until(lambda: all(path.exists() for path in paths) and s3.tag("library/app", tag) is not None)


async def emptied(mirror: Mirror, image: Image) -> None:
    """Waits until all of an image is known, and nothing waits to be written."""
    names = [str(digest) for digest in (image.digest, image.config, *image.layers)]

    def is_empty() -> bool:
        with contextlib.closing(sqlite3.connect(mirror.directory / "catalog" / FILE)) as db:
            [(known,)] = db.execute(
                "SELECT count(*) FROM content WHERE digest IN (SELECT value FROM json_each(?))", (json.dumps(names),)
            )
            [(waiting,)] = db.execute("SELECT count(*) FROM outbox")
        return bool(known == len(set(names)) and not waiting)

    await until(is_empty)


async def degraded(mirror: Mirror) -> list[str]:
    found: list[str] = json.loads((await mirror.get("/readyz")).body)["degraded"]
    return found


async def test_what_is_pulled_is_written_behind_once(start: StartMirror, upstream: Scripted, s3: S3) -> None:
    """Blobs, manifests and what tags mean; a blob of several parts too. What is there is not sent again, also not by a mirror that begins with an empty disk."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(12 * MIB), b"", os.urandom(1000)])
    mirror = await start(settings={"fleet": s3.settings})
    await pull(mirror, image)
    await written(s3, image)
    await emptied(mirror, image)
    for digest in (image.config, *image.layers):
        assert Digest.of(s3.blob(digest).read_bytes()) == digest
    assert s3.manifest(image.digest).read_bytes() == image.body
    tag = s3.tag("library/app", "1")
    assert tag is not None
    assert (tag["digest"], tag["size"]) == (str(image.digest), len(image.body))
    sent = await mirror.metric("mirror_bucket_sent_bytes_total")
    await mirror.stop()
    shutil.rmtree(mirror.directory)
    again = await start(settings={"fleet": s3.settings})
    await pull(again, image)
    await emptied(again, image)
    assert await again.metric("mirror_bucket_sent_bytes_total") == sent
    assert s3.tag("library/app", "1") == tag


async def test_a_fleet_that_lost_all_disks_serves_without_the_registry(
    members: StartMembers, upstream: Scripted, s3: S3, tmp_path: Path
) -> None:
    """Tags, manifests and blobs come from the bucket: no request reaches the registry while tags are fresh, and none is needed once it is gone and they are not."""
    fleet = await members(2, settings={"fleet": s3.settings})
    image = image_of(upstream, 4)
    await asyncio.gather(*(pull(mirror, image) for mirror in fleet.mirrors.values()))
    await written(s3, image)
    for mirror in fleet.mirrors.values():
        await mirror.stop()
        shutil.rmtree(mirror.directory)
    asked = len(upstream.asked)
    fleet = await members(2, settings={"fleet": s3.settings})
    await asyncio.gather(*(pull(mirror, image) for mirror in fleet.mirrors.values()))
    assert len(upstream.asked) == asked
    for mirror in fleet.mirrors.values():
        await mirror.stop()
        shutil.rmtree(mirror.directory)
    await upstream.stop()
    fleet = await members(2, settings={"fleet": s3.settings}, tag_ttl="0s")
    await asyncio.gather(*(pull(mirror, image) for mirror in fleet.mirrors.values()))


async def test_a_tag_is_as_old_as_its_registrys_word(start: StartMirror, upstream: Scripted, s3: S3) -> None:
    """What was read from the bucket counts from when the registry was asked: it is asked again then, and what the bucket knows does not turn the tag back."""
    image = image_of(upstream)
    mirror = await start(settings={"fleet": s3.settings}, tag_ttl="1h")
    await pull(mirror, image)
    await written(s3, image)
    await mirror.stop()
    path = s3.objects / "tags/docker.io/library/app/1.json"
    tag = json.loads(path.read_text())
    path.write_text(json.dumps({**tag, "checked": tag["checked"] - 3000}))
    mirror = await start(mirror.directory.with_name("second"), settings={"fleet": s3.settings}, tag_ttl="1h")
    heads = upstream.count("HEAD")
    got = await mirror.head("/v2/library/app/manifests/1", CDN_Loop="below; mirror=child")
    assert 3000 <= int(got.headers["Age"]) < 3600
    assert upstream.count("HEAD") == heads
    await mirror.stop()
    path.write_text(json.dumps({**tag, "checked": tag["checked"] - 4000}))
    new = image_of(upstream)
    mirror = await start(mirror.directory.with_name("third"), settings={"fleet": s3.settings}, tag_ttl="1h")
    assert (await mirror.head("/v2/library/app/manifests/1")).headers["Docker-Content-Digest"] == str(new.digest)


DAMAGED = (
    b"",
    b"{}",
    b"[",
    b'{"digest": "sha256:0", "mediaType": 1, "size": "x", "checked": null}',
    b"\xff" * 200_000,
    *(
        b'{"digest": "%(digest)s", "mediaType": "%(type)s", "size": SIZE, "checked": CHECKED}'.replace(b"SIZE", size).replace(
            b"CHECKED", checked
        )
        for size, checked in (
            (b"1.5", b"1"),
            (b"true", b"1"),
            (b"%(size)d", b"1" + b"0" * 400),
            (b"%(size)d", b"NaN"),
            (b"%(size)d", b"-Infinity"),
            (b"%(size)d", b"1e300"),
        )
    ),
)


async def test_a_tag_that_is_damaged_in_the_bucket_is_asked_of_the_registry(
    start: StartMirror, upstream: Scripted, s3: S3
) -> None:
    """Whatever is in the object, a time that nobody can count with too, and it is put right."""
    image = image_of(upstream)
    named = {b"digest": str(image.digest).encode(), b"type": OCI_MANIFEST.encode(), b"size": len(image.body)}
    tags = [f"tag-{number}" for number in range(len(DAMAGED))]
    folder = s3.objects / "tags/docker.io/library/app"
    folder.mkdir(parents=True)
    mirror = await start(settings={"fleet": s3.settings})
    for tag, content in zip(tags, DAMAGED, strict=True):
        (folder / f"{tag}.json").write_bytes(content % named if b"%(" in content else content)
        upstream.add_manifest("library/app", tag, image.body)
        await pull(mirror, image, tag)

    def is_right(tag: str) -> bool:
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
            found = json.loads((folder / f"{tag}.json").read_bytes())
            return bool(
                (found["digest"], found["size"]) == (str(image.digest), len(image.body))
                and 0 < time.time() - found["checked"] < 3600
            )
        return False

    await until(lambda: all(map(is_right, tags)))


async def test_what_the_bucket_has_of_one_repository_is_not_anothers(
    start: StartMirror, upstream: Scripted, s3: S3, tmp_path: Path
) -> None:
    """Where not everybody may pull everything, a manifest from the bucket counts as a repository's own by its registry's word only: whoever may pull everything and asks for it by another name
    opens it to nobody, also while the registry does not answer."""
    token = tmp_path / "token"
    token.write_text("the-token-of-the-fleet")
    access = [{"who": ["anyone"], "repositories": ["library/app"]}]
    settings = {"fleet": {**s3.settings, "token_file": str(token)}, "access": access}
    everything = {"CDN_Loop": "other.lan:5000; mirror=peer", "Authorization": "Bearer the-token-of-the-fleet"}
    upstream.keeps_apart = True
    upstream.add_image("library/app", "1")
    secret = upstream.add_image("library/secret", "1")
    mirror = await start(settings=settings)
    assert (await mirror.get(f"/v2/library/secret/manifests/{secret.digest}", **everything)).body == secret.body
    await until(s3.manifest(secret.digest).exists)
    await mirror.stop()
    mirror = await start(tmp_path / "second", settings=settings)
    by_another = f"/v2/library/app/manifests/{secret.digest}"
    assert (await mirror.get(by_another, **everything)).status == 404
    assert (await mirror.get(by_another)).status == 404
    await upstream.stop()
    third = await start(tmp_path / "third", settings=settings)
    assert (await third.get(by_another, **everything)).body == secret.body
    assert (await third.get(by_another)).status in (502, 503)
    assert not third.cached(secret.digest)


async def test_wrong_bytes_in_the_bucket_are_put_right(start: StartMirror, upstream: Scripted, s3: S3) -> None:
    """They reach nobody: a blob, or a manifest, comes from the registry, and replaces what was in the bucket."""
    image = image_of(upstream, 3)
    for layer, stop, more in zip(image.layers, (MIB - 1, MIB - 100, 0), (b"x", b"", b""), strict=True):
        s3.blob(layer).parent.mkdir(parents=True, exist_ok=True)
        s3.blob(layer).write_bytes(upstream.blobs[str(layer)][:stop] + more)
    s3.manifest(image.digest).parent.mkdir(parents=True)
    s3.manifest(image.digest).write_bytes(b"{}")
    mirror = await start(settings={"fleet": s3.settings})
    assert (await mirror.get(f"/v2/library/app/manifests/{image.digest}")).body == image.body
    for layer in image.layers:
        if (got := await mirror.get(of(layer))).cut:
            got = await mirror.get(of(layer))
        assert got.digest() == layer
    await until(lambda: all(Digest.of(s3.blob(layer).read_bytes()) == layer for layer in image.layers))
    await until(lambda: s3.manifest(image.digest).read_bytes() == image.body)


async def test_what_nobody_expects_of_one_object_holds_up_no_other(
    start: StartMirror, upstream: Scripted, s3: S3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and tried again; everything else is written."""
    image = image_of(upstream)
    write = Objects.size
    failed: list[str] = []

    async def fail_once(objects: Objects, key: str) -> int | None:
        if key == blob_key(image.layers[0]) and not failed:
            failed.append(key)
            raise ZeroDivisionError
        return await write(objects, key)

    monkeypatch.setattr(Objects, "size", fail_once)
    mirror = await start(settings={"fleet": s3.settings})
    await pull(mirror, image)
    await written(s3, image)
    assert failed
    assert f"{image.layers[0]} cannot be written to the bucket" in caplog.text


@pytest.mark.parametrize("is_clients", [False, True])
async def test_what_may_be_one_clients_is_not_written(start: StartMirror, upstream: Scripted, s3: S3, is_clients: bool) -> None:
    """After the catalog was lost, nobody knows from which registry a blob is: where clients log in to one themselves, it may be from that. Elsewhere all is written."""
    image = image_of(upstream)
    mirror = await start()
    await pull(mirror, image)
    await mirror.stop()
    shutil.rmtree(mirror.directory / "catalog")
    own = {"endpoints": [upstream.url], "credentials": "client", "client_hosts": ["ghcr.lan"]}
    mirror = await start(settings={"fleet": s3.settings, "registries": {"ghcr.io": own} if is_clients else {}})
    await mirror.mended()
    await emptied(mirror, image)
    assert [s3.blob(digest).exists() for digest in image.layers] == [not is_clients] * len(image.layers)
    if is_clients:
        more = image_of(upstream, 2, "2")
        await pull(mirror, more, "2")
        await written(s3, more, "2")


HOW = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


@pytest.mark.parametrize("how", HOW)
async def test_a_bucket_that_is_down_delays_the_first_pull_only(start: StartMirror, upstream: Scripted, s3: S3, how: str) -> None:
    """And that by one request of the bucket, which is given up after two seconds: no more is waited for. No client gets an error. /readyz tells, and it is used again once it is back, which writes what has waited."""
    mirror = await start(settings={"fleet": s3.settings})
    images = [image_of(upstream, 2, str(number)) for number in range(3)]
    await pull(mirror, images[0], "0")
    await written(s3, images[0], "0")
    await emptied(mirror, images[0])
    s3.signal(HOW[how])
    before = await mirror.metric("mirror_bucket_errors_total")
    await pull(mirror, images[1], "1")
    assert await mirror.metric("mirror_bucket_errors_total") == before + 1, "one request, which waits for two seconds at most"
    [told] = await degraded(mirror)
    assert "the bucket s3://images is not used" in told
    await pull(mirror, images[2], "2")
    assert await mirror.metric("mirror_bucket_errors_total") == before + 1, "it is not asked until it is back"
    if how == "killed":
        s3.stop()
        s3.start()
    else:
        s3.signal(signal.SIGCONT)
    for number in (1, 2):
        await written(s3, images[number], str(number))
    await emptied(mirror, images[2])
    assert await degraded(mirror) == []


@pytest.mark.parametrize("how", HOW)
async def test_a_bucket_that_goes_in_mid_pull(start: StartMirror, upstream: Scripted, s3: S3, how: str) -> None:
    """What has come is kept, and the rest comes from the registry."""
    layer = os.urandom(12 * MIB)
    image = upstream.add_image("library/app", "1", layers=[layer])
    mirror = await start(settings={"fleet": s3.settings})
    await pull(mirror, image)
    await written(s3, image)
    await emptied(mirror, image)
    await mirror.stop()
    shutil.rmtree(mirror.directory)
    sent = upstream.sent.get(str(image.layers[0]), 0)
    mirror = await start(settings={"fleet": s3.settings, "upstream": {"max_rate": "6MB"}})
    before = await mirror.metric("mirror_bucket_received_bytes_total")
    asked = asyncio.create_task(mirror.get(of(image.layers[0])))
    while await mirror.metric("mirror_bucket_received_bytes_total") - before < 2 * MIB:
        await asyncio.sleep(0.01)
    s3.signal(HOW[how])
    got = await asked
    assert (got.status, got.digest()) == (200, image.layers[0])
    assert 0 < upstream.sent[str(image.layers[0])] - sent < len(layer), "only what had not come from the bucket"


async def is_up(mirror: Mirror, bucket: str = "s3://images") -> bool:
    """By the metric; other tests have had other buckets."""
    shown = (await mirror.get("/metrics")).body.decode().splitlines()
    (line,) = (line for line in shown if line.startswith(f'mirror_bucket_up{{bucket="{bucket}"'))
    return float(line.rpartition(" ")[2]) == 1


BAD: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "no such bucket": ({"bucket": "s3://nothing"}, {}, "answered 404 (NoSuchBucket)"),
    "denied": ({}, {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "answered 403 (SignatureDoesNotMatch)"),
    "nobody listens": ({"bucket_endpoint": "http://127.0.0.1:1"}, {}, "no connection with"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bucket_that_cannot_be_used_fails_neither_start_nor_pull(
    start: StartMirror,
    upstream: Scripted,
    s3: S3,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """It is said what is wrong, without a secret."""
    settings, environment, why = BAD[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    mirror = await start(settings={"fleet": {**s3.settings, **settings}})
    await pull(mirror, image_of(upstream))
    async with asyncio.timeout(PATIENCE):
        while why not in (told := " ".join(await degraded(mirror))):
            await asyncio.sleep(0.01)
    assert "is not asked until it is well again: " in caplog.text
    for text in (caplog.text, told):
        assert "Signature=" not in text
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    assert not await is_up(mirror, {**s3.settings, **settings}["bucket"])


async def test_without_the_extra_the_mirror_runs_and_says_so(
    start: StartMirror, upstream: Scripted, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is not needed for a start, nor for a pull."""
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    mirror = await start(settings={"fleet": s3.settings})
    await pull(mirror, image_of(upstream))
    assert "pip install 'registry-mirror[bucket]'" in (await degraded(mirror))[0]


async def test_a_crash_loses_nothing_of_what_waits(upstream: Scripted, s3: S3, tmp_path: Path) -> None:
    """Killed while the bucket is down, a mirror writes after its next start what was published before."""
    image = image_of(upstream)
    s3.stop()
    settings = {"FLEET__BUCKET": "s3://images", "FLEET__BUCKET_ENDPOINT": s3.url, "CACHE__PREFETCH": "false"}
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, **settings) as mirror:
        async with aiohttp.ClientSession(mirror.url, auto_decompress=False) as session:
            asked_of = Mirror(mirror.url, session, mirror.directory, contextlib.AsyncExitStack())
            await pull(asked_of, image)
            # Clients have all bytes before they are published.
            for digest in (image.config, *image.layers):
                await asked_of.until_cached(digest)
        mirror.kill()
        s3.start()
        mirror.start()
        await written(s3, image)
        assert [Digest.of(s3.blob(layer).read_bytes()) for layer in image.layers] == list(image.layers)
    asked = [seen for seen in upstream.asked if seen.method == "GET"]
    assert len(asked) == 2 + len(image.layers), "the manifest, the configuration and the layers, once"


async def test_a_bucket_that_hangs_does_not_hold_up_the_end(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being written is brought to its end when its task is cancelled, since what is written next must come after it; at the end of the mirror it is left alone."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects_of_a_bucket, "_PATIENCE", 0.3)
    objects = Objects("s3://images", s3.url, None)
    await objects.put("one", b"before")
    s3.signal(signal.SIGSTOP)
    first, second = (asyncio.create_task(objects.put(key, b"x")) for key in ("one", "two"))
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.sleep(0.1)
    assert not first.done(), "another one could overtake it"
    objects.give_up()
    second.cancel()
    await asyncio.wait([first, second])
    await objects.aclose()
    left = [thread for thread in threading.enumerate() if thread.name == "request"]
    assert left, "the bucket still hangs"
    s3.signal(signal.SIGCONT)
    for thread in left:
        await asyncio.to_thread(thread.join)
    assert (s3.objects / "one").read_bytes() == b"x"


async def test_a_bucket_that_answers_looks_only_is_left_for_a_while(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose disks hang says at once what it has not got, and nothing of what it has: pulls do not wait for it again and again."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "PATIENCE", 0.3)
    monkeypatch.setattr(objects_of_a_bucket, "_PATIENCE", 0.3)
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path.endswith("/mirror"):
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        if request.method == "GET":
            asked.append(request.path)
        await asyncio.Event().wait()
        raise AssertionError

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    mirror = await start(settings={"fleet": {"bucket": "s3://images", "bucket_endpoint": f"http://127.0.0.1:{port}"}})
    await pull(mirror, image_of(upstream, 1, "1"), "1")
    async with asyncio.timeout(PATIENCE):
        while not await is_up(mirror):
            await asyncio.sleep(0.02)
    await pull(mirror, image_of(upstream, 1, "2"), "2")
    before = len(asked)
    for tag in ("3", "4"):
        await pull(mirror, image_of(upstream, 1, tag), tag)
    assert len(asked) == before
    assert "the bucket s3://images is not used" in (await degraded(mirror))[0]
    assert not await is_up(mirror)
    await mirror.stop()
    await runner.cleanup()
