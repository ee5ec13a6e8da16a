"""Endpoints in order: whatever the first one says of something, or does not say, the next is asked for it."""

from __future__ import annotations

import json

import pytest

from tests.support.mirrors import Mirror, StartMirror
from tests.support.resources import RESOURCES, request
from tests.support.scripted import Fault, Raw, Redirect, Scripted, Silence, Status

_GONE = b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'
_FAULTS: list[Fault] = [
    *(Status(status) for status in (400, 401, 403, 405, 408, 410, 429, 451, 500, 501, 503, 999)),
    Status(401, {"WWW-Authenticate": 'Basic realm="x"'}),
    Status(401, {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:1/token"'}),
    Status(404, body=_GONE),
    Status(404, {"Content-Type": "text/plain"}, b"404 page not found"),
    Status(429, {"Retry-After": "3600"}),
    Status(200, body=b"<html>"),
    *(
        Status(status, {"Content-Type": kind}, page)
        for status in (200, 403, 404)
        for kind, page in (
            ("text/html", b"<html>This image is not in the whitelist</html>"),
            ("text/html", b""),
            ("application/json", b'{"code": 403, "msg": "not in the whitelist"}'),
            ("application/json", b'{"errors": [{"code": "DENIED", "message": "not in the whitelist"}]}'),
            ("application/json", b'"Buy a subscription at example.org"'),
        )
    ),
    Redirect("http://127.0.0.1:1/"),
    Redirect("/"),
    Redirect("http://[::1"),
    Raw(),
    Raw(reset=True),
    Raw(b"SSH-2.0\r\n"),
    Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    Silence(),
]


_CLAIMS = [fault for fault in _FAULTS if b" 200 " in getattr(fault, "data", b"") or getattr(fault, "status", 0) == 200]


def shown(value: object) -> str:
    return value if isinstance(value, str) else repr(value)[:150]


# A blob of an endpoint that answers 200 is believed until its bytes are here.
@pytest.mark.parametrize(
    ("resource", "fault"),
    [(resource, fault) for resource in RESOURCES for fault in _FAULTS if not resource.startswith("blob") or fault not in _CLAIMS],
    ids=shown,
)
async def test_what_the_first_endpoint_does_not_give_the_next_one_does(
    start: StartMirror, upstream: Scripted, resource: str, fault: Fault
) -> None:
    """Within the header timeout, and without asking the second one more than is needed."""
    async with Scripted() as second:
        image = second.add_image("library/app", "latest")
        signature = second.add_image("library/app", None, subject={"digest": str(image.digest)})
        upstream.fail("library/app", fault, times=50, method="*")
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        layer = image.layers[0]
        method, path = request(resource, image)
        answer = await mirror.get(f"/v2/app/{path}", method)
        assert answer.status == 200, answer.body
        match resource:
            case "tag" | "digest":
                assert answer.body == image.body
            case "head":
                assert answer.headers["Docker-Content-Digest"] == str(image.digest)
            case "blob":
                assert answer.body == second.blobs[str(layer)]
            case "blob head":
                assert answer.headers["Content-Length"] == str(len(second.blobs[str(layer)]))
            case "tags":
                assert json.loads(answer.body)["tags"] == ["latest"]
            case "referrers":
                assert [entry["digest"] for entry in json.loads(answer.body)["manifests"]] == [str(signature.digest)]
        assert upstream.asked
        assert len(second.asked) <= 2


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (Raw(), Status(403), 503),
        (Raw(), Status(401, {"WWW-Authenticate": 'Basic realm="x"'}), 503),
        (Silence(), Status(403), 503),
        (Status(429), Status(403), 503),
        (Status(403), Status(403), 403),
        (Status(404, body=_GONE), Status(403), 403),
        (Status(404, body=_GONE), Raw(), 503),
    ],
    ids=shown,
)
async def test_a_refusal_is_told_where_no_endpoint_has_failed(
    start: StartMirror, upstream: Scripted, first: Fault, second: Fault, status: int
) -> None:
    """A mirror with an allow-list does not know whether the registry, which is away, would refuse."""
    async with Scripted() as other:
        upstream.fail("library/app", first, times=50, method="*")
        other.fail("library/app", second, times=50, method="*")
        mirror: Mirror = await start(endpoints=[upstream.url, other.url], settings={"upstream": {"header_timeout": 1}})
        assert (await mirror.get("/v2/app/manifests/latest")).status == status
        assert upstream.asked
        assert other.asked


