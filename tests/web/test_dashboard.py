"""The dashboard over HTTP: who may do what, what it sends, and that nothing of what it shows is taken for markup. In a browser: tests/e2e/test_dashboard.py."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import ssl
import string
import subprocess
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from mirror.certificate import ends
from mirror.clients import CLIENTS
from mirror.downloads.active import Download
from mirror.errors import MirrorError
from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.storage.disk.catalog.inventory import Inventory
from mirror.storage.inventory import Day, History, Pulled, Totals, Traffic, UnderWay
from mirror.web import actions, charts, filters, live, site, translations
from mirror.web.downloads import ImageDownload, by_image
from mirror.web.pages import Pages, SiteInfo, State
from mirror.web.sessions import EndedSessions
from mirror.web.templating import Templates
from mirror.web.token import NAME, token_in
from tests.cache.test_inventory import pull, serve
from tests.support.certificates import Authority
from tests.support.filled import fill
from tests.support.images import make_index
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror, until
from tests.support.scripted import Hold, Scripted

HTML = {"Accept": "text/html,application/xhtml+xml"}
IMAGE = "/image/docker.io/library/app:1"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"
PAGES = (
    "/",
    "/images",
    IMAGE,
    "/setup",
    "/setup?client=k3s",
    "/login",
    "/?q=none",
    "/nothing",
    "/image/docker.io/library/none:1",
)


@pytest.fixture
async def dashboard(mirror: Mirror, upstream: Scripted) -> Mirror:
    """A mirror that has one image, docker.io/library/app:1."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(2000)])
    await mirror.get("/v2/app/manifests/1")
    for blob in (*image.layers, image.config):
        await mirror.get(f"/v2/app/blobs/{blob}")
        await mirror.until_cached(blob)
    return mirror


def token(mirror: Mirror) -> str:
    return (mirror.directory / NAME).read_text().strip()


