"""Whatever upstream sends, stale still works: headers, status lines and documents that make no sense."""

from __future__ import annotations

import json
import logging

import pytest

from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Raw, Scripted, Status

_VALUES: list[bytes] = [
    *(b"", b" ", b"x", b'"', b",", b";", b"=", b"\\", b"<>", b"</", b"%", b"%zz", b"\xff\xfe", "münchen".encode(), b"a\tb", b"\x00", b"\x7f", b"a\rb"),
    *(b"-1", b"0", b"1.5", b"1e9", b"9" * 17, b"9" * 19, b"9" * 5000, b"0x10", b"+5", b"5, 6", b"NaN", b"Infinity"),
    *(b"/token", b"//", b"http:///x", b"http://127.0.0.1:99999/", b"http://127.0.0.1:0/", b"http://[::1", b"http://[fe80::1%25lo]:1/", b"http://a..b/"),
    *(b"http://user:pw@127.0.0.1:1/", b"file:///etc/passwd", b"gopher://x/", b"http://127.0.0.1:1/%zz?%", b"http://" + b"a" * 300 + b"/"),
    *(b"<http://h:99999/v2/>; rel=next", b"</v2/x>; rel=\"next", b"<?last=%zz>; rel=next", b"a" * 60_000),
    *(b"bytes 0-", b"bytes 5-1/2", b"bytes " + b"9" * 5000 + b"-1/1", b"bytes */*", b"bytes 0-18/" + b"9" * 30),
    *(b"Fri, 31 Dec 9999 23:59:59 GMT", b"+0000 Jan 0 00:00:00 " + b"9" * 30 + b" " + b"9" * 30, b"Mon, 01 Jan 2024 00:00:00 -0000"),
    *(b"sha256:", b"sha256:" + b"0" * 64, b"md5:" + b"0" * 32, b"sha256:" + b"A" * 64, b"text/html; charset=\"", b"gzip", b"chunked, chunked"),
]  # fmt: skip

_ANSWERS: dict[str, list[tuple[bytes, bytes]]] = {
    "Location": [(b"307 x", b"%s")],
    "WWW-Authenticate": [
        (b"401 x", b"%s"),
        (b"401 x", b'Bearer realm="%s"'),
        (b"401 x", b'Bearer realm="http://127.0.0.1:1/",service="%s",scope=%s'),
    ],
    "Retry-After": [(b"503 x", b"%s"), (b"429 x", b"%s")],
    "Link": [(b"200 x", b"%s")],
    "Content-Length": [(b"200 x", b"%s"), (b"404 x", b"%s")],
    "Content-Range": [(b"206 x", b"%s"), (b"416 x", b"%s")],
    "Content-Type": [(b"200 x", b"%s"), (b"404 x", b"%s")],
    "Docker-Content-Digest": [(b"200 x", b"%s")],
    "RateLimit-Remaining": [(b"200 x", b"%s")],
    "Transfer-Encoding": [(b"200 x", b"%s")],
    "Content-Encoding": [(b"200 x", b"%s")],
    "Connection": [(b"200 x", b"%s")],
    "Set-Cookie": [(b"200 x", b"%s")],
    "Status-Line": [(b"200 %s", b"x"), (b"%s", b"x"), (b"301%s", b"x"), (b"101 x", b"%s"), (b"999 x", b"%s"), (b"204 x", b"%s"), (b"304 x", b"%s")],
}  # fmt: skip
_BODY = b'{"name":"x","tags":["a"]}'


def answer(name: str, status: bytes, value: bytes) -> Raw:
    headers = {b"Content-Type": b"application/json", b"Content-Length": b"%d" % len(_BODY), name.encode(): value}
    return Raw(b"HTTP/1.1 %s\r\n%s\r\n%s" % (status, b"".join(b"%s: %s\r\n" % item for item in headers.items()), _BODY))


