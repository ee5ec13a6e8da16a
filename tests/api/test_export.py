"""``GET /export/….tar``: bundles of cached images."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from mirror.bundles.contents import Gatherer
from tests.cli.test_export import blobs, checked
from tests.support.commands import Commands
from tests.support.mirrors import Mirror
from tests.support.scripted import Image, Scripted


async def pull(mirror: Mirror, name: str, image: Image) -> None:
    """Through the mirror, as a client does."""
    await mirror.get(f"/v2/{name}/manifests/{image.digest}")
    for digest in (image.config, *image.layers):
        await mirror.get(f"/v2/{name}/blobs/{digest}")
        await mirror.until_cached(digest)


async def cached(mirror: Mirror, upstream: Scripted, name: str = "app", tag: str = "1") -> Image:
    """An image that is cached whole, under a tag."""
    image = upstream.add_image(f"library/{name}", tag, layers=[os.urandom(300_000), os.urandom(100), os.urandom(512)])
    await mirror.get(f"/v2/{name}/manifests/{tag}")
    await pull(mirror, name, image)
    return image


async def test_a_bundle_over_http_is_the_one_that_export_writes(mirror: Mirror, upstream: Scripted, tmp_path: Path) -> None:
    """Byte for byte, with its length and a strong ETag; upstream is asked for nothing."""
    image = await cached(mirror, upstream)
    asked = len(upstream.asked)
    got = await mirror.get("/export/docker.io/library/app:1.tar")
    found, _ = checked(got.body)
    assert blobs(found) == {str(digest) for digest in (image.digest, image.config, *image.layers)}
    assert (got.status, got.headers["Content-Type"]) == (200, "application/x-tar")
    assert got.headers["Content-Disposition"] == 'attachment; filename="docker.io-library-app-1.tar"'
    assert int(got.headers["Content-Length"]) == len(got.body)
    assert got.headers["ETag"].startswith('"')
    head = await mirror.head("/export/docker.io/library/app:1.tar")
    assert (head.body, head.headers["Content-Length"], head.headers["ETag"]) == (b"", str(len(got.body)), got.headers["ETag"])
    assert (await mirror.get("/export/app:1.tar", If_None_Match=got.headers["ETag"])).status == 304
    assert (await mirror.get("/export/lab.tar?images=app:1,docker.io/library/app:1")).body == got.body
    assert (await mirror.get("/export/lab.tar?images=*")).body == got.body
    assert (await mirror.get(f"/export/app@{image.digest}.tar")).status == 200
    assert len(upstream.asked) == asked
    await Commands(mirror.directory)("export", "--all", "-o", str(tmp_path / "all.tar"))
    assert (tmp_path / "all.tar").read_bytes() == got.body


async def test_any_range_of_a_bundle_is_that_part_of_it(mirror: Mirror, upstream: Scripted) -> None:
    """Also across headers, blobs and padding, and several at once; not where If-Range names another bundle, or a date."""
    await cached(mirror, upstream)
    whole = await mirror.get("/export/app:1.tar")
    size, chance = len(whole.body), random.Random(7)
    for _ in range(60):
        start = chance.randrange(size)
        stop = min(size, start + chance.choice([1, 511, 512, 513, 5000, 400_000]))
        got = await mirror.get("/export/app:1.tar", Range=f"bytes={start}-{stop - 1}", If_Range=whole.headers["ETag"])
        assert (got.status, got.headers["Content-Range"]) == (206, f"bytes {start}-{stop - 1}/{size}")
        assert got.body == whole.body[start:stop]
    several = await mirror.get("/export/app:1.tar", Range="bytes=0-9,1000-1099")
    assert several.status == 206
    assert whole.body[1000:1100] in several.body
    for other in ('"other"', "Wed, 21 Oct 2015 07:28:00 GMT", f"W/{whole.headers['ETag']}"):
        assert (await mirror.get("/export/app:1.tar", Range="bytes=5-9", If_Range=other)).status == 200
    beyond = await mirror.get("/export/app:1.tar", Range=f"bytes={size}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")


async def test_a_download_that_was_cut_goes_on_with_curl(mirror: Mirror, upstream: Scripted, tmp_path: Path) -> None:
    """Wherever it was cut, ``curl -C -`` makes the file whole, byte for byte."""
    await cached(mirror, upstream)
    url = f"{mirror.url}/export/app:1.tar"
    whole = (await mirror.get("/export/app:1.tar")).body
    chance = random.Random(3)
    for cut in (1, 512, *(chance.randrange(2, len(whole) - 1) for _ in range(4))):
        file = tmp_path / "lab.tar"
        for command in (f"curl -s {url} | head -c {cut} > {file}", f"curl -sS --fail -C - -o {file} {url}"):
            shell = await asyncio.create_subprocess_exec("sh", "-c", command)
            assert await shell.wait() == 0
        assert file.read_bytes() == whole


async def test_curl_does_not_mix_two_bundles(mirror: Mirror, upstream: Scripted, tmp_path: Path) -> None:
    """With the ETag of the beginning in If-Range: a tag that has moved meanwhile makes ``curl -C -`` fail, and what it has stays; without a move it goes on."""
    await cached(mirror, upstream)
    url, file, etag = f"{mirror.url}/export/app:1.tar", tmp_path / "lab.tar", tmp_path / "lab.etag"
    before = (await mirror.get("/export/app:1.tar")).body

    async def shell(command: str) -> int:
        return await (await asyncio.create_subprocess_exec("sh", "-c", command)).wait()

    go_on = f'curl -sS --fail -C - -H "If-Range: $(cat {etag})" -o {file} {url}'
    assert await shell(f"curl -s --etag-save {etag} {url} | head -c 100000 > {file}") == 0
    assert await shell(go_on) == 0
    assert file.read_bytes() == before
    file.write_bytes(before[:100_000])
    moved = upstream.add_image("library/app", "1", layers=[os.urandom(300_000)])
    await Commands(mirror.directory, upstream)("pull", "app:1", "--platform", "linux/amd64")
    assert await shell(go_on) == 33  # CURLE_RANGE_ERROR: the whole was sent
    assert file.read_bytes() == before[:100_000]
    file.unlink()
    assert await shell(f"curl -sS --fail -o {file} {url}") == 0
    assert str(moved.digest) in blobs(checked(file)[0])


async def test_heads_suffixes_and_several_ranges(mirror: Mirror, upstream: Scripted) -> None:
    """A suffix is the end of the bundle, several ranges are its parts in order; none in it is 416 for GET; HEAD has the whole's length whatever is asked."""
    await cached(mirror, upstream)
    whole = (await mirror.get("/export/app:1.tar")).body
    size = len(whole)
    for asked, start in (("-1", size - 1), ("-1024", size - 1024), (f"-{size + 5}", 0), (f"{size - 3}-", size - 3)):
        got = await mirror.get("/export/app:1.tar", Range=f"bytes={asked}")
        assert (got.status, got.headers["Content-Range"]) == (206, f"bytes {start}-{size - 1}/{size}")
        assert got.body == whole[start:]
    got = await mirror.get("/export/app:1.tar", Range=f"bytes=0-511,{size + 9}-,2000-2999,-512")
    assert (got.status, int(got.headers["Content-Length"])) == (206, len(got.body))
    boundary = got.headers["Content-Type"].partition("boundary=")[2].encode()
    parts = [part.partition(b"\r\n\r\n")[2][:-2] for part in got.body.split(b"--" + boundary)[1:-1]]
    assert parts == [whole[:512], whole[2000:3000], whole[-512:]]
    for asked in (f"{size}-", f"{size + 1}-{size + 2}", "-0"):
        assert (await mirror.get("/export/app:1.tar", Range=f"bytes={asked}")).status == 416
    head = await mirror.head("/export/app:1.tar", Range="bytes=5-9")
    assert (head.status, head.headers["Content-Length"], head.headers["Accept-Ranges"]) == (200, str(size), "bytes")


