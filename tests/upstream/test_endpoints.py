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


def shown(value: Fault | str) -> str:
    return value if isinstance(value, str) else repr(value)[:70]


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
