"""Proxies from the environment: ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``, read as Go's clients read them (golang.org/x/net/http/httpproxy)."""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass

from yarl import URL


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. User and password are in `headers`, not in `url`, which appears in errors."""

    url: URL
    headers: Mapping[str, str]


class Proxies:
    """The proxies that the environment sets, and its exceptions."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Raises OSError if a variable is not the URL of an HTTP proxy."""
        self._proxies = {scheme: _proxy(environment, f"{scheme}_proxy") for scheme in ("http", "https")}
        self._exceptions = _value(environment, "no_proxy").split(",")

    def of(self, url: URL) -> Proxy | None:
        """Returns the proxy for a URL; None if it is reached directly."""
        proxy = self._proxies.get(url.scheme)
        if proxy is None or is_excepted(self._exceptions, url.raw_host or "", url.port or 0):
            return None
        return proxy


def is_excepted(exceptions: list[str], host: str, port: int) -> bool:
    """Returns whether a host is reached without a proxy. Loopback addresses and ``localhost`` always are.

    An exception is ``*`` for all hosts, an address, a network (``10.0.0.0/8``), a name with its subdomains (``foo.com``), or only the subdomains (``.foo.com``,
    ``*.foo.com``). With ``:port`` it holds for that port only. Networks match addresses in URLs: names are not resolved.
    """
    host = host.lower()
    address = _address(host.partition("%")[0])
    if host.rstrip(".") == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_covers(one.strip().lower(), host, address, port) for one in exceptions)


def _covers(exception: str, host: str, address: _Address | None, port: int) -> bool:
    if exception == "*":
        return True
    if (network := _network(exception)) is not None:
        return address is not None and address in network
    name, wanted = _split(exception)
    if not name or wanted not in ("", str(port)):
        return False
    if address is not None:
        return _address(name) == address
    inner = name.removeprefix("*") if name.startswith("*.") else name
    if inner.startswith("."):
        return host.endswith(f".{_ascii(inner[1:])}")
    return f".{host}".endswith(f".{_ascii(inner)}")


def _network(text: str) -> _Network | None:
    if not text.rpartition("/")[2].isdecimal():
        # Python accepts netmasks too, which Go does not.
        return None
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96 and (mapped := network[0].ipv4_mapped) is not None:
        return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network


def _split(exception: str) -> tuple[str, str]:
    """Returns the name or address, and the port, empty if there is none. An IPv6 address with a port is in brackets."""
    if exception.startswith("["):
        name, bracket, port = exception[1:].partition("]:")
        return (name, port) if bracket else (exception, "")
    name, _, port = exception.partition(":") if exception.count(":") == 1 else (exception, "", "")
    return name, port


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _ascii(name: str) -> str:
    """Encodes an internationalized name by IDNA, as in URLs."""
    try:
        return name if name.isascii() else URL.build(scheme="http", host=name).raw_host or name
    except ValueError:
        return name


def _value(environment: Mapping[str, str], name: str) -> str:
    """Returns a variable; upper case takes precedence, as in Go."""
    return environment.get(name.upper()) or environment.get(name) or ""


def _proxy(environment: Mapping[str, str], name: str) -> Proxy | None:
    text = _value(environment, name)
    if not text:
        return None
    try:
        url = URL(text if "://" in text else f"http://{text}")
        usable = bool(url.host and url.port)
    except ValueError:
        raise OSError(f"{name.upper()} is not the URL of a proxy") from None
    if url.scheme != "http" or not usable:
        raise OSError(
            f"{name.upper()} names a {url.scheme} proxy: only HTTP proxies are supported, such as http://proxy.lan:3128"
        )
    headers = {}
    if url.user or url.password:
        given = f"{url.user or ''}:{url.password or ''}".encode()
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(given).decode()}"
    return Proxy(url.with_user(None), headers)
