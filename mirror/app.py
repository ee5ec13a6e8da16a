"""Runs the mirror: the API and the dashboard on top of a cache and its upstreams, opened and closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from urllib.parse import urlsplit

from aiohttp import web

from mirror import __version__, metrics, wiring
from mirror.api.access import AccessLog
from mirror.api.browser_logins import BrowserLogins
from mirror.api.gate import Gate
from mirror.api.hosts import KnownHosts
from mirror.api.login_places import LoginPlaces
from mirror.api.mirrors import Mirrors
from mirror.api.server import Api
from mirror.api.targets import Targets
from mirror.certificate import Certificate, ends
from mirror.config import ALIASES, DEFAULT_REGISTRY, Settings
from mirror.config.in_force import in_force
from mirror.disk_probe import DiskProbe
from mirror.readiness import Readiness
from mirror.tasks import BackgroundTask
from mirror.web.admin import Admin
from mirror.web.dashboard import Dashboard
from mirror.web.sessions import EndedSessions
from mirror.web.site_info import SiteInfo
from mirror.web.token import token_in
from mirror.wiring import wired
from mirror.workers.acceptor import Acceptor, listen
from mirror.workers.context import WorkerContext

log = logging.getLogger(__name__)

_PUBLISH = 2.0
"""Seconds between signs of life, and between what a worker publishes for the others."""


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    worker: WorkerContext | None = None,
    notes: Sequence[str] = (),
    reload: Callable[[], Settings] | None = None,
) -> AsyncIterator[str]:
    """Runs the mirror, or one worker of it; yields its URL. Raises OSError or CatalogFailed if it cannot listen or use its cache directory.

    At SIGHUP it calls `reload`, which returns the settings from now on in force, and reads its certificate again. `notes` are sentences for /readyz.
    """
    async with contextlib.AsyncExitStack() as stack:
        cache, upstreams, live = await stack.enter_async_context(
            wired(settings)
            if worker is None
            else wired(settings, settings.server.workers, (worker.rates, worker.number, worker.capped))
        )
        certificate = await stack.enter_async_context(_certificate(settings))
        who = await stack.enter_async_context(wiring.access(settings, live.notifications))
        checks = wiring.upstream_checks(settings, upstreams, cache, who)
        stack.push_async_callback(checks.aclose)
        places = LoginPlaces(settings.server.login_addresses, settings.server.login_hosts)
        places.take(wiring.client_hosts(settings))

        targets = Targets({*settings.registries, *settings.unlisted}, DEFAULT_REGISTRY, ALIASES)

        def take() -> None:
            if reload is None:
                return
            try:
                live.take(reload())
            except OSError as error:
                log.error("SIGHUP: the settings cannot be used, and those before stay in force: %s", error)
                return
            targets.take({*live.settings.registries, *live.settings.unlisted})
            checks.take(wiring.client_graces(live.settings))
            places.take(wiring.client_hosts(live.settings))
            who.take(*wiring.access_rules(live.settings))

        stack.enter_context(_hangup(take, certificate))
        access = AccessLog() if settings.server.access_log else None
        if access is not None:
            stack.callback(access.close)
        probe = DiskProbe(settings.cache.dir, settings.cache.min_free)
        stack.callback(probe.close)
        readiness = Readiness(settings, upstreams, worker, probe, notes)
        kept = settings.cache
        pem = settings.server.tls_certificate
        if pem is not None:
            metrics.watch_certificate(str(pem), partial(ends, pem))
        ended = EndedSessions(settings.cache.dir)
        fleet = members = None
        if settings.fleet.mirrors or settings.fleet.parents:
            # Few mirrors belong to one.
            from mirror.api.fleet import FleetRequests, Own
            from mirror.fleet_tables import accounts, digests
            from mirror.upstream.members import Members

            own = Own(
                settings.fleet.own or "",
                __version__,
                settings.fleet.mirrors,
                [parent.url for parent in settings.fleet.parents],
                kept.max_size,
                kept.tag_ttl,
                lambda: list(map(str, readiness.report()["degraded"])),
                settings.server.audit_log,
                lambda: digests(live.settings, who),
            )
            fleet = FleetRequests(cache, own, targets.image, accounts(settings), ended)
            if settings.fleet.mirrors:
                members = Members(settings.fleet)
                members.own_state = fleet.state
        site_info = SiteInfo(
            __version__,
            lambda: tuple(live.settings.registries),
            kept.max_size,
            kept.tag_ttl,
            readiness.report,
            lambda: in_force(live.settings),
            lambda: live.settings.hosted.shadowing,
            lambda: None if pem is None else ends(pem),
            partial(wiring.sent_this_month, settings),
            partial(wiring.refused_by_guards, settings),
            members,
        )
        admin = Admin(admin_token(settings)[0], ended)
        if who.audit is not None:
            cache.images.audit = who.audit.note_by_hand
        names = [urlsplit(url).hostname for url in (settings.server.public_url, settings.fleet.own) if url is not None]
        known_hosts = KnownHosts(
            (*settings.server.hosts, *settings.server.login_hosts, *places.client_hosts, *filter(None, names)),
            ask_dns=not settings.upstream.offline,
        )
        gate = Gate(who, cache.possession, places, checks, live.notifications, behind_proxy=settings.server.has_proxy)
        cache.possession.is_closed = lambda: gate.is_closed
        logins = BrowserLogins(who, gate, ended)
        dashboard = Dashboard(cache, admin, logins, site_info, targets.image)
        api = Api(
            cache,
            targets,
            DEFAULT_REGISTRY,
            readiness.report,
            access,
            dashboard.answer,
            known_hosts,
            gate,
            logins,
            lambda request: admin.session(request) is not None,
            Mirrors(settings.fleet.name, settings.fleet.token),
            settings.server.proxies,
            settings.server.public_url,
            live.notifications,
            fleet,
        )
        who.on_change = api.access_changed
        stack.push_async_callback(api.aclose)
        server, connections = api.server()
        runner = web.ServerRunner(server, shutdown_timeout=settings.server.drain_timeout)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        stuck = BackgroundTask(connections.end_stuck)
        stuck.start()
        stack.push_async_callback(stuck.aclose)
        # Before connections are drained, which would wait for event streams.
        stack.push_async_callback(dashboard.aclose)
        tls = certificate.context if certificate is not None else None
        listeners = worker.listeners if worker is not None else _listen(settings.server.addresses)
        counts, number = (worker.counts, worker.number) if worker is not None else (memoryview(bytearray(8)).cast("q"), 0)
        acceptor = Acceptor(connections, connections.__len__, connections.end_idle, listeners, tls, counts, number)
        stack.push_async_callback(acceptor.aclose)
        cache.start()
        live.scanning.start()
        if live.behind is not None:
            live.behind.start()
        dashboard.start()
        if worker is not None:
            for work in (partial(_show_life, worker), partial(_publish, readiness)):
                background_task = BackgroundTask(work)
                background_task.start()
                stack.push_async_callback(background_task.aclose)
        yield settings.server.url(*listeners[0].getsockname()[:2])


def _listen(addresses: Sequence[tuple[str, int]]) -> tuple[socket.socket, ...]:
    """Listens on all addresses, or on none. Raises OSError."""
    with contextlib.ExitStack() as stack:
        listeners = []
        for address in addresses:
            for listener in listen(*address):
                stack.callback(listener.close)
                listeners.append(listener)
        stack.pop_all()
    return tuple(listeners)


@contextlib.asynccontextmanager
async def _certificate(settings: Settings) -> AsyncIterator[Certificate | None]:
    """The certificate to serve with; None if TLS is not configured."""
    file, key = settings.server.tls_certificate, settings.server.tls_key
    if file is None or key is None:
        yield None
        return
    try:
        certificate = Certificate(file, key, settings.server.tls_client_ca)
    except ValueError as error:
        # It was well when the settings were read.
        raise OSError(str(error)) from None
    certificate.start()
    try:
        yield certificate
    finally:
        await certificate.aclose()


@contextlib.contextmanager
def _hangup(take: Callable[[], None], certificate: Certificate | None) -> Iterator[None]:
    due: asyncio.Handle | None = None

    def handle() -> None:
        nonlocal due
        # Several that come while the loop is busy are handled once, so that they cannot keep it busy.
        if due is None:
            due = loop.call_soon(run)

    def run() -> None:
        nonlocal due
        due = None
        take()
        if certificate is not None:
            certificate.refresh()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, handle)
    # One that came before this is handled now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        if due is not None:
            due.cancel()


def admin_token(settings: Settings) -> tuple[str, bool]:
    """Returns the admin token, and True if it was made just now because none was set. Raises OSError or ValueError if a file cannot be read."""
    known = settings.server.known_token()
    return (known, False) if known is not None else token_in(settings.cache.dir)


async def _show_life(worker: WorkerContext) -> None:
    # In a task of its own, so that a failure elsewhere is not taken for a worker that hangs.
    while True:
        worker.alive()
        await asyncio.sleep(_PUBLISH)


async def _publish(readiness: Readiness) -> None:
    while True:
        readiness.publish()
        metrics.publish_process()
        await asyncio.sleep(_PUBLISH)


async def serve(
    settings: Settings,
    started: Callable[[str], None],
    reload: Callable[[], Settings],
    worker: WorkerContext | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Runs until SIGTERM or SIGINT, then drains: no new connections, current requests end within the bound, downloads stay resumable.

    `started` is called with the URL once requests are taken. SIGHUP calls `reload`. A worker ends as well when its parent is gone. Raises as `running` does.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)

    def orphaned() -> None:
        if not stop.is_set():
            log.error("the parent process is gone: stopping")
        stop.set()

    if worker is not None:
        loop.add_reader(worker.orphaned, orphaned)
    async with running(settings, worker, notes, reload) as url:
        started(url)
        await stop.wait()
        if worker is not None:
            loop.remove_reader(worker.orphaned)
        else:
            log.info("stopping: current requests have %g s to end", settings.server.drain_timeout)
