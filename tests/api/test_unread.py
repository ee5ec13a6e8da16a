"""What clients do not read is bounded in memory, and held once."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from mirror.api import sending
from mirror.api.client_network import client_network
from mirror.api.unread import LARGE, UnreadBodies
from mirror.errors import ClientBusy
from tests.support.mirrors import Mirror, until
from tests.support.scripted import Scripted

BODY, OTHER, THIRD = (bytes([number]) * LARGE for number in range(3))


def test_equal_bodies_are_held_once() -> None:
    """By identity: the second client's is the first one's, and it goes when the last client has read it."""
    bodies = UnreadBodies()
    first = bytes(bytearray(BODY))
    second = bytes(bytearray(BODY))
    assert bodies.take("a", first) is first
    assert bodies.take("b", second) is first
    assert bodies.take("a", second) is first
    assert bodies.total == LARGE
    for client in ("a", "a", "b"):
        assert bodies.total == LARGE
        bodies.give_back(client, first)
    assert bodies.total == 0


@pytest.mark.parametrize(
    ("taken", "client", "body", "fits"),
    [
        ([], "a", BODY * 100, True),
        ([("a", BODY)], "a", OTHER, True),
        ([("a", BODY), ("a", OTHER)], "a", THIRD, False),
        ([("a", BODY), ("a", OTHER)], "a", OTHER, True),
        ([("a", BODY), ("a", OTHER)], "b", THIRD, True),
        ([("a", BODY), ("a", OTHER), ("b", THIRD)], "c", b"\x04" * LARGE, False),
        ([("a", BODY), ("a", OTHER), ("b", THIRD)], "c", THIRD, True),
    ],
)
def test_what_fits(taken: list[tuple[str, bytes]], client: str, body: bytes, fits: bool) -> None:
    """Two bodies for a client, three in all; one alone always fits, and so does one that is held already."""
    bodies = UnreadBodies(per_client=2 * LARGE, in_all=3 * LARGE)
    for one in taken:
        assert bodies.take(*one)
    assert (bodies.take(client, body) is not None) is fits


async def test_a_body_without_room_is_dropped_and_made_again() -> None:
    """The second waits without holding anything, and is made anew when the first has been read."""
    bodies = UnreadBodies(per_client=LARGE)
    made = []

    async def make() -> web.StreamResponse:
        made.append(1)
        return web.Response(body=OTHER)

    first, second = bodies.hold("192.0.2.1"), bodies.hold("192.0.2.1")
    assert bodies.take("192.0.2.1", BODY)
    waiting = asyncio.ensure_future(second.keep(make))
    await until(lambda: made)
    await asyncio.sleep(0)
    assert not waiting.done()
    assert bodies.total == LARGE
    bodies.give_back("192.0.2.1", BODY)
    response = await waiting
    assert isinstance(response, web.Response)
    assert response.body == OTHER
    assert len(made) == 2
    assert bodies.total == LARGE
    second.release()
    first.release()
    assert bodies.total == 0


@pytest.mark.parametrize("how", ["cancelled", "timed out", "failed", "small"])
async def test_whoever_waits_leaves_nothing_behind(how: str) -> None:
    """A client that leaves, waits too long, or whose answer fails or has become small the second time: nothing stays reserved."""
    bodies = UnreadBodies(per_client=LARGE, longest_wait=0.01 if how == "timed out" else 60.0)
    assert bodies.take("a", BODY)
    made = []

    async def make() -> web.StreamResponse:
        made.append(1)
        if len(made) == 2 and how == "failed":
            raise ClientBusy("made up")
        return web.Response(body=b"" if len(made) == 2 and how == "small" else OTHER)

    hold = bodies.hold("a")
    waiting = asyncio.ensure_future(hold.keep(make))
    await until(lambda: made)
    await asyncio.sleep(0)
    if how == "timed out":
        with pytest.raises(ClientBusy, match="65536 bytes"):
            await waiting
    if how == "cancelled":
        waiting.cancel()
    bodies.give_back("a", BODY)
    with contextlib.suppress(ClientBusy, asyncio.CancelledError):
        await waiting
    hold.release()
    assert bodies.total == 0


@pytest.mark.parametrize(
    ("remote", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        (None, ""),
        ("unix", "unix"),
    ],
)
def test_whose_requests_are_counted_together(remote: str | None, network: str) -> None:
    """An IPv4 address is a client; an IPv6 address stands for the /64 that its machine has."""
    assert client_network(remote) == network


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> UnreadBodies:
    """What the mirror of the test holds: 13 MB for a client. (The kernel takes some megabytes of what a client does not read.)"""
    made = UnreadBodies(per_client=13_000_000)
    monkeypatch.setattr("mirror.api.server.UnreadBodies", lambda: made)
    return made


def add_tags(upstream: Scripted, repository: str, count: int) -> int:
    """Adds tags of 100 digits to a repository; returns the size of its list in bytes."""
    upstream.manifests |= {(repository, f"{number:0100d}"): ("", b"") for number in range(count)}
    return len(json.dumps({"name": repository, "tags": [f"{number:0100d}" for number in range(count)]}))


async def test_a_list_that_many_ask_for_is_held_once_and_another_waits_for_room(
    bodies: UnreadBodies, mirror: Mirror, upstream: Scripted
) -> None:
    """Five clients that do not read share one body; who asks for another list waits until it is read. Upstream is asked once for each list."""
    size = add_tags(upstream, "library/one", 120_000)
    other = add_tags(upstream, "library/two", 20_000)
    readers = [await mirror.slow_reader("/v2/one/tags/list") for _ in range(5)]
    assert bodies.total == size
    waiting = asyncio.ensure_future(mirror.get("/v2/two/tags/list"))
    await until(lambda: bodies._waiting)
    for _, writer in readers[1:]:
        writer.close()
    reader, writer = readers[0]
    body = await reader.readexactly(size)
    assert len(json.loads(body)["tags"]) == 120_000
    got = await waiting
    assert (got.status, len(got.body)) == (200, other)
    writer.close()
    await until(lambda: bodies.total == 0)
    assert [upstream.count("GET", f"/v2/library/{name}/tags/list") for name in ("one", "two")] == [1, 1]


async def test_a_client_that_reads_nothing_is_given_up(
    bodies: UnreadBodies, mirror: Mirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes none of an answer in memory for a minute loses the connection: what was held for it is free."""
    add_tags(upstream, "library/one", 120_000)
    _, writer = await mirror.slow_reader("/v2/one/tags/list")
    monkeypatch.setattr(sending, "_PIECE_TIMEOUT", 0.1)
    assert bodies.total
    # The piece that it does not take has a minute; another client's next one ends at once.
    _, impatient = await mirror.slow_reader("/v2/one/tags/list")
    await until(lambda: sum(bodies._holders.values()) == 1)
    assert (await mirror.get("/healthz")).status == 200
    writer.close()
    impatient.close()
    await until(lambda: bodies.total == 0)


async def test_large_manifests_are_counted_too(
    bodies: UnreadBodies, mirror: Mirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come whole, by GET cold and cached, with their length for HEAD; nothing is held once they are read."""
    counted = []
    take = bodies.take

    def noted(client: str, body: bytes, reserved: int = 0) -> bytes | None:
        counted.append(len(body))
        return take(client, body, reserved)

    monkeypatch.setattr(bodies, "take", noted)
    body = json.dumps({"schemaVersion": 2, "annotations": {"x": "y" * 200_000}}).encode()
    upstream.add_manifest("library/app", "large", body)
    for method, sent in (("GET", body), ("GET", body), ("HEAD", b"")):
        got = await mirror.get("/v2/app/manifests/large", method)
        assert (got.status, got.body, got.headers["Content-Length"]) == (200, sent, str(len(body)))
    assert counted[:2] == [len(body)] * 2
    await until(lambda: bodies.total == 0)
    assert upstream.count("GET", "manifests") == 1
