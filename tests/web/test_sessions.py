"""Who may change anything: the admin token, sessions, forms, guessing."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import ssl
import time
import zlib
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from mirror.web.sessions import EndedSessions
from mirror.web.token import NAME, token_in
from tests.support.certificates import Authority
from tests.support.dashboard import HTML, IMAGE, log_in, pinned, post, token
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror, until


async def test_scripts_send_the_token_in_a_header(dashboard: Mirror) -> None:
    """And get JSON; pin, unpin, refresh and delete do what they say."""
    bearer = {"Authorization": f"Bearer {token(dashboard)}"}
    for action, done in (("pin", "pinned"), ("refresh", "refreshed"), ("unpin", "unpinned"), ("delete", "deleted")):
        status, body, _ = await post(dashboard, IMAGE, {"action": action}, **bearer)
        assert (status, json.loads(body)) == (200, {"done": done, "image": IMAGE.removeprefix("/image/")})
        if action != "delete":
            assert await pinned(dashboard) == (action in ("pin", "refresh"))
    assert (await dashboard.get(IMAGE)).status == 404
    assert (await post(dashboard, IMAGE, {"action": "delete"}, **bearer))[0] == 404
    assert (await post(dashboard, IMAGE, {"action": "explode"}, **bearer))[0] == 400


async def test_without_the_token_nothing_is_changed(dashboard: Mirror) -> None:
    """401 as JSON or as a page; a session that is forged, or of another token, is none; GET changes nothing."""
    cookie = await log_in(dashboard)
    name, _, session = cookie.partition("=")
    later = f"{int(time.time()) + 10**6}.{session.partition('.')[2]}"
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic YWRtaW46YWRtaW4="},
        {"Cookie": f"{name}={later}"},
        {"Cookie": f"{name}={session[:-1]}"},
        {"Cookie": f"{name}=1.a.b"},
        {"Cookie": f"{name}=é.ü.ö"},
    ):
        for accept in ({}, HTML):
            status, body, answer = await post(dashboard, IMAGE, {"action": "pin"}, **headers, **accept)
            assert status == 401
            assert answer["WWW-Authenticate"].startswith("Bearer")
            assert body.startswith("<!doctype html>" if accept else '{"errors"')
        await dashboard.get(f"{IMAGE}?action=pin", **headers)
    assert not await pinned(dashboard)


async def test_a_form_counts_only_from_the_page_itself(dashboard: Mirror) -> None:
    """With a good session: refused without the page's secret, and where a browser says that it comes from elsewhere."""
    cookie = await log_in(dashboard)
    page = (await dashboard.get(IMAGE, Cookie=cookie, **HTML)).body.decode()
    found = re.search(r'name="secret" value="([0-9a-f]{64})"', page)
    assert found is not None
    form = {"action": "pin", "secret": found[1]}
    own = dashboard.url
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"{own}.evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Origin": own},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ):
        status, _, _ = await post(dashboard, IMAGE, form, Cookie=cookie, **headers)
        assert status == 403, headers
    for secret in ("", "0" * 64, found[1][:-1]):
        assert (await post(dashboard, IMAGE, {**form, "secret": secret}, Cookie=cookie, Origin=own))[0] == 403
    other = await log_in(dashboard)
    assert (await post(dashboard, IMAGE, form, Cookie=other, Origin=own))[0] == 403
    assert not await pinned(dashboard)
    assert (await post(dashboard, IMAGE, form, Cookie=cookie, Sec_Fetch_Site="same-origin"))[0] == 200
    assert await pinned(dashboard)
    assert (await post(dashboard, "/login", {"token": token(dashboard)}, Origin="http://evil.example"))[0] == 403


