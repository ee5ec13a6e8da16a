"""Hosted repositories with a bucket behind them, of a real S3 server: durable before 201, and back after the disk was lost."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from mirror import wiring
from mirror.config import Settings
from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest, Repository, Tag
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.pushes import HOSTED, Said, manifest_of, push_blob, say
from tests.support.s3 import S3
from tests.support.scripted import Scripted

REPOSITORY = "team/app"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def settings(s3: S3) -> dict[str, Any]:
    return {"hosted": HOSTED, "fleet": s3.settings}


async def push_image(mirror: Mirror, tag: str) -> tuple[bytes, list[bytes]]:
    """Pushes an index of one image. Returns its bytes, and the blobs."""
    blobs = [b'{"salt": "%s"}' % os.urandom(4).hex().encode(), os.urandom(6 * 1024 * 1024), os.urandom(1000)]
    for blob in blobs:
        await push_blob(mirror.session, REPOSITORY, blob)
    body = manifest_of(*blobs)
    said = await say(mirror.session, "PUT", f"/v2/{REPOSITORY}/manifests/{Digest.of(body)}", body, Content_Type=OCI_MANIFEST)
    assert said.status == 201, said
    entry = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(body)), "size": len(body)}
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    said = await put(mirror, index, tag)
    assert said.status == 201, said
    return index, blobs


async def put(mirror: Mirror, index: bytes, tag: str) -> Said:
    return await say(mirror.session, "PUT", f"/v2/{REPOSITORY}/manifests/{tag}", index, Content_Type=OCI_INDEX)


async def complete(mirror: Mirror) -> None:
    """Waits until the mirror has looked for what it lacks."""
    async with asyncio.timeout(PATIENCE):
        while (await mirror.get(f"/v2/{REPOSITORY}/manifests/nothing")).status == 503:
            await asyncio.sleep(0.02)


def keys(s3: S3) -> set[str]:
    return {path.name for path in (s3.objects / "hosted").rglob("*") if path.is_file()}


async def test_what_is_pushed_is_in_the_bucket_before_the_answer_and_comes_back(
    start: StartMirror, upstream: Scripted, s3: S3
) -> None:
    """Blobs, manifests, tags; what was deleted stays away. No registry is asked."""
    mirror = await start(settings=settings(s3))
    await complete(mirror)
    index, blobs = await push_image(mirror, "1")
    await push_image(mirror, "gone")
    assert {Digest.of(blob).hex for blob in blobs} | {"1", "gone", f"sha256-{Digest.of(index).hex}"} <= keys(s3)
    assert (await say(mirror.session, "DELETE", f"/v2/{REPOSITORY}/manifests/gone")).status == 202
    await mirror.stop()
    shutil.rmtree(mirror.directory)
    mirror = await start(settings=settings(s3))
    assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/1")).status in (200, 503)
    await complete(mirror)
    assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/1")).body == index
    for blob in blobs:
        assert (await mirror.get(f"/v2/{REPOSITORY}/blobs/{Digest.of(blob)}")).body == blob
    assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/gone")).status == 404
    assert upstream.asked == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_push_fails_while_the_bucket_is_down(start: StartMirror, s3: S3, number: signal.Signals) -> None:
    """With 503 and what is wrong; what was pushed before is pulled as ever. Once the bucket is back, it takes pushes again."""
    mirror = await start(settings=settings(s3))
    await complete(mirror)
    index, blobs = await push_image(mirror, "1")
    s3.signal(number)
    refused = [await say(mirror.session, "POST", f"/v2/{REPOSITORY}/blobs/uploads/"), await put(mirror, index, "2")]
    assert [said.status for said in refused] == [503, 503]
    assert all("the bucket s3://images" in said.message for said in refused)
    assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/1")).body == index
    assert (await mirror.get(f"/v2/{REPOSITORY}/blobs/{Digest.of(blobs[1])}")).body == blobs[1]
    if number == signal.SIGKILL:
        s3.stop()
        s3.start()
    else:
        s3.signal(signal.SIGCONT)
    async with asyncio.timeout(PATIENCE):
        while (await put(mirror, index, "2")).status != 201:
            await asyncio.sleep(0.05)
    assert "2" in keys(s3)


async def test_what_was_pushed_before_there_was_a_bucket_is_written_to_it(start: StartMirror, s3: S3, tmp_path: Path) -> None:
    """After the next start, behind everything else; and comes back on an empty disk."""
    mirror = await start(settings={"hosted": HOSTED})
    index, blobs = await push_image(mirror, "1")
    await mirror.stop()
    mirror = await start(settings=settings(s3))
    async with asyncio.timeout(PATIENCE):
        while "1" not in keys(s3):
            await asyncio.sleep(0.02)
    await mirror.stop()
    mirror = await start(tmp_path / "new", settings=settings(s3))
    await complete(mirror)
    assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/1")).body == index
    assert (await mirror.get(f"/v2/{REPOSITORY}/blobs/{Digest.of(blobs[1])}")).body == blobs[1]


async def test_nothing_counts_as_absent_while_the_bucket_cannot_be_asked(start: StartMirror, s3: S3) -> None:
    """A mirror that starts with an empty disk, and without its bucket, says 503: a client that heard 404 might push something else. Then it has all again."""
    mirror = await start(settings=settings(s3))
    await complete(mirror)
    index, _ = await push_image(mirror, "1")
    await mirror.stop()
    shutil.rmtree(mirror.directory)
    s3.stop()
    mirror = await start(settings=settings(s3))
    got = await mirror.get(f"/v2/{REPOSITORY}/manifests/1")
    assert got.status == 503
    assert b"may not all be here yet" in got.body
    assert (await put(mirror, index, "1")).status == 503
    s3.start()
    await complete(mirror)
    assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/1")).body == index


async def test_a_layer_that_registries_do_not_have_is_not_missed(
    start: StartMirror, s3: S3, caplog: pytest.LogCaptureFixture
) -> None:
    """An image of Windows names one: a restart neither looks for it in the bucket nor pushes the image again."""
    mirror = await start(settings=settings(s3))
    await complete(mirror)
    await push_blob(mirror.session, REPOSITORY, b"{}")
    foreign = {"mediaType": FOREIGN, "digest": str(Digest.of(b"elsewhere")), "size": 9}
    body = manifest_of(b"{}", layers=[foreign])
    said = await say(mirror.session, "PUT", f"/v2/{REPOSITORY}/manifests/1", body, Content_Type=OCI_MANIFEST)
    assert said.status == 201
    await mirror.stop()
    mirror = await start(mirror.directory, settings=settings(s3))
    await complete(mirror)
    assert s3.requests("HEAD", Digest.of(b"elsewhere").hex) == 0
    assert "came back from the bucket" not in caplog.text
    await mirror.stop()
    mirror = await start(mirror.directory.with_name("new"), settings=settings(s3))
    await complete(mirror)
    assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/1")).body == body
    assert "push it again" not in caplog.text


DAMAGED = {
    "empty": b"",
    "a list": b"[]",
    "no digest": b'{"digest": 1, "pushed": 1}',
    "a time that no float holds": b'{"digest": "sha256:%s", "pushed": 1%s}' % (b"0" * 64, b"0" * 400),
    "deep": b"[" * 100_000,
    "large": b" " * (5 * 1024 * 1024),
}


async def test_what_is_damaged_in_the_bucket_holds_nothing_up(start: StartMirror, s3: S3) -> None:
    """Whatever is in the objects of tags and manifests: what is whole comes back, pushes are taken, and what is deleted later is deleted there."""
    mirror = await start(settings=settings(s3))
    await complete(mirror)
    index, _ = await push_image(mirror, "1")
    await mirror.stop()
    shutil.rmtree(mirror.directory)
    place = s3.objects / "hosted/mirror"
    manifests = place / "manifests/docker.io" / REPOSITORY / "_"
    for number, content in enumerate(DAMAGED.values()):
        (place / "tags/docker.io" / REPOSITORY / "_" / f"damaged-{number}").write_bytes(content)
        (manifests / f"sha256-{number:064x}").write_bytes(content)
    mirror = await start(settings=settings(s3))
    await complete(mirror)
    assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/1")).body == index
    for number in range(len(DAMAGED)):
        assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/damaged-{number}")).status == 404
        assert (await put(mirror, index, f"damaged-{number}")).status == 201
    assert (await say(mirror.session, "DELETE", f"/v2/{REPOSITORY}/manifests/{Digest.of(index)}")).status == 202
    assert {name for name in keys(s3) if name == "1" or name.startswith("damaged")} == set()


KEEP = {"untagged": "1s", "grace": "1s", "keep": [{"repositories": "team/**", "tags": "rule-*", "last": 1}]}


@pytest.mark.parametrize("runs", [False, True])
async def test_what_is_deleted_otherwise_stays_away(start: StartMirror, s3: S3, runs: bool) -> None:
    """By a command or a rule of retention, while a mirror `runs` or not, it is deleted in the bucket too: neither a restart nor a lost disk brings it back. What is kept stays there."""
    chosen = {**settings(s3), "hosted": {**HOSTED, **KEEP}}
    mirror = await start(settings=chosen)
    await complete(mirror)
    pushed = {tag: Digest.of((await push_image(mirror, tag))[0]) for tag in ("by-tag", "by-digest", "rule-1", "rule-2")}
    kept = pushed.pop("rule-2")
    if not runs:
        await mirror.stop()
    repository = Repository("docker.io", REPOSITORY)
    async with wiring.store(Settings.model_validate({**chosen, "cache": {"dir": mirror.directory}})) as store:
        await store.delete(repository, Tag("by-tag"))
        await store.delete(repository, pushed["by-digest"])
        async with asyncio.timeout(PATIENCE):
            # Its manifest goes a second after its tag.
            while await store.hosted.has(repository, pushed["rule-1"]):
                await store.collect()
                await asyncio.sleep(0.1)
    if not runs:
        mirror = await start(mirror.directory, settings=chosen)
        await complete(mirror)
    absent = {*pushed, *(f"sha256-{digest.hex}" for digest in pushed.values())}
    async with asyncio.timeout(PATIENCE):
        while absent & keys(s3):
            await asyncio.sleep(0.02)
    await mirror.stop()
    for folder in (mirror.directory, mirror.directory.with_name("new")):
        mirror = await start(folder, settings=chosen)
        await complete(mirror)
        for reference in (*pushed, *pushed.values()):
            assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/{reference}")).status == 404
        assert (await mirror.get(f"/v2/{REPOSITORY}/manifests/rule-2")).digest() == kept
        await mirror.stop()