async def post(mirror: Mirror, path: str, form: dict[str, str], **headers: str) -> tuple[int, str, Any]:
    """Status, body, headers; header names have underscores for hyphens."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with mirror.session.post(path, data=form, headers=sent, allow_redirects=False) as response:
        return response.status, await response.text(), response.headers


async def log_in(mirror: Mirror) -> str:
    """A session, as its cookie."""
    status, _, headers = await post(mirror, "/login", {"token": token(mirror), "to": IMAGE}, **HTML)
    assert (status, headers["Location"]) == (303, IMAGE)
    return str(headers["Set-Cookie"].partition(";")[0])


async def pinned(mirror: Mirror) -> bool:
    return "badge accent" in (await mirror.get(IMAGE, **HTML)).body.decode()


# ---------------------------------------------------------------- what is sent


async def test_an_upstream_that_nobody_has_asked_is_not_called_healthy(mirror: Mirror, upstream: Scripted) -> None:
    """What is not known is not said; after an answer it is, and when that was."""
    upstream.add_image("library/app", "1")
    page = (await mirror.get("/", **HTML)).body
    assert b"not visited yet" in page
    unknown = page.count(b"<li>")
    assert unknown > 1
    assert b"healthy" not in page
    await mirror.get("/v2/app/manifests/1")
    async with asyncio.timeout(20):
        # A page has the state of a moment ago.
        while b"healthy" not in (page := (await mirror.get("/", **HTML)).body):
            await asyncio.sleep(0.1)
    assert page.count(b"<li>") == unknown
    assert b"answered" in page


def test_the_trend_is_drawn_once_it_tells_something() -> None:
    """From the size an hour ago or earlier to the size now, the highest at the top; before that it says when it will be."""
    totals = Totals(0, 0, 0, 0, 4096, 0, 0, Traffic(0, 0, 0, 0))
    pages = Pages(None, None, SiteInfo("1", (), 8192, 1.0, dict), Templates("1"))  # type: ignore[arg-type]

    def figures(*samples: tuple[float, int]) -> str:
        sizes = tuple((int(time.time() - ago), size) for ago, size in samples)
        return pages.parts(State((), totals, History(sizes, ()), {"mirror": [], "registries": {}}), "en")["figures"]

    drawn = figures((7200, 1024), (3600, 2048))
    assert re.search(r"Size of the cache lately: 1\sKiB on 20\d\d-[^,]*, 4\sKiB now", drawn)
    line = re.search(r'<path class="line" d="M0\.0 ([\d.]+)L120\.0 ([\d.]+)L240\.0 ([\d.]+)"', drawn)
    assert line is not None, drawn
    heights = [float(height) for height in line.groups()]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3
    for young in (figures(), figures((600, 1024))):
        assert "The trend shows here after an hour" in young
        assert "<path" not in young


async def test_what_is_fetched_ahead_is_counted_apart(start: StartMirror, upstream: Scripted) -> None:
    """A prefetched layer that nobody asks for does not count as fetched for a client; one that a client reads meanwhile does."""
    mirror: Mirror = await start(prefetch=True)
    image = upstream.add_image("library/app", "1", layers=[os.urandom(200_000), os.urandom(300_000)])
    before = await mirror.metric("mirror_fetched_ahead_bytes_total")
    await mirror.get("/v2/app/manifests/1")
    await mirror.get(f"/v2/app/blobs/{image.layers[0]}")
    async with asyncio.timeout(20):
        while await mirror.metric("mirror_fetched_ahead_bytes_total") < before + 300_000:
            await asyncio.sleep(0.01)
    await until(lambda: not mirror.spooled())
    await mirror.stop()
    with contextlib.closing(Inventory(mirror.directory)) as inventory:
        totals, history = inventory.totals(), inventory.history()
    traffic, today = totals.traffic, history.days[-1]
    assert (traffic.prefetched, traffic.pulled) == (today.prefetched, 0)
    assert 300_000 <= today.ahead < 301_000
    assert today.fetched - today.ahead == today.passed == today.sent
    assert (today.cached, traffic.saved) == (0, 0)


def _fill(directory: Path) -> None:
    fill(directory, 10_000)
    # All of them at once have to be read first: minutes, on a busy machine.
    with contextlib.closing(Inventory(directory)) as inventory:
        inventory.learn()


async def test_the_first_screen_is_small_with_ten_thousand_images(start: StartMirror) -> None:
    """Page, script, style and picture together stay under 100 KB, uncompressed; the files may be kept for ever."""
    # Eviction would begin to clear away what is said to be there.
    mirror: Mirror = await start(max_size="2TiB")
    await mirror.mended()
    await asyncio.to_thread(_fill, mirror.directory)
    async with asyncio.timeout(60):
        # A page has the figures of a moment ago at once, and has new ones made.
        while b">10,000<" not in (page := await mirror.get("/", **HTML)).body:
            await asyncio.sleep(0.2)
    assert page.body.count(b'<th scope="row">') == 25
    total = len(page.body)
    for url in sorted(set(re.findall(r'(?:src|href)="(/web/[^"]+)"', page.body.decode()))):
        asset = await mirror.get(url)
        assert (asset.status, asset.headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable")
        total += len(asset.body)
    assert total < 100_000
    for path in (
        "/?page=40&order=size",
        "/?page=400&order=size&q=app",
        "/?page=400&view=images",
        "/repository/docker.io/library/app-7",
    ):
        last = await mirror.get(path, **HTML)
        assert (last.status, len(last.body) < 60_000) == (200, True)
        assert b"Page 40 of 40" in last.body or b"Page 400 of 400" in last.body or b"10 images" in last.body


@pytest.mark.parametrize("path", PAGES)
async def test_pages_are_safe_by_themselves(dashboard: Mirror, path: str) -> None:
    """A strict policy and no way round it: no script, style or handler in the page, nothing from another host, no frame."""
    for language in translations.LANGUAGES:
        page = await dashboard.get(path, Accept_Language=language, **HTML)
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["X-Frame-Options"] == "DENY"
        text = page.body.decode()
        assert not re.search(r"<script(?! src=\"/web/)|<style|\sstyle=|\son[a-z]+=|javascript:", text)
        assert not re.search(r"""(?:src|href|action)=["'](?!/|\#)""", text)
        assert "{" not in re.sub(r"data-copy=\"[^\"]*\"|<code>.*?</code>", "", text, flags=re.DOTALL)


async def test_the_registrys_api_does_not_change(dashboard: Mirror) -> None:
    """Neither by a session, nor by a token, nor by what browsers send; nobody is ever asked for a password there."""
    cookie = await log_in(dashboard)
    for path in ("/v2/", "/v2/app/manifests/1", "/v2/app/tags/list"):
        plain = await dashboard.get(path)
        decorated = await dashboard.get(
            path, Cookie=cookie, Authorization=f"Bearer {token(dashboard)}", Sec_Fetch_Site="cross-site", **HTML
        )
        assert decorated.status == plain.status == 200
        assert decorated.body == plain.body
        assert set(decorated.headers) == set(plain.headers)
        assert "Set-Cookie" not in decorated.headers
    assert (await dashboard.get("/v2/app/manifests/1", "DELETE", Authorization=f"Bearer {token(dashboard)}")).status == 405


