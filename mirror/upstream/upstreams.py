"""All registries that are mirrored, and what is asked before them."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakSet

from yarl import URL

from mirror.errors import RegistryUnknown, UpstreamInvalid
from mirror.tasks import close_all
from mirror.upstream.fleet import Fleet, FleetSettings
from mirror.upstream.proxies import Way
from mirror.upstream.rates import Parts
from mirror.upstream.registry import Registry
from mirror.upstream.settings import RegistrySettings
from mirror.upstream.transport import Connections, Timeouts, Transport, read_bounded, shown

_LARGEST_DOCUMENT = 64 * 1024 * 1024


class Upstreams:
    """All registries that are mirrored."""

    def __init__(
        self,
        registries: Mapping[str, RegistrySettings],
        timeouts: Timeouts,
        connections: Connections,
        unlisted: Mapping[str, RegistrySettings] | None = None,
        way: Way | None = None,
        parts: Parts | None = None,
        fleet: FleetSettings | None = None,
        tag_ttl: float = 0.0,
    ) -> None:
        """`tag_ttl` as in `Fleet`. Registries in `unlisted` are set up at their first use; `way` is for those that name no proxy, by default the environment's; `parts` as in `Limiter`; `fleet` is None
        if neither another mirror nor a bucket is asked."""
        self._fleet_settings, self._tag_ttl = fleet, tag_ttl
        self.fleet: Fleet | None = None
        """The other mirrors and the bucket that are asked first; None if there are none."""
        self._settings = registries
        self._unlisted = unlisted or {}
        self._timeouts, self._connections = timeouts, connections
        self._way, self._parts = way, parts
        self._registries: dict[str, Registry] = {}
        self._replaced: WeakSet[Registry] = WeakSet()
        """Those that requests and downloads which had begun before `take` still use."""
        self._transport: Transport | None = None

    async def __aenter__(self) -> Upstreams:
        self._transport = Transport(self._timeouts, self._connections, self._way, self._parts)
        if self._fleet_settings is not None:
            self.fleet = Fleet(self._fleet_settings, self._transport, self._tag_ttl)
        self._registries = {
            name: Registry(name, settings, self._transport, self.fleet) for name, settings in self._settings.items()
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._transport is not None
        in_use = (*self._registries.values(), *self._replaced)
        fleet = [] if self.fleet is None else [self.fleet.aclose]
        await close_all(*(registry.aclose for registry in in_use), *fleet, self._transport.aclose)

    def take(self, registries: Mapping[str, RegistrySettings], unlisted: Mapping[str, RegistrySettings]) -> None:
        """Puts other settings in force at once. A registry whose settings are the same as before keeps its tokens, and what is known of its endpoints. Requests
        and downloads that have begun go on with the settings that they began with. Raises OSError, and then nothing has changed."""
        assert self._transport is not None
        known = self._registries
        before, after = ({**found[1], **found[0]} for found in ((self._settings, self._unlisted), (registries, unlisted)))
        found = {
            name: known[name]
            if name in known and before.get(name) == settings
            else Registry(name, settings, self._transport, self.fleet)
            for name, settings in after.items()
            if name in registries or name in known
        }
        self._settings, self._unlisted, self._registries = registries, unlisted, found
        self._replaced.update(one for name, one in known.items() if self._registries.get(name) is not one)

    @property
    def offline(self) -> bool:
        """True if no registry is asked: then all requests raise Offline. Bodies that are being received when this is set are received to their end."""
        assert self._transport is not None
        return self._transport.offline

    @offline.setter
    def offline(self, offline: bool) -> None:
        assert self._transport is not None
        self._transport.offline = offline

    def registry(self, name: str) -> Registry:
        """Returns a registry by its name. Raises RegistryUnknown."""
        found = self._registries.get(name)
        if found is None:
            if name not in self._unlisted:
                raise RegistryUnknown.named(name)
            assert self._transport is not None
            found = self._registries[name] = Registry(name, self._unlisted[name], self._transport, self.fleet)
        return found

    async def document(self, url: str, tag: str) -> tuple[bytes, str] | None:
        """Returns what is at a URL that is no registry's, and its ETag; None if it still has the ETag `tag`. Raises UpstreamError."""
        assert self._transport is not None
        response = await self._transport.request("GET", URL(url), {"If-None-Match": tag} if tag else {})
        try:
            if response.status == 304:
                return None
            if response.status != 200:
                raise UpstreamInvalid(f"{shown(URL(url))} answered {response.status}")
            body = await read_bounded(response, _LARGEST_DOCUMENT, self._timeouts.header)
        finally:
            response.release()
        return body, response.headers.get("ETag", "")

    def is_for_one_client(self, name: str | None) -> bool:
        """Returns whether what a registry gives is for one client and not for all; of an unknown one (None), whether that is so of any."""
        if name is None:
            return any(one.credentials == "client" for one in (*self._settings.values(), *self._unlisted.values()))
        settings = self._settings.get(name) or self._unlisted.get(name)
        return settings is not None and settings.credentials == "client"

    def limit(self, rate: int, rates: Mapping[str, int]) -> None:
        """Caps downloads, in bytes per second: those of all registries, and those of some. 0 is no cap."""
        assert self._transport is not None
        self._transport.limiter.set(rate, rates)

    def in_use(self) -> list[str]:
        """Returns the names of the configured registries, and of others that were used."""
        return list(self._registries)
