"""The ten promises that a download keeps (docs/design.md)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror, noted, until
from tests.support.patience import patiently
from tests.support.scripted import Chunked, Corrupt, Cut, Endless, Hold, Length, NoRange, Rate, Scripted, Status, WrongRange

MIB = 1024 * 1024


def path(digest: Digest) -> str:
    return f"/v2/library/app/blobs/{digest}"


async def test_1_the_first_request_starts_it_and_later_ones_join_from_byte_0_or_their_range(
    mirror: Mirror, upstream: Scripted
) -> None:
    """However many ask for a blob, from wherever, upstream is asked once."""
    data = os.urandom(3 * MIB)
    blob = upstream.add_blob(data)
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    first = asyncio.create_task(mirror.get(path(blob)))
    await hold.reached.wait()
    later = [asyncio.create_task(mirror.get(path(blob))) for _ in range(5)]
    ranged = asyncio.create_task(mirror.get(path(blob), Range="bytes=1000-2000999"))
    await asyncio.sleep(0.1)
    hold.release.set()
    answers = [await first, *[await task for task in later]]
    assert all(answer.body == data for answer in answers)
    assert (await ranged).body == data[1000:2001000]
    assert (await ranged).status == 206
    assert "collapsed" in answers[-1].cache
    assert "collapsed" not in answers[0].cache
    assert upstream.count("GET", str(blob)) == 1


async def test_2_a_slow_reader_slows_neither_the_download_nor_another_reader(mirror: Mirror, upstream: Scripted) -> None:
    """A client that takes nothing holds up nobody: the download lands and others are served in full while it waits."""
    data = os.urandom(24 * MIB)
    blob = upstream.add_blob(data)
    reader, writer = await mirror.slow_reader(path(blob))
    assert (await mirror.get(path(blob))).body == data
    await mirror.until_cached(blob)
    rest = bytearray()
    while len(rest) < len(data):
        rest += await reader.read(MIB)
    assert rest == data
    writer.close()
    await writer.wait_closed()
    # Further connections fetch parts of it, where one is slow.
    assert [asked.range for asked in upstream.asked].count(None) == 1


async def test_3_headers_go_out_as_soon_as_status_and_length_are_known(mirror: Mirror, upstream: Scripted) -> None:
    """The client has status and length while not a byte of body has come."""
    blob = upstream.add_blob(bytes(MIB))
    hold = Hold(0)
    upstream.fail(str(blob), hold)
    async with mirror.session.get(path(blob)) as response:
        assert response.status == 200
        assert response.content_length == MIB
        assert upstream.sent.get(str(blob), 0) == 0
        hold.release.set()
        assert await response.read() == bytes(MIB)


async def test_4_a_client_that_leaves_ends_nothing(mirror: Mirror, upstream: Scripted) -> None:
    """The download goes on to the cache when its only client has gone."""
    data = os.urandom(2 * MIB)
    blob = upstream.add_blob(data)
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    async with mirror.session.get(path(blob)) as response:
        await hold.reached.wait()
        response.close()
    hold.release.set()
    await mirror.until_cached(blob)
    assert (await mirror.get(path(blob))).body == data
    assert upstream.count("GET", str(blob)) == 1


@pytest.mark.parametrize("cuts", [1, 5])
async def test_5_a_cut_download_is_resumed_with_a_closed_range(mirror: Mirror, upstream: Scripted, cuts: int) -> None:
    """Readers notice nothing of cuts, and no byte is fetched twice."""
    data = os.urandom(3 * MIB)
    blob = upstream.add_blob(data)
    upstream.fail(str(blob), Cut(400_000), times=cuts)
    answer = await mirror.get(path(blob))
    assert answer.body == data
    ranges = [asked.range for asked in upstream.asked]
    assert ranges[0] is None
    assert len(ranges) == cuts + 1
    assert all(wanted is not None and wanted.endswith(f"-{len(data) - 1}") for wanted in ranges[1:])
    assert upstream.sent[str(blob)] <= len(data) + cuts * 70_000  # what was on the wire when it was cut


async def test_5_a_download_that_gets_on_is_resumed_as_often_as_it_is_cut(mirror: Mirror, upstream: Scripted) -> None:
    """Every connection breaks after 100 kB: the tries begin anew with each that has brought something, and no byte is asked for twice."""
    blob = upstream.add_blob(data := os.urandom(950_000))
    upstream.fail(str(blob), Cut(100_000), times=9)
    answer = await mirror.get(path(blob))
    assert (answer.status, answer.cut, answer.body) == (200, False, data)
    assert upstream.count("GET", str(blob)) == 10
    assert upstream.sent[str(blob)] == len(data)


async def test_5_a_stalled_download_is_resumed(mirror: Mirror, upstream: Scripted) -> None:
    """An upstream that goes silent is left after the stall timeout, and another connection gets the rest."""
    data = os.urandom(2 * MIB)
    blob = upstream.add_blob(data)
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    assert (await mirror.get(path(blob))).body == data
    assert upstream.count("GET", str(blob)) == 2
    hold.release.set()


async def test_5_another_endpoint_goes_on(start: StartMirror, upstream: Scripted) -> None:
    """When the endpoint dies in the middle, the next one gives the rest."""
    async with Scripted() as second:
        data = os.urandom(2 * MIB)
        blob = upstream.add_blob(data)
        second.add_blob(data)
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        hold = Hold(MIB)
        upstream.fail(str(blob), hold)
        task = asyncio.create_task(mirror.get(path(blob)))
        await hold.reached.wait()
        await upstream.stop()
        assert (await task).body == data
        assert second.count("GET", str(blob)) == 1
        assert second.sent[str(blob)] < len(data)


async def test_5_an_upstream_without_ranges_is_read_again_from_the_start(mirror: Mirror, upstream: Scripted) -> None:
    """Where a Range is ignored, what is known already is passed over, not handed out twice."""
    data = os.urandom(2 * MIB)
    blob = upstream.add_blob(data)
    upstream.fail(str(blob), Cut(MIB), NoRange())
    assert (await mirror.get(path(blob))).body == data
    assert upstream.count("GET", str(blob)) == 2


async def test_5_a_wrong_content_range_is_not_believed(mirror: Mirror, upstream: Scripted) -> None:
    """Bytes that come from another place than was asked for are not put into the blob."""
    data = os.urandom(2 * MIB)
    blob = upstream.add_blob(data)
    upstream.fail(str(blob), Cut(MIB), WrongRange())
    assert (await mirror.get(path(blob))).body == data
    assert upstream.count("GET", str(blob)) == 3


async def test_5_readers_are_cut_short_only_when_every_way_is_exhausted(mirror: Mirror, upstream: Scripted) -> None:
    """Then the body ends before its length: never a clean end. What has come is gone on with by the next request."""
    data = os.urandom(2 * MIB)
    blob = upstream.add_blob(data)
    upstream.fail(str(blob), Cut(MIB))
    upstream.fail(str(blob), Status(500), times=100)
    answer = await mirror.get(path(blob))
    assert answer.cut
    assert data.startswith(answer.body)
    assert len(answer.body) >= MIB - 70_000
    upstream.heal()
    before = upstream.sent[str(blob)]
    for _ in patiently():  # until the breaker lets a request through
        answer = await mirror.get(path(blob))
        if answer.status == 200:
            break
        await asyncio.sleep(0.2)
    assert answer.body == data
    assert upstream.sent[str(blob)] - before <= MIB


@pytest.mark.parametrize("size", [100, 3 * MIB])
async def test_6_nobody_ever_receives_a_complete_wrong_blob(mirror: Mirror, upstream: Scripted, size: int) -> None:
    """The last bytes wait for verification: a corrupt blob ends too early, is not kept, and is fetched anew."""
    data = os.urandom(size)
    blob = upstream.add_blob(data)
    upstream.fail(str(blob), Corrupt(size // 2))
    before = await mirror.metric("mirror_verification_failures_total")
    answer = await mirror.get(path(blob))
    assert answer.cut
    assert len(answer.body) < size
    assert not mirror.cached(blob)
    assert mirror.spooled() == []
    assert await mirror.metric("mirror_verification_failures_total") == before + 1
    assert (await mirror.get(path(blob))).body == data
    assert upstream.count("GET", str(blob)) == 2


async def test_6_a_range_that_is_the_whole_waits_for_verification_too(mirror: Mirror, upstream: Scripted) -> None:
    """``bytes=0-`` is no way around it."""
    data = os.urandom(2 * MIB)
    blob = upstream.add_blob(data)
    upstream.fail(str(blob), Corrupt(10))
    answer = await mirror.get(path(blob), Range="bytes=0-")
    assert answer.cut
    assert len(answer.body) < len(data)


async def test_6_a_range_of_the_end_is_served_before_the_whole_is_here(mirror: Mirror, upstream: Scripted) -> None:
    """Lazy pullers read a layer's last bytes first: they come while the rest of the blob does not."""
    data = os.urandom(24 * MIB)
    blob = upstream.add_blob(data)
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    answer = await mirror.get(path(blob), Range="bytes=-1000")
    assert (answer.status, answer.body) == (206, data[-1000:])
    assert not hold.release.is_set()
    hold.release.set()
    await mirror.until_cached(blob)
    assert upstream.sent[str(blob)] < 1.1 * len(data)


