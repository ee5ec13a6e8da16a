"""Which names the mirror answers to: a web page must not reach it by a name of its own.

By DNS rebinding a page of ``evil.example`` makes that name mean ``127.0.0.1``, or an address of the local network, and the browser then lets it read whatever
is answered there. Only the ``Host`` header tells such a request from others. So the dashboard, and everything on a loopback address, is answered only under
names that nobody else can own: IP addresses, the machine's own name, names without a dot or under a domain that is never delegated, and those that are set.
Over TLS a browser checks the name by itself.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from aiohttp import web

from mirror.errors import HostUnknown

_PRIVATE = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".test", ".svc", ".cluster.local")
"""Domains that public DNS does not delegate (RFC 6761, RFC 6762, RFC 8375, ICANN's .internal), and those that clusters and home routers use."""


class KnownHosts:
    """The machine's name, and `names`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower() for name in (*names, socket.gethostname(), socket.getfqdn())}

    def check(self, request: web.BaseRequest, *, everywhere: bool) -> None:
        """Refuses a request under a name that is not known, `everywhere` or on loopback addresses only. Raises HostUnknown."""
        host = request.headers.get("Host", "")
        if self._knows(host):
            return
        transport = request.transport
        if transport is None or transport.get_extra_info("sslcontext") is not None:
            return
        if everywhere or _is_loopback(transport.get_extra_info("sockname")):
            raise HostUnknown(
                f"this mirror does not answer to the name {host[:100]!r}: use its address, or set server.public_url (or server.hosts) to the"
                " name under which it is reached"
            )

    def _knows(self, host: str) -> bool:
        name = host.strip().lower()
        if name.startswith("["):
            return True
        name = name.rpartition(":")[0] if ":" in name else name
        name = name.removesuffix(".")
        if "." not in name or name in self._names or name.endswith(_PRIVATE):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _is_loopback(address: object) -> bool:
    if not isinstance(address, tuple):
        return False
    found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback
