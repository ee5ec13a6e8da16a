"""``docker search`` by a real dockerd, in front of a scripted Docker Hub."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import AsyncIterator

import pytest

from tests.e2e.test_dockerd import Dockerd
from tests.support.mirrors import Mirror
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
