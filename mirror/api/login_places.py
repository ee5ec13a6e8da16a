"""Where clients are asked to log in, and how: at addresses and under host names that are for that, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from aiohttp import web

from mirror.access.bearer import SERVICE
from mirror.access.rules import Action
from mirror.api.client_network import Address, parse_address
from mirror.names import Repository

FOR_BROWSERS = 'Basic realm="mirror", charset="UTF-8"'
"""A challenge by which browsers ask for user and password (RFC 7617)."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_PORT = re.compile(r":[0-9]*$")


class LoginPlaces:
    """The addresses and host names where clients are challenged."""

    def __init__(self, addresses: Sequence[tuple[str, int]] = (), hosts: Sequence[str] = ()) -> None:
        """`addresses` are hosts and ports, where ``0.0.0.0`` and ``::`` are all of the machine."""
        self._addresses = addresses
        self._hosts = {host.lower() for host in hosts}
        self.client_hosts: Mapping[str, str] = {}
        """Those under which clients log in to one registry, which the value is."""
        self._otherwise: str | None = None

    def take(self, registries: Mapping[str, Sequence[str]]) -> None:
        """Puts in force to which registries clients log in themselves, each with its host names; the one that has none is meant at all other places."""
        self.client_hosts = {host.lower(): name for name, hosts in registries.items() for host in hosts}
        self._otherwise = next((name for name, hosts in registries.items() if not hosts), None)

    def registry_of(self, request: web.BaseRequest) -> str | None:
        """The registry that a password may be for which a request has; None if it can be for none."""
        return self.client_hosts.get(_host(request), self._otherwise)

    def has(self, request: web.BaseRequest) -> bool:
        """True if a request came by one of them."""
        if not self._addresses and not self._hosts and not self.client_hosts:
            return False
        if (host := _host(request)) in self._hosts or host in self.client_hosts:
            return True
        transport = request.transport
        name = transport.get_extra_info("sockname") if transport is not None else None
        if not isinstance(name, tuple):
            return False
        own = parse_address(str(name[0]))
        return any(name[1] == port and _is_at(own, host) for host, port in self._addresses)


def challenge(
    request: web.BaseRequest,
    repository: Repository | None = None,
    action: Action = Action.PULL,
    *,
    insufficient: bool = False,
) -> str:
    """The value of WWW-Authenticate for the token flow of registries (distribution's documentation, "Token Authentication Specification").

    With `insufficient` for a client whose token was not asked for this.
    """
    host = request.headers.get("Host", "")
    if _HOST.fullmatch(host) is None:
        return FOR_BROWSERS
    found = f'Bearer realm="{"https" if request.secure else "http"}://{host}/token",service="{SERVICE}"'
    if repository is not None:
        actions = "pull" if action is Action.PULL else f"pull,{action.value}"
        name = repository.path if repository.registry == "docker.io" else str(repository)
        found += f',scope="repository:{name}:{actions}"'
    return f'{found},error="insufficient_scope"' if insufficient else found


def _host(request: web.BaseRequest) -> str:
    return _PORT.sub("", request.headers.get("Host", "").lower()).removesuffix(".")


def _is_at(own: Address | None, host: str) -> bool:
    other = parse_address(host)
    return other is None or other.is_unspecified or other == own
