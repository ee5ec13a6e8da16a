"""Checks ``[[warm]]`` lists: whether their files can be used, whether upstream has their images, and whether the running mirror pulls them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families

from mirror.clients import Address
from mirror.config import Settings
from mirror.config.warm import Warm
from mirror.doctor.findings import Finding, advice, ok, problem
from mirror.doctor.local import ask_mirror
from mirror.doctor.waiting import within
from mirror.errors import Denied, MirrorError, Unknown
from mirror.names import Reference, Repository, image_name
from mirror.upstream import Connections, Timeouts, Upstreams
from mirror.upstream.settings import upstream_way

_TIMEOUTS = Timeouts(connect=3, header=5, stall=5, attempts=1)
_PATIENCE = 10.0
"""Seconds for reading a file, and for all images."""
_MOST_IMAGES = 200
"""Images that are asked for, of all lists. A HEAD of a manifest is no pull at Docker Hub."""
_AT_ONCE = 8
_SHOWN = 3
"""Images that a finding names."""

_Image = tuple[Repository, Reference]
_Faults = dict[_Image, MirrorError | None]
"""Why upstream does not have what was asked for; None for what it has."""
_Metrics = dict[tuple[str, str], float]
"""Values by the metric's name and the list's."""


async def examine(settings: Settings, address: Address) -> list[Finding]:
    """Returns a finding or more for each list. `address` is the running mirror's. Raises only CancelledError."""
    found: list[Finding] = []
    lists: list[tuple[Warm, list[_Image]]] = []
    for warm in settings.warm:
        try:
            lists.append((warm, await within(_PATIENCE, warm.read)))
        except ValueError as error:
            found.append(problem(_check(warm), str(error), "correct the file; until then the list stays as it was"))
        except TimeoutError:
            found.append(
                problem(_check(warm), f"its files cannot be read within {_PATIENCE:g} s", "check the disk that they are on")
            )
    images = list(dict.fromkeys(image for _, images in lists for image in images))
    faults, metrics = await asyncio.gather(_ask(settings, images[:_MOST_IMAGES]), _metrics(settings, address, bool(lists)))
    for warm, images in lists:
        found += [*_images(warm, images, faults), *_pulls(warm, images, metrics)]
    return found


def _check(warm: Warm) -> str:
    return f"warm {warm.name}"


async def _ask(settings: Settings, images: list[_Image]) -> _Faults:
    """Asks upstream for manifests, for so long as there is time."""
    faults: _Faults = {}
    if settings.upstream.offline or not images:
        return faults
    turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(image: _Image) -> None:
        repository, reference = image
        async with turns:
            try:
                await upstreams.registry(repository.registry).head_manifest(repository, reference)
                faults[image] = None
            except MirrorError as error:
                faults[image] = error

    try:
        way = upstream_way(settings.upstream)
    except OSError:
        # The proxy variables are invalid, which upstreams.py reports.
        return faults
    connections = Connections(1, _AT_ONCE, _AT_ONCE)
    async with Upstreams(settings.registries, _TIMEOUTS, connections, settings.unlisted, way) as upstreams:
        try:
            async with asyncio.timeout(_PATIENCE):
                await asyncio.gather(*map(ask, images))
        except TimeoutError:
            # What was not asked for is counted as unchecked.
            return faults
    return faults


def _images(warm: Warm, images: list[_Image], faults: _Faults) -> Iterator[Finding]:
    check = _check(warm)
    wrong = {image: error for image in images if isinstance(error := faults.get(image), Unknown | Denied)}
    failed = {image: error for image in images if (error := faults.get(image)) is not None and image not in wrong}
    unchecked = sum(image not in faults for image in images)
    if wrong:
        yield problem(
            check, _sentence(wrong, images, "cannot be had"), "correct the names, add credentials, or remove them from the list"
        )
    if failed:
        cure = "the findings about the registries may explain it; what is cached is served, and the pull is tried again"
        yield advice(check, _sentence(failed, images, "could not be checked"), cure)
    if not wrong and not failed:
        rest = f"; {unchecked} were not checked" if unchecked else ""
        yield ok(check, f"{_count(len(images))}{rest or ', which upstream has'}")


def _sentence(faults: Mapping[_Image, MirrorError], images: list[_Image], what: str) -> str:
    named = "; ".join(f"{image_name(*image)}: {error.message}" for image, error in list(faults.items())[:_SHOWN])
    return f"{len(faults)} of {_count(len(images))} {what}: {named}{'; …' if len(faults) > _SHOWN else ''}"


async def _metrics(settings: Settings, address: Address, wanted: bool) -> _Metrics | None:
    """Returns what the running mirror counts of its lists; None if it does not answer."""
    if not wanted:
        return None
    try:
        text = (await ask_mirror(settings, address, "/metrics")).decode()
        return {
            (sample.name, sample.labels["list"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if "list" in sample.labels
        }
    except (MirrorError, OSError, ValueError):
        # local.py reports a mirror that does not answer.
        return None


def _pulls(warm: Warm, images: list[_Image], metrics: _Metrics | None) -> Iterator[Finding]:
    check, reload = _check(warm), "send it SIGHUP (systemctl reload mirror), or start it again"
    if metrics is None:
        return
    listed = metrics.get(("mirror_warm_images", warm.name))
    if listed is None:
        yield advice(check, "the running mirror does not have this list", reload)
        return
    failing = metrics.get(("mirror_warm_failing", warm.name), 0)
    last, following = (metrics.get((f"mirror_warm_{one}_pull_timestamp_seconds", warm.name), 0) for one in ("last", "next"))
    pulled = f"last pulled {_moment(last)}" if last else "not pulled yet"
    when = f"the running mirror keeps {_count(listed)} pinned, {pulled}" + (f", next {_moment(following)}" if following else "")
    if failing:
        yield problem(check, f"the last pull failed of {_count(failing)}; {when}", "the log and the dashboard say why")
    elif listed != len(images):
        yield advice(
            check, f"{when}, but the list has {len(images)}", f"wait a minute, in which files are read again; else {reload}"
        )
    else:
        yield ok(check, when)


def _count(images: float) -> str:
    return f"{images:.0f} {'image' if images == 1 else 'images'}"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