async def test_6_a_footer_of_a_small_blob_over_a_slow_link_does_not_wait_for_it(mirror: Mirror, upstream: Scripted) -> None:
    """It gets a connection of its own as soon as the first one proves slow."""
    data = os.urandom(4 * MIB)
    blob = upstream.add_blob(data)
    upstream.fail(str(blob), Rate(100_000.0))
    answer = await mirror.get(path(blob), Range="bytes=-1000")
    assert (answer.status, answer.body) == (206, data[-1000:])
    assert upstream.sent[str(blob)] < MIB


async def test_7_two_mirrors_on_one_directory_fetch_once(start: StartMirror, upstream: Scripted) -> None:
    """The lease holds between mirrors: the second tails the first one's file."""
    data = os.urandom(4 * MIB)
    blob = upstream.add_blob(data)
    one, two = await start(), await start()
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    first = asyncio.create_task(one.get(path(blob)))
    await hold.reached.wait()
    second = asyncio.create_task(two.get(path(blob)))
    await asyncio.sleep(0.2)
    hold.release.set()
    assert (await first).body == data
    assert (await second).body == data
    assert upstream.count("GET", str(blob)) == 1
    await until(lambda: one.spooled() == [])


async def test_7_a_follower_takes_over_when_the_leader_stops(start: StartMirror, upstream: Scripted) -> None:
    """When the mirror that was downloading goes, the one that followed resumes from what is there."""
    data = os.urandom(4 * MIB)
    blob = upstream.add_blob(data)
    patient = {"upstream": {"stall_timeout": 20}}
    one, two = await start(settings=patient), await start(settings=patient)
    hold = Hold(2 * MIB)
    upstream.fail(str(blob), hold)
    first = asyncio.create_task(one.get(path(blob)))
    await hold.reached.wait()
    second = asyncio.create_task(two.get(path(blob)))
    await asyncio.sleep(0.2)
    first.cancel()
    await one.stop()
    assert (await second).body == data
    assert upstream.count("GET", str(blob)) == 2
    assert upstream.asked[-1].range is not None
    hold.release.set()


