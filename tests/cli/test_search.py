"""``mirror search``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Commands
from tests.support.scripted import Scripted, Status


@pytest.fixture
def commands(upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """On a cache of their own, whose Docker Hub is the scripted one."""
    registries = {"docker.io": {"search": f"{upstream.url}/v1/search"}, "ghcr.io": {"endpoints": [upstream.url]}}
    monkeypatch.setenv("MIRROR_REGISTRIES", json.dumps(registries))
    return Commands(tmp_path / "cache", upstream)


async def test_a_table_for_people_and_json_for_programs(commands: Commands, upstream: Scripted) -> None:
    """Docker Hub's results, the cached ones first; one request; the limit holds."""
    upstream.add_to_hub("bitnami/redis", "Another redis", 300)
    upstream.add_to_hub("redis", f"The store {'x' * 100}", 12000, official=True)
    upstream.add_image("library/redis", "7.2")
    await commands("pull", "redis:7.2")
    lines = (await commands("search", "redis")).splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "STARS", "OFFICIAL", "CACHED", "DESCRIPTION"],
        ["redis", "12000", "yes", "7.2", "The", "store", f"{'x' * 49}…"],
        ["bitnami/redis", "300", "-", "-", "Another", "redis"],
    ]
    assert upstream.count("GET", "/v1/search") == 1
    document = await commands.json("search", "redis", "--limit", "1")
    assert document["searched"]
    assert document["results"][0]["cached"] == ["docker.io/library/redis:7.2"]
    assert len(document["results"]) == 1


async def test_without_docker_hub_the_cached_ones_and_why(commands: Commands, upstream: Scripted) -> None:
    """On standard error, with status 0 where something is found; a search that finds nothing has status 1."""
    upstream.add_image("library/redis", "7.2")
    await commands("pull", "redis:7.2")
    upstream.fail("/v1/search", Status(503), times=3)
    done = await commands.run("search", "redis")
    assert done.returncode == 0
    assert "redis" in done.stdout
    assert "only what is cached was searched" in done.stderr
    assert "answered 503" in done.stderr
    document = await commands.json("search", "redis")
    assert not document["searched"]
    assert "503" in document["problem"]
    done = await commands.run("search", "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert "docker.io was not searched" in done.stderr
    done = await commands.run("search", "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert "docker.io has nothing that matches 'nothing'" in done.stderr


async def test_registries_without_a_search_say_so(commands: Commands, upstream: Scripted) -> None:
    """And a registry that is not served, and a term that is none, are errors."""
    upstream.add_image("owner/app", "1")
    await commands("pull", "ghcr.io/owner/app:1")
    done = await commands.run("search", "ghcr.io/app")
    assert done.returncode == 0
    assert "ghcr.io/owner/app" in done.stdout
    assert "ghcr.io has no search" in done.stderr
    done = await commands.run("search", "ghcr.io/nothing")
    assert (done.returncode, "ghcr.io has no search" in done.stderr) == (1, True)
    assert "does not serve" in (await commands.run("search", "nobody.example/x")).stderr
    assert (await commands.run("search", "\x1b[31m")).returncode == 1
    assert upstream.count("GET", "/v1/search") == 0


async def test_offline_only_what_is_cached_is_searched(commands: Commands, upstream: Scripted) -> None:
    """And that it is offline is said, with status 0 where something is found and 1 where not; no registry is asked. A registry without a search is told apart."""
    upstream.add_to_hub("redis", "The key-value store", 12000, official=True)
    for name, image in (("library/redis", "redis:7.2"), ("owner/app", "ghcr.io/owner/app:7.2")):
        upstream.add_image(name, "7.2")
        await commands("pull", image)
    asked = len(upstream.asked)
    offline = {"MIRROR_UPSTREAM__OFFLINE": "true"}
    done = await commands.run("search", "redis", **offline)
    assert (done.returncode, done.stderr) == (
        0,
        "mirror: only what is cached was searched: this mirror is offline (upstream.offline), so no registry is asked\n",
    )
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [["redis", "-", "-", "7.2"]]
    document = await commands.json("search", "redis", MIRROR_UPSTREAM__OFFLINE="true")
    assert (document["searched"], "is offline" in document["problem"]) == (False, True)
    assert [found["cached"] for found in document["results"]] == [["docker.io/library/redis:7.2"]]
    done = await commands.run("search", "nothing", **offline)
    assert (done.returncode, done.stdout) == (1, "")
    assert "docker.io was not searched: this mirror is offline" in done.stderr
    assert "nothing cached matches 'nothing'" in done.stderr
    done = await commands.run("search", "ghcr.io/app", **offline)
    assert (done.returncode, "ghcr.io has no search" in done.stderr) == (0, True)
    assert "ghcr.io/owner/app" in done.stdout
    assert len(upstream.asked) == asked
