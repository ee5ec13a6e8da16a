"""Users log in to the dashboard by the form: what they see, what they may change, and what ends a session."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import jwt
import pytest

from mirror.access import guesses, users
from mirror.access.access import signing_key
from mirror.access.tokens import add_token, remove_token
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.scripted import Scripted

HTML = {"Accept": "text/html"}
PASSWORDS = {"root": "root's password", "bob": "bob's password"}
PAGES_FOR_ALL_IMAGES = ("/guards", "/search?q=app", "/events")


@dataclass
class Browser:
    """A client with cookies that follows no redirect and says where its forms come from, as browsers do."""

    session: aiohttp.ClientSession
    url: str

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.session.get(f"{self.url}{path}", headers={**HTML, **headers}, allow_redirects=False) as answer:
            return answer.status, answer.headers.get("Location", "") or await answer.text()

    async def post(self, path: str, origin: str | None = None, **form: str) -> tuple[int, str]:
        sent = {**HTML, "Origin": self.url if origin is None else origin}
        async with self.session.post(f"{self.url}{path}", data=form, headers=sent, allow_redirects=False) as answer:
            return answer.status, answer.headers.get("Location", "") or await answer.text()

    async def log_in(self, user: str, password: str | None = None, **form: str) -> int:
        return (await self.post("/login", username=user, token=password or PASSWORDS[user], **form))[0]

    def cookie(self, name: str = "mirror_session") -> str:
        return next((cookie.value for cookie in self.session.cookie_jar if cookie.key == name), "")


@dataclass
class Scene:
    mirror: Mirror
    users_file: Path
    browser: Browser
    other: Browser


@pytest.fixture
async def scene(start: StartMirror, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """root may do anything, bob pull from library/app, with a layer that a secret image has too."""
    monkeypatch.setattr(users, "_ROUNDS", 4)
    file = tmp_path / "users"
    for user, password in PASSWORDS.items():
        users.set_password(file, user, password)
    layer = b"in both" * 100
    for name in ("library/app", "secret/plan"):
        upstream.add_image(name, "1", layers=[layer])
    mirror = await start(
        settings={
            "server": {"users_file": str(file), "audit_log": str(tmp_path / "audit.log")},
            "access": [
                {"who": ["root"], "may": ["pull", "admin"]},
                {"who": ["bob"], "repositories": ["library/*"], "bytes_per_month": "1GB"},
                {"who": ["anyone"], "may": []},
            ],
        }
    )
    jars = [aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) for _ in range(2)]
    scene = Scene(mirror, file, *(Browser(jar, mirror.url) for jar in jars))
    assert await scene.browser.log_in("root") == 303
    headers = {"Authorization": aiohttp.encode_basic_auth("root", PASSWORDS["root"])}
    for name in ("app", "secret/plan"):
        async with scene.browser.session.get(f"{mirror.url}/v2/{name}/manifests/1", headers=headers) as answer:
            assert answer.status == 200
    yield scene
    for jar in jars:
        await jar.close()


async def status_with(scene: Scene, cookie: str) -> int:
    """Of a page that only those may see who may pull everything."""
    async with (
        aiohttp.ClientSession(cookies={"mirror_session": cookie}) as session,
        session.get(f"{scene.mirror.url}/guards", allow_redirects=False) as answer,
    ):
        return answer.status


async def test_browsers_get_the_form_and_nobody_a_challenge(scene: Scene) -> None:
    """At the open address: a page leads to the form, and back; neither it nor any other answer asks for a password by Basic."""
    scene.browser.session.cookie_jar.clear()
    for path in ("/", "/image/docker.io/secret/plan:1", "/login", "/settings", "/account"):
        for accept in ("text/html", "*/*"):
            async with scene.browser.session.get(
                f"{scene.mirror.url}{path}", headers={"Accept": accept}, allow_redirects=False
            ) as answer:
                assert "Basic" not in answer.headers.get("WWW-Authenticate", ""), path
                assert "plan" not in await answer.text()
    assert await scene.browser.get("/image/docker.io/secret/plan:1?x=1") == (
        303,
        "/login?to=%2Fimage%2Fdocker.io%2Fsecret%2Fplan%3A1%3Fx%3D1",
    )
    status, page = await scene.browser.get("/login?to=/class")
    assert status == 200
    assert 'name="username"' in page
    assert await scene.browser.post("/login", username="bob", token=PASSWORDS["bob"], to="/class") == (303, "/class")
    assert await scene.browser.post("/login", username="bob", token=PASSWORDS["bob"], to="//evil.example") == (303, "/")


async def test_a_user_sees_what_they_may_pull_and_changes_nothing(scene: Scene) -> None:
    """In lists, pages of images and repositories, the class and their account; nothing names another image, nor tells that it shares a layer."""
    bob = scene.other
    assert await bob.log_in("bob") == 303
    for path in (
        "/",
        "/?view=images",
        "/images?view=images",
        "/?q=plan",
        "/class",
        "/image/docker.io/library/app:1",
        "/repository/docker.io/library/app",
        "/account",
    ):
        status, page = await bob.get(path)
        assert status == 200, path
        assert "plan" not in page.replace('value="plan"', "").replace("“plan”", "").replace("q=plan", ""), path
        assert 'name="secret"' not in page
    assert "library/" in (await bob.get("/"))[1]
    assert "bob" in (await bob.get("/account"))[1]
    for path in ("/image/docker.io/secret/plan:1", "/repository/docker.io/secret/plan"):
        assert (await bob.get(path))[0] == 404
    for path in PAGES_FOR_ALL_IMAGES:
        assert (await bob.get(path))[0] == 403, path
    assert (await bob.get("/settings"))[0] == 401
    for path, form in (
        ("/image/docker.io/library/app:1", {"action": "pin"}),
        ("/images", {"action": "delete", "image": "docker.io/library/app:1"}),
        ("/fetch", {"image": "docker.io/library/app:1", "platform": "all"}),
        ("/guards", {"action": "block", "digest": f"sha256:{'0' * 64}"}),
    ):
        assert (await bob.post(path, **form))[0] == 401, path
    assert (await bob.get("/v2/library/app/manifests/1"))[0] == 404, "the cookie is not for the registry's API"


async def test_an_admin_sees_all_and_changes_by_forms_of_their_own(scene: Scene) -> None:
    """With the form's secret and from the mirror's own pages only; it is noted who it was."""
    root = scene.browser
    for path in ("/", "/guards", "/search?q=app", "/settings", "/image/docker.io/secret/plan:1", "/account"):
        assert (await root.get(path))[0] == 200, path
    _, page = await root.get("/image/docker.io/library/app:1")
    found = re.search(r'name="secret" value="([0-9a-f]+)"', page)
    assert found is not None
    path = "/image/docker.io/library/app:1"
    assert (await root.post(path, action="pin"))[0] == 403
    assert (await root.post(path, action="pin", secret=found[1], origin="http://evil.example"))[0] == 403
    assert (await root.post(path, action="pin", secret=found[1]))[0] == 303
    assert (await root.post("/guards", action="block", digest=f"sha256:{'0' * 64}", why="x", secret=found[1]))[0] == 303
    assert "root" in (await root.get("/guards"))[1]
    assert await scene.other.log_in("root") == 303
    assert (await scene.other.post(path, action="unpin", secret=found[1]))[0] == 403, "a secret is of one session"
    assert (await scene.other.post("/login", username="root", token=PASSWORDS["root"], origin="http://evil.example"))[0] == 403


async def test_what_ends_a_session(scene: Scene, tmp_path: Path) -> None:
    """Logging out, another password, the user's or the token's removal, and time; copies of the cookie are worth nothing then."""
    root = scene.browser
    copy = root.cookie()
    assert (await root.post("/logout"))[0] == 303
    assert root.cookie() == ""

    async def is_good(value: str) -> bool:
        return await status_with(scene, value) == 200

    assert not await is_good(copy)
    folder = scene.mirror.directory / "access"
    secret = add_token(folder / "tokens", "laptop", "root", (), None)
    for change in (
        lambda: users.set_password(scene.users_file, "root", "another password"),
        lambda: remove_token(folder / "tokens", "laptop"),
        lambda: users.remove_user(scene.users_file, "root"),
    ):
        deadline = time.monotonic() + 30
        password = secret if "remove_token" in change.__code__.co_names else None
        known = "another password" if "remove_user" in change.__code__.co_names else PASSWORDS["root"]
        while await root.log_in("root", password or known) != 303:
            assert time.monotonic() < deadline
        session = root.cookie()
        assert await is_good(session)
        change()
        while await is_good(session):
            assert time.monotonic() < deadline


@pytest.mark.parametrize("forgery", ["nobody's key", "a bearer token", "none", "over", "text"])
async def test_a_forged_session_is_none(scene: Scene, forgery: str) -> None:
    """Only what the mirror has signed as a session, and that is not over."""
    key, now = signing_key(scene.mirror.directory / "access"), int(time.time())
    claims = jwt.decode(scene.browser.cookie(), key, algorithms=["HS256"], audience="mirror dashboard")
    unsigned = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "none"}, claims)
    )
    value = {
        "nobody's key": jwt.encode(claims, b"x" * 32, "HS256"),
        "a bearer token": jwt.encode({**claims, "aud": "mirror"}, key, "HS256"),
        "none": f"{unsigned}.",
        "over": jwt.encode({**claims, "exp": now - 1}, key, "HS256"),
        "text": "a.b.c",
    }[forgery]
    assert await status_with(scene, value) == 401


async def test_guesses_are_slowed_and_the_right_password_is_not(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong one is told on the form, with the user's name; after many the answers wait, and too many at once are refused; the right one gets in meanwhile."""
    monkeypatch.setattr(guesses, "DELAY", 0.01)
    status, page = await scene.other.post("/login", username="bob", token="wrong")
    assert status == 403
    assert 'value="bob"' in page
    for number in range(10):
        assert await scene.other.log_in("bob", f"wrong {number}") in (403, 429)
    assert await scene.other.log_in("bob") == 303
    audited = scene.users_file.parent / "audit.log"
    # A thread writes it.
    await until(lambda: audited.read_text().count('"action": "login"') >= 11)
    log = audited.read_text()
    assert '"verdict": "wrong login"' in log
    assert "wrong 1" not in log
    assert PASSWORDS["bob"] not in log


async def test_the_admin_token_still_opens_the_form(scene: Scene) -> None:
    """As the password of admin, and as the only field of older scripts."""
    token = (scene.mirror.directory / "admin-token").read_text().strip()
    for form in ({"username": "admin", "token": token}, {"token": token}):
        scene.other.session.cookie_jar.clear()
        assert (await scene.other.post("/login", **form))[0] == 303
        assert (await scene.other.get("/settings"))[0] == 200
