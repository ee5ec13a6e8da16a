"""The search page, and a repository's page with all tags that upstream has. In a browser: tests/e2e/test_dashboard.py."""

from __future__ import annotations

import html
import os
import re
from typing import Any

import pytest

from mirror.web import translations
from tests.support.dashboard import HOSTILE, HTML, log_in, post, token
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Fault, Hold, Scripted, Status

UNKNOWN = "\u2013"
TAGS = "/repository/docker.io/library/app?view=tags"


def rows(page: str, table: str) -> list[list[str]]:
    """The cells of a table's body, as text."""
    body = re.search(rf'<table class="images {table}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    if body is None:
        return []
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", body[1], re.DOTALL)]
    return [
        [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", cell.replace("<wbr>", ""))).split()) for cell in row] for row in cells
    ]


async def shown(mirror: Mirror, path: str, **headers: str) -> str:
    page = await mirror.get(path, **HTML, **headers)
    assert page.status == 200, page.body
    return page.body.decode()


def details(name: Any, size: Any, *platforms: str) -> dict[str, Any]:
    """Details of a tag, as Docker Hub has them."""
    images = [dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False)) for platform in platforms]
    return {"name": name, "full_size": size, "images": [*images, {"os": "unknown", "architecture": "unknown"}]}


async def test_a_search_shows_what_is_cached_and_what_docker_hub_has(dashboard: Mirror, upstream: Scripted) -> None:
    """Each marked; a search by tag or digest finds cached images; Docker Hub is asked once."""
    upstream.add_to_hub("app", "The official one", 12000, official=True)
    upstream.add_to_hub("owner/app", "Another one", 3)
    for _ in range(2):
        page = await shown(dashboard, "/search?q=app")
        assert rows(page, "found") == [
            ["app", "The official one", "12,000", "official cached"],
            ["owner/app", "Another one", "3", "not cached"],
        ]
        assert page.count('href="/image/docker.io/library/app:1"') == 1
        assert 'href="/repository/docker.io/owner/app?view=tags"' in page
    assert upstream.count("GET", "/v1/search") == 1
    assert 'href="/image/docker.io/library/app:1"' in await shown(dashboard, "/search?q=app:1")
    assert "搜索" in await shown(dashboard, "/search?q=app", Accept_Language="zh")
    assert upstream.count("GET", "/v1/search") == 1
    assert (await dashboard.get("/search?q=%1b", **HTML)).status == 400
    for term in ("app", "nothing&x"):
        assert f'href="/search?q={term.replace("&", "%26")}"' in await shown(dashboard, f"/images?q={term.replace('&', '%26')}")


async def test_without_docker_hub_the_page_says_so(dashboard: Mirror, upstream: Scripted) -> None:
    """The cached images are there; a registry without a search says so; both in Chinese too."""
    upstream.fail("/v1/search", Status(503), times=9)
    for language, words in (("en", "answered 503"), ("zh", "上游服务器出错")):
        page = await shown(dashboard, "/search?q=app", Accept_Language=language)
        assert words in page
        assert 'href="/image/docker.io/library/app:1"' in page
    assert "ghcr.io has no search" in await shown(dashboard, "/search?q=ghcr.io/app")
    assert "没有可用的搜索" in await shown(dashboard, "/search?q=ghcr.io/app", Accept_Language="zh")


async def test_nothing_that_docker_hub_sends_is_taken_for_markup(dashboard: Mirror, upstream: Scripted) -> None:
    """Descriptions are strangers' texts; names and tags that are none are left out, and sizes that are none are unknown."""
    upstream.add_to_hub("app", HOSTILE, 1)
    upstream.add_to_hub(f"app{HOSTILE}", "a name that is none")
    upstream.tag_details["library/app"] = [
        details(HOSTILE, 1),
        details("1", HOSTILE, f"linux/{HOSTILE}", "linux/arm64"),
        {"name": "2", "images": HOSTILE},
        {"name": ["3"]},
        {"name": "4", "full_size": -1, "images": [[], {"os": 1}]},
    ]
    upstream.add_image("library/app", "4")
    for language in translations.LANGUAGES:
        for path in ("/search?q=app", TAGS):
            page = await shown(dashboard, path, Accept_Language=language)
            assert "<script>alert" not in page
            assert "<img src=x" not in page
    assert rows(await shown(dashboard, "/search?q=app"), "found") == [["app", HOSTILE, "1", "cached"]]
    assert [row[:2] for row in rows(await shown(dashboard, TAGS), "upstream-tags")] == [["4", UNKNOWN], ["1", "arm64"]]


async def test_all_tags_are_shown_in_the_order_of_versions(dashboard: Mirror, upstream: Scripted) -> None:
    """Names, then the newest versions; with size and platforms where Docker Hub tells them, and which are cached; with a filter, and in pages."""
    for tag in ("latest", "1.9", "1.10", "alpine", "1"):
        if tag != "1":
            upstream.add_image("library/app", tag)
    upstream.tag_details["library/app"] = [details("1.10", 5 * 2**20, "linux/amd64", "linux/arm/v7")]
    found = rows(await shown(dashboard, TAGS), "upstream-tags")
    assert [row[0] for row in found] == ["alpine", "latest", "1.10", "1.9", "1"]
    assert found[2] == ["1.10", "amd64 arm/v7", "5 MiB", "not cached"]
    assert found[3][1:] == [UNKNOWN, UNKNOWN, "not cached"]
    assert found[4][3] == "cached"
    assert [row[0] for row in rows(await shown(dashboard, f"{TAGS}&filter=1."), "upstream-tags")] == ["1.10", "1.9"]
    assert "No tag contains “nothing”." in await shown(dashboard, f"{TAGS}&filter=nothing")
    assert upstream.count("GET", "/tags/list") == 1
    for number in range(60):
        upstream.add_image("library/many", f"{number}")
    page = await shown(dashboard, "/repository/docker.io/library/many")
    assert len(rows(page, "upstream-tags")) == 50
    assert "60 tags" in page
    last = rows(await shown(dashboard, "/repository/docker.io/library/many?view=tags&page=2"), "upstream-tags")
    assert [row[0] for row in last] == [str(number) for number in range(9, -1, -1)]


