"""Requests that an endpoint limits, and failures that are one repository's."""

from __future__ import annotations

import asyncio
import os

import pytest

from mirror.errors import UpstreamLimited
from mirror.upstream.health import Breaker
from mirror.upstream.pacing import Pacer
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Fault, Raw, Redirect, Scripted, Silence, Status


async def test_images_of_a_registry_that_limits_all_come(start: StartMirror, upstream: Scripted) -> None:
    """Twelve at once where five manifests a second are allowed: those that are answered 429 wait for their turn, HEAD and GET alike."""
    upstream.manifests_per_second = 5
    images = [upstream.add_image(f"library/app{number}", "latest") for number in range(12)]
    mirror: Mirror = await start(settings={"upstream": {"header_timeout": 20}})
    answers = await asyncio.gather(*(mirror.get(f"/v2/app{number}/manifests/latest") for number in range(12)))
    assert [answer.body for answer in answers] == [image.body for image in images]
    assert upstream.count("GET") <= 60, "they do not hammer"


@pytest.mark.parametrize("second", ["away", "without them", "refusing", "limiting too"])
async def test_images_of_a_registry_that_limits_all_come_where_it_has_another_endpoint(
    start: StartMirror, upstream: Scripted, second: str
) -> None:
    """What the other endpoint does not give either waits for its turn at the first one, as long as it would without the other."""
    upstream.manifests_per_second = 3
    images = [upstream.add_image(f"library/app{number}", "latest") for number in range(12)]
    async with Scripted() as other:
        if second == "away":
            await other.stop()
        elif second == "refusing":
            other.fail("manifests/", Status(403), times=1000, method="*")
        elif second == "limiting too":
            other.manifests, other.manifests_per_second = upstream.manifests, 0.5
        mirror: Mirror = await start(endpoints=[upstream.url, other.url], settings={"upstream": {"header_timeout": 20}})
        answers = await asyncio.gather(*(mirror.get(f"/v2/app{number}/manifests/latest") for number in range(12)))
    assert [answer.body for answer in answers] == [image.body for image in images]
    assert upstream.count("GET") <= 60, "they do not hammer"


async def test_tokens_of_a_service_that_limits_all_come(start: StartMirror, upstream: Scripted) -> None:
    """As ghcr.io's does, with a Retry-After that is none: each repository's token waits for its turn."""
    upstream.auth, upstream.tokens_per_second = "bearer", 5
    images = [upstream.add_image(f"library/app{number}", "latest") for number in range(12)]
    mirror: Mirror = await start(settings={"upstream": {"header_timeout": 20}})
    answers = await asyncio.gather(*(mirror.get(f"/v2/app{number}/manifests/latest") for number in range(12)))
    assert [answer.body for answer in answers] == [image.body for image in images]
    assert upstream.count("GET", "/token") <= 40


