"""``tags = "newest"``: of several endpoints the newest tag counts, and the registry's own word before any other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from mirror.cache.tags import Tags
from mirror.names import Digest
from tests.support.endpoints import fleet
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Corrupt, Delay, Fault, Raw, Scripted, Silence, Status

OLD, NEW = "2026-05-01T10:00:00Z", "2026-05-01T13:00:00.123456789Z"
_CREATED = "org.opencontainers.image.created"
_GONE = b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'
Make = Callable[[Scripted, str | None], Digest]


def in_configuration(registry: Scripted, made: str | None) -> Digest:
    return registry.add_image("library/app", "latest", configuration={"rootfs": {}, "created": made}).digest


def in_annotation(registry: Scripted, made: str | None) -> Digest:
    """Its configuration has the same placeholder as everyone's."""
    more: dict[str, Any] = {} if made is None else {"annotations": {_CREATED: made}}
    return registry.add_image(
        "library/app", "latest", configuration={"rootfs": {}, "created": "1970-01-01T00:00:00Z"}, **more
    ).digest


def in_entries(registry: Scripted, made: str | None) -> Digest:
    """As Docker's official images have it."""
    image = registry.add_image("library/app", None)
    more: dict[str, Any] = {} if made is None else {"annotations": {_CREATED: made}}
    return registry.add_index("library/app", "latest", [image], **more)[0]


def in_configuration_below(registry: Scripted, made: str | None) -> Digest:
    image = registry.add_image("library/app", None, configuration={"rootfs": {}, "created": made})
    return registry.add_index("library/app", "latest", [image])[0]


KINDS = [in_configuration, in_annotation, in_entries, in_configuration_below]


@contextlib.asynccontextmanager
async def endpoints(count: int) -> AsyncIterator[list[Scripted]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Scripted()) for _ in range(count)]


def newest(*registries: Scripted | str, name: str = "docker.io") -> dict[str, object]:
    urls = [registry if isinstance(registry, str) else registry.url for registry in registries]
    return {"registries": {name: {"endpoints": urls, "tags": "newest"}}}