async def test_7_a_restart_goes_on_from_the_partial_file(start: StartMirror, upstream: Scripted) -> None:
    """What was fetched before a stop is not fetched again."""
    data = os.urandom(4 * MIB)
    blob = upstream.add_blob(data)
    one = await start()
    hold = Hold(2 * MIB)
    upstream.fail(str(blob), hold)
    task = asyncio.create_task(one.get(path(blob)))
    await hold.reached.wait()
    await until(lambda: noted(one.directory, blob) == 2 * MIB)
    task.cancel()
    await one.stop()
    hold.release.set()
    two = await start()
    assert (await two.get(path(blob))).body == data
    assert upstream.asked[-1].range == f"bytes={2 * MIB}-{len(data) - 1}"
    await until(lambda: two.spooled() == [])


async def test_7_a_partial_file_that_is_wrong_is_begun_anew(start: StartMirror, upstream: Scripted) -> None:
    """A power cut may leave other bytes than the journal says: the next download finds out and starts again by itself."""
    data = os.urandom(MIB)
    blob = upstream.add_blob(data)
    one = await start()
    hold = Hold(MIB // 2)
    upstream.fail(str(blob), hold)
    task = asyncio.create_task(one.get(path(blob)))
    await hold.reached.wait()
    await asyncio.sleep(0.2)
    task.cancel()
    await one.stop()
    hold.release.set()
    with open(one.directory / "spool" / f"sha256-{blob.hex}.part", "r+b") as part:
        part.write(bytes(1000))
    two = await start()
    await two.get(path(blob))
    await two.until_cached(blob)
    assert (await two.get(path(blob))).body == data
    await until(lambda: two.spooled() == [])


async def test_8_a_blob_larger_than_the_cache_is_passed_through(start: StartMirror, upstream: Scripted) -> None:
    """It is not kept, its readers get it all the same, cuts are resumed and wrong bytes are not handed out whole."""
    data = os.urandom(3 * MIB)
    blob = upstream.add_blob(data)
    mirror: Mirror = await start(max_size="2MiB")
    upstream.fail(str(blob), Cut(10), Cut(MIB))
    answer = await mirror.get(path(blob))
    assert answer.body == data
    assert "stored" not in answer.cache.replace("not-stored", "")
    assert not mirror.cached(blob)
    assert mirror.spooled() == []
    upstream.fail(str(blob), Corrupt(5))
    answer = await mirror.get(path(blob))
    assert answer.cut
    assert len(answer.body) < len(data)
    assert (await mirror.get(path(blob), Range="bytes=5-1000004")).body == data[5:1000005]


async def test_8_ranges_of_a_blob_larger_than_the_cache_fetch_just_those(start: StartMirror, upstream: Scripted) -> None:
    """Twenty ranges of 1 kB: twenty requests for 1 kB, after the one request that finds out how large the blob is."""
    data = os.urandom(3 * MIB)
    blob = upstream.add_blob(data)
    mirror: Mirror = await start(max_size="2MiB")
    for number in range(20):
        first = number * 100_000
        answer = await mirror.get(path(blob), Range=f"bytes={first}-{first + 999}")
        assert (answer.status, answer.body) == (206, data[first : first + 1000])
    ranges = [asked.range for asked in upstream.asked if asked.method == "GET"]
    assert ranges.count(None) == 1
    assert ranges[1:] == [f"bytes={number * 100_000}-{number * 100_000 + 999}" for number in range(20)]


async def test_9_head_on_a_miss_never_downloads(mirror: Mirror, upstream: Scripted) -> None:
    """HEAD of a blob or a manifest costs a HEAD upstream, once, and no GET."""
    image = upstream.add_image("library/app", "latest")
    head = await mirror.head(path(image.layers[0]))
    assert (head.status, head.headers["Content-Length"]) == (200, "1000")
    head = await mirror.head("/v2/app/manifests/latest")
    assert head.headers["Docker-Content-Digest"] == str(image.digest)
    assert head.headers["Content-Length"] == str(len(image.body))
    assert upstream.count("GET") == 0
    assert upstream.count("HEAD") == 2


async def test_9_a_manifest_never_waits_for_its_layers(mirror: Mirror, upstream: Scripted) -> None:
    """It is answered whatever its layers do."""
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(MIB)])
    hold = Hold(0)
    upstream.fail(str(image.layers[0]), hold)
    task = asyncio.create_task(mirror.get(path(image.layers[0])))
    await hold.reached.wait()
    assert (await mirror.get("/v2/app/manifests/latest")).body == image.body
    hold.release.set()
    await task