async def test_who_is_no_browser_gets_json(dashboard: Mirror) -> None:
    """Errors in the form of the registry's, as ever."""
    for path, status, method in (("/nothing", 404, "GET"), ("/setup", 405, "POST"), ("/image/none", 400, "GET")):
        answer = await dashboard.get(path, method)
        assert answer.status == status
        assert json.loads(answer.body)["errors"][0]["message"]
    assert (await dashboard.get("/setup", "DELETE", **HTML)).headers["Allow"] == "GET, HEAD"
    assert (await dashboard.head("/")).status == 200


# ---------------------------------------------------------------- who may change anything


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


def test_when_a_certificate_ends_is_read_from_its_file(tmp_path: Path) -> None:
    """As OpenSSL reads it, before and after 2050, where the form of dates changes; of what is no certificate nothing is said."""
    for days in (1, 3000, 20_000):
        file = tmp_path / "mirror.crt"
        made = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -days {days} -out {file} -keyout {tmp_path / 'mirror.key'}"
        subprocess.run(made.split(), check=True, capture_output=True)
        told = subprocess.run(["openssl", "x509", "-enddate", "-noout", "-in", file], check=True, capture_output=True, text=True)
        assert ends(file) == ssl.cert_time_to_seconds(told.stdout.strip().removeprefix("notAfter="))
    whole = file.read_text()
    for text in ("", "-----BEGIN CERTIFICATE-----", whole[:200], whole.replace("MII", "AAA")):
        file.write_text(text)
        assert ends(file) is None
    assert ends(tmp_path / "none") is None


