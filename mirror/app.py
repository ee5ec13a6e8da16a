"""The one place where everything is wired together, and closed again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

from mirror import __version__, metrics
from mirror.api.access import AccessLog
from mirror.api.server import Api
from mirror.api.targets import Targets
from mirror.api.web.admin import Admin
from mirror.api.web.pages import House
from mirror.api.web.site import Site
from mirror.api.web.token import token_in
from mirror.cache.cache import Cache, Limits
from mirror.cache.upkeep import Expire, Upkeep
from mirror.certificate import Certificate
from mirror.config import ALIASES, DEFAULT_REGISTRY, Settings
from mirror.upstream import Connections, Timeouts, Upstreams

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Cache]:
    """The cache with its upstreams, for commands: without the server and the chores. Raises OSError, sqlite3.Error where its directory cannot be used."""
    async with _wired(settings) as (cache, _):
        # What a command downloads is seen on the dashboard too.
        cache.board.start()
        yield cache


@contextlib.asynccontextmanager
async def _wired(settings: Settings) -> AsyncIterator[tuple[Cache, Upstreams]]:
    async with contextlib.AsyncExitStack() as stack:
        waits = settings.upstream
        timeouts = Timeouts(waits.connect_timeout, waits.header_timeout, waits.stall_timeout, waits.attempts)
        connections = Connections(waits.connections_per_blob, waits.connections_per_endpoint, waits.connections)
        upstreams = await stack.enter_async_context(Upstreams(settings.registries, timeouts, connections))
        kept = settings.cache
        expire = tuple(Expire(rule.repositories, rule.after) for rule in kept.expire)
        upkeep = Upkeep(kept.max_size, kept.high_watermark, kept.low_watermark, expire, kept.scrub_rate, kept.scrub_interval)
        limits = Limits(upkeep, kept.tag_ttl, kept.negative_ttl, kept.revalidate_timeout, kept.prefetch)
        cache = Cache(kept.dir, upstreams.registry, limits)
        stack.push_async_callback(cache.aclose)
        metrics.begin(settings.registries, settings.cache.dir)
        yield cache, upstreams


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """Runs the mirror; gives its URL. Raises OSError where it cannot listen or use its cache directory, sqlite3.Error likewise."""
    async with contextlib.AsyncExitStack() as stack:
        cache, upstreams = await stack.enter_async_context(_wired(settings))
        certificate = await stack.enter_async_context(_certificate(settings))
        access = AccessLog() if settings.server.access_log else None
        if access is not None:
            stack.callback(access.close)
        targets = Targets(settings.registries.keys(), DEFAULT_REGISTRY, ALIASES)
        report = functools.partial(_report, settings, upstreams)
        kept = settings.cache
        house = House(__version__, tuple(settings.registries), kept.max_size, kept.tag_ttl, report)
        site = Site(cache, Admin(admin_token(settings)[0]), house)
        api = Api(cache, targets, DEFAULT_REGISTRY, report, access, site)
        runner = web.ServerRunner(api.server(), shutdown_timeout=settings.server.drain_timeout)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        # Before the draining: those who watch the dashboard would be waited for.
        stack.push_async_callback(site.aclose)
        host, port = settings.server.address
        tls = certificate.context if certificate is not None else None
        await web.TCPSite(runner, host, port, ssl_context=tls, backlog=1024, reuse_address=True).start()
        cache.start()
        yield settings.server.url(*runner.addresses[0][:2])


@contextlib.asynccontextmanager
async def _certificate(settings: Settings) -> AsyncIterator[Certificate | None]:
    """The certificate to serve with, where there is one; SIGHUP makes it look at its files at once."""
    file, key = settings.server.tls_certificate, settings.server.tls_key
    if file is None or key is None:
        yield None
        return
    try:
        certificate = Certificate(file, key)
    except ValueError as error:
        # It was well when the settings were read.
        raise OSError(str(error)) from None
    certificate.start()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, certificate.refresh)
    try:
        yield certificate
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        await certificate.aclose()


def admin_token(settings: Settings) -> tuple[str, bool]:
    """What changes on the dashboard need; True where it was made just now, since none was set. Raises OSError, ValueError where a file cannot be read."""
    known = settings.server.known_token()
    return (known, False) if known is not None else token_in(settings.cache.dir)


async def serve(settings: Settings, started: Callable[[str], None]) -> None:
    """Runs until SIGTERM or SIGINT, then drains: no new connections, current requests end within the bound, downloads stay resumable.

    `started` is called with the URL once requests are taken. Raises as `running` does.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with running(settings) as url:
        started(url)
        await stop.wait()
        log.info("stopping: current requests have %g s to end", settings.server.drain_timeout)


def _report(settings: Settings, upstreams: Upstreams) -> dict[str, Any]:
    degraded = []
    if not os.access(settings.cache.dir, os.W_OK):
        degraded.append(f"the cache directory {settings.cache.dir} cannot be written: everything is fetched, nothing kept")
    registries: dict[str, Any] = {}
    for name in settings.registries:
        endpoints = upstreams.registry(name).health()
        registries[name] = [
            {
                "endpoint": e.url,
                "state": e.state,
                "last_error": e.last_error,
                "seconds_to_first_byte": e.latency,
                "bytes_per_second": e.throughput,
                "pulls": e.pulls,
                "pulls_left": e.pulls_left,
            }
            for e in endpoints
        ]
        for endpoint in endpoints:
            if endpoint.state != "ok":
                degraded.append(f"{name}: {endpoint.url} is {endpoint.state}: {endpoint.last_error}")
    return {"degraded": degraded, "registries": registries}