@pytest.mark.parametrize("fault", [Status(503), Status(403), Status(200, body=b"no JSON")], ids=repr)
async def test_without_upstream_the_cached_tags_are_shown(dashboard: Mirror, upstream: Scripted, fault: Fault) -> None:
    """And the page says that others may be missing. What upstream does not have, and nobody has cached, is not found."""
    upstream.fail("/tags", fault, times=99)
    page = await shown(dashboard, TAGS)
    assert [row[0] for row in rows(page, "upstream-tags")] == ["1"]
    assert "Tags may be missing here." in page
    upstream.heal()
    missing = await dashboard.get("/repository/docker.io/library/none", **HTML)
    assert missing.status == 404
    assert b"nothing is cached of docker.io/library/none" in missing.body
    assert (await dashboard.get("/repository/nobody.example/x", **HTML)).status == 404


async def test_an_upstream_that_hangs_holds_no_page_up(start: StartMirror, upstream: Scripted) -> None:
    """The tags that it listed last are shown meanwhile, and those that come late are there for the next page."""
    mirror: Mirror = await start(tag_ttl="0s")
    upstream.add_image("library/app", "1")
    upstream.add_image("library/app", "2")
    assert [row[0] for row in rows(await shown(mirror, TAGS), "upstream-tags")] == ["2", "1"]
    upstream.add_image("library/app", "3")
    late = Hold(after=0)
    upstream.fail("/tags/list", late, times=9)
    page = await shown(mirror, TAGS)
    assert late.reached.is_set()
    assert [row[0] for row in rows(page, "upstream-tags")] == ["2", "1"]
    assert "Tags may be missing here." in page
    late.release.set()
    upstream.heal()
    assert [row[0] for row in rows(await shown(mirror, TAGS), "upstream-tags")] == ["3", "2", "1"]


@pytest.mark.parametrize("status", [404, 500])
async def test_details_of_one_repository_that_fail_cost_no_other_its_own(mirror: Mirror, upstream: Scripted, status: int) -> None:
    """However often they fail."""
    upstream.add_image("library/app", "1")
    upstream.add_image("library/bad", "1")
    upstream.tag_details["library/app"] = [details("1", 2**20, "linux/amd64")]
    upstream.fail("/v2/repositories/library/bad", Status(status), times=99)
    for _ in range(4):
        page = await shown(mirror, "/repository/docker.io/library/bad?view=tags")
        assert rows(page, "upstream-tags") == [["1", UNKNOWN, UNKNOWN, "not cached"]]
    assert rows(await shown(mirror, TAGS), "upstream-tags") == [["1", "amd64", "1 MiB", "not cached"]]


async def test_an_admin_fetches_a_tag_for_chosen_platforms(dashboard: Mirror, upstream: Scripted) -> None:
    """Only those, and only with the token, by a form of the session's own pages, which leads back to the page that it is on."""
    images = [upstream.add_image("library/other", layers=[os.urandom(500)]) for _ in range(3)]
    upstream.add_index("library/other", "2", images)
    path = "/repository/docker.io/library/other"
    assert 'name="image"' not in await shown(dashboard, path)
    cookie = await log_in(dashboard)
    page = await shown(dashboard, path, Cookie=cookie)
    assert 'name="image" value="docker.io/library/other:2"' in page
    hidden = dict(re.findall(r'type="hidden" name="(secret|to)" value="([^"]*)"', page))
    form = {"image": "docker.io/library/other:2", **{name: html.unescape(value) for name, value in hidden.items()}}
    both = [("platform", "linux/amd64"), ("platform", "linux/arm64")]

    async def fetch(fields: Any, **headers: str) -> tuple[int, str]:
        sent = {"Cookie": cookie, **HTML, **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with dashboard.session.post("/fetch", data=fields, headers=sent, allow_redirects=False) as answer:
            return answer.status, answer.headers.get("Location", "")

    chosen = [*form.items(), *both]
    assert (await fetch(chosen, Cookie=""))[0] == 401
    assert (await fetch([*chosen, ("secret", "wrong")]))[0] == 403
    assert (await fetch(chosen, Sec_Fetch_Site="cross-site"))[0] == 403
    assert (await fetch(form))[0] == 400
    assert (await fetch([*form.items(), ("platform", "linux; x")]))[0] == 400
    assert not any(dashboard.cached(image.config) for image in images)
    assert await fetch([*chosen, ("to", "//elsewhere.example/")]) == (303, "/?done=fetched")
    assert [dashboard.cached(image.layers[0]) for image in images] == [True, True, False]
    assert (await fetch(chosen))[1] == f"{path}?view=tags&done=fetched"
    bearer = {"Authorization": f"Bearer {token(dashboard)}"}
    status, answer, _ = await post(dashboard, "/fetch", {"image": form["image"], "platform": "all"}, **bearer)
    assert (status, '"fetched"' in answer) == (200, True)
    assert all(dashboard.cached(image.layers[0]) for image in images)
    assert (await dashboard.get("/fetch", **HTML)).status == 404
