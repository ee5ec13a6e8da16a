"""One suite for all places that a blob can come from: a mirror of the same fleet, a parent, a bucket, an endpoint of the registry. Whatever the first place does, clients get what the digest says.

What a real S3 server can be made to do is in test_bucket.py and test_bucket_faults.py."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from mirror.names import Digest
from mirror.upstream.fleet import ranked
from tests.support.mirrors import Got, Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.s3 import ENVIRONMENT
from tests.support.scripted import (
    Corrupt,
    Cut,
    Delay,
    Fault,
    Hold,
    Length,
    NoRange,
    Scripted,
    Silence,
    Status,
    WrongRange,
)

MIB = 1024 * 1024
SIZE = 3 * MIB
KINDS = ("peer", "parent", "bucket", "registry")
MIRRORS = KINDS[:2]
PLACES = KINDS[:3]
ABSENT = {"Cache-Status": "mirror; fwd=miss; detail=BLOB_UNKNOWN"}
LIVES = {"Cache-Status": "mirror; fwd=miss; stored"}


@pytest.fixture
async def place() -> AsyncIterator[Scripted]:
    """The first place. It answers as a mirror that downloads the blob itself."""
    async with Scripted() as scripted:
        scripted.blob_headers = LIVES
        yield scripted


@dataclass
class Setting:
    """A mirror, the place that it asks first, and the registry behind both."""

    kind: str
    mirror: Mirror
    own: str
    place: Scripted
    upstream: Scripted

    def blob(self, size: int = SIZE) -> tuple[Digest, bytes]:
        """A new blob that both have, and whose home is the place."""
        while True:
            data = os.urandom(size)
            digest = Digest.of(data)
            if ranked((self.own, self.place.url), str(digest))[0] == self.place.url:
                break
        self.place.add_blob(data)
        self.upstream.add_blob(data)
        return digest, data

    async def get(self, digest: Digest, **headers: str) -> Got:
        return await asyncio.wait_for(self.mirror.get(f"/v2/library/app/blobs/{digest}", **headers), PATIENCE)

    def sent(self, digest: Digest) -> tuple[int, int]:
        """Bytes that the place and the registry have sent."""
        return self.place.sent.get(str(digest), 0), self.upstream.sent.get(str(digest), 0)

    def asked(self, digest: Digest) -> tuple[int, int]:
        """GETs that the place and the registry got."""
        return self.place.count("GET", digest.hex), self.upstream.count("GET", digest.hex)


@pytest.fixture
async def setting(
    request: pytest.FixtureRequest, start: StartMirror, place: Scripted, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> Setting:
    own = f"http://127.0.0.1:{free_port()}"
    settings: dict[str, object] = {"server": {"listen": own.removeprefix("http://")}}
    endpoints = [upstream.url]
    if request.param == "peer":
        settings["fleet"] = {"mirrors": [own, place.url], "own": own}
    elif request.param == "parent":
        settings["fleet"] = {"parents": [place.url]}
    elif request.param == "bucket":
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        settings["fleet"] = {"bucket": "s3://images", "bucket_endpoint": place.url}
    else:
        endpoints = [place.url, upstream.url]
    return Setting(request.param, await start(endpoints=endpoints, settings=settings), own, place, upstream)


of_all = pytest.mark.parametrize("setting", KINDS, indirect=True)
of_peers = pytest.mark.parametrize("setting", ["peer"], indirect=True)
of_places = pytest.mark.parametrize("setting", PLACES, indirect=True)
of_mirrors = pytest.mark.parametrize("setting", MIRRORS, indirect=True)


@of_all
async def test_a_place_that_is_well_sends_all_and_the_next_one_nothing(setting: Setting) -> None:
    """It is asked once, and so much for it."""
    digest, data = setting.blob()
    assert (await setting.get(digest)).body == data
    assert (setting.asked(digest), setting.sent(digest)) == ((1, 0), (SIZE, 0))


@dataclass(frozen=True)
class Case:
    """What a place does to the requests for a blob, and how often it and the next one are asked for it then, by GET; None where that is not told."""

    faults: tuple[Fault, ...]
    asked: tuple[int, int] | None
    most: float = 1.0
    """What the next one may send at most, as a part of the blob."""
    cut: bool = False
    """True if the client may be cut short, and has to ask again: it was sent what turned out to be wrong."""


CASES = {
    "cut once": Case((Cut(MIB),), (2, 0), 0.0),
    "cut twice": Case((Cut(MIB), Cut(MIB)), (2, 1), 0.7),
    "cut at once": Case((Cut(0), Cut(0)), (2, 1)),
    "500": Case((Status(500),), (1, 1)),
    "503": Case((Status(503, {"Retry-After": "5"}),), (1, 1)),
    "401": Case((Status(401),), (1, 1)),
    "403": Case((Status(403),), (1, 1)),
    "404 of nobody": Case((Status(404),), (1, 1)),
    "404 of another kind": Case((Status(404, {"Cache-Status": "mirror; fwd=bypass; detail=NAME_UNKNOWN"}),), (1, 1)),
    "429 of its own": Case(
        (Status(429, {"Retry-After": "9", "Cache-Status": "mirror; fwd=bypass; detail=TOOMANYREQUESTS"}),), (1, 1)
    ),
    "508": Case((Status(508),), (1, 1)),
    "redirect": Case((Status(307, {"Location": "http://127.0.0.1:1/"}),), (1, 1)),
    "no answer": Case((Silence(),), (1, 1)),
    "empty": Case((Status(200, {}, b""),), (1, 1)),
    "wrong bytes": Case((Corrupt(MIB),), (1, 2), 1.01, cut=True),
    "wrong bytes at the end": Case((Corrupt(SIZE - 1),), (1, 2), 1.01, cut=True),
    "another size": Case((Length(SIZE - 1000),), None, 2.01, cut=True),
    "a page": Case((Status(200, {"Content-Type": "text/html"}, b"<html>log in</html>"),), (1, 1)),
}


@of_places
@pytest.mark.parametrize("name", CASES)
async def test_what_a_place_does_not_give_comes_from_the_next_one(setting: Setting, name: str) -> None:
    """Whatever goes wrong there: no client notices, or it gets the whole with its next request. What has come rightly is not sent again."""
    case = CASES[name]
    digest, data = setting.blob()
    setting.place.fail(digest.hex, *case.faults)
    got = await setting.get(digest)
    if case.cut and got.cut:
        got = await setting.get(digest)
    assert (got.status, got.body) == (200, data)
    assert case.asked in (setting.asked(digest), None)
    assert setting.sent(digest)[1] <= case.most * SIZE


@pytest.mark.parametrize("setting", ["registry"], indirect=True)
@pytest.mark.parametrize("name", CASES)
async def test_so_it_is_with_endpoints(setting: Setting, name: str) -> None:
    """The same faults at the first endpoint of a registry."""
    digest, data = setting.blob()
    setting.place.fail(str(digest), *CASES[name].faults)
    got = await setting.get(digest)
    if CASES[name].cut and got.cut:
        got = await setting.get(digest)
    assert (got.status, got.body) == (200, data)


of_bucket = pytest.mark.parametrize("setting", ["bucket"], indirect=True)


@of_bucket
async def test_a_bucket_that_drips_is_left(setting: Setting) -> None:
    """It answers each look, and would hold a pull up for minutes: the rest comes from the registry, and the next pull does not ask it."""
    setting.place.rate = 48 * 1024
    digest, data = setting.blob()
    assert (await setting.get(digest)).body == data
    assert setting.asked(digest)[1] > 0
    [told] = await degraded(setting)
    assert "sends less than" in told
    other, data = setting.blob()
    assert (await setting.get(other)).body == data
    assert setting.asked(other) == (0, 1)


@of_mirrors
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_mirror_is_believed_that_the_registry_does_not_have_it(setting: Setting, method: str) -> None:
    """It has asked the registry: that is not asked once more."""
    digest, _ = setting.blob()
    setting.place.fail(str(digest), Status(404, ABSENT), method=method)
    got = await setting.mirror.get(f"/v2/library/app/blobs/{digest}", method)
    assert got.status == 404
    assert setting.upstream.asked == []


@of_mirrors
async def test_a_mirror_is_believed_that_the_registry_limits_requests(setting: Setting) -> None:
    """A second one that asks makes it worse. The client is told when to come again."""
    digest, _ = setting.blob()
    setting.place.fail(
        str(digest), Status(503, {"Retry-After": "77", "Cache-Status": "mirror; fwd=miss; detail=TOOMANYREQUESTS"})
    )
    got = await setting.get(digest)
    assert (got.status, got.headers["Retry-After"]) == (503, "77")
    assert setting.upstream.asked == []


async def degraded(setting: Setting) -> list[str]:
    found: list[str] = json.loads((await setting.mirror.get("/readyz")).body)["degraded"]
    return found


@of_mirrors
async def test_a_mirror_that_is_gone_is_not_missed_and_is_asked_again_once_it_is_back(setting: Setting) -> None:
    """Without a request of a client that finds it out. /readyz tells that it is gone."""
    await setting.place.stop()
    digest, data = setting.blob()
    assert (await setting.get(digest)).body == data
    assert setting.asked(digest) == (0, 1)
    assert await degraded(setting) == [
        f"the mirror {setting.place.url} does not answer: the next one, or the registry, is asked in its place"
    ]
    looks = 0

    def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        looks += 1
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", setting.place.port):
        await until(lambda: looks >= 2)
    await setting.place.start()
    while await degraded(setting):
        await asyncio.sleep(0.01)
    digest, data = setting.blob()
    assert (await setting.get(digest)).body == data
    assert setting.asked(digest) == (1, 0)


@of_mirrors
async def test_a_mirror_that_lives_is_waited_for(setting: Setting) -> None:
    """It waits for its upstream itself, for longer than an endpoint may take: a second download would bring nothing sooner."""
    digest, data = setting.blob()
    hold = Hold(MIB)
    setting.place.fail(str(digest), hold)
    asked = asyncio.create_task(setting.get(digest))
    await hold.reached.wait()
    await until(lambda: setting.place.count("GET", "/healthz") >= 2)
    hold.release.set()
    assert (await asked).body == data
    assert setting.asked(digest) == (1, 0)


@of_mirrors
@pytest.mark.parametrize("after", [None, MIB])
async def test_a_mirror_that_has_stopped_is_found_out(setting: Setting, after: int | None) -> None:
    """It has the connection, and neither answers nor sends more, here nor elsewhere: the rest comes from the next place."""
    digest, data = setting.blob()
    setting.place.fail("/healthz", Silence(), times=100)
    hold = Hold(after or 0)
    setting.place.fail(str(digest), Silence() if after is None else hold)
    assert (await setting.get(digest)).body == data
    assert setting.asked(digest) == (1, 1)
    assert setting.sent(digest)[1] == SIZE - (after or 0)
    hold.release.set()


@of_peers
async def test_a_mirror_that_downloads_itself_gets_one_connection(setting: Setting) -> None:
    """However slowly it sends: it has no more to send than it gets."""
    digest, data = setting.blob(24 * MIB)
    setting.place.rate = 12 * MIB
    assert (await setting.get(digest)).body == data
    assert (setting.place.most_bodies, setting.asked(digest)) == (1, (1, 0))


@of_mirrors
async def test_bytes_out_of_order_come_from_a_mirror_that_downloads_itself(setting: Setting) -> None:
    """Lazy pullers read a layer's end first: they do not wait for all that comes before it."""
    digest, data = setting.blob(24 * MIB)
    hold = Hold(MIB)
    setting.place.fail(str(digest), hold)
    whole = asyncio.create_task(setting.get(digest))
    await hold.reached.wait()
    got = await setting.get(digest, Range=f"bytes={24 * MIB - 1000}-")
    assert (got.status, got.body) == (206, data[-1000:])
    hold.release.set()
    assert (await whole).body == data
    assert setting.asked(digest) == (2, 0)