async def test_10_a_range_far_ahead_is_fetched_out_of_order(mirror: Mirror, upstream: Scripted) -> None:
    """It need not wait for what lies before it, and no byte is fetched twice for it."""
    data = os.urandom(24 * MIB)
    blob = upstream.add_blob(data)
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    whole = asyncio.create_task(mirror.get(path(blob)))
    await hold.reached.wait()
    ahead = await mirror.get(path(blob), Range=f"bytes={20 * MIB}-{21 * MIB - 1}")
    assert ahead.status == 206
    assert ahead.headers["Content-Range"] == f"bytes {20 * MIB}-{21 * MIB - 1}/{len(data)}"
    assert ahead.body == data[20 * MIB : 21 * MIB]
    assert not hold.release.is_set()
    hold.release.set()
    assert (await whole).body == data
    await mirror.until_cached(blob)
    assert upstream.sent[str(blob)] < 1.2 * len(data)


async def test_10_a_range_of_a_miss_starts_the_whole_download(mirror: Mirror, upstream: Scripted) -> None:
    """A partial request is a real 206, and the blob lands in the cache."""
    data = os.urandom(MIB)
    blob = upstream.add_blob(data)
    answer = await mirror.get(path(blob), Range="bytes=10-19")
    assert (answer.status, answer.body) == (206, data[10:20])
    await mirror.until_cached(blob)
    assert upstream.count("GET", str(blob)) == 1