async def test_guessing_is_slow_and_the_right_token_always_gets_in(dashboard: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five wrong tokens from an address further ones wait for their answer, a few at a time; whoever has the right one is let in at once, from the same
    address too: it may be a proxy's."""
    waiting, released = [], asyncio.Event()

    async def sleep(seconds: float) -> None:
        waiting.append(seconds)
        await released.wait()

    monkeypatch.setattr("mirror.web.admin.asyncio", SimpleNamespace(sleep=sleep))
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


async def test_one_address_has_not_all_event_streams(dashboard: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one gets its own."""
    monkeypatch.setattr(live, "_MOST_FROM_ONE", 1)
    stream = events(dashboard.session)
    await anext(stream)
    assert (await dashboard.get("/events")).status == 503
    async with aiohttp.ClientSession(dashboard.url, connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))) as other:
        await anext(events(other))
    await stream.aclose()  # type: ignore[attr-defined]


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


async def test_several_images_are_changed_at_once(dashboard: Mirror, upstream: Scripted) -> None:
    """Those that were selected and no others; where one cannot be changed, the rest are, and the answer says which it was."""
    names = [f"docker.io/library/app:{tag}" for tag in ("1", "2", "3")]
    for tag in ("2", "3"):
        upstream.add_image("library/app", tag)
        await dashboard.get(f"/v2/app/manifests/{tag}")
    bearer = {"Authorization": f"Bearer {token(dashboard)}"}

    async def several(action: str, images: list[str], **headers: str) -> tuple[int, str]:
        body = {"action": action, "image": images}
        async with dashboard.session.post("/images", json=body, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.text()

    def badges(page: str) -> int:
        return page.count('<span class="badge accent">')

    async def pins() -> int:
        return badges((await dashboard.get("/repository/docker.io/library/app", **HTML)).body.decode())

    assert (await several("pin", names[:2]))[0] == 401
    assert await pins() == 0
    assert (await several("pin", names[:2], **bearer))[0] == 200
    assert await pins() == 2
    status, text = await several("delete", names, **bearer)
    assert status == 409
    assert "1 of 3 images were changed" in text
    assert names[0] in text
    assert names[1] in text
    assert [(await dashboard.get(f"/image/{name}", **HTML)).status for name in names] == [200, 200, 404]
    for images in ([], [f"docker.io/library/app:{tag}" for tag in range(51)]):
        assert (await several("unpin", images, **bearer))[0] == 400
    assert (await several("fetch", names[:1], **bearer))[0] == 400
    assert await pins() == 2


async def test_the_list_has_boxes_for_the_admin_alone(dashboard: Mirror) -> None:
    """A form leads back to the page that it was sent from."""
    for path in ("/?view=images&order=size", "/?q=app", "/repository/docker.io/library/app?order=size"):
        assert b'name="image"' not in (await dashboard.get(path, **HTML)).body
        cookie = await log_in(dashboard)
        page = (await dashboard.get(path, Cookie=cookie, **HTML)).body.decode()
        assert page.count('name="image"') == 1
        hidden = dict(re.findall(r'type="hidden" name="(secret|to)" value="([^"]*)"', page))
        form = {
            "image": "docker.io/library/app:1",
            "action": "pin",
            **{key: value.replace("&amp;", "&") for key, value in hidden.items()},
        }
        status, _, headers = await post(dashboard, "/images", form, Cookie=cookie, Origin=dashboard.url, **HTML)
        assert status == 303
        assert set(re.split("[?&]", headers["Location"])) == {*re.split("[?&]", path), "done=pinned"}


async def test_what_is_not_cached_can_be_fetched(dashboard: Mirror, upstream: Scripted) -> None:
    """With the token: the whole image for a platform, as mirror pull does; its bytes are counted as pulled. What upstream lacks is told at once."""
    image = upstream.add_image("library/other", "1", layers=[os.urandom(3000), os.urandom(500)])
    path = "/image/docker.io/library/other:1"
    page = await dashboard.get(path, **HTML)
    assert (page.status, b"Not in the cache" in page.body, b'value="fetch"' in page.body) == (404, True, False)
    offered = await dashboard.get(path, Cookie=await log_in(dashboard), **HTML)
    assert (offered.status, b'value="fetch"' in offered.body) == (404, True)
    form = {"action": "fetch", "platform": "linux/amd64"}
    assert (await post(dashboard, path, form))[0] == 401
    assert not any("library/other" in asked.path for asked in upstream.asked)
    bearer = {"Authorization": f"Bearer {token(dashboard)}"}
    before = await dashboard.metric("mirror_fetched_ahead_bytes_total")
    status, body, _ = await post(dashboard, path, form, **bearer)
    assert (status, json.loads(body)) == (200, {"done": "fetched", "image": "docker.io/library/other:1"})
    assert all(dashboard.cached(digest) for digest in (*image.layers, image.config))
    assert await dashboard.metric("mirror_fetched_ahead_bytes_total") - before == 3500 + len(upstream.blobs[str(image.config)])
    assert b"complete" in (await dashboard.get(path, **HTML)).body
    assert (await post(dashboard, "/image/docker.io/library/none:1", form, **bearer))[0] == 404
    assert (await post(dashboard, path, {"action": "fetch", "platform": "amd64; x"}, **bearer))[0] == 400


async def test_a_long_fetch_goes_on_behind_and_tells_its_failure(
    dashboard: Mirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever began it is shown the list of downloads, which says in the end why it failed."""
    monkeypatch.setattr(actions, "_PATIENCE", 0.0)
    image = upstream.add_image("library/other", "1", layers=[os.urandom(1_000_000)])
    hold = Hold(after=300_000)
    upstream.fail(str(image.layers[0]), hold)
    bearer = {"Authorization": f"Bearer {token(dashboard)}"}
    status, _, headers = await post(dashboard, "/image/docker.io/library/other:1", {"action": "fetch"}, **bearer, **HTML)
    assert (status, headers["Location"]) == (303, "/?done=fetching")
    await hold.reached.wait()
    await upstream.stop()
    parts: dict[str, str] = {}
    async with asyncio.timeout(60):
        async for news in events(dashboard.session):
            parts.update(news)
            if "/image/docker.io/library/other:1" in parts["downloads"] and "failed: " in parts["downloads"]:
                break


async def test_the_settings_are_for_the_admin(dashboard: Mirror) -> None:
    """All that are in force, as they would be written, and none that is secret."""
    refused = await dashboard.get("/settings", **HTML)
    assert (refused.status, b"cache.max_size" in refused.body) == (401, False)
    page = (await dashboard.get("/settings", Cookie=await log_in(dashboard), **HTML)).body.decode()
    for text in ("cache.max_size", "9.54 MiB/s", "30 d", "5 m", "server.listen"):
        assert text in page
    assert token(dashboard) not in page


# ---------------------------------------------------------------- an image's page


async def test_an_images_platforms_are_tabs(mirror: Mirror, upstream: Scripted) -> None:
    """Each a link, so that no script is needed; what is cached comes first, and only one platform's layers are on the page."""
    made = make_index(5)
    serve(upstream, "library/app", "1", made)
    await pull(mirror, "library/app", "1", made, "arm64")
    async with asyncio.timeout(20):
        # A file is there a moment before the catalog knows it.
        while '<span class="badge good">complete</span>' not in (page := (await mirror.get(IMAGE, **HTML)).body.decode()):
            await asyncio.sleep(0.05)
    tabs = re.findall(r'href="(/image/[^"]*\?platform=[^"]*)#platform"[^>]*>([^<]*)<', page)
    assert [label for _, label in tabs] == ["arm64", "amd64"]
    assert page.count("layer 0") >= 1
    assert "/bin/true" in page
    other = (await mirror.get(tabs[1][0].replace("%2F", "/"), **HTML)).body.decode()
    assert '<span class="badge ">not cached</span>' in other
    assert "layer 0" not in other
    for command in ("docker pull app:1", "podman pull docker.io/library/app:1", "FROM app:1@sha256:"):
        assert command in page
    assert (await mirror.get(f"{IMAGE}?platform=nothing", **HTML)).status == 200


# ---------------------------------------------------------------- hostile texts


def test_no_text_is_taken_for_markup(tmp_path: Path) -> None:
    """Repositories, digests, errors of upstream, names of endpoints: whatever they hold, they are shown as they are."""
    download = ImageDownload(HOSTILE, HOSTILE, HOSTILE, 1, 100, 50, 1.0, 1, None, False)
    failed = ImageDownload(HOSTILE, "", None, 1, None, 0, 0.0, 0, None, True, HOSTILE)
    endpoint = {
        "endpoint": HOSTILE,
        "state": "down",
        "asked_again": 1.0,
        "last_error": HOSTILE,
        "seconds_to_first_byte": None,
        "bytes_per_second": None,
        "pulls": 100,
        "pulls_left": 1,
    }
    totals = Totals(1, 1, 1, 1, 1, 1, 1, Traffic(1, 1, 1, 1))
    state = State(
        (download, failed),
        totals,
        History((), (Day("2025-01-01", 1, 1, 1, 1),)),
        {"mirror": [HOSTILE], "registries": {HOSTILE: [endpoint]}},
        (Pulled(f"{HOSTILE}@{HOSTILE}", 1, 1.0),),
    )
    pages = Pages(None, None, SiteInfo("1", (), 100, 1.0, dict), Templates("1"))  # type: ignore[arg-type]
    for language in translations.LANGUAGES:
        for part in pages.parts(state, language).values():
            assert "<script" not in part
            assert "<img" not in part
            assert "49" not in part


async def test_an_image_of_ten_thousand_platforms_is_a_page_like_others(mirror: Mirror, upstream: Scripted) -> None:
    """What an index lists beyond what anybody would read is counted only, and so is what is for no platform."""
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": f"sha256:{number:064x}",
            "size": 1,
            "platform": {"os": HOSTILE if number % 2 else "linux", "architecture": str(number)},
        }
        for number in range(10_000)
    ]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    upstream.add_manifest("library/app", "1", body, OCI_INDEX)
    assert (await mirror.get("/v2/app/manifests/1")).status == 200
    page = await mirror.get(IMAGE, **HTML)
    assert b"and 4,960 more and 5,000 attestations" in page.body
    assert len(page.body) < 200_000
    assert b"<script>alert" not in page.body


