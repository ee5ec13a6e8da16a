"""Whose requests are counted together where something is bounded for each client."""

from __future__ import annotations

import ipaddress
from functools import lru_cache


@lru_cache(1024)
def client_network(remote: str | None) -> str:
    """An IPv4 address as it is; for an IPv6 address its /64, all of which one machine may use (RFC 6177)."""
    try:
        address = ipaddress.ip_address((remote or "").partition("%")[0])
    except ValueError:
        return remote or ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
