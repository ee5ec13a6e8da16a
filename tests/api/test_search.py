"""``GET /v1/search``, which ``docker search HOST/TERM`` sends. With a real dockerd: tests/e2e/test_search.py."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Fault, Hold, Raw, Scripted, Status

BIDI = "\u202e"


async def found(mirror: Mirror, term: str, count: int | None = None) -> dict[str, Any]:
    """The results by name."""
    answer = await mirror.get(f"/v1/search?q={term}{'' if count is None else f'&n={count}'}")
    assert answer.status == 200, answer.body
    document = json.loads(answer.body)
    assert document["num_results"] == len(document["results"])
    return {result["name"]: result for result in document["results"]}


async def cache(mirror: Mirror, upstream: Scripted, name: str, tag: str, registry: str = "") -> None:
    upstream.add_image(name.removeprefix("library/") if registry else name, tag, layers=[os.urandom(100)])
    assert (await mirror.get(f"/v2/{registry}{name}/manifests/{tag}")).status == 200


async def test_docker_hub_is_asked_once_for_each_term(mirror: Mirror, upstream: Scripted) -> None:
    """Its results come in its order, with stars and descriptions; clients that ask together share one request; `n` bounds them; later searches ask nobody."""
    upstream.add_to_hub("redis", "The key-value store.", 12000, official=True)
    upstream.add_to_hub("bitnami/redis", "Redis by others", 300)
    upstream.add_to_hub("nginx", "A web server", 19000, official=True)
    answers = await asyncio.gather(*(found(mirror, "redis") for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    assert list(answers[0]) == ["redis", "bitnami/redis"]
    assert answers[0]["redis"] == {
        "name": "redis",
        "description": "The key-value store.",
        "star_count": 12000,
        "is_official": True,
        "is_automated": False,
    }
    assert list(await found(mirror, "redis", 1)) == ["redis"]
    assert list(await found(mirror, "docker.io/library/redis")) == ["redis", "bitnami/redis"]
    assert upstream.count("GET", "/v1/search") == 1
    assert upstream.asked[-1].query == "q=redis&n=100"
    assert (await mirror.get("/v1/_ping")).status == 200


async def test_what_is_cached_is_marked_and_comes_first(mirror: Mirror, upstream: Scripted) -> None:
    """Also images of other repositories that Docker Hub's search did not name."""
    upstream.add_to_hub("popular/app", "Popular", 100)
    upstream.add_to_hub("app", "The official one", 50, official=True)
    await cache(mirror, upstream, "library/app", "1.0")
    await cache(mirror, upstream, "owner/app", "2")
    answer = await found(mirror, "app")
    assert sorted(answer) == ["app", "owner/app", "popular/app"]
    assert list(answer)[2] == "popular/app"
    assert answer["app"]["description"] == "[cached: 1.0] The official one"
    assert answer["owner/app"]["description"] == "[cached: 2]"
    assert answer["popular/app"]["description"] == "Popular"


@pytest.mark.parametrize(
    "fault",
    [
        Status(500),
        Status(403),
        Status(404),
        Status(429, {"Retry-After": "999999"}),
        Status(200, body=b"<html>log in</html>"),
        Status(200, body=b"[" * 100_000),
        Status(200, body=b'{"results": {"name": "x"}}'),
        Status(200, body=b"9" * 100_000),
        Status(200, {"Location": "/v1/search"}),
        Status(302, {"Location": "http://127.0.0.1:1/"}),
        Raw(b"HTTP/1.1 200 OK\r\n"),
        Raw(reset=True),
    ],
    ids=repr,
)
async def test_without_docker_hub_what_is_cached_is_found(mirror: Mirror, upstream: Scripted, fault: Fault) -> None:
    """Whatever its search answers; the description tells which it is. A term that matches nothing cached is an error that names the reason."""
    await cache(mirror, upstream, "library/app", "1.0")
    upstream.fail("/v1/search", fault, times=100)
    answer = await found(mirror, "app")
    assert list(answer) == ["app"]
    assert answer["app"]["description"] == "[docker.io not reached; cached: 1.0]"
    nothing = await mirror.get("/v1/search?q=unheard-of")
    assert nothing.status == 503
    assert json.loads(nothing.body)["errors"][0]["message"]
    upstream.heal()


