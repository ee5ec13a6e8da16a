"""Which proxy a request to a registry goes through: the settings' choice, or the environment's as Go's clients read it (golang.org/x/net/http/httpproxy)."""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yarl import URL

from mirror.local_hosts import is_loopback
from mirror.regular_files import LARGEST_SECRET, read_file

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
"""The proxies that can be used, by scheme, and their default ports (RFC 9110, RFC 1928)."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy. User and password are not part of `url`, since URLs appear in errors."""

    url: URL
    credentials: Callable[[], tuple[str, str] | None]
    """Returns user and password, None if the proxy needs none. Raises OSError, ValueError."""
    origin: str
    """The setting or environment variable that names the proxy."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.url.raw_host or "", self.url.port or 0

    @property
    def name(self) -> str:
        """The proxy's name in errors: its URL, and the setting that names it."""
        return f"the proxy {str(self.url).rstrip('/')} ({self.origin})"

    @property
    def account_advice(self) -> str:
        """What to do if the proxy refuses the user or password."""
        return f"check the user and password in {self.origin if self.origin.isupper() else 'proxy_credentials_file'}"

    @property
    def resolves(self) -> bool:
        """True if the proxy resolves the names of hosts, so that none is resolved on this machine."""
        return self.url.scheme != "socks5"

    def headers(self) -> dict[str, str]:
        """Returns the headers for an HTTP proxy (RFC 9110, section 11.7). Raises OSError, ValueError."""
        if (found := self.credentials()) is None:
            return {}
        return {"Proxy-Authorization": f"Basic {base64.b64encode(':'.join(found).encode()).decode()}"}


class Way(Protocol):
    """The way out for the requests of an endpoint."""

    def of(self, url: URL) -> Proxy | None:
        """Returns the proxy for a URL; None for a direct connection."""
        ...


class Fixed:
    """One proxy, or none, for every request."""

    def __init__(self, proxy: Proxy | None) -> None:
        self._proxy = proxy

    def of(self, url: URL) -> Proxy | None:
        return self._proxy


class Proxies:
    """The proxies that the environment names: ``HTTP_PROXY``, ``HTTPS_PROXY``, for both ``ALL_PROXY``, except for the hosts of ``NO_PROXY``."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Raises OSError if a variable does not name a proxy that can be used."""
        self._proxies = {
            scheme: _from_environment(environment, f"{scheme}_proxy") or _from_environment(environment, "all_proxy")
            for scheme in ("http", "https")
        }
        self._exceptions = _value(environment, "no_proxy").split(",")

    def of(self, url: URL) -> Proxy | None:
        """Returns the proxy for a URL; None for a direct connection."""
        proxy = self._proxies.get(url.scheme)
        if proxy is None or is_excepted(self._exceptions, url.raw_host or "", url.port or 0):
            return None
        return proxy


def way(proxy: str | None, credentials_file: Path | None, otherwise: Way, origin: str) -> Way:
    """Returns the way out that a setting `proxy` chooses: ``environment``, ``none`` or a URL; `otherwise` if it is None.

    `origin` names the setting in errors. Raises OSError if the environment names a proxy that cannot be used.
    """
    if proxy is None:
        return otherwise
    if proxy == "environment":
        return Proxies()
    if proxy == "none":
        return Fixed(None)
    url = URL(proxy)

    def credentials() -> tuple[str, str] | None:
        if credentials_file is None:
            return None
        try:
            text = read_file(credentials_file, LARGEST_SECRET, follow=True).decode()
        except UnicodeDecodeError:
            # Its own text quotes a byte.
            raise ValueError(f"{credentials_file} is not UTF-8") from None
        user, colon, password = text.strip("\r\n").partition(":")
        if not colon:
            raise ValueError(f"{credentials_file} does not hold user:password")
        return user, password

    return Fixed(Proxy(url.with_port(url.port or _PORTS[url.scheme]), credentials, origin))


def is_excepted(exceptions: list[str], host: str, port: int) -> bool:
    """Returns whether a host is reached without a proxy. Loopback addresses and ``localhost`` always are.

    An exception is ``*`` for all hosts, an address, a network (``10.0.0.0/8``), a name with its subdomains (``foo.com``), or only the subdomains (``.foo.com``,
    ``*.foo.com``). With ``:port`` it holds for that port only. Networks match addresses in URLs: names are not resolved.
    """
    host = host.lower()
    address = _address(host.partition("%")[0])
    if is_loopback(host):
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


def _from_environment(environment: Mapping[str, str], name: str) -> Proxy | None:
    text = _value(environment, name)
    if not text:
        return None
    try:
        url = URL(text if "://" in text else f"http://{text}")
        usable = bool(url.host) and (url.port or 0) >= 0
        # A password with a slash looks like a host, a port and a path.
        usable = usable and "@" not in f"{url.raw_path_qs}#{url.raw_fragment}"
    except ValueError:
        usable = False
    if not usable:
        raise OSError(
            f"{name.upper()} is not a URL of a proxy; in a user or password, write %2F for /, %3F for ?, %23 for #, %40 for @"
        )
    if url.scheme not in _PORTS:
        raise OSError(
            f"{name.upper()} names a {url.scheme} proxy: http, https, socks5 and socks5h can be used, as in http://proxy.lan:3128"
        )
    found = (url.user or "", url.password or "") if url.user or url.password else None
    bare = URL.build(scheme=url.scheme, host=url.raw_host or "", port=url.port or _PORTS[url.scheme], encoded=True)
    return Proxy(bare, lambda: found, name.upper())