@pytest.mark.parametrize("fault", [Chunked(), Length(5000)])
async def test_upstreams_that_lie_about_the_length(mirror: Mirror, upstream: Scripted, fault: Any) -> None:
    """Without a length the end is still the right one; with a wrong one nothing is kept or completed wrongly."""
    data = os.urandom(4000)
    blob = upstream.add_blob(data)
    upstream.fail(str(blob), fault)
    answer = await mirror.get(path(blob))
    if isinstance(fault, Chunked):
        assert answer.body == data
        await mirror.until_cached(blob)
    else:
        assert answer.cut
        assert not mirror.cached(blob)


async def test_an_endless_body_ends_at_the_size_of_the_cache(start: StartMirror, upstream: Scripted) -> None:
    """It fills neither the disk nor the memory, nothing of it is kept, and the mirror goes on."""
    blob = upstream.add_blob(bytes(10))
    mirror: Mirror = await start(max_size="4MiB")
    upstream.fail(str(blob), Endless(), times=2)
    async with mirror.session.get(path(blob)) as response:
        assert response.status == 200
        await response.content.readexactly(6 * MIB)
        response.close()
    assert not mirror.cached(blob)
    await until(lambda: mirror.spooled() == [])
    assert (await mirror.get("/healthz")).status == 200


async def test_a_blob_that_only_the_other_repository_has(mirror: Mirror, upstream: Scripted, tmp_path: Path) -> None:
    """One who joins a download through a repository that lacks the blob does not pay for it, nor the other way round."""
    blob = upstream.add_blob(b"content")
    upstream.fail(f"library/absent/blobs/{blob}", Status(404))
    answers = await asyncio.gather(mirror.get(f"/v2/library/absent/blobs/{blob}"), mirror.get(path(blob)))
    assert answers[0].status in (200, 404)
    assert answers[1].status == 200
