"""Opens the cache that the settings describe, with its upstreams; or only its store, for commands that fetch nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mirror import metrics
from mirror.access import FOLDER
from mirror.access import audit as audit_log
from mirror.access.access import Access
from mirror.access.audit import AuditLog, RefusedClient
from mirror.access.month_file import Used, read_used
from mirror.access.oidc import Issuer
from mirror.access.rules import Action, Allowance, Rule
from mirror.access.upstream_checks import UpstreamChecks
from mirror.config import ALIASES, DEFAULT_REGISTRY, Hosted, Settings, rates_at
from mirror.config.access import ANYONE
from mirror.config.yaml_files import YamlFiles, read_regular
from mirror.events import NOBODY, Events
from mirror.patterns import Pattern, RepositoryPattern
from mirror.storage.disk.store import DiskStore
from mirror.storage.settings import Expire, HostedRules, Keep, Upkeep
from mirror.storage.store import Store
from mirror.tasks import BackgroundTask, close_all

if TYPE_CHECKING:
    from mirror.bucket.behind import Behind
    from mirror.cache.cache import Cache
    from mirror.cache.guarding import Guard
    from mirror.guards.in_force import Guarding
    from mirror.notifications.notifications import Notifications
    from mirror.scans.scanning import Scanning
    from mirror.upstream import Upstreams

_CLOCK = 5.0
"""Seconds after which the time of day is read again."""


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Cache]:
    """Opens a cache that can fetch, without a server or background work. Raises OSError or CatalogFailed if its directory cannot be used."""
    async with wired(settings) as (cache, _, _):
        # What a command downloads is seen on the dashboard too.
        cache.active.start()
        cache.store.start_counting()
        yield cache


@contextlib.asynccontextmanager
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Opens only the store, for commands that fetch nothing. Raises as `opened` does."""
    async with _events(settings) as events, _store(settings, lambda: settings.upstream.offline, events) as found:
        yield found


@contextlib.asynccontextmanager
async def guarded_store(settings: Settings) -> AsyncIterator[tuple[Store, Guard | None]]:
    """Opens the store with what decides what may be pulled, None if there is nothing to decide by. Raises as `opened` does."""
    async with store(settings) as found:
        if not settings.guard and not await found.blocks():
            # Most commands find nothing to decide by, and need not import what decides.
            yield found, None
            return
        from mirror.guard_tables import rules_of
        from mirror.guards.in_force import Guarding
        from mirror.guards.sources import FromCache

        decided: list[Guard | None] = [None]

        def put_in_force(guard: Guard | None) -> None:
            decided[0] = guard

        guarding = Guarding(found, FromCache(found), put_in_force)
        guarding.take(rules_of(settings.guard))
        await guarding.load()
        yield found, decided[0]