async def test_a_search_is_not_taken_for_markup(dashboard: Mirror) -> None:
    """Nor is any other part of a URL."""
    async with dashboard.session.get(
        "/", params={"q": HOSTILE, "order": HOSTILE, "page": HOSTILE, "done": HOSTILE}, headers=HTML
    ) as page:
        text = await page.text()
        assert page.status == 200
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    async with dashboard.session.get(f"/login?to={HOSTILE}", headers=HTML) as page:
        assert "<script>alert" not in await page.text()


async def test_an_address_goes_into_a_script_only_when_it_is_one(dashboard: Mirror) -> None:
    """The Host header's alone, letter by letter; another host that a proxy may claim does not count."""
    for host in ("$(reboot)", "a;b", "a b", "a'b", '"', "`x`", "mirror.lan:port", "-x", "", "a/b", "a@b", "x\\y", "a\tb"):
        answer = await dashboard.get("/setup/docker.sh", Host=host)
        assert answer.status in (400, 421), host
        page = await dashboard.get("/setup", Host=host, **HTML)
        assert page.status in (200, 400, 421)
        assert b"registry-mirrors" not in page.body
        assert (await dashboard.get("/", Host=host, **HTML)).status in (200, 400, 421)
    forwarded = {"X_Forwarded_Host": "evil.example", "X_Forwarded_Proto": "evil", "Forwarded": "host=evil.example"}
    for client in CLIENTS:
        script = await dashboard.get(f"/setup/{client}.sh", Host="Mirror.LAN:5000", **forwarded)
        assert b"mirror.lan:5000" in script.body
        assert b"evil" not in script.body
        page = await dashboard.get(f"/setup?client={client}", Host="mirror.lan:5000", **forwarded, **HTML)
        assert b"mirror.lan:5000" in page.body
        assert b"evil" not in page.body
    assert (await dashboard.get("/setup/nothing.sh")).status == 404


