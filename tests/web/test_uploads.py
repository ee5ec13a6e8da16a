"""Archives of images that an admin uploads, by a form of the dashboard or as the body of a request."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from mirror.names import Digest
from mirror.web import uploads
from tests.support.archives import layout_of, pack
from tests.support.dashboard import HTML, log_in, token
from tests.support.images import make_image, make_index
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.scripted import Scripted

NAME = "docker.io/library/lab:1"
IMAGE = make_image(41, size=600_000)
TAR = pack(layout_of({NAME: IMAGE}))
LAYER = max(IMAGE.blobs, key=lambda digest: len(IMAGE.blobs[digest]))
MIDDLE = TAR.index(IMAGE.blobs[LAYER]) + 200_000


def bearer(mirror: Mirror) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(mirror)}"}


async def put(mirror: Mirror, data: Any, path: str = "/import", **headers: str) -> tuple[int, Any]:
    async with mirror.session.put(path, data=data, headers={**bearer(mirror), **headers}) as answer:
        return answer.status, json.loads(await answer.text())


async def serves(mirror: Mirror) -> bool:
    """The whole image, by its tag."""
    found = [await mirror.get("/v2/library/lab/manifests/1")]
    found += [await mirror.get(f"/v2/library/lab/blobs/{digest}") for digest in IMAGE.blobs]
    return [str(one.digest()) for one in found if one.status == 200] == [IMAGE.digest, *IMAGE.blobs]


class Held:
    """A body whose second part is sent when `go_on` is set."""

    def __init__(self, data: bytes, middle: int) -> None:
        self._data = data
        self._middle = middle
        self.go_on = asyncio.Event()

    async def parts(self) -> AsyncIterator[bytes]:
        yield self._data[: self._middle]
        await self.go_on.wait()
        yield self._data[self._middle :]


async def form(mirror: Mirror, **fields: str) -> aiohttp.FormData:
    """The form of the page, with the secret of a session; the file comes last."""
    made = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        made.add_field(name, value)
    made.add_field("archive", TAR, filename="lab.tar", content_type="application/x-tar")
    return made


async def secret(mirror: Mirror, cookie: str) -> str:
    page = (await mirror.get("/import", Cookie=cookie, **HTML)).body.decode()
    (found,) = re.findall(r'name="secret" value="([0-9a-f]+)"', page)
    return str(found)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_archive_is_imported_as_it_comes(mirror: Mirror, upstream: Scripted, packed: bool, chunked: bool) -> None:
    """With the token, whatever the body's framing; the image is served at once, upstream is not asked, and a second upload brings nothing."""
    assert (await mirror.get("/v2/library/lab/manifests/1")).status == 404
    asked = len(upstream.asked)
    data = gzip.compress(TAR, 1) if packed else TAR
    body = Held(data, len(data) // 2)
    body.go_on.set()
    status, done = await put(mirror, body.parts() if chunked else data, "/import/lab.tar")
    assert (status, [(one["image"], one["digest"], one["fault"]) for one in done["images"]]) == (
        200,
        [(NAME, IMAGE.digest, None)],
    )
    assert done["size"] > 600_000
    assert await serves(mirror)
    assert len(upstream.asked) == asked
    assert (await put(mirror, data))[1]["size"] == 0
    assert mirror.spooled() == []


async def test_a_large_chunked_body_is_taken(mirror: Mirror) -> None:
    """More than what a client may have pending of requests that nobody reads; the connection may be used for nothing else afterwards."""
    large = make_image(42, size=9_000_000)
    data = pack(layout_of({NAME: large}))

    async def parts() -> AsyncIterator[bytes]:
        for offset in range(0, len(data), 100_000):
            yield data[offset : offset + 100_000]

    status, done = await put(mirror, parts())
    assert (status, done["images"][0]["digest"]) == (200, large.digest)


async def test_only_with_the_token(mirror: Mirror) -> None:
    """Without it, with a wrong one, from another site, or with a session but without its form's secret: nothing is read."""
    cookie = await log_in(mirror)
    good = await secret(mirror, cookie)
    cases: list[tuple[str, dict[str, str], Any, int]] = [
        ("PUT", {}, TAR, 401),
        ("PUT", {"Authorization": "Bearer wrong"}, TAR, 401),
        ("PUT", {"Cookie": cookie}, TAR, 403),
        ("POST", {}, await form(mirror, secret=good), 401),
        ("POST", {"Cookie": cookie}, await form(mirror), 403),
        ("POST", {"Cookie": cookie}, await form(mirror, secret="0" * 64), 403),
        ("POST", {"Cookie": cookie, "Origin": "http://evil.example"}, await form(mirror, secret=good), 403),
        ("POST", {"Cookie": cookie, "Sec-Fetch-Site": "cross-site"}, await form(mirror, secret=good), 403),
    ]
    for method, headers, body, status in cases:
        async with mirror.session.request(method, "/import", data=body, headers=headers) as answer:
            assert answer.status == status, (method, headers)
    assert not mirror.cached(Digest.parse(LAYER))
    assert mirror.spooled() == []
    assert (await mirror.get("/import", **HTML)).status == 401
    async with mirror.session.post("/import", data=await form(mirror, secret=good), headers={"Cookie": cookie}) as answer:
        assert answer.status == 200


async def test_the_form_answers_with_a_page(mirror: Mirror) -> None:
    """In the language of the page, with what came in; the fields before the file count."""
    cookie = await log_in(mirror)
    for language, word in (("en", "1 image, "), ("zh", "1 个镜像")):
        fields = {"secret": await secret(mirror, cookie), "as": "", "platform": "", "pin": "yes"}
        headers = {"Cookie": cookie, "Accept-Language": language, **HTML}
        async with mirror.session.post("/import", data=await form(mirror, **fields), headers=headers) as answer:
            page = (await answer.text()).replace("\u00a0", " ")
            assert (answer.status, word in page, f'href="/image/{NAME}"' in page) == (200, True, True)
    assert "badge accent" in (await mirror.get(f"/image/{NAME}", **HTML)).body.decode()
    assert await serves(mirror)


@pytest.mark.parametrize(
    ("data", "query", "status", "words", "chinese"),
    [
        (b"<html>" * 200, "", 400, "this is no tar", "不是镜像的 tar 文件"),
        (TAR[:MIDDLE], "", 400, "the archive is cut off", "不完整"),
        (TAR.replace(IMAGE.blobs[LAYER][-100:], bytes(100)), "", 400, "is not what its name says", "摘要不符"),
        (b"", "", 400, "less than one header", "不是镜像的 tar 文件"),
        (TAR, "?platform=x", 400, "a platform such as linux/arm64 is expected", "请求无效"),
        (TAR, "?as=A:b:c", 400, "", "请求无效"),
        (pack(layout_of({"": IMAGE})), "", 422, "--as NAME", "没有镜像名称"),
    ],
)
async def test_errors_are_those_of_the_command(
    mirror: Mirror, data: bytes, query: str, status: int, words: str, chinese: str
) -> None:
    """In JSON and on a page of either language; nothing is served, and no download is left."""
    found, done = await put(mirror, data, f"/import{query}")
    assert found == status
    assert words in json.dumps(done)
    headers = {**HTML, **bearer(mirror), "Accept-Language": "zh"}
    async with mirror.session.put(f"/import{query}", data=data, headers=headers) as answer:
        page = await answer.text()
        assert (answer.status, chinese in page) == (status, True), page
    assert (await mirror.get("/v2/library/lab/manifests/1")).status == 404
    assert mirror.spooled() == []


async def test_what_has_no_room_is_said(start: Any) -> None:
    """507, with what to do; the limit of the cache is kept."""
    mirror = await start(max_size="1MiB")
    large = pack(layout_of({NAME: make_image(43, size=3_000_000)}))
    status, done = await put(mirror, io.BytesIO(large))
    assert status == 507
    assert "set a larger cache.max_size" in done["errors"][0]["message"]
    assert mirror.spooled() == []


async def test_a_client_that_leaves_ends_its_upload(mirror: Mirror) -> None:
    """What came whole stays, the blob in the middle of which it left does not; the next upload goes on there."""
    body = Held(TAR, MIDDLE)
    sending = asyncio.create_task(put(mirror, body.parts()))
    await until(lambda: any(LAYER.partition(":")[2] in name for name in mirror.spooled()))
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    await until(lambda: mirror.spooled() == [])
    status, done = await put(mirror, TAR)
    assert (status, done["images"][0]["fault"]) == (200, None)
    assert 0 < done["size"] < sum(map(len, IMAGE.blobs.values()))
    assert await serves(mirror)


async def test_an_upload_that_stops_coming_ends(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for the blob that it was writing."""
    monkeypatch.setattr(uploads, "_SILENCE", 0.5)
    body = Held(TAR, MIDDLE)
    status, done = await put(mirror, body.parts())
    assert status == 400
    assert "no bytes came for 0.5 s" in done["errors"][0]["message"]
    assert mirror.spooled() == []


async def test_a_mirror_that_stops_ends_uploads_and_says_so(mirror: Mirror) -> None:
    """At once, whatever the client sends, with 503."""
    body, headers = Held(TAR, MIDDLE), bearer(mirror)

    async def send() -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.put(f"{mirror.url}/import", data=body.parts(), headers=headers) as told,
        ):
            return told.status, await told.text()

    sending = asyncio.create_task(send())
    await until(lambda: any(LAYER.partition(":")[2] in name for name in mirror.spooled()))
    await mirror.stop()
    status, text = await sending
    assert status == 503
    assert "the mirror is being stopped" in text
    assert mirror.spooled() == []


async def test_an_upload_and_the_command_share_one_archive(mirror: Mirror, upstream: Scripted, tmp_path: Any) -> None:
    """`mirror import` beside a running mirror waits for the blob that an upload of the same tar is writing, then says that all is there; each blob came once."""
    body = Held(TAR, MIDDLE)
    sending = asyncio.create_task(put(mirror, body.parts()))
    await until(lambda: any(LAYER.partition(":")[2] in name for name in mirror.spooled()))
    (tmp_path / "lab.tar").write_bytes(TAR)
    flags = ["--cache-dir", str(mirror.directory), "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mirror",
        "import",
        str(tmp_path / "lab.tar"),
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    assert b"waiting for that" in await process.stderr.readline()
    body.go_on.set()
    status, done = await sending
    told = json.loads(await process.stdout.read())
    assert await process.wait() == 0
    assert status == 200
    assert [one["fault"] for one in (*told["images"], *done["images"])] == [None, None]
    # The manifest is a blob too where an archive is read once.
    blobs = sum(map(len, IMAGE.blobs.values()))
    assert told["size"] + done["size"] - blobs in (0, len(IMAGE.manifests[-1][1]))
    assert await serves(mirror)


async def test_a_platform_of_an_upload(mirror: Mirror) -> None:
    """Only its blobs are kept of a bundle; the index is the same."""
    index, amd64, arm64 = make_index(44), make_image(44), make_image(44, architecture="arm64")
    status, done = await put(mirror, pack(layout_of({NAME: index})), "/import?platform=linux/arm64")
    assert (status, done["images"][0]["platforms"]) == (200, ["linux/arm64"])
    assert all(mirror.cached(Digest.parse(digest)) for digest in arm64.blobs)
    assert (await mirror.get("/v2/library/lab/manifests/1")).digest() == Digest.parse(index.digest)
    assert amd64.digest != arm64.digest


@pytest.mark.parametrize(("language", "why"), [("en", "it is denied"), ("zh", "规则禁止拉取")])
async def test_the_page_says_what_guards_do_to_what_was_uploaded(start: StartMirror, language: str, why: str) -> None:
    """By which rule, and why, in the language of the page: here what a rule that observes would have refused."""
    mirror = await start(settings={"guard": [{"name": "trial", "deny": True, "mode": "observe"}]})
    cookie = await log_in(mirror)
    data = await form(mirror, secret=await secret(mirror, cookie))
    sent = {"Cookie": cookie, "Accept-Language": language, "Sec-Fetch-Site": "same-origin", **HTML}
    async with mirror.session.post("/import", data=data, headers=sent) as answer:
        page = await answer.text()
    assert answer.status == 200
    assert "trial" in page
    assert why in page
