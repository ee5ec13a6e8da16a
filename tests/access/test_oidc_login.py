"""Logging in to the dashboard by an issuer: what is sent there, and which answers open nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted


class Provider:
    """An issuer that gives a code for nothing, and says of the user what a test wants."""

    def __init__(self) -> None:
        self.url = ""
        self.key = rsa.generate_private_key(65537, 2048)
        self.claims: dict[str, Any] = {}
        self.user_info: dict[str, Any] = {"sub": "1", "email": "alice@acme.com", "groups": ["admins", "others"], "name": "alice"}
        self.asked: dict[str, str] = {}
        """What the browser was sent with."""
        self.status = 200
        self.exchanged: list[tuple[str, dict[str, str]]] = []

    async def answer(self, request: web.BaseRequest) -> web.Response:
        match request.path:
            case "/.well-known/openid-configuration":
                return web.json_response(
                    {f"{name}_endpoint": f"{self.url}/{name}" for name in ("authorization", "token", "userinfo")}
                    | {"jwks_uri": f"{self.url}/keys"}
                )
            case "/keys":
                return web.json_response({"keys": [{**json.loads(RSAAlgorithm.to_jwk(self.key.public_key())), "kid": "one"}]})
            case "/userinfo":
                assert request.headers["Authorization"] == "Bearer access"
                return web.json_response(self.user_info)
        form = dict(parse_qsl(await request.text()))
        self.exchanged.append((request.headers.get("Authorization", ""), form))
        said = {
            "iss": self.url,
            "aud": "mirror",
            "sub": "1",
            "exp": time.time() + 60,
            "nonce": self.asked["nonce"],
            **self.claims,
        }
        token = jwt.encode({name: value for name, value in said.items() if value is not None}, self.key, "RS256", {"kid": "one"})
        return web.json_response({"access_token": "access", "id_token": token}, status=self.status)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    found = Provider()
    runner = web.ServerRunner(web.Server(found.answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}"
    yield found
    await runner.cleanup()


@pytest.fixture
async def mirror(start: StartMirror, upstream: Scripted, provider: Provider, tmp_path: Path) -> Mirror:
    (tmp_path / "secret").write_text("a secret&=\n")
    return await start(
        settings={
            "groups": {"admins": []},
            "oidc": [
                {
                    "name": "staff",
                    "issuer": provider.url,
                    "client_id": "mirror",
                    "client_secret_file": str(tmp_path / "secret"),
                    "claims": {"email": "*@acme.com"},
                    "user_claim": "name",
                    "groups_claim": "groups",
                }
            ],
            "access": [
                {"who": ["@admins"], "may": ["pull", "admin"]},
                {"who": ["oidc:staff"], "repositories": ["library/*"]},
                {"who": ["anyone"], "may": []},
            ],
        }
    )


class Browser:
    def __init__(self, mirror: Mirror, provider: Provider, session: aiohttp.ClientSession) -> None:
        self.url, self.provider, self.session = mirror.url, provider, session

    async def begin(self, to: str = "/guards") -> None:
        async with self.session.get(f"{self.url}/oidc/staff", params={"to": to}, allow_redirects=False) as answer:
            assert answer.status == 303
            assert "SameSite=Lax" in answer.headers["Set-Cookie"]
            assert "HttpOnly" in answer.headers["Set-Cookie"]
            self.provider.asked = {
                name: values[0] for name, values in parse_qs(urlsplit(answer.headers["Location"]).query).items()
            }

    async def come_back(self, **query: str | None) -> tuple[int, str]:
        sent = {"code": "a code", "state": self.provider.asked["state"], **query}
        known = {name: value for name, value in sent.items() if value is not None}
        async with self.session.get(f"{self.url}/oidc/staff/done", params=known, allow_redirects=False) as answer:
            return answer.status, answer.headers.get("Location", "")

    async def status(self, path: str) -> int:
        async with self.session.get(f"{self.url}{path}", allow_redirects=False) as answer:
            return answer.status


@pytest.fixture
async def browser(mirror: Mirror, provider: Provider) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield Browser(mirror, provider, session)


async def test_there_and_back(browser: Browser, provider: Provider) -> None:
    """The request has state, nonce and the challenge of a verifier that only the exchange shows; the secret goes to the issuer alone; groups make an admin."""
    await browser.begin()
    assert provider.asked["redirect_uri"] == f"{browser.url}/oidc/staff/done"
    assert await browser.come_back() == (303, "/guards")
    ((authorization, form),) = provider.exchanged
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"mirror:a+secret%26%3D"
    digest = hashlib.sha256(form["code_verifier"].encode()).digest()
    assert provider.asked["code_challenge"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert provider.asked["code_challenge_method"] == "S256"
    assert form["redirect_uri"] == provider.asked["redirect_uri"]
    assert await browser.status("/guards") == 200
    assert await browser.status("/settings") == 200
    assert (await browser.come_back())[0] == 403, "an answer opens once"


async def test_without_the_group(browser: Browser, provider: Provider) -> None:
    """Somebody sees what the issuer's table lets them."""
    provider.user_info["groups"] = "others"
    await browser.begin("/")
    assert await browser.come_back() == (303, "/")
    assert await browser.status("/") == 200
    assert await browser.status("/guards") == 403


@pytest.mark.parametrize(
    ("claims", "user_info", "query"),
    [
        ({"nonce": "another"}, {}, {}),
        ({"nonce": None}, {}, {}),
        ({"aud": "another"}, {}, {}),
        ({"iss": "https://evil.example"}, {}, {}),
        ({"exp": 1}, {}, {}),
        ({"sub": None}, {}, {}),
        ({}, {"sub": "2"}, {}),
        ({}, {"email": "alice@evil.example"}, {}),
        ({}, {"name": "al ice"}, {}),
        ({}, {"name": None}, {}),
        ({}, {}, {"state": "another"}),
        ({}, {}, {"state": None}),
        ({}, {}, {"iss": "https://evil.example"}),
        ({}, {}, {"code": None, "error": "access_denied"}),
    ],
    ids=str,
)
async def test_what_opens_nothing(
    browser: Browser, provider: Provider, claims: dict[str, Any], user_info: dict[str, Any], query: dict[str, str | None]
) -> None:
    """Neither a token that was made for something else, nor an answer that this browser has not asked for, nor a user whom the settings do not want."""
    provider.claims, provider.user_info = claims, {**provider.user_info, **user_info}
    await browser.begin()
    assert (await browser.come_back(**query))[0] == 403
    assert await browser.status("/guards") == 401


async def test_another_browser_and_an_issuer_that_fails(browser: Browser, provider: Provider) -> None:
    """An answer that was stolen is worth nothing elsewhere; an issuer that refuses or fails is told, and opens nothing; an unknown one is 404."""
    await browser.begin()
    browser.session.cookie_jar.clear()
    assert (await browser.come_back())[0] == 403
    for status, told in ((400, 403), (500, 429)):
        provider.status = status
        await browser.begin()
        assert (await browser.come_back())[0] == told
    assert await browser.status("/guards") == 401
    assert await browser.status("/oidc/nobody") == 404
    assert await browser.status("/oidc/staff/other") == 404


async def test_where_it_leads(browser: Browser) -> None:
    """To a page of the mirror, never to another site."""
    await browser.begin("//evil.example/")
    assert await browser.come_back() == (303, "/")
