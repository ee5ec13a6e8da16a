"""Ten endpoints, of which nine are dead, slow, or lie: pulls succeed, and cost no more than those of the good one."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from mirror.errors import ManifestUnknown, UpstreamTimeout
from mirror.names import Repository
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.failover import Unfinished, with_failover
from mirror.upstream.proxies import Fixed
from mirror.upstream.transport import Connections, Timeouts, Transport
from tests.support.endpoints import fleet
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.scripted import Image, Pending, Scripted

_MANY = 3000
"""Tags, enough to ask for until a pause is over."""


async def pull(mirror: Mirror, image: Image, repository: str, tag: str) -> None:
    """As a client does: the tag, the manifest, the config and the layers."""
    head = await mirror.head(f"/v2/{repository}/manifests/{tag}")
    assert head.headers["Docker-Content-Digest"] == str(image.digest)
    assert (await mirror.get(f"/v2/{repository}/manifests/{image.digest}")).body == image.body
    for digest in (image.config, *image.layers):
        assert (await mirror.get(f"/v2/{repository}/blobs/{digest}")).digest() == digest


async def test_the_first_pull_succeeds_and_later_ones_ask_the_good_endpoint_alone(start: StartMirror) -> None:
    """Of a list in which the good endpoint is the ninth; a stale tag after it does not count. Nothing wrong is cached."""
    async with fleet() as found:
        first = found.good.add_image("library/app", "1", layers=[os.urandom(300_000)])
        second = found.good.add_image("library/app", "2", layers=[os.urandom(300_000)])
        for tag in ("1", "2"):
            found.bad["stale"].add_image("library/app", tag)
        found.bad["wrong"].manifests |= found.good.manifests
        found.bad["wrong"].blobs |= found.good.blobs
        mirror: Mirror = await start(endpoints=found.urls)
        await pull(mirror, first, "library/app", "1")
        asked = found.asked()
        assert all(count <= 4 for count in asked.values()), asked
        await pull(mirror, second, "library/app", "2")
        assert found.asked() == asked


async def test_endpoints_that_refused_three_repositories_are_asked_last_for_others(start: StartMirror) -> None:
    """So that a list of mirrors with allow-lists costs nothing once it is known."""
    async with fleet() as found:
        images = [found.good.add_image(f"library/app{number}", "1") for number in range(4)]
        found.bad["wrong"].manifests |= found.good.manifests
        mirror: Mirror = await start(endpoints=found.urls)
        for number, image in enumerate(images[:3]):
            await pull(mirror, image, f"library/app{number}", "1")
        asked = found.asked()
        await pull(mirror, images[3], "library/app3", "1")
        assert found.asked() == asked


async def test_an_endpoint_that_is_well_again_is_asked_first_again(start: StartMirror, upstream: Scripted) -> None:
    """A probe behind a client's request finds out; no client waits for it."""
    async with Scripted() as second:
        image = second.add_image("library/app", "first")
        for number in range(_MANY):
            for registry in (upstream, second):
                registry.add_manifest("library/app", str(number), image.body)
        await upstream.stop()
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        assert (await mirror.get("/v2/app/manifests/first")).status == 200
        await upstream.start()
        tags = iter(range(_MANY))
        while not upstream.asked:
            assert (await mirror.get(f"/v2/app/manifests/{next(tags)}")).status == 200
        probe = upstream.asked[0].path.rpartition("/")[2]
        assert second.count("GET", f"/{probe}") == 1
        while True:
            before, tag = len(second.asked), next(tags)
            assert (await mirror.get(f"/v2/app/manifests/{tag}")).status == 200
            if len(second.asked) == before:
                break
        assert upstream.count("GET", f"/{tag}") == 1


