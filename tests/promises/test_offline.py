"""`upstream.offline`: no registry is asked, no name resolved, and what is cached is served however old it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Endpoint, Registry
from mirror.errors import Offline, UpstreamError
from mirror.names import Digest, Tag
from mirror.storage.disk.store import DiskStore
from mirror.storage.settings import Expire, Upkeep
from mirror.upstream import Connections, Timeouts, Upstreams
from tests.storage.test_conformance import APP, put_image
from tests.support.commands import Commands
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror, until
from tests.support.scripted import Delay, Raw, Redirect, Scripted

OFFLINE = {"upstream": {"offline": True}}


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that this process resolves."""
    names: list[str] = []
    real = socket.getaddrinfo

    def noticing(host: Any, *rest: Any, **more: Any) -> Any:
        names.append(str(host))
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", noticing)
    return names


def message(body: bytes) -> str:
    (error,) = json.loads(body)["errors"]
    assert error["code"] == "UNAVAILABLE", "no code for absent content: a mirror in front of this one would forget its tags"
    return str(error["message"])


async def test_nobody_is_asked_and_nothing_expires(start: StartMirror, upstream: Scripted, resolved: list[str]) -> None:
    """Tags, lists, referrers, blobs and searches come from the cache, as hits, long after they would have been checked; misses are errors at once."""
    upstream.add_to_hub("app", "The official one", 50, official=True)
    image = upstream.add_image("library/app", "1.0")
    upstream.add_image("library/app", "2.0", layers=[b"another"])
    named = f"http://localhost:{upstream.port}"
    online: Mirror = await start(endpoints=[named], tag_ttl=0)
    for path in ("manifests/1.0", f"blobs/{image.layers[0]}", "tags/list", f"referrers/{image.digest}"):
        assert (await online.get(f"/v2/app/{path}")).status == 200
    await online.until_cached(image.layers[0])
    assert "localhost" in resolved, "the resolver of this test notices"
    await online.stop()
    asked = len(upstream.asked)
    resolved.clear()

    mirror: Mirror = await start(endpoints=[named], tag_ttl=0, settings=OFFLINE)
    # The counters are the process's: other tests count too.
    stale = await mirror.metric("mirror_stale_served_total")
    for _ in range(3):
        for path in ("manifests/1.0", f"blobs/{image.layers[0]}"):
            for method in ("GET", "HEAD"):
                assert (await mirror.get(f"/v2/app/{path}", method)).cache == "mirror; hit"
    tags = await mirror.get("/v2/app/tags/list")
    assert json.loads(tags.body)["tags"] == ["1.0"], "those that can be pulled"
    referrers = await mirror.get(f"/v2/app/referrers/{image.digest}")
    assert (referrers.status, json.loads(referrers.body)["manifests"]) == (200, [])
    unknown = await mirror.get(f"/v2/app/referrers/{Digest.of(b'never asked for')}")
    assert (unknown.status, json.loads(unknown.body)["manifests"]) == (200, [])
    search = json.loads((await mirror.get("/v1/search?q=app")).body)
    assert [(result["name"], result["description"]) for result in search["results"]] == [("app", "[mirror offline; cached: 1.0]")]
    missing = [
        "app/manifests/2.0",
        "nothing/manifests/latest",
        "nothing/tags/list",
        f"app/blobs/{Digest.of(b'missing')}",
        f"app/manifests/{Digest.of(b'missing')}",
        "ghcr.io/owner/app/manifests/1",
        "lscr.io/linuxserver/app/manifests/1",
    ]
    for path in missing:
        for method in ("GET", "HEAD"):
            answer = await mirror.get(f"/v2/{path}", method)
            assert (answer.status, answer.headers.get("Retry-After")) == (404, None), path
    assert len(upstream.asked) == asked
    assert not [name for name in resolved if name not in ("127.0.0.1", "None")]
    ready = json.loads((await mirror.get("/readyz")).body)
    assert (ready["status"], ready["offline"]) == ("ready", True)
    assert await mirror.metric("mirror_stale_served_total") == stale