async def test_what_is_not_cached_whole_is_404_and_says_what_to_do(mirror: Mirror, upstream: Scripted) -> None:
    """An image that is not cached, one of which a layer is missing, a platform that it is not for; other images of the same bundle make no difference."""
    image = await cached(mirror, upstream)
    for path, word in (
        ("/export/other:1.tar", "mirror pull docker.io/library/other:1"),
        ("/export/lab.tar?images=app:1,other:1", "mirror pull docker.io/library/other:1"),
        ("/export/app:1.tar?platform=linux/s390x", "is not for linux/s390x, but for linux/amd64"),
    ):
        got = await mirror.get(path)
        (error,) = json.loads(got.body)["errors"]
        assert (got.status, error["code"]) == (404, "MANIFEST_UNKNOWN")
        assert word in error["message"]
    assert (await mirror.get("/export/app:1.tar?platform=!")).status == 400
    assert (await mirror.get("/export/app:1.tar", "POST")).status == 405
    (mirror.directory / "blobs" / "sha256" / image.layers[0].hex).unlink()
    got = await mirror.get("/export/app:1.tar")
    assert got.status == 404
    assert (await mirror.get("/export/lab.tar?images=*")).status == 404


async def test_a_platform_is_chosen_and_those_that_are_not_cached_are_left_out(mirror: Mirror, upstream: Scripted) -> None:
    """Without ``platform`` those that are cached whole come; the index is exact all the same."""
    amd, arm = (upstream.add_image("library/both", layers=[os.urandom(2000)]) for _ in range(2))
    index, body = upstream.add_index("library/both", "1", [amd, arm])
    await mirror.get("/v2/both/manifests/1")
    await pull(mirror, "both", arm)

    async def bundled(query: str = "") -> set[str]:
        found, _ = checked((await mirror.get(f"/export/both:1.tar{query}")).body)
        assert found[f"blobs/sha256/{index.hex}"] == body
        return blobs(found)

    def all_of(*images: Image) -> set[str]:
        return {str(index)} | {str(one) for image in images for one in (image.digest, image.config, *image.layers)}

    assert await bundled() == all_of(arm)
    assert (await mirror.get("/export/both:1.tar?platform=linux/amd64")).status == 404
    await pull(mirror, "both", amd)
    assert await bundled() == all_of(amd, arm)
    assert await bundled("?platform=linux/amd64") == all_of(amd)
    assert await bundled("?platform=linux/amd64,linux/arm64") == all_of(amd, arm)


