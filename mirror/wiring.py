"""The cache of some settings, opened and closed again: with its upstreams, or without, for commands that ask nobody."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from mirror import metrics
from mirror.cache.cache import Cache, Limits, Source
from mirror.config import Settings
from mirror.errors import RegistryUnknown
from mirror.storage.settings import Expire, Upkeep

if TYPE_CHECKING:
    from mirror.upstream import Upstreams


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Cache]:
    """A cache that can fetch, without server and chores. Raises OSError, sqlite3.Error where its directory cannot be used."""
    async with wired(settings) as (cache, _):
        # What a command downloads is seen on the dashboard too.
        cache.active.start()
        yield cache


@contextlib.asynccontextmanager
async def offline(settings: Settings) -> AsyncIterator[Cache]:
    """A cache that knows no registry, open in half the time. Raises as `opened` does."""
    async with _cache(settings, _nobody) as cache:
        yield cache


@contextlib.asynccontextmanager
async def wired(settings: Settings, share: int = 1) -> AsyncIterator[tuple[Cache, Upstreams]]:
    """A cache and its upstreams, for one of `share` processes: it may open its share of the connections, but as many as one blob may use.

    Raises as `opened` does.
    """
    # The HTTP client is half of what a command costs to start.
    from mirror.upstream import Connections, Timeouts, Upstreams

    waits = settings.upstream
    timeouts = Timeouts(waits.connect_timeout, waits.header_timeout, waits.stall_timeout, waits.attempts)
    most = waits.connections_per_blob
    per_endpoint, in_all = (
        bound if share == 1 else max(bound // share, most) for bound in (waits.connections_per_endpoint, waits.connections)
    )
    connections = Connections(most, per_endpoint, in_all)
    async with Upstreams(settings.registries, timeouts, connections) as upstreams, _cache(settings, upstreams.registry) as cache:
        yield cache, upstreams


@contextlib.asynccontextmanager
async def _cache(settings: Settings, source: Callable[[str], Source]) -> AsyncIterator[Cache]:
    kept = settings.cache
    expire = tuple(Expire(rule.repositories, rule.after) for rule in kept.expire)
    upkeep = Upkeep(kept.max_size, kept.high_watermark, kept.low_watermark, expire, kept.scrub_rate, kept.scrub_interval)
    cache = Cache(kept.dir, source, Limits(upkeep, kept.tag_ttl, kept.negative_ttl, kept.revalidate_timeout, kept.prefetch))
    try:
        metrics.begin(settings.registries, kept.dir)
        yield cache
    finally:
        await cache.aclose()


def _nobody(name: str) -> Source:
    raise RegistryUnknown.named(name)
