"""``docker search`` by a real dockerd, in front of a scripted Docker Hub."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import AsyncIterator

import pytest

from tests.e2e.test_dockerd import Dockerd
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted


@pytest.fixture
async def dockerd(mirror: Mirror) -> AsyncIterator[Dockerd]:
    daemon = await asyncio.to_thread(Dockerd, mirror.url)
    yield daemon
    await asyncio.to_thread(daemon.stop)


async def search(dockerd: Dockerd, mirror: Mirror, term: str, *options: str) -> dict[str, dict[str, str]]:
    """What docker prints, by name."""
    address = mirror.url.removeprefix("http://")
    command = ("search", "--no-trunc", "--format", "{{json .}}", *options, f"{address}/{term}")
    printed = await asyncio.to_thread(dockerd.docker, *command)
    return {line["Name"]: line for line in map(json.loads, printed.splitlines())}


async def test_docker_searches_through_the_mirror(dockerd: Dockerd, mirror: Mirror, upstream: Scripted) -> None:
    """With Docker Hub: its stars, official marks and descriptions, docker's own filters, and what is cached. Without: what is cached, and that it is only that."""
    upstream.add_to_hub("redis", "The key-value store", 12000, official=True)
    upstream.add_to_hub("bitnami/redis", "Another redis", 300)
    upstream.add_to_hub("nginx", "A web server", 1)
    upstream.add_image("library/redis", "7.2")
    assert (await mirror.get("/v2/redis/manifests/7.2")).status == 200
    found = await search(dockerd, mirror, "redis")
    assert set(found) == {"redis", "bitnami/redis"}
    assert found["redis"]["StarCount"] == "12000"
    assert found["redis"]["IsOfficial"] in ("[OK]", "true")
    assert found["redis"]["Description"] == "[cached: 7.2] The key-value store"
    assert found["bitnami/redis"]["IsOfficial"] in ("", "false")
    assert set(await search(dockerd, mirror, "redis", "--filter", "is-official=true")) == {"redis"}
    assert set(await search(dockerd, mirror, "redis", "--limit", "1")) == {"redis"}
    assert upstream.count("GET", "/v1/search") == 1
    await upstream.stop()
    assert set(await search(dockerd, mirror, "redis")) == {"redis", "bitnami/redis"}
    offline = await search(dockerd, mirror, "red")
    assert {name: line["Description"] for name, line in offline.items()} == {"redis": "[docker.io not reached; cached: 7.2]"}
    with pytest.raises(AssertionError, match="503"):
        await search(dockerd, mirror, "unheard-of")


async def test_no_description_controls_a_terminal(dockerd: Dockerd, mirror: Mirror, upstream: Scripted) -> None:
    """Every control, format and separator character of Unicode is left out of what docker prints, in names too; other writings stay."""
    odd = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp", "Co")]
    step = len(odd) // 90 + 1
    for number, start in enumerate(range(0, len(odd), step)):
        upstream.add_to_hub(f"owner/redis{number}", f"redis {'x'.join(odd[start : start + step])[:280]}")
    upstream.add_to_hub("redis\x1b[31m", "a name that is none")
    upstream.add_to_hub("redis", "\x1b]0;title\x07\x1b[2Jredis 数据库 база 🙂", 5)
    address = mirror.url.removeprefix("http://")
    printed = await asyncio.to_thread(dockerd.docker, "search", "--no-trunc", "--limit", "100", f"{address}/redis")
    assert all(line.isprintable() for line in printed.split("\n"))
    assert "]0;title [2Jredis 数据库 база 🙂" in printed
    assert "a name that is none" not in printed


async def test_docker_searches_a_mirror_that_is_offline(start: StartMirror, upstream: Scripted) -> None:
    """What is cached is found, and its description says that the mirror is offline, whatever registry is searched and whether it has a search; what is not cached is an error.
    No registry is asked."""
    upstream.add_to_hub("redis", "The key-value store", 12000, official=True)
    for name in ("library/redis", "owner/app"):
        upstream.add_image(name, "7.2")
    ghcr = {"registries": {"ghcr.io": {"endpoints": [upstream.url]}}}
    online = await start(settings=ghcr)
    for path in ("redis", "ghcr.io/owner/app"):
        assert (await online.get(f"/v2/{path}/manifests/7.2")).status == 200
    await online.stop()
    asked = len(upstream.asked)
    mirror = await start(settings={**ghcr, "upstream": {"offline": True}})
    dockerd = await asyncio.to_thread(Dockerd, mirror.url)
    try:
        cases = {
            "redis": {"redis": "[mirror offline; cached: 7.2]"},
            "app": {"ghcr.io/owner/app": "[mirror offline; cached: 7.2]"},
            "docker.io/redis": {"redis": "[mirror offline; cached: 7.2]"},
            "ghcr.io/app": {"ghcr.io/owner/app": "[ghcr.io has no search; cached: 7.2]"},
        }
        for term, expected in cases.items():
            found = await search(dockerd, mirror, term)
            assert {name: line["Description"] for name, line in found.items()} == expected, term
            assert all(line["StarCount"] == "0" for line in found.values())
        for term in ("unheard-of", "ghcr.io/unheard-of", "nobody.example/app"):
            with pytest.raises(AssertionError, match="404"):
                await search(dockerd, mirror, term)
    finally:
        await asyncio.to_thread(dockerd.stop)
    assert len(upstream.asked) == asked


async def test_docker_searches_a_registry_without_a_search(start: StartMirror, upstream: Scripted) -> None:
    """Its cached images are found, and their descriptions say why there are no others; the registry is asked nothing. With no `search` set, Docker Hub is one of them."""
    upstream.add_image("owner/app", "1")
    settings = {"docker.io": {"endpoints": [upstream.url], "search": ""}, "ghcr.io": {"endpoints": [upstream.url]}}
    mirror = await start(settings={"registries": settings})
    for path in ("owner/app", "ghcr.io/owner/app"):
        assert (await mirror.get(f"/v2/{path}/manifests/1")).status == 200
    asked = len(upstream.asked)
    dockerd = await asyncio.to_thread(Dockerd, mirror.url)
    try:
        found = await search(dockerd, mirror, "ghcr.io/app")
        assert {name: line["Description"] for name, line in found.items()} == {
            "ghcr.io/owner/app": "[ghcr.io has no search; cached: 1]"
        }
        found = await search(dockerd, mirror, "owner/app", "--limit", "1")
        assert [line["Description"] for line in found.values()] == ["[docker.io has no search; cached: 1]"]
        with pytest.raises(AssertionError, match="404"):
            await search(dockerd, mirror, "ghcr.io/unheard-of")
    finally:
        await asyncio.to_thread(dockerd.stop)
    assert len(upstream.asked) == asked