@pytest.mark.parametrize("kind", ["HEAD", "tags/list"])
async def test_what_else_is_limited_waits_too(start: StartMirror, upstream: Scripted, kind: str) -> None:
    """HEADs and lists that were answered 429 come in the end, like GETs."""
    for number in range(8):
        upstream.add_image(f"library/app{number}", "latest")
    upstream.fail("library/", Status(429), times=12, method="HEAD" if kind == "HEAD" else "GET")
    mirror: Mirror = await start(settings={"upstream": {"header_timeout": 20}})
    method, path = ("HEAD", "manifests/latest") if kind == "HEAD" else ("GET", kind)
    answers = await asyncio.gather(*(mirror.get(f"/v2/app{number}/{path}", method) for number in range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    assert len(upstream.asked) == 12 + 8


async def test_a_503_that_says_when_to_come_again_is_waited_for(start: StartMirror, upstream: Scripted) -> None:
    """As a registry that restarts answers to whatever is asked: that opens no circuit. One that says "in an hour" fails at once."""
    for number in range(6):
        upstream.add_image(f"library/app{number}", "latest")
        upstream.fail(f"app{number}/", Status(503, {"Retry-After": "1"}))
    mirror: Mirror = await start(settings={"upstream": {"header_timeout": 20}})
    answers = await asyncio.gather(*(mirror.get(f"/v2/app{number}/manifests/latest") for number in range(6)))
    assert [answer.status for answer in answers] == [200] * 6
    assert upstream.count("GET") == 12
    upstream.fail("library/", Status(503, {"Retry-After": "3600"}), times=50)
    answer = await mirror.get("/v2/app/manifests/latest")
    assert (answer.status, b"answered 503" in answer.body) == (503, True)
    assert upstream.count("GET") == 14, "as often as `upstream.attempts` says"


@pytest.mark.parametrize("kind", ["tags/list", "referrers/"])
@pytest.mark.parametrize(
    "fault", [Status(500), Status(503), Status(429, {"Retry-After": "3600"}), Raw(reset=True), Status(403)], ids=str
)
async def test_lists_that_fail_close_nothing_else(start: StartMirror, upstream: Scripted, kind: str, fault: Fault) -> None:
    """However many repositories they are of: manifests and blobs are asked for."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail(kind, fault, times=1000)
    mirror: Mirror = await start()
    rest = kind if kind == "tags/list" else f"{kind}{image.digest}"
    for number in range(5):
        assert (await mirror.get(f"/v2/app{number}/{rest}")).status in (403, 503)
    assert (await mirror.get("/v2/app/manifests/latest")).body == image.body
    assert (await mirror.get(f"/v2/app/blobs/{image.config}")).status == 200


async def test_an_endpoint_that_refuses_lists_is_asked_first_for_all_else(start: StartMirror, upstream: Scripted) -> None:
    """As public mirrors do: that says nothing of the images that it has. Where it refused a list, the other endpoint is asked first for that list."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail("tags/list", Status(403), times=1000)
    async with Scripted() as other:
        other.manifests = upstream.manifests
        mirror: Mirror = await start(endpoints=[upstream.url, other.url], tag_ttl=0)
        for number in range(5):
            other.add_image(f"library/app{number}", "latest")
            for _ in range(2):
                assert (await mirror.get(f"/v2/app{number}/tags/list")).status == 200
            assert upstream.count("GET", f"app{number}/tags/list") == 1
        assert (await mirror.get("/v2/app/manifests/latest")).body == image.body
        assert other.count("GET", "/manifests/") == 0


@pytest.mark.parametrize("prefetch", [False, True])
async def test_blobs_of_a_registry_that_limits_all_come(start: StartMirror, upstream: Scripted, prefetch: bool) -> None:
    """As manifests do; HEAD too, and those that are prefetched."""
    upstream.blobs_per_second = 5
    image = upstream.add_image("library/app", "latest", [b"%d" % number for number in range(12)])
    mirror: Mirror = await start(settings={"upstream": {"header_timeout": 20}}, prefetch=prefetch)
    await mirror.get("/v2/app/manifests/latest")
    assert (await mirror.head(f"/v2/app/blobs/{image.config}")).status == 200
    answers = await asyncio.gather(*(mirror.get(f"/v2/app/blobs/{layer}") for layer in image.layers))
    assert [answer.body for answer in answers] == [b"%d" % number for number in range(12)]
    assert upstream.count("GET", "/blobs/") <= 60, "they do not hammer"


async def test_a_connection_that_a_blob_can_do_without_does_not_wait(start: StartMirror, upstream: Scripted) -> None:
    """A blob over several connections, of which the registry allows one: it comes over that one, and the others are given up at once."""
    blob = upstream.add_blob(os.urandom(48 * 1024 * 1024))
    upstream.rate = 8 * 1024 * 1024
    mirror: Mirror = await start()
    upstream.fail(f"blobs/{blob}", Status(0))
    upstream.fail(f"blobs/{blob}", Status(429, {"Retry-After": "60"}), times=50)
    answer = await mirror.get(f"/v2/app/blobs/{blob}")
    assert (answer.status, answer.digest()) == (200, blob)
    assert upstream.count("GET") == 2


async def test_a_limit_that_is_over_slows_nobody(start: StartMirror, upstream: Scripted) -> None:
    """Each answer speeds up what follows; nothing is remembered for ever."""
    now = 0.0
    pacer = Pacer("it", lambda: now)
    pacer.limited(await pacer.turn(1), None, False)
    now += 0.5
    for _ in range(200):
        assert await pacer.turn(0.3) >= now
        pacer.answered()
        now += 0.3
    assert await pacer.turn(0) == now
    assert await pacer.turn(0) == now


async def test_a_turn_that_comes_too_late_is_told_at_once() -> None:
    """With the seconds until it is worth asking; requests sent before the first 429 slow things down once."""
    now = 100.0
    pacer = Pacer("it", lambda: now)
    sent = [await pacer.turn(1) for _ in range(10)]
    for one in sent:
        pacer.limited(one, None, False)
    with pytest.raises(UpstreamLimited) as limited:
        await pacer.turn(0)
    assert limited.value.retry_after == pytest.approx(0.25)
    pacer.limited(now, 7.0, False)
    with pytest.raises(UpstreamLimited) as limited:
        await pacer.turn(1)
    assert limited.value.retry_after == pytest.approx(7)
    pacer.limited(now, None, True)
    with pytest.raises(UpstreamLimited) as limited:
        await pacer.turn(20)
    assert limited.value.retry_after == pytest.approx(30)
    now += 1000
    assert await pacer.turn(0) == now


async def test_a_pull_limit_stops_no_head(start: StartMirror, upstream: Scripted) -> None:
    """Docker Hub counts GETs of manifests: what a tag means can still be asked."""
    image = upstream.add_image("library/app", "latest")
    upstream.add_image("library/other", "latest")
    upstream.fail("manifests/", Status(429, {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}), times=50)
    mirror: Mirror = await start()
    assert (await mirror.get("/v2/other/manifests/latest")).status == 503
    asked = upstream.count("GET")
    assert (await mirror.get("/v2/other/manifests/latest")).status == 503
    assert upstream.count("GET") == asked, "a quota that is used up is not tried again at once"
    assert (await mirror.head("/v2/app/manifests/latest")).headers["Docker-Content-Digest"] == str(image.digest)


@pytest.mark.parametrize(
    "fault",
    [
        *(Status(500), Status(503, {"Retry-After": "3600"}), Status(429), Status(429, {"Retry-After": "3600"})),
        *(Raw(), Raw(reset=True), Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), Silence()),
        *(Redirect("http://127.0.0.1:1/"), Status(401, {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:1/"'})),
    ],
    ids=str,
)
async def test_one_repository_that_always_fails_fails_alone(start: StartMirror, upstream: Scripted, fault: Fault) -> None:
    """However often it is asked for, and however it fails: sixty others come, and before anybody has asked for them it has failed alone for a while."""
    for number in range(60):
        upstream.add_image(f"library/app{number}", "latest")
    upstream.fail("library/bad/", fault, times=1000, method="*")
    mirror: Mirror = await start(settings={"upstream": {"header_timeout": 1}})
    for path in ("/v2/bad/manifests/latest", "/v2/bad/manifests/other", "/v2/bad/tags/list"):
        assert (await mirror.get(path)).status in (403, 503)
    asked = [path for number in range(60) for path in (f"/v2/app{number}/manifests/latest", "/v2/bad/manifests/latest")]
    answers = []
    for start_at in range(0, len(asked), 40):
        answers += await asyncio.gather(*map(mirror.get, asked[start_at : start_at + 40]))
    assert [answer.status for answer in answers[::2]] == [200] * 60
    assert {answer.status for answer in answers[1::2]} <= {403, 503}
    assert upstream.count("GET", "library/app") == 60


async def test_a_blob_whose_store_cannot_be_reached_fails_alone(start: StartMirror, upstream: Scripted) -> None:
    """The redirect's target is not the registry: that is asked on, for manifests and for other blobs."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    upstream.fail(str(image.layers[0]), Redirect("http://127.0.0.1:1/"), times=1000, method="*")
    for _ in range(4):
        assert (await mirror.get(f"/v2/app/blobs/{image.layers[0]}")).status == 503
    assert (await mirror.get(f"/v2/app/blobs/{image.config}")).status == 200
    assert (await mirror.get("/v2/app/manifests/latest")).status == 200


@pytest.mark.parametrize(
    ("failures", "state"),
    [
        (["a", "a", "a", "a"], "failing"),
        (["a", "b"], "failing"),
        (["a", "b", "c"], "down"),
        ([None, None], "failing"),
        ([None, None, None], "down"),
        (["a", None, "b"], "down"),
        (["a", "b", "ok", "c"], "failing"),
        ([None, None, "ok", None], "failing"),
    ],
)
def test_a_circuit_opens_on_evidence_about_the_endpoint(failures: list[str | None], state: str) -> None:
    """Connections that fail, or several repositories; None stands for a connection."""
    breaker = Breaker()
    for failure in failures:
        if failure == "ok":
            breaker.succeeded()
        else:
            breaker.failed("x", failure)
    assert breaker.state == state


def test_repositories_that_fail_do_not_take_the_turn_of_others() -> None:
    """An open circuit lets another repository through first: where it is answered, all is well again."""
    now = 0.0
    breaker = Breaker(lambda: now)
    for failure in ("a", "b", "c"):
        breaker.failed("x", failure)
    now = 1.5
    assert not any(breaker.allows(failed) for failed in ("a", "b", "c"))
    assert breaker.allows("healthy")
    assert not breaker.allows("healthy"), "one at a time"
    now = 3.6
    assert breaker.allows("a"), "where nobody else asks"
    breaker.succeeded()
    assert breaker.allows("b")


async def test_a_long_list_has_its_time_for_each_page(start: StartMirror, upstream: Scripted) -> None:
    """Pages that together take longer than one request may: all tags come, and the endpoint is well."""
    upstream.page_size, upstream.page_seconds = 5, 0.4
    for number in range(30):
        upstream.add_image("library/app", f"t{number:02}")
    mirror: Mirror = await start(settings={"upstream": {"header_timeout": 1}})
    answer = await mirror.get("/v2/app/tags/list")
    assert answer.body.count(b'"t') == 31
    assert b'"state": "ok"' in (await mirror.get("/readyz")).body
