"""The settings that upstreams use, and the ways out that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mirror.upstream.proxies import Fixed, Way, way


class EndpointSettings(Protocol):
    """The settings of an endpoint that are used here (mirror/config/registries.py)."""

    @property
    def url(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def proxy(self) -> str | None: ...
    @property
    def proxy_credentials_file(self) -> Any: ...


class RegistrySettings(Protocol):
    """The settings of a registry that this module uses."""

    @property
    def endpoints(self) -> Sequence[EndpointSettings]: ...
    @property
    def tags(self) -> str: ...
    @property
    def ca_file(self) -> Any: ...
    @property
    def search(self) -> str | None: ...
    @property
    def tag_details(self) -> str | None: ...
    @property
    def proxy(self) -> str | None: ...
    @property
    def proxy_credentials_file(self) -> Any: ...
    @property
    def credentials(self) -> str: ...
    def account(self) -> tuple[str, str] | None: ...


class WaySettings(Protocol):
    """The settings for all registries that are used here (mirror/config/upstream.py)."""

    @property
    def proxy(self) -> str: ...
    @property
    def proxy_credentials_file(self) -> Any: ...


def upstream_way(settings: WaySettings) -> Way:
    """Returns the way out for registries that name none. Raises OSError if the environment names a proxy that cannot be used."""
    return way(settings.proxy, settings.proxy_credentials_file, Fixed(None), "upstream.proxy")


def endpoint_way(name: str, settings: EndpointSettings, otherwise: Way) -> Way:
    """Returns the way out to an endpoint of a registry; `otherwise` if it names none of its own. Raises OSError."""
    return way(settings.proxy, settings.proxy_credentials_file, otherwise, f'registries."{name}".endpoints.proxy')


def registry_way(name: str, settings: RegistrySettings, otherwise: Way) -> Way:
    """Returns the way out to a registry; `otherwise` if it names none of its own. Raises OSError."""
    return way(settings.proxy, settings.proxy_credentials_file, otherwise, f'registries."{name}".proxy')