async def test_the_registrys_own_refusal_is_told(start: StartMirror, upstream: Scripted) -> None:
    """Whatever became of the other endpoints."""
    name = upstream.url.removeprefix("http://")
    upstream.fail("/app/", Status(403), times=50, method="*")
    registry = {"endpoints": ["http://127.0.0.1:1", upstream.url]}
    mirror: Mirror = await start(settings={"registries": {name: registry}})
    assert (await mirror.get(f"/v2/{name}/app/manifests/latest")).status == 403


_HTML = {"Content-Type": "text/html"}
_FIRST: dict[str, tuple[Fault | None, str]] = {
    "dead": (None, "Connection refused"),
    "refuses": (Status(403, _HTML, b"<html>not in the whitelist</html>"), "list of the images"),
    "page": (Status(200, _HTML, b"<html>log in</html>"), "web page"),
    "404 page": (Status(404, _HTML, b"<html>not found</html>"), " has no "),
    "404": (Status(404, body=_GONE), " has no "),
    "429": (Status(429, {"Retry-After": "3600"}), "answered 429"),
    "500": (Status(500), "answered 500"),
}
"""Faults of an endpoint, and what an error says of it; None for one that is dead."""
_SECOND: dict[str, tuple[Fault, str]] = {
    "404": (Status(404, body=_GONE), " has no "),
    "403": (Status(403), "answered 403"),
}
_STATUSES = {
    ("refuses", "404"): 403,
    ("refuses", "403"): 403,
    ("404 page", "404"): 404,
    ("404 page", "403"): 403,
    ("404", "404"): 404,
    ("404", "403"): 403,
}
"""503 for all others: what an endpoint has that gave no answer is not known."""


@pytest.mark.parametrize("resource", ["tag", "digest", "blob", "tags"])
@pytest.mark.parametrize("second", _SECOND)
@pytest.mark.parametrize("first", _FIRST)
async def test_an_error_says_what_each_endpoint_answered(
    start: StartMirror, upstream: Scripted, first: str, second: str, resource: str
) -> None:
    """Not only the dead one: that the other lacks a tag is what somebody who mistyped it needs to know. It is never 404 if one could not be asked."""
    fault, words = _FIRST[first]
    image = upstream.add_image("library/app", "latest")
    async with Scripted() as other:
        other.fail("library/app", _SECOND[second][0], times=50, method="*")
        if fault is None:
            await upstream.stop()
        else:
            upstream.fail("library/app", fault, times=50, method="*")
        mirror: Mirror = await start(endpoints=[upstream.url, other.url], settings={"upstream": {"header_timeout": 1}})
        method, path = request(resource, image)
        answer = await mirror.get(f"/v2/app/{path}", method)
        (error,) = json.loads(answer.body)["errors"]
        assert answer.status == _STATUSES.get((first, second), 503), error
        codes = {
            403: {"DENIED"},
            404: {"MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_UNKNOWN", "UNKNOWN"},
            503: {"UNAVAILABLE", "TOOMANYREQUESTS"},
        }
        assert error["code"] in codes[answer.status]
        if answer.status != 404:
            assert error["message"].startswith("none of docker.io's endpoints gave it: ")
            for endpoint, said in ((upstream, words), (other, _SECOND[second][1])):
                (place,) = {part for part in error["message"].split("; ") if endpoint.url in part}
                assert said in place
        assert 1 <= other.count("GET") <= 2


async def test_an_error_of_many_endpoints_has_a_bounded_length(start: StartMirror) -> None:
    """It names some of them, the one that decided first, and the number of the others."""
    dead = [f"http://127.0.0.1:{port}" for port in range(1, 10)]
    async with Scripted() as lacking:
        mirror: Mirror = await start(endpoints=[lacking.url, *dead])
        answer = await mirror.get(f"/v2/{'a' * 100}/{'b' * 100}/manifests/{'c' * 100}")
    (error,) = json.loads(answer.body)["errors"]
    assert answer.status == 503
    assert error["message"].endswith("; and 5 more")
    assert len(error["message"]) < 1500