@pytest.mark.parametrize("name", _ANSWERS)
async def test_no_header_breaks_the_mirror(
    start: StartMirror, upstream: Scripted, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The cached tag is served stale, what is not cached is upstream's error, other repositories are as they were, and nothing is logged as a fault here."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0, settings={"upstream": {"attempts": 1, "header_timeout": 0.5}})
    assert (await mirror.get("/v2/app/manifests/latest")).status == 200
    caplog.set_level(logging.ERROR)
    number = 0
    for status, form in _ANSWERS[name]:
        for value in _VALUES:
            number += 1
            pieces = [piece.replace(b"%s", value) for piece in (status, form)]
            fault = answer(name, *pieces)
            upstream.fail("library/", fault, times=100, method="*")
            place = f"/v2/bad{number}"
            stale = await mirror.get("/v2/app/manifests/latest")
            assert (stale.status, stale.body) == (200, image.body), fault
            if number % 4 and status == b"429 x":  # each is waited for
                upstream.heal()
                continue
            for method, path in (
                ("GET", "manifests/latest"),
                ("HEAD", "manifests/latest"),
                ("GET", f"manifests/sha256:{'1' * 64}"),
                ("GET", f"blobs/sha256:{'1' * 64}"),
                ("HEAD", f"blobs/sha256:{'1' * 64}"),
                ("GET", "tags/list"),
                ("GET", f"referrers/sha256:{'1' * 64}"),
            ):
                got = await mirror.get(f"{place}/{path}", method)
                assert got.status in (200, 403, 404, 503), (fault, path, got)
            upstream.heal()
            assert (await mirror.get("/v2/app/manifests/latest")).status == 200
    assert [record.getMessage() for record in caplog.records] == []
    assert json.loads((await mirror.get("/readyz")).body)


_DEEP = b'{"a":' * 940 + b"1" + b"}" * 940
_DOCUMENTS = [
    *(b"", b"null", b"[]", b"1", b'"x"', b"{", b"{}", b"\xff", b"\xef\xbb\xbf{}", b"[" * 100_000, _DEEP, b"9" * 5000),
    *(b'{"%s": null}', b'{"%s": {}}', b'{"%s": "x"}', b'{"%s": [null, 1, [], {}, "", "\\ud800", "a b"]}', b'{"%s": [' + _DEEP + b"]}"),
    *(b'{"%s": [{"digest": "\\ud800", "mediaType": "\\udfff"}]}', b'{"%s": [{"size": 1e999, "annotations": {"a": NaN}}]}'),
    *(b'{"%s": [{"digest": ["sha256:x"], "size": -1}]}', b'{"%s": [' + b"9" * 5000 + b"]}", b'{"%s": [], "mediaType": "\\ud800"}'),
    *(b'{"schemaVersion": 2, "mediaType": "\\ud800/\\ud800", "%s": []}', b'{"errors": [{"code": "\\ud800", "message": "\\ud800"}], "%s": 1}'),
]  # fmt: skip


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("resource", ["manifests", "tags", "referrers", "token"])
async def test_no_document_breaks_the_mirror(
    start: StartMirror, upstream: Scripted, caplog: pytest.LogCaptureFixture, resource: str, status: int
) -> None:
    """Documents of another shape, with half characters, without end: never more than upstream's error, and what comes out is JSON."""
    upstream.auth = "bearer" if resource == "token" else None
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0, settings={"upstream": {"attempts": 1}})
    caplog.set_level(logging.ERROR)
    kind = {"tags": b"tags", "referrers": b"manifests", "token": b"token", "manifests": b"layers"}[resource]
    path = {"tags": "tags/list", "referrers": f"referrers/{image.digest}"}.get(resource, "manifests/latest")
    assert (await mirror.get(f"/v2/app/{path}")).status == 200
    upstream.revoke_tokens()
    for number, document in enumerate(_DOCUMENTS):
        fault = Status(status, {"Content-Type": "application/vnd.oci.image.index.v1+json"}, document.replace(b"%s", kind))
        upstream.fail("token" if resource == "token" else f"/{resource}/", fault, times=100, method="*")
        for name in ("app", f"other{number}"):
            got = await mirror.get(f"/v2/{name}/{path}")
            assert got.status in ((200, 404) if name == "app" and resource != "token" else (200, 403, 404, 503)), (
                document[:80],
                got,
            )
            json.loads(got.body)
        upstream.heal()
    assert [record.getMessage() for record in caplog.records] == []
