"""People log in to the dashboard in a real Chromium: by the form, and by a real OpenID provider."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.access import users
from tests.support.browser import Browser
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.ports import free_port
from tests.support.programs import Program, answers, require
from tests.support.scripted import Scripted


@pytest.fixture
async def mirror_and_port(
    start: StartMirror, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Mirror, int]:
    """A mirror where bob, and whoever logs in by the provider, may pull library/app; and the port of the provider."""
    monkeypatch.setattr(users, "_ROUNDS", 4)
    users.set_password(tmp_path / "users", "bob", "bob's password")
    (tmp_path / "secret").write_text("secret\n")
    port = free_port()
    for name in ("library/app", "secret/plan"):
        upstream.add_image(name, "1")
    settings: dict[str, Any] = {
        "server": {"users_file": str(tmp_path / "users"), "audit_log": str(tmp_path / "audit.log")},
        "oidc": [
            {
                "name": "lab",
                "issuer": f"http://localhost:{port}/",
                "client_id": "web",
                "client_secret_file": str(tmp_path / "secret"),
                "claims": {"email": "*@zitadel.ch"},
                "user_claim": "preferred_username",
            }
        ],
        "access": [
            {"who": ["bob", "oidc:lab"], "repositories": ["library/*"]},
            {"who": ["127.0.0.0/8"], "may": ["pull"], "repositories": ["secret/*"]},
            {"who": ["anyone"], "may": []},
        ],
    }
    return await start(settings=settings), port


async def test_the_form(mirror_and_port: tuple[Mirror, int], browser: Browser) -> None:
    """A page leads to it; a wrong password is told, in Chinese too; the right one leads back; logging out ends it."""
    mirror, _ = mirror_and_port

    def work() -> None:
        browser.forgiven.append("403")
        browser.go(f"{mirror.url}/login?lang=zh")
        browser.go(f"{mirror.url}/class")
        browser.until_text("用户名")
        browser.type("#username", "bob")
        browser.type("#token", "wrong")
        browser.click("form.login button")
        browser.until_text("登录", "h1")
        assert browser.script("return document.querySelector('#username').value") == "bob"
        browser.type("#token", "bob's password")
        browser.click("form.login button")
        browser.until(lambda: browser.url.startswith(f"{mirror.url}/class"), "the page that was wanted")
        assert browser.script("return document.cookie") == "", "scripts must not read the session"
        browser.go(f"{mirror.url}/account?lang=en")
        browser.until_text("bob", "h1")
        browser.click("form.account button")
        browser.until_text("Password or token")

    await asyncio.to_thread(work)


async def test_a_real_provider(mirror_and_port: tuple[Mirror, int], browser: Browser, tmp_path: Path) -> None:
    """The button leads to it, and it back: with state, nonce, PKCE and the client's secret; claims come from its userinfo address. Another's answer opens nothing."""
    require("oidc-provider")
    mirror, port = mirror_and_port
    done = f"{mirror.url}/oidc/lab/done"
    provider = Program(["oidc-provider"], tmp_path / "provider.log", {"PORT": str(port), "REDIRECT_URI": done})

    # The provider's pages have none.
    browser.forgiven.append(f"http://localhost:{port}/favicon.ico")

    def work() -> None:
        provider.wait_until(lambda: answers(f"http://localhost:{port}/.well-known/openid-configuration"))
        browser.go(f"{mirror.url}/login?to=/account")
        browser.click("a[href^='/oidc/lab']")
        browser.until(lambda: f":{port}/" in browser.url, "the provider's page")
        browser.type("input[name=username]", "test-user@localhost")
        browser.type("input[name=password]", "verysecure")
        browser.click("button[type=submit]")
        browser.until(lambda: browser.url == f"{mirror.url}/account", "the page that was wanted")
        browser.until_text("test-user@localhost", "h1")
        browser.forgiven.append("403")
        browser.go(f"{done}?code=stolen&state=forged")
        browser.until_text("was not begun in this browser")

    try:
        await asyncio.to_thread(work)
    finally:
        provider.stop()
    log = tmp_path / "audit.log"
    await until(lambda: "wrong login" in log.read_text())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    logins = [(line.get("user"), line["verdict"]) for line in lines if line["action"] == "login"]
    assert logins == [("test-user@localhost", "allowed"), (None, "wrong login")]
