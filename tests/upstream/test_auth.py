"""Tokens, Basic, and where credentials go."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from mirror.upstream.challenges import Challenge, choose, parse_challenges
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import patiently
from tests.support.scripted import Scripted, Status

LATEST = "/v2/app/manifests/latest"


def registry(upstream: Scripted, **more: Any) -> dict[str, Any]:
    return {"registries": {"docker.io": {"endpoints": [upstream.url], **more}}}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a/token",service="s",scope="repository:x:pull"',
            [Challenge("bearer", "https://a/token", "s", "repository:x:pull")],
        ),
        ('Bearer realm="https://a/t,x",service="say \\"hi\\""', [Challenge("bearer", "https://a/t,x", 'say "hi"')]),
        ('Basic realm="r", Bearer realm="https://b"', [Challenge("basic", "r"), Challenge("bearer", "https://b")]),
        ("Negotiate, Basic realm=r", [Challenge("negotiate"), Challenge("basic", "r")]),
        (
            'Negotiate YII/+x==, bearer REALM = "https://b" ,service=s',
            [Challenge("negotiate"), Challenge("bearer", "https://b", "s")],
        ),
        ("NTLM TlRM/A, Basic realm=r", [Challenge("ntlm"), Challenge("basic", "r")]),
        (', ,Bearer realm="https://b",,', [Challenge("bearer", "https://b")]),
        ('Bearer realm="https://b" service="s" scope=""', [Challenge("bearer", "https://b", "s", "")]),
        ("Basic", [Challenge("basic")]),
        ("", []),
        ('Bearer realm="unclosed', [Challenge("bearer")]),
    ],
)
def test_challenges_are_parsed(header: str, expected: list[Challenge]) -> None:
    """Commas and quotes within strings, several challenges in one header, and nonsense."""
    assert parse_challenges([header]) == expected


def test_bearer_is_preferred_and_unusable_challenges_are_passed_by() -> None:
    """A Bearer without a realm cannot be answered."""
    assert choose([Challenge("basic", "r"), Challenge("bearer", "https://b")]) == Challenge("bearer", "https://b")
    assert choose([Challenge("bearer"), Challenge("basic", "r")]) == Challenge("basic", "r")
    assert choose([Challenge("negotiate")]) is None


async def test_one_token_serves_a_scope_until_it_expires(start: StartMirror, upstream: Scripted) -> None:
    """One challenge, one token, and then requests with the token at once."""
    upstream.auth = "bearer"
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    for path in (LATEST, f"/v2/app/blobs/{image.config}", f"/v2/app/blobs/{image.layers[0]}"):
        assert (await mirror.get(path)).status == 200
    assert upstream.count("GET", "/token") == 1
    assert sum(asked.authorization is None for asked in upstream.asked if asked.path != "/token") == 1
    assert (
        next(asked for asked in upstream.asked if asked.path == "/token").query
        == "service=scripted&scope=repository:library/app:pull"
    )


async def test_one_request_in_flight_a_scope(start: StartMirror, upstream: Scripted) -> None:
    """Twenty at once for one repository cost one token."""
    upstream.auth = "bearer"
    images = [upstream.add_image("library/app", f"t{number}") for number in range(20)]
    mirror: Mirror = await start()
    await mirror.get("/v2/app/manifests/t0")
    upstream.revoke_tokens()
    answers = await asyncio.gather(*(mirror.get(f"/v2/app/manifests/{image.digest}") for image in images[1:]))
    assert [answer.status for answer in answers] == [200] * 19
    assert upstream.count("GET", "/token") <= 3


async def test_a_refused_token_is_fetched_anew_once(start: StartMirror, upstream: Scripted) -> None:
    """A registry that forgets its tokens costs a round trip, not a pull."""
    upstream.auth = "bearer"
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    await mirror.get(LATEST)
    upstream.revoke_tokens()
    assert (await mirror.get(f"/v2/app/blobs/{image.config}")).status == 200
    assert upstream.count("GET", "/token") == 2


async def test_scopes_do_not_share_a_token(start: StartMirror, upstream: Scripted) -> None:
    """Each repository has its own."""
    upstream.auth = "bearer"
    upstream.add_image("library/app", "latest")
    upstream.add_image("owner/tool", "latest")
    mirror: Mirror = await start()
    assert (await mirror.get(LATEST)).status == 200
    assert (await mirror.get("/v2/owner/tool/manifests/latest")).status == 200
    assert upstream.count("GET", "/token") == 2


@pytest.mark.parametrize("kind", ["bearer", "basic"])
async def test_credentials_are_used_and_wrong_ones_are_told_of(
    start: StartMirror, upstream: Scripted, tmp_path: Path, kind: str
) -> None:
    """From settings or a password file, read anew at each use; without the right ones a 403 that helps, never a 401."""
    upstream.auth, upstream.accounts = kind, {"robot": "secret-pw"}
    upstream.add_image("library/app", "latest")
    without: Mirror = await start(settings=registry(upstream))
    answer = await without.get(LATEST)
    assert answer.status == 403
    assert b"DENIED" in answer.body
    password = tmp_path / "password"
    password.write_text("wrong\n")
    mirror: Mirror = await start(settings=registry(upstream, username="robot", password_file=str(password)))
    answer = await mirror.get(LATEST)
    assert answer.status == 403
    assert b"secret" not in answer.body
    assert b"wrong" not in answer.body
    password.write_text("secret-pw\n")
    assert (await mirror.get(LATEST)).status == 200


@pytest.mark.parametrize(("status", "expected"), [(429, 503), (500, 503), (404, 503), (403, 403)])
async def test_a_token_service_in_trouble(start: StartMirror, upstream: Scripted, status: int, expected: int) -> None:
    """Its failures are upstream's failures, with a reason; and they pass."""
    upstream.auth = "bearer"
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    upstream.fail("/token", Status(status, {"Retry-After": "100"}), times=10)
    assert (await mirror.get(LATEST)).status == expected
    upstream.heal()
    for _ in patiently():
        if (await mirror.get(LATEST)).status == 200:
            break
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"token": 5}',
        b'{"token": "a\\nb"}',
        b"<html>",
    ],
)
async def test_tokens_that_are_none(start: StartMirror, upstream: Scripted, body: bytes) -> None:
    """Nothing of what a token service may send breaks the mirror, or gets into a header."""
    upstream.auth = "bearer"
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    upstream.fail("/token", Status(200, body=body), times=10)
    assert (await mirror.get(LATEST)).status == 503


