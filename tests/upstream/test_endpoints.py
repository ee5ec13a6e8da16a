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