async def test_a_good_endpoint_behind_eight_that_do_not_answer_is_found_by_one_request_to_each(start: StartMirror) -> None:
    """They are asked for the tag once each. What is asked after it, manifests and blobs of this and of other images, goes to the good one alone."""
    async with contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(Scripted()) for _ in range(8)]
        good = await stack.enter_async_context(Scripted())
        images = [good.add_image(f"library/app{number}", "1", layers=[os.urandom(100_000)]) for number in range(2)]
        for one in silent:
            one.fail("/v2/", Pending(), times=1000, method="*")
        mirror: Mirror = await start(endpoints=[*(one.url for one in silent), good.url])
        for number, image in enumerate(images):
            await pull(mirror, image, f"library/app{number}", "1")
        assert [len(one.asked) for one in silent] == [1] * 8
        for image in images:
            assert good.count("GET", str(image.layers[0])) == 1


async def test_a_blob_comes_from_the_next_endpoint_where_the_first_does_not_begin_it(
    start: StartMirror, upstream: Scripted
) -> None:
    """Though the first has answered for the manifest. One request to each; the first's is ended at once, and later blobs are not asked for there."""
    async with Scripted() as second:
        image = second.add_image("library/app", "1", layers=[os.urandom(100_000), os.urandom(100_000)])
        upstream.manifests, upstream.blobs = second.manifests, second.blobs
        hangs = Pending()
        upstream.fail("blobs/", hangs, times=1000, method="*")
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        await pull(mirror, image, "library/app", "1")
        assert upstream.count("GET", "manifests/") >= 1
        assert second.count("GET", "manifests/") == 0
        assert hangs.reached.is_set()
        assert upstream.count("GET", "blobs/") == 1
        for digest in (image.config, *image.layers):
            assert second.count("GET", str(digest)) == 1
        await until(lambda: upstream.bodies == second.bodies == 0)


async def test_an_answer_that_comes_too_late_is_discarded() -> None:
    """An open connection that nobody reads would hold one of the endpoint's places for ever. It is closed even where its request ignores that it was cancelled."""
    transport = Transport(Timeouts(1, 5, 1, 1), Connections(1, 1, 1), Fixed(None))
    first, second = (
        Endpoint("docker.io", f"http://{name}.test", transport, None, None, own=False, only=False) for name in ("first", "second")
    )
    discarded: list[str] = []
    unfinished = Unfinished()

    async def ask(endpoint: Endpoint, deadline: float) -> str:
        if endpoint is first:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return endpoint.name

    async def discard(answer: str) -> None:
        discarded.append(answer)

    repository = Repository("docker.io", "library/app")
    try:
        answer = await with_failover(
            "docker.io",
            [first, second],
            transport.timeouts,
            ask,
            repository,
            unfinished=unfinished,
            documents=False,
            discard=discard,
        )
        assert answer == second.name
        await until(lambda: discarded == [first.name])
        assert first.is_asked_last(str(repository))
        assert not second.is_asked_last(str(repository))
    finally:
        await unfinished.aclose()
        await first.aclose()
        await second.aclose()
        await transport.aclose()


async def test_absent_is_not_established_while_an_endpoint_has_not_answered() -> None:
    """One says at the last moment that it lacks the content, and the other has said nothing: that is no 404, and the error names both."""
    transport = Transport(Timeouts(1, 0.4, 1, 1), Connections(1, 1, 1), Fixed(None))
    first, second = (
        Endpoint("docker.io", f"http://{name}.test", transport, None, None, own=False, only=False) for name in ("first", "second")
    )
    unfinished = Unfinished()

    async def ask(endpoint: Endpoint, deadline: float) -> str:
        if endpoint is second:
            await asyncio.Event().wait()
        await asyncio.sleep(deadline - asyncio.get_running_loop().time())
        raise ManifestUnknown("docker.io has no manifest 1 in library/app")

    try:
        with pytest.raises(UpstreamTimeout) as caught:
            await with_failover(
                "docker.io",
                [first, second],
                transport.timeouts,
                ask,
                Repository("docker.io", "library/app"),
                unfinished=unfinished,
                mutable=True,
            )
        assert "http://second.test did not answer in time" in caught.value.message
        assert "http://first.test has no manifest 1 in library/app" in caught.value.message
    finally:
        await unfinished.aclose()
        await first.aclose()
        await second.aclose()
        await transport.aclose()
