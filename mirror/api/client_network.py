"""Where a request comes from: behind proxies that are trusted to say so, and whose requests are counted together where something is bounded for each client."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from aiohttp import web

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@lru_cache(1024)
def client_network(remote: str | None) -> str:
    """An IPv4 address as it is; for an IPv6 address its /64, all of which one machine may use (RFC 6177)."""
    address = parse_address(remote)
    if address is None:
        return remote or ""
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


@lru_cache(1024)
def parse_address(text: str | None) -> Address | None:
    """An address without its zone; an IPv4 address that came by an IPv6 socket as what it is. None for anything else."""
    try:
        address = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def behind_proxies(request: web.BaseRequest, trusted: Sequence[Network]) -> web.BaseRequest:
    """A request with the address and the scheme of the client, where they were given by proxies that are `trusted`.

    Proxies add what they see at the end of X-Forwarded-For. So the last address that is not a trusted proxy's is the client's, and what is before it may be anything.
    """
    peer = parse_address(request.remote)
    if peer is None or not _is_in(peer, trusted):
        return request
    client, given = request.remote, ", ".join(request.headers.getall("X-Forwarded-For", ()))
    for one in reversed([one.strip() for one in given.split(",") if one.strip()]):
        address = parse_address(_without_port(one))
        if address is None:
            break
        client = str(address)
        if not _is_in(address, trusted):
            break
    scheme = request.headers.get("X-Forwarded-Proto", "").strip().lower()
    return request.clone(remote=client or "", scheme=scheme if scheme in ("http", "https") else request.scheme)


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _without_port(text: str) -> str:
    """``192.0.2.1:80`` and ``[2001:db8::1]:80`` without the port, which some proxies add."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