async def test_a_search_that_hangs_holds_nobody_up_and_recovers(mirror: Mirror, upstream: Scripted) -> None:
    """The cached images are the answer meanwhile, at once from the second search on; what comes late is there for the next search."""
    await cache(mirror, upstream, "library/app", "1.0")
    upstream.add_to_hub("app", "Found late", 5, official=True)
    late = Hold(after=0)
    upstream.fail("/v1/search", late)
    for _ in range(3):
        assert (await found(mirror, "app"))["app"]["description"] == "[docker.io not reached; cached: 1.0]"
    late.release.set()
    async with asyncio.timeout(PATIENCE):
        while (answer := (await found(mirror, "app"))["app"]["description"]) != "[cached: 1.0] Found late":
            assert answer == "[docker.io not reached; cached: 1.0]"
    assert upstream.count("GET", "/v1/search") == 1


async def test_nothing_that_docker_hub_sends_breaks_an_answer(mirror: Mirror, upstream: Scripted) -> None:
    """Names that are none are left out, texts are one bounded line without control characters, and counts are counts."""
    upstream.hub = {
        "app 1": {
            "name": "app",
            "description": f"a\x1b[31m\n{BIDI}b\ud800 {'c' * 5000}",
            "star_count": 10**30,
            "is_official": "yes",
        },
        "app 2": {"name": "../app", "description": "app"},
        "app 3": {"name": ["app"], "description": "app"},
        "app 4": {"name": "APP<script>", "description": "app"},
        "app 5": {"name": "other/app", "description": {"app": 1}, "star_count": True},
        "app 6": {"name": "third/app", "star_count": -5},
        "app 7": {"name": "app", "description": "the same once more"},
        "app 8": {"name": "x/" * 3000 + "app"},
    }
    answer = await found(mirror, "app", 100)
    assert list(answer) == ["app", "other/app", "third/app"]
    description = answer["app"]["description"]
    assert description.startswith("a [31m b c")
    assert len(description) == 300
    assert description.isprintable()
    assert [result["star_count"] for result in answer.values()] == [0, 0, 0]
    assert not any(result["is_official"] for result in answer.values())


async def test_a_registry_without_a_search_says_so(start: StartMirror, upstream: Scripted) -> None:
    """What is cached of it is found all the same, and nobody is asked; a registry that is not served is an error."""
    mirror: Mirror = await start(settings={"registries": {"ghcr.io": {"endpoints": [upstream.url]}}})
    await cache(mirror, upstream, "owner/app", "1", "ghcr.io/")
    answer = await found(mirror, "ghcr.io/app")
    assert list(answer) == ["ghcr.io/owner/app"]
    assert answer["ghcr.io/owner/app"]["description"] == "[ghcr.io has no search; cached: 1]"
    nothing = await mirror.get("/v1/search?q=ghcr.io/nothing")
    assert nothing.status == 404
    assert "ghcr.io has no search" in json.loads(nothing.body)["errors"][0]["message"]
    assert "does not serve nobody.example" in (await mirror.get("/v1/search?q=nobody.example/x")).body.decode()
    assert upstream.count("GET", "/v1/search") == 0


@pytest.mark.parametrize(
    "query", ["", "?q=", "?q=%20", "?q=a%00b", f"?q={'x' * 101}", "?q=a&n=0", "?q=a&n=101", "?q=a&n=x", "?q=a&n=-1"]
)
async def test_a_search_that_is_none_is_refused(mirror: Mirror, upstream: Scripted, query: str) -> None:
    """Nothing of it goes to Docker Hub."""
    assert (await mirror.get(f"/v1/search{query}")).status == 400
    assert upstream.asked == []


async def test_no_search_is_asked_where_the_setting_is_empty(start: StartMirror, upstream: Scripted) -> None:
    """An administrator may not want terms to go to Docker Hub."""
    settings = {"registries": {"docker.io": {"endpoints": [upstream.url], "search": ""}}}
    mirror: Mirror = await start(settings=settings)
    assert (await mirror.get("/v1/search?q=redis")).status == 404
    assert upstream.asked == []


async def test_many_searches_at_once_are_few_requests(mirror: Mirror, upstream: Scripted) -> None:
    """Docker Hub is not flooded on behalf of one client: eight are asked at the same time, and everybody gets an answer."""
    await cache(mirror, upstream, "library/app", "1.0")
    held = Hold(after=0)
    upstream.fail("/v1/search", held, times=300)
    answers = await asyncio.gather(*(mirror.get(f"/v1/search?q=app{number or ''}") for number in range(150)))
    assert [answer.status for answer in answers] == [200] + [503] * 149
    assert upstream.count("GET", "/v1/search") == 8
    held.release.set()