async def test_a_class_that_downloads_the_same_at_once_makes_one_bundle(
    mirror: Mirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it is gathered once for all who ask meanwhile; each gets all of it."""
    await cached(mirror, upstream)
    gathering, go = asyncio.Event(), asyncio.Event()
    calls = 0
    real = Gatherer.add_all

    async def held(self: Gatherer, images: Any) -> Any:
        nonlocal calls
        calls += 1
        gathering.set()
        await go.wait()
        return await real(self, images)

    monkeypatch.setattr(Gatherer, "add_all", held)
    async with asyncio.TaskGroup() as group:
        students = [group.create_task(mirror.get("/export/lab.tar?images=*")) for _ in range(8)]
        await gathering.wait()
        # Sent after them, so that they have begun once it is answered.
        assert (await mirror.get("/healthz")).status == 200
        go.set()
    (body,) = {student.result().body for student in students}
    assert calls == 1
    checked(body)


async def test_a_blob_that_vanishes_cuts_the_download(mirror: Mirror, upstream: Scripted) -> None:
    """What was sent does not look complete."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(16 * 1024 * 1024), b"last"])
    await mirror.get("/v2/app/manifests/1")
    await pull(mirror, "app", image)
    size = int((await mirror.head("/export/app:1.tar")).headers["Content-Length"])
    reader, writer = await mirror.slow_reader("/export/app:1.tar")
    # More than sockets hold is still to come.
    last = image.layers[-1]
    (mirror.directory / "blobs" / last.algorithm / last.hex).unlink()
    try:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(size)
    finally:
        writer.close()