@contextlib.asynccontextmanager
async def wired(
    settings: Settings, share: int = 1, rates: tuple[memoryview[float], int, Sequence[str]] | None = None
) -> AsyncIterator[tuple[Cache, Upstreams, Live]]:
    """Opens a cache and its upstreams for one of `share` processes, which may open its share of the connections, but at least as many as one blob may use.

    `rates` are the `floats_for_rates` that the processes share, this one's number, and the `capped_registries` at the start. Raises as `opened` does.
    """
    # The HTTP client is half of what a command costs to start.
    from mirror.guards.in_force import Guarding
    from mirror.guards.sources import FromUpstream
    from mirror.scans.scanning import Scanning
    from mirror.upstream import Connections, Timeouts, Upstreams
    from mirror.upstream.rates import Parts
    from mirror.upstream.settings import upstream_way

    waits = settings.upstream
    timeouts = Timeouts(waits.connect_timeout, waits.header_timeout, waits.stall_timeout, waits.attempts)
    most = waits.connections_per_blob
    per_endpoint, in_all = (
        bound if share == 1 else max(bound // share, most) for bound in (waits.connections_per_endpoint, waits.connections)
    )
    connections = Connections(most, per_endpoint, in_all)
    out = upstream_way(settings.upstream)
    parts = None if rates is None else Parts(*rates)
    fleet = settings.fleet if settings.fleet.mirrors or settings.fleet.parents or settings.fleet.bucket else None
    async with (
        _notifications(settings) as notifications,
        Upstreams(
            settings.registries, timeouts, connections, settings.unlisted, out, parts, fleet, settings.cache.tag_ttl
        ) as upstreams,
        _cache(settings, upstreams, notifications) as (cache, behind),
    ):
        if upstreams.fleet is not None:
            upstreams.fleet.asking_peer = cache.store.asking_peer
        documents = FromUpstream(cache.store, cache.fetch, cache.manifests.get_unchecked, cache.lists.all_referrers)
        guarding = Guarding(cache.store, documents, partial(setattr, cache, "guard"), upstreams.document)
        scanning = Scanning(cache.store, cache.inventory, settings.cache.dir / "scans", guarding.load_blocks)
        live = Live(upstreams, cache, guarding, scanning, notifications, settings, behind)
        await guarding.load()
        cache.images.ruled = guarding.load_blocks
        guarding.start()
        hours = BackgroundTask(live.follow_clock)
        hours.start()
        try:
            yield cache, upstreams, live
        finally:
            await close_all(scanning.aclose, hours.aclose, guarding.aclose)


def floats_for_rates(workers: int, capped: Sequence[str]) -> int:
    """Returns how many floats in shared memory worker processes need to share the caps on downloads."""
    from mirror.upstream.rates import Parts

    return workers * Parts.width(capped)


def capped_registries(settings: Settings) -> list[str]:
    """Returns the registries that may have a cap of their own."""
    return sorted({*settings.registries, *settings.unlisted})


class Live:
    """The settings that a running mirror takes: its registries, what lives here, whether it is offline, the lists that it pulls, guards, and the caps on downloads as
    they are at this hour."""

    def __init__(
        self,
        upstreams: Upstreams,
        cache: Cache,
        guarding: Guarding,
        scanning: Scanning,
        notifications: Notifications,
        settings: Settings,
        behind: Behind | None,
    ) -> None:
        """`scanning`, and what is `behind` the store, are started by a server only."""
        self.behind = behind
        self._upstreams = upstreams
        self._guarding = guarding
        self.scanning = scanning
        self.notifications = notifications
        self._cache = cache
        self.settings = settings
        self.take(settings)

    def take(self, settings: Settings) -> None:
        """Puts other settings in force at once. Raises OSError, and then nothing has changed."""
        from mirror.cache.warming import WarmList
        from mirror.guard_tables import rules_of
        from mirror.scan_tables import scanner_of
        from mirror.webhook_tables import receiver_of

        before, self.settings = self.settings, settings
        try:
            self._upstreams.take(settings.registries, settings.unlisted)
        except OSError:
            self.settings = before
            raise
        metrics.count_registries(settings.registries)
        if settings.hosted != before.hosted:
            self._cache.store.hosted.take(_hosted(settings.hosted))
            self._cache.manifests.own.rules_changed()
        self._upstreams.offline = settings.upstream.offline
        self._cache.warming.take(
            [
                WarmList(
                    warm.name, partial(warm.read, YamlFiles(read_regular)), warm.wanted, warm.interval, warm.at, warm.referrers
                )
                for warm in settings.warm
            ]
        )
        self._guarding.take(rules_of(settings.guard))
        self.scanning.take([scanner_of(scan) for scan in settings.scan])
        self.notifications.take(list(map(receiver_of, settings.webhook)))
        self._limit()

    def _limit(self) -> None:
        self._upstreams.limit(*rates_at(self.settings, time.time()))

    async def follow_clock(self) -> None:
        """Changes the caps at the hours that the settings name. Never returns."""
        while True:
            await asyncio.sleep(_CLOCK)
            self._limit()


def access_rules(settings: Settings) -> tuple[tuple[Rule, ...] | None, dict[str, frozenset[str]], tuple[Issuer, ...]]:
    """Returns the rules of the settings, None where there are no tables; the groups of each user; and the issuers."""
    groups: dict[str, set[str]] = {}
    for group, users in settings.groups.items():
        for user in users:
            groups.setdefault(user, set()).add(group)
    rules = None
    if settings.access is not None:
        rules = tuple(
            Rule(
                str(number),
                frozenset(map(Action, table.may)),
                tuple(map(RepositoryPattern.parse, table.repositories)),
                ANYONE in table.who,
                table.users,
                table.groups,
                table.tokens,
                table.certificates,
                table.issuers,
                table.networks,
                Allowance(table.requests_per_minute, table.bytes_per_minute, table.downloads_at_once, table.bytes_per_month),
                ", ".join(table.repositories),
            )
            for number, table in enumerate(settings.access, 1)
        )
        for rule in rules:
            if rule.allowance.month is not None:
                # Prometheus' `increase` misses a counter's first event otherwise.
                metrics.access_quotas_reached.labels(rule.name)
    # Offline nobody is asked, so no issuer either.
    issuers = (
        ()
        if settings.upstream.offline
        else tuple(
            Issuer(
                one.name,
                one.issuer,
                one.audience or "",
                one.claims,
                None if one.ca_file is None else str(one.ca_file),
                one.client_id,
                None if one.client_secret_file is None else str(one.client_secret_file),
                one.user_claim,
                one.groups_claim,
            )
            for one in settings.oidc
        )
    )
    return rules, {user: frozenset(found) for user, found in groups.items()}, issuers


@contextlib.asynccontextmanager
async def access(settings: Settings, events: Events = NOBODY) -> AsyncIterator[Access]:
    """Opens what is known of users, tokens and rules. Raises OSError if the audit log cannot be opened."""
    audit = None if settings.server.audit_log is None else AuditLog(settings.server.audit_log)
    opened = Access(access_folder(settings), users_file(settings), audit, settings.server.workers, events, settings.fleet)
    opened.take(*access_rules(settings))
    async with opened:
        yield opened


def upstream_checks(settings: Settings, upstreams: Upstreams, cache: Cache, access: Access) -> UpstreamChecks:
    """Asks the registries whose clients log in to them themselves. The caller closes it."""
    own = cache.manifests.own
    return UpstreamChecks(
        client_graces(settings), lambda name: upstreams.registry(name).clients, own.covers, access.identities.wrong
    )


def client_graces(settings: Settings) -> dict[str, float]:
    """Returns, of each registry whose clients log in to it themselves, for how many seconds its word counts while it is away."""
    return {name: registry.client_grace for name, registry in settings.client_registries.items()}


def client_hosts(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Returns, of each registry whose clients log in to it themselves, under which host names."""
    return {name: registry.client_hosts for name, registry in settings.client_registries.items()}


def access_folder(settings: Settings) -> Path:
    """Where tokens are kept, and the key that signs bearer tokens."""
    return settings.cache.dir / FOLDER


def sent_this_month(settings: Settings) -> list[Used]:
    """Returns what users and addresses were sent this month, where that is limited. Blocks. Raises OSError."""
    return read_used(access_folder(settings), time.time())


def refused_by_guards(settings: Settings) -> Mapping[tuple[str, str, str], Sequence[RefusedClient]] | None:
    """Returns to whom guards have refused something, by rule, repository and reference; None if there is no audit log. Blocks. Raises OSError."""
    return None if settings.server.audit_log is None else audit_log.refused_by_guards(settings.server.audit_log)


def users_file(settings: Settings) -> Path:
    return settings.server.users_file or access_folder(settings) / "users"


@contextlib.asynccontextmanager
async def _events(settings: Settings) -> AsyncIterator[Events]:
    """For commands, most of which have nobody to tell."""
    if not settings.webhook:
        yield NOBODY
        return
    from mirror.webhook_tables import receiver_of

    async with _notifications(settings) as notifications:
        notifications.take(list(map(receiver_of, settings.webhook)))
        yield notifications


@contextlib.asynccontextmanager
async def _notifications(settings: Settings) -> AsyncIterator[Notifications]:
    from mirror.notifications.notifications import Notifications
    from mirror.upstream.trust import trusting

    address = f"{socket.gethostname()}:{settings.server.address[1]}"
    notifications = Notifications(address, settings.server.public_url, trusting)
    try:
        yield notifications
    finally:
        await notifications.aclose()


@contextlib.asynccontextmanager
async def _cache(settings: Settings, upstreams: Upstreams, events: Events) -> AsyncIterator[tuple[Cache, Behind | None]]:
    from mirror.cache.cache import Cache, Limits

    kept = settings.cache
    limits = Limits(kept.tag_ttl, kept.negative_ttl, kept.revalidate_timeout, kept.prefetch)

    def offline() -> bool:
        return upstreams.offline

    async with (
        _store(settings, offline, events) as found,
        _behind(settings, upstreams, found) as behind,
        Cache(found, found.inventory, upstreams.registry, limits, DEFAULT_REGISTRY, ALIASES, offline) as cache,
    ):
        yield cache, behind


@contextlib.asynccontextmanager
async def _behind(settings: Settings, upstreams: Upstreams, store: DiskStore) -> AsyncIterator[Behind | None]:
    if (fleet := upstreams.fleet) is None or fleet.bucket is None:
        yield None
        return
    from mirror.bucket.behind import Behind

    private, name = upstreams.is_for_one_client, settings.fleet.place
    behind = Behind(fleet.bucket, fleet, store, store.outbox, name, private, lambda: upstreams.offline)
    store.hosted = behind.hosted
    try:
        yield behind
    finally:
        await behind.aclose()


@contextlib.asynccontextmanager
async def _store(settings: Settings, offline: Callable[[], bool], events: Events) -> AsyncIterator[DiskStore]:
    kept = settings.cache
    expire = tuple(Expire(rule.repositories, rule.after) for rule in kept.expire)
    upkeep = Upkeep(
        kept.max_size,
        kept.high_watermark,
        kept.low_watermark,
        expire,
        kept.scrub_rate,
        kept.scrub_interval,
        kept.min_free,
        _hosted(settings.hosted),
    )
    async with DiskStore(kept.dir, upkeep, offline, events, settings.fleet.bucket) as found:
        metrics.begin(settings.registries, kept.dir)
        yield found


def _hosted(settings: Hosted) -> HostedRules:
    immutable = [pattern.rpartition(":") if ":" in pattern else (pattern, ":", "*") for pattern in settings.immutable]
    return HostedRules(
        DEFAULT_REGISTRY,
        tuple(map(Pattern, settings.repositories)),
        settings.max_size,
        tuple((Pattern(repositories), Pattern(tags)) for repositories, _, tags in immutable),
        settings.untagged,
        settings.grace,
        tuple(Keep(Pattern(rule.repositories), Pattern(rule.tags), rule.last, rule.age) for rule in settings.keep),
    )