async def test_a_miss_names_what_there_is(start: StartMirror, upstream: Scripted) -> None:
    """The nearest cached tags; else images with a similar name; else some that are cached; eight at most of each, and nothing is remembered as absent."""
    for number in range(12):
        upstream.add_image("library/app", f"1.{number}")
    upstream.add_image("owner/tool", "7")
    online: Mirror = await start()
    empty: Mirror = await start(directory=online.directory.parent / "empty", settings=OFFLINE)
    assert "the cache is empty" in message((await empty.get("/v2/app/manifests/1.0")).body)
    for path in (*(f"app/manifests/1.{number}" for number in range(12)), "owner/tool/manifests/7"):
        assert (await online.get(f"/v2/{path}")).status == 200
    await online.stop()
    mirror: Mirror = await start(settings=OFFLINE)
    asked = len(upstream.asked)
    near = message((await mirror.get("/v2/app/manifests/1.11-alpine")).body)
    assert near.startswith("offline (upstream.offline), and not in the cache: docker.io/library/app:1.11-alpine; cached of")
    named = near.partition("docker.io/library/app: ")[2].removesuffix(" and 4 more").split(", ")
    assert named[0] == "1.11"
    assert len(named) == 8
    assert "similar name: docker.io/owner/tool:7" in message((await mirror.get("/v2/quay.io/other/tool/manifests/7")).body)
    assert "similar name: docker.io/owner/tool:7" in message((await mirror.get("/v2/owner/tolo/manifests/7")).body)
    assert "nothing with a similar name" in message((await mirror.get("/v2/owner/o/manifests/7")).body)
    other = message((await mirror.get("/v2/nothing/manifests/1")).body)
    assert "nothing with a similar name is cached, but docker.io/" in other
    assert other.endswith(" and 5 more")
    assert "1.11" in message((await mirror.get(f"/v2/app/blobs/{Digest.of(b'x')}")).body)
    assert len(upstream.asked) == asked
    await mirror.stop()
    online = await start()
    assert (await online.get("/v2/nothing/manifests/1")).status == 404
    upstream.add_image("library/app", "1.11-alpine")
    assert (await online.get("/v2/app/manifests/1.11-alpine")).status == 200


async def test_what_is_known_of_endpoints_is_no_matter(start: StartMirror, upstream: Scripted) -> None:
    """Also where an endpoint failed shortly before, so that it would be paused: the answer is about being offline."""
    image = upstream.add_image("library/app", "1.0")
    mirror: Mirror = await start(settings=OFFLINE, endpoints=["http://127.0.0.1:1"])
    for _ in range(10):
        assert "offline (upstream.offline)" in message((await mirror.get("/v2/app/manifests/1.0")).body)
        assert "offline (upstream.offline)" in message((await mirror.get(f"/v2/app/blobs/{image.layers[0]}")).body)


def fetch(url: str) -> tuple[int, bytes]:
    # A new connection each time, so that every worker is asked.
    try:
        with urllib.request.urlopen(url) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_running_mirror_takes_it_at_sighup_and_gives_it_back(tmp_path: Path, upstream: Scripted, workers: str) -> None:
    """In every worker, in both directions, without a restart."""
    upstream.add_image("library/app", "1.0")
    file = tmp_path / "mirror.toml"
    file.write_text("[cache]\ntag_ttl = 0\nnegative_ttl = 0\nprefetch = false\n")
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(file), "--workers", workers) as mirror:

        async def switch(offline: bool) -> None:
            file.write_text(
                f"[cache]\ntag_ttl = 0\nnegative_ttl = 0\nprefetch = false\n[upstream]\noffline = {str(offline).lower()}\n"
            )
            os.kill(mirror.pid, signal.SIGHUP)
            agree = 0
            # Any worker may answer.
            while agree < 20:
                _, body = await asyncio.to_thread(fetch, f"{mirror.url}/readyz")
                agree = agree + 1 if json.loads(body)["offline"] is offline else 0

        assert (await asyncio.to_thread(fetch, f"{mirror.url}/v2/app/manifests/1.0"))[0] == 200
        await switch(True)
        assert "SIGHUP: taken: upstream.offline" in mirror.log
        asked = len(upstream.asked)
        for _ in range(10):
            assert (await asyncio.to_thread(fetch, f"{mirror.url}/v2/app/manifests/1.0"))[0] == 200
            status, body = await asyncio.to_thread(fetch, f"{mirror.url}/v2/app/manifests/2.0")
            assert (status, "cached of docker.io/library/app: 1.0" in message(body)) == (404, True)
        assert len(upstream.asked) == asked
        upstream.add_image("library/app", "2.0")
        await switch(False)
        assert (await asyncio.to_thread(fetch, f"{mirror.url}/v2/app/manifests/2.0"))[0] == 200
        assert await asyncio.to_thread(mirror.terminate) == 0


