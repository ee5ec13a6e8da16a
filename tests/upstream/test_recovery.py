"""Endpoints that are bad for a while, and pages instead of blobs."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Corrupt, Delay, Fault, Raw, Scripted, Silence, Status

_HTML = {"Content-Type": "text/html"}
_JSON = {"Content-Type": "application/json"}
_MANY = 3000


@pytest.mark.parametrize("tags", ["first", "newest"])
@pytest.mark.parametrize(
    "fault",
    [
        Raw(reset=True),
        Silence(),
        Delay(1.5),
        Corrupt(0),
        Status(200, _HTML, b"<html>"),
        Status(200, _JSON, b"{}"),
        Status(404, _HTML, b"<html>"),
        Status(429),
        *(Status(status) for status in (401, 403, 451, 500, 503)),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, Fault) else value,
)
async def test_an_endpoint_that_was_bad_and_is_well_is_asked_again(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, fault: Fault, tags: str
) -> None:
    """Its word counts again, as it stands first in the list, or is the newest: whatever was wrong with it, for as many repositories, and without a restart."""
    monkeypatch.setattr("mirror.upstream.health._LATELY", 0.5)
    async with Scripted() as second:
        registries = {second: "2026-01-01T00:00:00Z", upstream: "2026-01-02T00:00:00Z"}
        for registry, made in registries.items():
            image = registry.add_image("library/app0", "1", annotations={"org.opencontainers.image.created": made})
            for number in range(1, _MANY):
                registry.add_manifest(f"library/app{number}", "1", image.body)
        upstream.fail("/v2/", fault, times=_MANY, method="*")
        settings = {"registries": {"docker.io": {"endpoints": [upstream.url, second.url], "tags": tags}}}
        mirror: Mirror = await start(settings=settings)
        repositories = iter(range(_MANY))
        for _ in range(5):
            assert (await mirror.get(f"/v2/app{next(repositories)}/manifests/1")).status == 200
        upstream.heal()
        async with asyncio.timeout(PATIENCE):
            while (await mirror.get(f"/v2/app{next(repositories)}/manifests/1")).body != image.body:
                pass


@pytest.mark.parametrize(
    "page",
    [
        Status(200, _JSON, b'{"code": 403, "msg": "not in the whitelist"}'),
        Status(200, {"Content-Type": "text/plain"}, b"not in the whitelist"),
        Status(200, {"Content-Type": "application/octet-stream"}, b"x" * 300_000),
    ],
    ids=lambda value: repr(value)[:60],
)
@pytest.mark.parametrize("known", [True, False])
async def test_a_page_that_is_sent_as_a_blob_reaches_no_client(
    start: StartMirror, upstream: Scripted, page: Status, known: bool
) -> None:
    """The right bytes come from the next endpoint; if the blob's size was not known, the client may be cut short, and its next attempt gets them."""
    async with Scripted() as second:
        image = second.add_image("library/app", "1", layers=[os.urandom(300_000)])
        upstream.fail("/v2/", page, times=100, method="*")
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        if known:
            assert (await mirror.get("/v2/app/manifests/1")).body == image.body
        for digest in (image.config, *image.layers):
            answer = await mirror.get(f"/v2/app/blobs/{digest}")
            assert known is False or answer.digest() == digest
            assert answer.cut or answer.digest() == digest
            assert (await mirror.get(f"/v2/app/blobs/{digest}")).digest() == digest