async def test_behind_a_proxy_that_ends_tls_clients_are_set_up_for_https(dashboard: Mirror) -> None:
    """In the snippets and in the script, as the proxy says; without its word it is the scheme of the connection."""
    for path in ("/setup?client=k3s", "/setup/k3s.sh"):
        for proxied, wanted in ({"X_Forwarded_Proto": "https"}, b"https://mirror.lan"), ({}, b"http://mirror.lan"):
            assert wanted in (await dashboard.get(path, Host="mirror.lan", **proxied)).body, path


async def test_switches_lead_back_to_the_page(dashboard: Mirror) -> None:
    """Never to another host; language and theme are kept, and what is none of them is not."""
    page = await dashboard.get("/setup?client=k3s&lang=zh&theme=dark", **HTML)
    assert (page.status, page.headers["Location"]) == (303, "/setup?client=k3s")
    cookies = "; ".join(cookie.partition(";")[0] for cookie in page.headers.getall("Set-Cookie"))
    shown = (await dashboard.get("/setup", Cookie=cookies, **HTML)).body.decode()
    assert 'lang="zh-Hans" data-theme="dark"' in shown
    async with aiohttp.request("GET", f"{dashboard.url}//evil.example/?lang=zh", headers=HTML, allow_redirects=False) as evil:
        assert re.match("/[^/]", evil.headers.get("Location", "/."))
    assert (await dashboard.get("/?lang=<script>", **HTML)).status == 200


# ---------------------------------------------------------------- languages


def test_every_text_is_there_in_every_language() -> None:
    """With the same things filled in; and every key that the templates name exists, and is named somewhere."""
    fields = string.Formatter()
    for key in sorted(translations.keys()):
        written = [translations._TEXTS[key][place] for place in range(len(translations.LANGUAGES))]
        assert all(written), key
        names = [{name for _, name, _, _ in fields.parse(text) if name} - {"n"} for text in written]
        assert names[0] == names[1], key
        assert "|" not in written[1], "Chinese has no plural"
    folder = Path(site.__file__).parent / "templates"
    source = "".join(file.read_text() for file in folder.glob("*.html"))
    named = set(re.findall(r"\bt\('([a-z_]+)'(?! ~)", source))
    made = set(re.findall(r"\bt\('([a-z_]+)' ~", source))
    assert named <= translations.keys()
    assert {key for key in translations.keys() - named if not key.startswith(tuple(made))} == set()


async def test_errors_are_told_in_the_language_of_the_page(dashboard: Mirror) -> None:
    """What is wrong in words of that language; the details are as the program has them."""
    for accept, words in (
        ("en", ("that is not the admin token", "nothing is cached")),
        ("zh", ("管理员令牌不正确", "缓存中没有")),
    ):
        headers = {**HTML, "Accept-Language": accept}
        status, page, _ = await post(dashboard, "/login", {"token": "wrong"}, **headers)
        assert (status, words[0] in page) == (401, True)
        missing = (await dashboard.get("/repository/docker.io/library/none", **headers)).body.decode()
        assert words[1] in missing
        # What is searched for on the web stays as it is.
        assert "nothing is cached of docker.io/library/none" in missing


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("no connection with https://registry-1.docker.io: Connection refused", "拒绝连接"),
        ("registry-1.docker.io cannot be resolved: Temporary failure in name resolution", "DNS"),
        ("https://ghcr.io did not answer in time", "未在限定时间内应答"),
        ("https://x.example sent nothing for 15 s", "上游 15 秒内没有发送任何数据"),
        ("https://x.example answered 429: too many requests", "429"),
        ("https://x.example has answered 429 and is left alone for another 12 s", "12 秒后再试"),
        ("docker.io has answered 429: it is asked again in 7 s", "7 秒后再试"),
        ("that is not the admin token, and there were many wrong ones from this address", "错误次数较多"),
        ("https://x.example answered 502", "上游服务器出错"),
        ("docker.io does not let anyone pull owner/secret, or has no such repository", "需要账号"),
        ("docker.io is left alone for 20 s after failures: Connection refused", "拒绝连接"),
        (
            "no TLS connection with https://x.example: certificate verify failed: unable to get local issuer certificate",
            "证书不可信",
        ),
        ("upstream's bytes for sha256:00 are not what their digest says", "与摘要不符"),
        ("the cache's disk refuses: No space left on device", "磁盘空间不足"),
        ("nothing is cached of docker.io/library/none:1", "缓存中没有 docker.io/library/none:1"),
        ("docker.io/library/app:1 is pinned: unpin it first, or force it", "docker.io/library/app:1 已固定"),
    ],
)
def test_usual_errors_are_explained_in_chinese(message: str, words: str) -> None:
    """By their words, also where only those are known; the English page has them as they are."""
    assert words in translations.explain("zh", message)
    assert translations.explain("en", message) == message


def test_every_error_has_a_chinese_explanation() -> None:
    """By its class, where nobody knows its words."""

    def classes(kind: type[MirrorError]) -> Iterator[type[MirrorError]]:
        yield kind
        for below in kind.__subclasses__():
            yield from classes(below)

    for kind in classes(MirrorError):
        error = kind.__new__(kind)
        assert re.search("[\u4e00-\u9fff]", translations.explain("zh", "xyzzy", error)), kind
    assert translations.explain("zh", "xyzzy") == "xyzzy"


def test_numbers_stay_with_their_units_and_names_whole() -> None:
    """No line begins with a unit, and a name breaks after slashes and before its tag only."""
    for text in (
        filters.size(1013 * 2**20),
        filters.rate(5e6),
        filters.percent(1, 3),
        filters.span(7500, "en"),
        filters.span(0.02, "zh"),
    ):
        assert "\u00a0" in text
        assert " " not in text
    now = time.time()
    for language in translations.LANGUAGES:
        assert all(" " not in filters.ago(now - seconds, language).removeprefix("just ") for seconds in (1, 30, 90, 90_000))
    assert filters.ago(now - 30, "en") == "<\u00a01\u00a0min\u00a0ago"
    assert filters.breakable("ghcr.io/a/<b>:1") == "ghcr.io/<wbr>a/<wbr>&lt;b&gt;<wbr>:1"
    for image, name in (("docker.io/library/redis:7", "redis:7"), ("docker.io/a/b:1", "a/b:1"), ("quay.io/library/b:1",) * 2):
        assert filters.familiar(image) == name


def test_the_days_stand_on_an_axis_with_round_figures() -> None:
    """Heights fit the axis; what was fetched ahead is no part of what clients got."""
    days = (Day("2025-01-01", 9, 9, 0, 0), Day("2025-01-02", 9, 9, 5 * 2**30, 11 * 2**30, 2**30, 2**30))
    chart = charts.bars(History((), days))
    assert chart is not None
    assert (chart.top, chart.sent, chart.cached, chart.ahead) == (12 * 2**30, 11 * 2**30, 8 * 2**30, 2 * 2**30)
    bar = chart.bars[1]
    assert (bar.passed, bar.cached, bar.ahead) == ((90.0, 30.0), (10.0, 80.0), (100.0, 20.0))
    assert charts.bars(History((), days[:1])) is None
    for most in (1, 3, 1023, 1025, 10**9, 10**13):
        assert most <= charts.axis_end(most) <= 2 * most


def test_downloads_are_shown_by_image() -> None:
    """One line for all blobs of an image, with what is cached of it already; a blob that nothing is known of has a line of its own."""
    name = "docker.io/library/app"

    def download(digest: str, size: int | None, have: int, readers: int = 1, ended: bool = False, error: str = "") -> Download:
        return Download(digest, name, size, have, 10.0, readers, 0.0, True, ended, error)

    image = UnderWay(f"{name}:1", "linux/amd64", {"a": 100, "b": 200, "c": 300, "d": 1}, frozenset(("c", "a")))
    known = {(name, digest): image for digest in "abc"}
    lines = by_image([download("b", None, 50), download("x", 7, 7, ended=True), download("a", 110, 110, ended=True)], known)
    assert [line.name for line in lines] == [f"{name}:1", name]
    whole, alone = lines
    assert (whole.size, whole.have, whole.blobs, whole.rate, whole.readers) == (611, 460, 2, 10.0, 1)
    assert (whole.ended, whole.left, whole.link) == (False, None, f"{name}:1")
    assert (alone.ended, alone.link, alone.size) == (True, "", 7)
    assert by_image([download("b", 200, 50)], known)[0].left == 15
    assert by_image([download("b", 200, 50), download("a", 100, 0, 0, True, "gone")], known)[0].error == "gone"


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.9", "en"),
        ("fr,zh;q=0.2", "zh"),
        ("zh;q=0", "en"),
        ("zh;q=nan,;;,=,zh;q=x", "en"),
        ("ZH-Hans", "zh"),
        ("de", "en"),
    ],
)
def test_the_browsers_language_is_spoken(accept: str, language: str) -> None:
    """The one that it likes best of those that there are."""
    assert translations.preferred(accept) == language