@of_peers
async def test_a_mirror_that_has_all_of_it_gets_more_connections(setting: Setting) -> None:
    """Where each one is slow, as with a registry."""
    setting.place.blob_headers = {"Cache-Status": "mirror; hit"}
    digest, data = setting.blob(40 * MIB)
    setting.place.rate = 6 * MIB
    assert (await setting.get(digest)).body == data
    assert setting.place.most_bodies > 1
    assert setting.asked(digest)[1] == 0


@of_peers
async def test_a_mirror_that_has_got_all_of_it_meanwhile_gets_more_connections(setting: Setting) -> None:
    """It is asked from time to time whether it has."""
    digest, data = setting.blob(40 * MIB)
    setting.place.rate = 6 * MIB
    asked = asyncio.create_task(setting.get(digest))
    await until(lambda: setting.place.count("HEAD", str(digest)) > 0)
    assert setting.place.most_bodies == 1
    setting.place.blob_headers = {"Cache-Status": "mirror; hit"}
    assert (await asked).body == data
    assert setting.place.most_bodies > 1
    assert setting.asked(digest)[1] == 0


@of_all
@pytest.mark.parametrize(
    "fault", [Fault(), NoRange(), WrongRange(), Cut(1000), Delay(0.2)], ids=lambda fault: type(fault).__name__
)
async def test_ranges(setting: Setting, fault: Fault) -> None:
    """A range of what nobody has yet is what the whole has there, whatever the place makes of it."""
    digest, data = setting.blob()
    setting.place.fail(digest.hex, fault)
    got = await setting.get(digest, Range=f"bytes={MIB}-{MIB + 999}")
    assert (got.status, got.body) == (206, data[MIB : MIB + 1000])


@of_mirrors
async def test_head_of_a_blob(setting: Setting) -> None:
    """One HEAD at the place; none at the registry."""
    digest, data = setting.blob()
    got = await setting.mirror.head(f"/v2/library/app/blobs/{digest}")
    assert (got.status, got.headers["Content-Length"]) == (200, str(len(data)))
    assert (setting.place.count("HEAD"), setting.upstream.asked) == (1, [])


@of_mirrors
async def test_what_comes_from_a_mirror_counts_apart(setting: Setting) -> None:
    """It was not fetched from upstream."""
    digest, _ = setting.blob()
    before = [
        await setting.mirror.metric(name) for name in ("registry_proxy_pulled_bytes_total", "mirror_peer_received_bytes_total")
    ]
    await setting.get(digest)
    after = [
        await setting.mirror.metric(name) for name in ("registry_proxy_pulled_bytes_total", "mirror_peer_received_bytes_total")
    ]
    assert [late - early for early, late in zip(before, after, strict=True)] == [0, SIZE]