@pytest.mark.parametrize("life", [0, -5, 1e300, 10**400, float("nan"), float("inf"), "300", "soon", "", None, [], True], ids=repr)
async def test_a_token_is_used_however_long_it_is_said_to_live(start: StartMirror, upstream: Scripted, life: Any) -> None:
    """What is no number of seconds counts as the 60 s that are meant without one; one that has expired already is used once."""
    upstream.auth, upstream.token_life = "bearer", life
    upstream.add_image("library/app", "latest")
    upstream.add_image("library/app", "other")
    mirror: Mirror = await start()
    assert (await mirror.get(LATEST)).status == 200
    assert (await mirror.get("/v2/app/manifests/other")).status == 200
    assert upstream.count("GET", "/token") == (2 if life in (-5, True) else 1)


async def test_authorization_never_reaches_another_host(start: StartMirror, upstream: Scripted) -> None:
    """Blobs redirect to a store that refuses Authorization: they come, and the store never saw any."""
    upstream.auth, upstream.accounts = "bearer", {"robot": "secret-pw"}
    image = upstream.add_image("library/app", "latest")
    async with Scripted() as store:
        store.blobs, store.refuses_authorization = upstream.blobs, True
        upstream.redirect_blobs_to = store
        mirror: Mirror = await start(settings=registry(upstream, username="robot", password="secret-pw"))
        assert (await mirror.get(LATEST)).status == 200
        assert (await mirror.get(f"/v2/app/blobs/{image.layers[0]}")).body == upstream.blobs[str(image.layers[0])]
        assert store.count("GET") == 1
        assert [asked.authorization for asked in store.asked] == [None]
    basic = base64.b64encode(b"robot:secret-pw").decode()
    assert {asked.path for asked in upstream.asked if basic in (asked.authorization or "")} == {"/token"}
