"""Tags lists of many pages, with links as registries really send them; and what is said where not all of a list is here."""

from __future__ import annotations

import json

import pytest

from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted, Status

TAGS = "/v2/app/tags/list"


async def tags_of(mirror: Mirror) -> tuple[list[str], str]:
    answer = await mirror.get(TAGS)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["tags"], answer.cache


@pytest.fixture
def paged(upstream: Scripted) -> Scripted:
    """Twenty tags in pages of five."""
    upstream.page_size = 5
    for number in range(20):
        upstream.add_image("library/app", f"t{number:02}")
    return upstream


ALL = [f"t{number:02}" for number in range(20)]


@pytest.mark.parametrize(
    "link",
    [
        "</v2/{rest}>",
        "<http://registry.inner:5000/v2/{rest}>",
        "<https://registry.inner/prefix/v2/{rest}>",
        "</other/prefix/v2/{rest}>",
        "<list?{query}>",
        "<?{query}>",
        "</v2/{rest}>; rel=next",
        "</v2/{rest}>;REL='Next'",
        '</v2/{rest}>; title="a, b; c"; rel="last next"',
        "</v2/{rest}>;",
        '</v2/x>; rel=first, </v2/y>; rel="prev", </v2/{rest}>; rel="next"',
        '</v2/x>; rel="first"; title="a, b", </v2/{rest}>; title="; rel=last"; rel="last next"',
    ],
)
@pytest.mark.parametrize("prefix", ["", "/harbor/project"])
async def test_the_next_page_is_found_however_it_is_linked(start: StartMirror, paged: Scripted, link: str, prefix: str) -> None:
    """An inner host name, no prefix, or another: path and query at the endpoint itself."""
    paged.link, paged.prefix = link, prefix
    mirror: Mirror = await start(endpoints=[paged.url + prefix])
    assert await tags_of(mirror) == (ALL, "mirror; fwd=miss; stored")
    assert paged.count("GET", "tags/list") == 4


async def test_a_last_page_that_links_on_is_the_last(start: StartMirror, paged: Scripted) -> None:
    """An empty page that links to itself is no sign of something missing."""
    paged.links_on = True
    mirror: Mirror = await start()
    assert await tags_of(mirror) == (ALL, "mirror; fwd=miss; stored")
    assert paged.count("GET", "tags/list") == 5


async def test_a_long_list_is_whole(start: StartMirror, upstream: Scripted) -> None:
    """Ten thousand tags by fifty and more."""
    upstream.page_size = 50
    for number in range(10_300):
        upstream.manifests["library/app", f"v{number:05}"] = ("application/json", b"{}")
    mirror: Mirror = await start()
    found, _ = await tags_of(mirror)
    assert len(found) == 10_300


@pytest.mark.parametrize(
    "failure", [Status(500), Status(404), Status(200, body=b"<html>"), Status(403)], ids=lambda one: str(one.status)
)
async def test_a_later_pages_failure_loses_no_earlier_page(start: StartMirror, paged: Scripted, failure: Status) -> None:
    """What came is given, marked as a part, and the list is asked for again."""
    mirror: Mirror = await start()
    paged.fail("tags/list", Status(0), failure)
    found, cache = await tags_of(mirror)
    assert (found, cache) == (ALL[:5], "mirror; fwd=stale; detail=partial")
    assert await tags_of(mirror) == (ALL, "mirror; fwd=miss; stored")


async def test_a_list_that_breaks_off_is_completed_with_what_was_known(start: StartMirror, paged: Scripted) -> None:
    """Tags that were there at the last time are not lost for it."""
    mirror: Mirror = await start(tag_ttl=0)
    assert (await tags_of(mirror))[0] == ALL
    paged.fail("tags/list", Status(0), Status(500))
    assert await tags_of(mirror) == (ALL, "mirror; fwd=stale; detail=partial")


@pytest.mark.parametrize(
    "link",
    [
        *("</v2/library/app/tags/list?n=5>", "<ftp://x/v2/y>", "<http://h:99999/v2/>", "</nowhere>", "<>", "</v2/%zz?%>"),
        *("/v2/library/app/tags/list; rel=next", "</v2/unclosed; rel=next", "<<>>; rel=next"),
    ],
)
async def test_a_list_that_leads_nowhere_is_a_part(start: StartMirror, paged: Scripted, link: str) -> None:
    """A circle, or a next page that is none: what came before is given."""
    paged.link = link
    mirror: Mirror = await start()
    found, cache = await tags_of(mirror)
    assert found[:5] == ALL[:5]
    assert cache == "mirror; fwd=stale; detail=partial"
    assert paged.count("GET", "tags/list") <= 3


@pytest.mark.parametrize("status", [403, 500])
async def test_tags_that_came_by_are_not_told_as_all(start: StartMirror, paged: Scripted, status: int) -> None:
    """Where upstream refuses the list, those that are cached are a part of it."""
    mirror: Mirror = await start()
    await mirror.get("/v2/app/manifests/t07")
    paged.fail("tags/list", Status(status), times=20)
    assert await tags_of(mirror) == (["t07"], "mirror; fwd=stale; detail=partial")