async def test_the_flag(tmp_path: Path, upstream: Scripted) -> None:
    """``mirror serve --offline`` asks nobody from the start on, and says so; SIGHUP does not take it back."""
    upstream.add_image("library/app", "1.0")
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--offline") as mirror:
        await until(lambda: "offline: no registry is asked" in mirror.log)
        os.kill(mirror.pid, signal.SIGHUP)
        await until(lambda: "SIGHUP: no setting has changed" in mirror.log)
        assert (await asyncio.to_thread(fetch, f"{mirror.url}/v2/app/manifests/1.0"))[0] == 404
    assert upstream.asked == []


async def test_nothing_expires(tmp_path: Path) -> None:
    """Neither in the background nor by ``mirror gc``: it could not be fetched again. What was unused for too long goes once the mirror is online again."""
    offline = True
    upkeep = Upkeep(2**30, expire=(Expire("*", 0.0),))
    async with DiskStore(tmp_path / "cache", upkeep, lambda: offline) as store:
        manifest = await put_image(store, APP, Tag("1.0"), b"layer")
        for dry_run in (True, False):
            assert (await store.collect(dry_run=dry_run)).expired.count == 0
        assert store.size(manifest.digest) is not None
        offline = False
        assert (await store.collect(dry_run=True)).expired.count == 3
        assert (await store.collect()).expired.count == 3
        assert store.size(manifest.digest) is None


async def test_commands_beside_it_are_offline_too(tmp_path: Path, upstream: Scripted) -> None:
    """By the flag, by the file, with the settings file named or not: they use what is cached, name what is missing, and ask nobody. Online again, they ask."""
    upstream.add_image("library/app", "1.0")
    upstream.add_image("library/app", "2.0")
    file = tmp_path / "mirror.toml"
    file.write_text("")
    commands = Commands(tmp_path / "cache")
    named = ["--upstream", f"docker.io={upstream.url}"]
    await commands("pull", "app:1.0", *named)
    asked = len(upstream.asked)
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(file), "--offline") as mirror:
        for flags in ([], ["--config", str(file)], [*named]):
            assert "already there" in await commands("pull", "app:1.0", *flags)
            for arguments in (["pull", "app:2.0"], ["export", "app:2.0", "-o", str(tmp_path / "lab.tar")]):
                done = await commands.run(*arguments, *flags)
                assert (done.returncode, "offline (upstream.offline)" in done.stderr) == (1, True), done.stderr
            assert "app" in await commands("search", "app", *flags)
        assert "no registry is asked, and none was checked" in (await commands.run("doctor")).stdout
        assert len(upstream.asked) == asked
        assert mirror.terminate() == 0
    file.write_text("[upstream]\noffline = true\n")
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(file)) as mirror:
        assert (await commands.run("pull", "app:2.0")).returncode == 1
        assert len(upstream.asked) == asked
        file.write_text("")
        os.kill(mirror.pid, signal.SIGHUP)
        await until(lambda: "SIGHUP: taken: upstream.offline" in mirror.log)
        await until(lambda: json.loads((tmp_path / "cache" / "running.json").read_text())["offline"] is False)
        await commands("pull", "app:2.0")


async def test_a_search_says_nothing_of_its_service_while_offline(upstream: Scripted) -> None:
    """Neither one that is refused at once nor one that the switch interrupts counts as a failure of the service; nor does a paused service change what it is offline."""
    upstream.add_to_hub("redis", "The key-value store")
    settings = Registry(endpoints=(Endpoint(url=upstream.url),), search=f"{upstream.url}/v1/search", tag_details="")
    async with Upstreams({"docker.io": settings}, Timeouts(2, 4, 2, 1), Connections(4, 4, 4)) as upstreams:
        registry = upstreams.registry("docker.io")

        async def search(term: str) -> None:
            with pytest.raises(Offline):
                await registry.search(term)

        for number in range(10):
            # It has been sent when the switch is turned, and would go on elsewhere.
            upstream.fail("/v1/search", Delay(0.1) & Redirect(f"{upstream.url}/v1/elsewhere"))
            interrupted = asyncio.create_task(search(str(number)))
            await until(lambda number=number: upstream.count("GET", "/v1/search") > number)
            upstreams.offline = True
            await interrupted
            await search(f"refused {number}")
            upstreams.offline = False
        assert upstream.count("GET", "/v1/elsewhere") == 0
        found = await registry.search("redis")
        assert found is not None
        assert [result.description for result in found] == ["The key-value store"]
        assert upstream.count("GET", "/v1/search") == 11
        upstream.fail("/v1/search", Raw(reset=True), times=100)
        for number in range(20):
            with contextlib.suppress(UpstreamError):
                await registry.search(str(number))
        upstreams.offline = True
        await search("redis")