def served_by(answer: object) -> str:
    return str(answer.headers["Docker-Content-Digest"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("older", [0, 1])
async def test_the_newest_of_all_endpoints_counts(
    start: StartMirror, monkeypatch: pytest.MonkeyPatch, method: str, kind: Make, older: int
) -> None:
    """Wherever the date is, in any order, for the first request and every later one; each endpoint gets one HEAD and no document twice.

    What is passed over is no image of the cache."""
    # Every answer is waited for, and no other endpoint is asked or preferred, however slow this machine is.
    monkeypatch.setattr("mirror.upstream.failover.HEAD_START", 10)
    monkeypatch.setattr("mirror.upstream.failover._QUICK", PATIENCE)
    monkeypatch.setattr("mirror.upstream.survey._GRACE", PATIENCE)
    monkeypatch.setattr("mirror.cache.newest._PATIENCE", PATIENCE)
    async with endpoints(2) as both:
        digests = [kind(registry, OLD if index == older else NEW) for index, registry in enumerate(both)]
        patient = {"upstream": {"header_timeout": 80}}
        mirror: Mirror = await start(settings=newest(*both) | patient, tag_ttl="0s", revalidate_timeout="60s")
        for checks in (1, 2, 3):
            answer = await mirror.get("/v2/app/manifests/latest", method)
            assert served_by(answer) == str(digests[1 - older])
            for registry, own in zip(both, digests, strict=True):
                assert [asked.path for asked in registry.asked if asked.method == "HEAD"] == [
                    "/v2/library/app/manifests/latest"
                ] * checks
                assert registry.count("GET", f"/manifests/{own}") == 1
                fetched = [asked.path for asked in registry.asked if asked.method == "GET"]
                assert len(fetched) == len(set(fetched)) <= 4
        assert both[older].count("GET", str(digests[1 - older])) == 0
        assert (await mirror.get(f"/v2/app/manifests/{digests[1 - older]}")).status == 200
        listed = (await mirror.get("/images", Accept="text/html")).body.decode()
        assert ("app:latest" in listed, "app@sha256" in listed) == (True, False)
        assert both[0].count("GET", "/manifests/") + both[1].count("GET", "/manifests/") == (
            4 if kind is in_configuration_below else 2
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (None, None),
        (NEW, NEW),
        ("1970-01-01T00:00:00Z", "1980-01-01T00:00:01Z"),
        ("0001-01-01T00:00:00Z", None),
        ("yesterday", "9999-99-99T00:00:00Z"),
        (None, "2999-01-01T00:00:00Z"),
    ],
)
async def test_the_first_counts_if_dates_do_not_tell(
    start: StartMirror, kind: Make, first: str | None, second: str | None
) -> None:
    """None, equal ones, placeholders of reproducible builds, nonsense, and dates in the future, with which an endpoint could make its tag count for ever."""
    async with endpoints(2) as both:
        digests = [kind(registry, made) for registry, made in zip(both, (first, second), strict=True)]
        mirror: Mirror = await start(settings=newest(*both))
        assert served_by(await mirror.get("/v2/app/manifests/latest")) == str(digests[0])


@pytest.mark.parametrize(
    "fault", [Corrupt(5), Status(404, body=_GONE), Status(500), Silence(), Raw(), Status(200, body=b"<html>")]
)
async def test_what_cannot_be_dated_is_passed_over(start: StartMirror, fault: Fault) -> None:
    """An endpoint that names a manifest and does not give it; the others answer within the limits of time, and it is not believed."""
    async with endpoints(3) as three:
        in_configuration(three[0], NEW)
        three[0].fail("/v2/", fault, times=50)
        digests = [in_configuration(registry, made) for registry, made in zip(three[1:], (OLD, NEW), strict=True)]
        mirror: Mirror = await start(settings=newest(*three))
        assert served_by(await mirror.get("/v2/app/manifests/latest")) == str(digests[1])


async def test_endpoints_that_agree_cost_one_head_each(start: StartMirror) -> None:
    """And no document, at every check."""
    async with endpoints(4) as four:
        image = four[0].add_image("library/app", "latest")
        for other in four[1:]:
            other.add_manifest("library/app", "latest", image.body)
        mirror: Mirror = await start(settings=newest(*four), tag_ttl="0s")
        assert (await mirror.get("/v2/app/manifests/latest")).body == image.body
        for checks in (2, 3):
            assert "fwd=stale" in (await mirror.get("/v2/app/manifests/latest")).cache
            assert [registry.count("HEAD") for registry in four] == [checks] * 4
        assert sum(registry.count("GET") for registry in four) == 1


async def test_the_registrys_own_word_counts(start: StartMirror, upstream: Scripted) -> None:
    """Though a mirror's tag is newer, which is not even asked."""
    async with Scripted() as mirrors:
        own = in_configuration(upstream, OLD)
        in_configuration(mirrors, NEW)
        name = upstream.url.removeprefix("http://")
        mirror: Mirror = await start(settings=newest(mirrors, upstream, name=name), tag_ttl="0s")
        for _ in range(2):
            assert served_by(await mirror.get(f"/v2/{name}/library/app/manifests/latest")) == str(own)
        assert upstream.count("HEAD") == 2
        assert not mirrors.asked


async def test_the_registrys_own_word_counts_though_it_comes_later(start: StartMirror, upstream: Scripted) -> None:
    """It is waited for beyond its head start, when a mirror has answered already."""
    async with Scripted() as mirrors:
        own = in_configuration(upstream, OLD)
        in_configuration(mirrors, NEW)
        upstream.fail("/v2/", Delay(1.0), method="HEAD")
        name = upstream.url.removeprefix("http://")
        mirror: Mirror = await start(settings=newest(mirrors, upstream, name=name))
        assert served_by(await mirror.get(f"/v2/{name}/library/app/manifests/latest")) == str(own)
        assert mirrors.count("HEAD") == 1


async def test_what_the_registry_itself_does_not_have_is_gone(start: StartMirror, upstream: Scripted) -> None:
    """Whatever a mirror says: it may have been deleted for a reason."""
    async with Scripted() as mirrors:
        in_configuration(mirrors, NEW)
        name = upstream.url.removeprefix("http://")
        mirror: Mirror = await start(settings=newest(mirrors, upstream, name=name))
        assert (await mirror.get(f"/v2/{name}/library/app/manifests/latest")).status == 404
        assert not mirrors.asked


@pytest.mark.parametrize("fault", [Raw(), Silence(), Status(403), Status(503), Status(404, body=b"no such route"), Status(429)])
async def test_the_newest_mirror_counts_while_the_registry_does_not_answer(
    start: StartMirror, upstream: Scripted, fault: Fault
) -> None:
    """Refused, dead, limited, or behind an ingress that says 404."""
    async with endpoints(2) as both:
        digests = [in_configuration(registry, made) for registry, made in zip(both, (OLD, NEW), strict=True)]
        upstream.fail("/v2/", fault, times=50, method="*")
        name = upstream.url.removeprefix("http://")
        mirror: Mirror = await start(settings=newest(upstream, *both, name=name))
        assert served_by(await mirror.get(f"/v2/{name}/library/app/manifests/latest")) == str(digests[1])


async def test_one_that_does_not_answer_is_waited_for_once(start: StartMirror, upstream: Scripted) -> None:
    """Then the others' answers are not held up: it is probed behind them, after pauses."""
    async with endpoints(2) as both:
        for registry in both:
            in_configuration(registry, NEW)
        upstream.fail("/v2/", Silence(), times=50, method="*")
        mirror: Mirror = await start(settings=newest(upstream, *both), tag_ttl="0s", revalidate_timeout="10s")
        began = time.monotonic()
        assert (await mirror.get("/v2/app/manifests/latest")).status == 200
        first = time.monotonic() - began
        assert upstream.count("HEAD") == 1
        for _ in range(10):
            began = time.monotonic()
            assert (await mirror.get("/v2/app/manifests/latest")).status == 200
            assert time.monotonic() - began < first
        assert [registry.count("HEAD") for registry in both] == [11, 11]
        assert upstream.count("HEAD") <= 2


@pytest.mark.parametrize("status", [404, 403])
async def test_where_no_endpoint_has_it_each_is_asked_once(start: StartMirror, status: int) -> None:
    """With HEAD and with GET, since some answer only that; the error is that of the first setting."""
    async with endpoints(3) as three:
        for registry in three:
            registry.fail("/v2/", Status(status, body=_GONE), times=50, method="*")
        mirror: Mirror = await start(settings=newest(*three))
        assert (await mirror.get("/v2/app/manifests/latest")).status == status
        assert [(registry.count("HEAD"), registry.count("GET")) for registry in three] == [(1, 1)] * 3


async def test_a_failed_endpoint_is_asked_again(start: StartMirror) -> None:
    """As often as `upstream.attempts` says, if no other has an answer."""
    async with endpoints(2) as both:
        in_configuration(both[0], NEW)
        for registry in both:
            registry.fail("/v2/", Raw(reset=True), method="*")
        mirror: Mirror = await start(settings=newest(*both))
        assert (await mirror.get("/v2/app/manifests/latest")).status == 200


async def test_a_tag_does_not_go_back_while_the_newest_is_away(start: StartMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached is served stale instead; for a day. Then the older one counts: it may be meant."""
    moved = 0.0
    monkeypatch.setattr("mirror.cache.cache.Tags", partial(Tags, clock=lambda: time.time() + moved))
    async with endpoints(2) as both:
        digests = [in_configuration(registry, made) for registry, made in zip(both, (OLD, NEW), strict=True)]
        mirror: Mirror = await start(settings=newest(*both), tag_ttl="0s")
        assert served_by(await mirror.get("/v2/app/manifests/latest")) == str(digests[1])
        await both[1].stop()
        for _ in range(2):
            answer = await mirror.get("/v2/app/manifests/latest")
            assert (served_by(answer), "fwd=stale" in answer.cache) == (str(digests[1]), True)
        moved = 86400.0
        await mirror.stop()
        mirror = await start(settings=newest(*both), tag_ttl="0s")
        assert served_by(await mirror.get("/v2/app/manifests/latest")) == str(digests[0])


async def test_a_tag_goes_back_if_all_endpoints_say_so(start: StartMirror) -> None:
    """A publisher takes a release back: when every mirror has that, it is so."""
    async with endpoints(2) as both:
        old = in_configuration(both[0], OLD)
        new = in_configuration(both[1], NEW)
        mirror: Mirror = await start(settings=newest(*both), tag_ttl="0s")
        assert served_by(await mirror.get("/v2/app/manifests/latest")) == str(new)
        both[1].manifests |= both[0].manifests
        assert served_by(await mirror.get("/v2/app/manifests/latest")) == str(old)


async def test_only_one_of_many_clients_asks(start: StartMirror) -> None:
    """They share the survey."""
    async with endpoints(3) as three:
        for registry, made in zip(three, (OLD, NEW, OLD), strict=True):
            in_configuration(registry, made)
        mirror: Mirror = await start(settings=newest(*three))
        answers = await asyncio.gather(
            *(mirror.get("/v2/app/manifests/latest", method) for method in ("GET", "HEAD") for _ in range(10))
        )
        assert len({served_by(answer) for answer in answers}) == 1
        assert [registry.count("HEAD") for registry in three] == [1, 1, 1]


async def test_nine_bad_endpoints_and_a_stale_one_first(start: StartMirror) -> None:
    """The stale tag is passed over, and at the second pull only the two that answer like registries are asked."""
    async with fleet() as found:
        for tag in ("1", "2"):
            for registry, made in ((found.bad["stale"], OLD), (found.good, NEW)):
                registry.add_image("library/app", tag, configuration={"rootfs": {}, "created": made})
        found.bad["wrong"].manifests |= found.good.manifests
        mirror: Mirror = await start(settings=newest(found.urls[-1], *found.urls[:-1]))
        answer = await mirror.get("/v2/app/manifests/1")
        assert served_by(answer) == str(Digest.of(found.good.manifests["library/app", "1"][1]))
        asked = {name: count for name, count in found.asked().items() if name not in ("stale", "slow")}
        # A redirect counts twice, and a busy machine has time for a third attempt.
        assert all(count <= 8 for count in asked.values()), asked
        answer = await mirror.get("/v2/app/manifests/2")
        assert served_by(answer) == str(Digest.of(found.good.manifests["library/app", "2"][1]))
        assert {name: count for name, count in found.asked().items() if name in asked} == asked
