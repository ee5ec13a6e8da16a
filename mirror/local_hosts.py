"""Which names and addresses mean this machine, or one of a private network, whoever asks."""

from __future__ import annotations

import ipaddress

_PRIVATE = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".test", ".svc", ".cluster.local")
"""Domains that public DNS does not delegate (RFC 6761, RFC 6762, RFC 8375, ICANN's .internal), and those that clusters and home routers use."""


def is_private_name(name: str) -> bool:
    """Returns whether a host name, in lower case, has no dot, or is of a domain that nobody owns on the Internet."""
    return not {".", ":"} & set(name) or name.endswith(_PRIVATE)


def is_loopback(host: str | None) -> bool:
    """Returns whether a host, as in a URL or of a socket, is ``localhost`` or a loopback address: 127.0.0.0/8, also as an IPv4-mapped IPv6 address, or ``::1``
    (RFC 6761, section 6.3; RFC 6890). Names are not resolved."""
    host = (host or "").lower()
    if host.removesuffix(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
