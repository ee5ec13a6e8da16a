"""What a search service may send: nothing of it costs more than its limits, controls a terminal, or concerns pulls."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from mirror.upstream.transport import Transport
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Endless, Fault, Rate, Raw, Redirect, Scripted, Status

_MB = 1_000_000
_JSON = {"Content-Type": "application/json"}
_SHAPES: list[Any] = [None, 1, "x", [], {}, {"results": 5}, {"results": None}]
_RESULT = {"name": "app", "description": "found", "star_count": 1, "is_official": False}


async def search(mirror: Mirror, term: str = "app") -> tuple[int, str]:
    answer = await mirror.get(f"/v1/search?q={term}")
    return answer.status, answer.body.decode()


def large(*entries: Any) -> bytes:
    return json.dumps({"results": [*entries, "x" * 8 * _MB]}).encode()


@pytest.mark.parametrize(
    "fault",
    [
        Status(200, _JSON, large(_RESULT)),
        Status(200, {**_JSON, "Content-Encoding": "gzip"}, gzip.compress(large(_RESULT) + b" " * 100 * _MB)),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n{"),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\n{"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n{"),
        Raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * _MB + b"\r\n\r\n{}"),
        Raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n{}"),
        Status(200, _JSON, b'{"results": ' + b"[" * _MB + b"]" * _MB + b"}"),
        Status(200, _JSON, b'{"results": [' + b'{"name": ' * 50_000),
        Status(200, _JSON, b'{"results": ' + b"9" * _MB + b"}"),
        *(Status(200, _JSON, json.dumps(value).encode()) for value in _SHAPES),
        *(Status(200, _JSON, body) for body in (b"", b"\xff\xfe{\x00}\x00", b"\x00", b"{", b'{"results": NaN', b"nul")),
        Status(200, {"Content-Type": "text/html"}, b"<html><script>alert(1)</script>"),
        Status(200, {**_JSON, "Content-Encoding": "gzip"}, b"\x1f\x8b\x08\x00nonsense"),
        Status(200, {**_JSON, "Content-Encoding": "br"}, b"nonsense"),
        *(Status(status, _JSON, b"{}") for status in (204, 206, 300, 304, 400, 401, 418, 600, 999)),
        *(
            Redirect(to)
            for to in ("", "/v1/search?q=app&n=100", "file:///etc/passwd", "http://[", "//\x7f", "http://u:p@h/", "x" * 5000)
        ),
    ],
    ids=lambda fault: repr(fault)[:60],
)
async def test_an_answer_that_is_none_is_the_searchs_problem_alone(mirror: Mirror, upstream: Scripted, fault: Fault) -> None:
    """The error is one printable line, the next search asks again and works, and a pull of what the same host serves is not held up."""
    image = upstream.add_image("library/app", "1")
    upstream.add_to_hub("other", "works")
    upstream.fail("/v1/search", fault, times=20)
    status, text = await search(mirror)
    assert status == 503
    message = json.loads(text)["errors"][0]["message"]
    assert message.isprintable(), message
    assert len(message) < 1000
    upstream.heal()
    assert (await mirror.get("/v2/app/manifests/1")).body == image.body
    status, text = await search(mirror, "other")
    assert (status, "works" in text) == (200, True)


async def test_an_endless_answer_is_not_read_to_its_end(mirror: Mirror, upstream: Scripted) -> None:
    """Not more of it than the largest answer, and what lies in buffers."""
    upstream.add_to_hub("app")
    upstream.fail("/v1/search", Endless())
    assert (await search(mirror))[0] == 503
    before = upstream.sent["/v1/search"]
    assert before < 20 * _MB


async def test_an_answer_that_drips_is_given_up(start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a byte comes again and again: the time is for all of it."""
    monkeypatch.setattr("mirror.upstream.search._SECONDS", 0.4)
    upstream.add_to_hub("app", "a description")
    upstream.fail("/v1/search", Rate(20))
    mirror: Mirror = await start()
    status, text = await search(mirror)
    assert (status, "in time" in text) == (503, True)
    assert upstream.sent["/v1/search"] < 40
    assert (await search(mirror))[0] == 200


@pytest.mark.parametrize("times", [1, 3])
async def test_a_public_search_cannot_send_the_mirror_to_an_internal_host(
    mirror: Mirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Neither at once nor after detours; the internal host gets no request."""
    async with Scripted() as inner:
        inner.add_to_hub("app", "secret")

        async def is_private(self: Transport, url: Any, way: Any = None) -> bool:
            return bool(url.port == inner.port)

        monkeypatch.setattr(Transport, "is_private", is_private)
        upstream.fail(
            "/v1/search", *(Redirect(f"/v1/search?{number}") for number in range(1, times)), Redirect(f"{inner.url}/v1/search")
        )
        status, text = await search(mirror)
        assert (status, "secret" in text) == (503, False)
        assert upstream.count("GET", "/v1/search") == times
        assert not inner.asked


async def test_a_search_that_is_down_is_paused_and_pulls_are_not(mirror: Mirror, upstream: Scripted) -> None:
    """Though both are on one host; and the other way round."""
    image = upstream.add_image("library/app", "1")
    upstream.add_to_hub("app", "found")
    upstream.fail("/v1/search", Raw(reset=True), times=50)
    for number in range(4):
        assert (await search(mirror, f"app{number}"))[0] == 503
    asked = upstream.count("GET", "/v1/search")
    status, text = await search(mirror, "again")
    assert (status, "is paused" in text) == (503, True)
    assert upstream.count("GET", "/v1/search") == asked
    assert (await mirror.get("/v2/app/manifests/1")).body == image.body
    (endpoint,) = json.loads((await mirror.get("/readyz")).body)["registries"]["docker.io"]
    assert endpoint["state"] == "ok"
    upstream.heal()
    async with asyncio.timeout(PATIENCE):
        while (await search(mirror, "app"))[0] != 200:
            pass


async def test_pulls_that_fail_do_not_pause_the_search(mirror: Mirror, upstream: Scripted) -> None:
    """A registry that is blocked says nothing of Docker Hub's website."""
    upstream.add_to_hub("app", "found")
    upstream.fail("/v2/", Raw(reset=True), times=500, method="*")
    for number in range(4):
        assert (await mirror.get(f"/v2/app{number}/manifests/1")).status == 503
    (endpoint,) = json.loads((await mirror.get("/readyz")).body)["registries"]["docker.io"]
    assert endpoint["state"] == "down"
    status, text = await search(mirror)
    assert (status, "found" in text) == (200, True)
    assert upstream.count("GET", "/v1/search") == 1


async def test_the_same_limits_hold_for_details_of_tags(mirror: Mirror, upstream: Scripted) -> None:
    """The page of a repository is shown without them."""
    upstream.add_image("library/app", "1")
    faults = (
        Status(200, _JSON, large()),
        Status(200, _JSON, b"[" * _MB),
        Status(
            200,
            _JSON,
            b'{"results": [{"name": "1", "full_size": 1e400, "images": [{"os": ["linux"], "architecture": {}}, 5]}, 7]}',
        ),
        Redirect("http://[::1"),
        Raw(reset=True),
    )
    for number, fault in enumerate(faults):
        upstream.fail("/v2/repositories/", fault)
        page = await mirror.get(f"/repository/docker.io/library/app?view=tags&filter={number}")
        assert page.status == 200
        # A reset on a connection that was open may be repeated on another.
        assert upstream.count("GET", "/v2/repositories/") > number