async def test_the_session_is_kept_from_scripts_and_other_sites(dashboard: Mirror) -> None:
    """And leads nowhere but to a page of the mirror."""
    _, _, headers = await post(dashboard, "/login", {"token": token(dashboard)}, **HTML)
    cookie = next(iter(SimpleCookie(headers["Set-Cookie"]).values()))
    assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["secure"]) == (True, "Strict", "/", "")
    assert token(dashboard) not in headers["Set-Cookie"]
    for to in ("//evil.example", "https://evil.example", "/\\evil.example", "/\r\nX: y", "evil", "/\tx"):
        _, _, headers = await post(dashboard, "/login", {"token": token(dashboard), "to": to}, **HTML)
        assert headers["Location"] == "/"
    _, _, headers = await post(dashboard, "/login", {"token": token(dashboard)}, Origin="https://" + dashboard.url[7:], **HTML)
    assert "Secure" in headers["Set-Cookie"]
    _, _, headers = await post(dashboard, "/logout", {}, Cookie=await log_in(dashboard))
    assert 'mirror_admin=""' in headers["Set-Cookie"]
    assert "Max-Age=0" in headers["Set-Cookie"]


async def test_a_session_holds_in_every_process_and_over_restarts(start: StartMirror, dashboard: Mirror) -> None:
    """Whoever shares the cache directory knows the same token; another token ends it."""
    cookie = await log_in(dashboard)
    second: Mirror = await start()
    assert b'name="secret"' in (await second.get(IMAGE, Cookie=cookie)).body
    third: Mirror = await start(settings={"server": {"admin_token": "another token of its own"}})
    assert b'name="secret"' not in (await third.get(IMAGE, Cookie=cookie)).body


async def test_over_tls_the_session_is_for_tls_alone(start: StartMirror, tmp_path: Path) -> None:
    """And clients are told the https address."""
    authority = Authority(tmp_path / "tls")
    pair = {"tls_certificate": str(authority.certificate), "tls_key": str(authority.key)}
    mirror: Mirror = await start(settings={"server": pair})
    context = ssl.create_default_context(cafile=authority.ca)
    async with aiohttp.ClientSession(mirror.url, connector=aiohttp.TCPConnector(ssl=context)) as session:
        async with session.post("/login", data={"token": token(mirror)}, headers=HTML, allow_redirects=False) as answer:
            assert answer.status == 303
            assert "Secure" in answer.headers["Set-Cookie"]
        async with session.get("/setup", headers=HTML) as page:
            assert mirror.url in await page.text()
            assert mirror.url.startswith("https://")
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        async with session.get("/settings", headers={**HTML, "Cookie": cookie}) as page:
            until_then = f"valid until {(datetime.now(UTC) + timedelta(days=1)).date()}"
            text = (await page.text()).replace("\u00a0", " ")
            assert until_then in text, re.findall("badge.*", text)


async def test_guessing_is_slow_and_the_right_token_always_gets_in(dashboard: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five wrong tokens from an address further ones wait for their answer, a few at a time; whoever has the right one is let in at once, from the same
    address too: it may be a proxy's."""
    waiting, released = [], asyncio.Event()

    async def sleep(seconds: float) -> None:
        waiting.append(seconds)
        await released.wait()

    monkeypatch.setattr("mirror.access.guesses.asyncio", SimpleNamespace(sleep=sleep))
    for _ in range(5):
        assert (await post(dashboard, "/login", {"token": "wrong"}))[0] == 401
    slow = [asyncio.create_task(post(dashboard, IMAGE, {"action": "pin"}, Authorization="Bearer wrong")) for _ in range(8)]
    await until(lambda: len(waiting) == 8)
    status, _, headers = await post(dashboard, "/login", {"token": "wrong"})
    assert status == 429
    assert int(headers["Retry-After"]) > 0
    assert (await post(dashboard, "/login", {"token": token(dashboard)}))[0] == 303
    assert (await post(dashboard, IMAGE, {"action": "pin"}, Authorization=f"Bearer {token(dashboard)}"))[0] == 200
    assert not any(task.done() for task in slow)
    released.set()
    assert [status for status, _, _ in await asyncio.gather(*slow)] == [429] * 8


async def test_a_session_that_was_logged_out_is_none(start: StartMirror, dashboard: Mirror) -> None:
    """Whoever kept its cookie changes nothing with it: not here, not in another process on the same cache, not after a restart. Other sessions go on."""
    cookie, other = await log_in(dashboard), await log_in(dashboard)
    second: Mirror = await start()
    assert (await post(dashboard, "/logout", {}, Cookie=cookie))[0] == 303
    third: Mirror = await start()
    for mirror in (dashboard, second, third):
        assert b'name="secret"' not in (await mirror.get(IMAGE, Cookie=cookie)).body
        assert (await post(mirror, IMAGE, {"action": "unpin"}, Cookie=cookie))[0] == 401
        assert b'name="secret"' in (await mirror.get(IMAGE, Cookie=other)).body


def test_ended_sessions_are_forgotten_when_they_have_expired(tmp_path: Path) -> None:
    """And a disk that takes no file costs only that other processes do not know."""
    ended = EndedSessions(tmp_path)
    ended.add("100.aa", 50)
    assert "100.aa" in EndedSessions(tmp_path)
    ended.add("300.bb", 200)
    assert [one in EndedSessions(tmp_path) for one in ("100.aa", "300.bb")] == [False, True]
    (tmp_path / "file").touch()
    nowhere = EndedSessions(tmp_path / "file")
    nowhere.add("300.cc", 200)
    assert "300.cc" in nowhere


@pytest.mark.parametrize("body", [b"a=" + b"x" * 20_000, b"\xff\xfe=%ff", b"&".join(b"a=b" for _ in range(100)), b""])
async def test_forms_that_make_no_sense_are_refused(dashboard: Mirror, body: bytes) -> None:
    """With an error of the client's, whatever they hold."""
    headers = {"Authorization": f"Bearer {token(dashboard)}", "Content-Type": "application/x-www-form-urlencoded"}
    for content_type in ("application/x-www-form-urlencoded", "application/json"):
        headers["Content-Type"] = content_type
        async with dashboard.session.post(IMAGE, data=body, headers=headers) as response:
            assert response.status == 400


async def test_a_body_is_not_unpacked(dashboard: Mirror) -> None:
    """Anybody may send one, before any token is looked at, and some hundred kilobytes of it would hold up everybody for a second."""
    right = f"token={token(dashboard)}".encode()
    assert (await post_body(dashboard, "/login", right))[0] == 303
    for encoding, body in (
        ("deflate", zlib.compress(right)),
        ("gzip", gzip.compress(right)),
        ("gzip", b"nothing of the kind"),
        ("br", right[:9]),
    ):
        status, text = await post_body(dashboard, "/login", body, encoding)
        assert status in (400, 401), text
    status, text = await post_body(dashboard, "/v2/library/app/manifests/1", zlib.compress(bytes(1000)), "deflate")
    assert (status, json.loads(text)["errors"][0]["code"]) == (405, "UNSUPPORTED")


async def post_body(mirror: Mirror, path: str, body: bytes, encoding: str | None = None) -> tuple[int, str]:
    """Status and body; what is sent is sent as it is."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"} | ({"Content-Encoding": encoding} if encoding else {})
    async with mirror.session.post(path, data=body, headers=headers, allow_redirects=False) as response:
        return response.status, await response.text()


def test_the_token_is_made_once_and_its_owners_alone(tmp_path: Path) -> None:
    """Printed when it is made, never again, and not in the log of a request; set, it is not made at all."""
    folder = tmp_path / "cache"
    with MirrorProcess(folder, {"docker.io": "http://127.0.0.1:9"}) as mirror:
        made = (folder / NAME).read_text().strip()
        assert len(made) >= 32
        assert (folder / NAME).stat().st_mode & 0o777 == 0o600
        assert mirror.log.count(made) == 1
        mirror.terminate()
        mirror.start()
        assert mirror.log.count(made) == 1
        assert token_in(folder) == (made, False)
    (folder / NAME).write_text("short\n")
    assert token_in(folder)[1]
    with MirrorProcess(tmp_path / "other", {"docker.io": "http://127.0.0.1:9"}, SERVER__ADMIN_TOKEN="set by its owner") as mirror:
        assert not (tmp_path / "other" / NAME).exists()
        assert "set by its owner" not in mirror.log
