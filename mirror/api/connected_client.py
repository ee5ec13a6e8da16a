"""Who a request comes from, as far as the connection says."""

from __future__ import annotations

import asyncio

from aiohttp import web

from mirror.access.rules import Identity
from mirror.api.client_network import parse_address
from mirror.api.hosts import is_loopback, names_this_machine

_FORWARDED = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded", "Via", "X-Real-IP")
"""Header fields by which proxies show that they passed a request on."""


def connected_client(request: web.BaseRequest) -> Identity:
    """What the connection proves: an address, a certificate, and whether it is this machine's own."""
    transport = request.transport
    address = parse_address(request.remote)
    local = (
        transport is not None
        and is_loopback(transport.get_extra_info("sockname"))
        and address is not None
        and address.is_loopback
        # Not every proxy on this machine says that it passes something on, but most pass on the host that the client named.
        and not any(name in request.headers for name in _FORWARDED)
        and names_this_machine(request.headers.get("Host", ""))
    )
    return Identity(certificate=_common_name(transport), address=address, is_local=local)


def _common_name(transport: asyncio.Transport | None) -> str | None:
    """The common name in the certificate that a client has sent, and that TLS has verified."""
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    names = [value for parts in (certificate or {}).get("subject", ()) for key, value in parts if key == "commonName"]
    return str(names[0]) if len(names) == 1 else None