# ---------------------------------------------------------------- what moves


async def events(session: aiohttp.ClientSession) -> AsyncIterator[dict[str, str]]:
    """What /events sends, message by message."""
    async with session.get("/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        async for line in response.content:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


async def test_downloads_of_all_processes_are_shown(start: StartMirror, upstream: Scripted) -> None:
    """Two mirrors on one directory: each shows what the other downloads, with the readers of both, until it has landed."""
    one, two = await start(), await start()
    image = upstream.add_image("library/app", "1", layers=[os.urandom(1_000_000)])
    hold = Hold(after=300_000)
    upstream.fail(str(image.layers[0]), hold)
    path = f"/v2/app/blobs/{image.layers[0]}"
    pulls = [asyncio.create_task(mirror.get(path)) for mirror in (one, two)]
    await hold.reached.wait()
    parts: dict[str, str] = {}
    async with asyncio.timeout(20):
        async for news in events(two.session):
            parts.update(news)
            if "2 readers" in parts["downloads"]:
                hold.release.set()
            if "done" in parts["downloads"]:
                break
    assert {(await pull).status for pull in pulls} == {200}
    assert "docker.io/library/app" in parts["downloads"]
    await until(lambda: not list((one.directory / "live").glob("*")), 20)


async def test_what_fails_is_shown_with_its_reason(mirror: Mirror, upstream: Scripted) -> None:
    """A download that was given up, and the upstream that went away under it; afterwards nothing is said to be under way."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(1_000_000)])
    hold = Hold(after=300_000)
    upstream.fail(str(image.layers[0]), hold)
    pull = asyncio.create_task(mirror.get(f"/v2/app/blobs/{image.layers[0]}"))
    await hold.reached.wait()
    await upstream.stop()
    parts: dict[str, str] = {}
    async with asyncio.timeout(60):
        async for news in events(mirror.session):
            parts.update(news)
            if "failed: " in parts["downloads"]:
                break
        assert ">down</span>" in parts["upstreams"]
        assert "Connection refused" in parts["downloads"]
        assert "Connection refused" in parts["upstreams"]
        async for news in events(mirror.session):
            if "Nothing is being downloaded" in news.get("downloads", ""):
                break
    assert (await pull).cut


async def test_listeners_are_few_and_cost_nothing_when_they_have_left(dashboard: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is asked to come again; each is sent only what has changed."""
    monkeypatch.setattr(live, "_MOST", 1)
    stream = events(dashboard.session)
    told = await anext(stream)
    assert set(told) == {"faults", "figures", "downloads", "traffic", "upstreams", "top"}
    assert (await dashboard.get("/events")).status == 503
    assert (await post(dashboard, IMAGE, {"action": "pin"}, Authorization=f"Bearer {token(dashboard)}"))[0] == 200
    async with asyncio.timeout(20):
        while "1 pinned" not in told["figures"]:
            news = await anext(stream)
            assert all(told[name] != part for name, part in news.items())
            told |= news
    await stream.aclose()  # type: ignore[attr-defined]

    async def free() -> bool:
        async with dashboard.session.get("/events") as response:
            return response.status == 200

    async with asyncio.timeout(10):
        while not await free():
            await asyncio.sleep(0.05)


async def test_who_listens_does_not_hold_up_the_end(start: StartMirror) -> None:
    """The stream ends cleanly, at once, although requests may take as long as they like to drain."""
    mirror: Mirror = await start(settings={"server": {"drain_timeout": 600}})
    async with aiohttp.ClientSession(mirror.url) as session:
        stream = events(session)
        await anext(stream)
        async with asyncio.timeout(20):
            await mirror.stop()
            # And no more comes of it.
            assert [news async for news in stream if "downloads" in news] == []
