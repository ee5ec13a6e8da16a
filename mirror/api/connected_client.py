"""Who a request comes from, as far as the connection says."""

from __future__ import annotations

import asyncio

from aiohttp import web

from mirror.access.rules import Identity
from mirror.api.client_network import parse_address
from mirror.api.hosts import is_on_loopback, names_this_machine

_FORWARDED = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded", "Via", "X-Real-IP")
"""Header fields by which proxies show that they passed a request on."""


def connected_client(request: web.BaseRequest, *, behind_proxy: bool) -> Identity:
    """What the connection proves: an address, a certificate, and whether it is this machine's own. Nothing is known to be that with `behind_proxy`, where a proxy
    on this machine may pass on what others ask for and not say so."""
    transport = request.transport
    address = parse_address(request.remote)
    local = (
        not behind_proxy
        and transport is not None
        and is_on_loopback(transport)
        and address is not None
        and address.is_loopback
        # There may be a proxy of which the settings say nothing: most say that they pass something on, or pass on the host that the client named.
        and not any(name in request.headers for name in _FORWARDED)
        and names_this_machine(request.headers.get("Host", ""))
    )
    return Identity(certificate=_common_name(transport), address=address, is_local=local)


def _common_name(transport: asyncio.Transport | None) -> str | None:
    """The common name in the certificate that a client has sent, and that TLS has verified."""
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    names = [value for parts in (certificate or {}).get("subject", ()) for key, value in parts if key == "commonName"]
    return str(names[0]) if len(names) == 1 else None
