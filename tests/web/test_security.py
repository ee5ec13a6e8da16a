"""What pages send, what is taken for markup, and that the registry's API does not change."""

from __future__ import annotations

import json
import re
from pathlib import Path

import aiohttp
import pytest

from mirror.clients import CLIENTS
from mirror.storage.inventory import Day, History, Pulled, Totals, Traffic
from mirror.web import translations
from mirror.web.downloads import ImageDownload
from mirror.web.pages import Pages, State
from mirror.web.site_info import SiteInfo
from mirror.web.templating import Templates
from tests.support.dashboard import HOSTILE, HTML, PAGES, log_in, token
from tests.support.mirrors import Mirror


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
        History((), (Day(1, 1, 1, 1, date="2025-01-01"),)),
        {"mirror": [HOSTILE], "registries": {HOSTILE: [endpoint]}},
        (Pulled(f"{HOSTILE}@{HOSTILE}", 1, 1.0),),
    )
    pages = Pages(None, None, SiteInfo("1", tuple, 100, 1.0, dict), Templates("1"))  # type: ignore[arg-type]
    for language in translations.LANGUAGES:
        for part in pages.parts(state, language).values():
            assert "<script" not in part
            assert "<img" not in part
            assert "49" not in part


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
