"""Protection against DNS rebinding: checks the host of a request against the names that the mirror answers to.

By DNS rebinding ``evil.example`` resolves to ``127.0.0.1``, or to an address of the local network, and the browser lets a script of that site read the responses.
Only the ``Host`` header distinguishes such a request. So the dashboard, and everything on a loopback address, is served only under names that nobody else can own:
IP addresses, the machine's own name, names without a dot or under a domain that is never delegated, and those in the settings. Over TLS the browser checks the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from collections.abc import Iterable

from aiohttp import web

from mirror.api.targets import target_authority
from mirror.errors import HostUnknown
from mirror.local_hosts import is_loopback, is_private_name
from mirror.regular_files import read_file

_HOSTS_FILE = "/etc/hosts"
_LARGEST_HOSTS_FILE = 1024 * 1024
_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^\[\]:@/]*))(?::\d*)?")
"""The value of a Host header: uri-host [ ":" port ] (RFC 9110, section 7.2)."""


class KnownHosts:
    """The names that the mirror answers to: IP addresses, the machine's names, private domains and `names`."""

    def __init__(self, names: Iterable[str], *, ask_dns: bool = True) -> None:
        """The machine's names are its hostname, and what /etc/hosts calls it. Where no domain is among them, DNS is asked for one if `ask_dns`, in a thread: it may
        not answer for a long time."""
        own = machine_names()
        self._names = {name.lower() for name in names} | own
        if ask_dns and not any("." in name for name in own):
            threading.Thread(target=self._add_full_name, name="own name", daemon=True).start()

    def _add_full_name(self) -> None:
        self._names.add(socket.getfqdn().lower())

    def check(self, request: web.BaseRequest, *, everywhere: bool) -> None:
        """Raises HostUnknown if a request names an unknown host, `everywhere` or on loopback addresses only.

        The authority of a request target in absolute form is checked too (RFC 9112, section 3.2.2).
        """
        named = [request.headers.get("Host", "")]
        if (authority := target_authority(request.raw_path)) is not None:
            named.append(authority)
        unknown = next((host for host in named if not self._knows(host)), None)
        if unknown is None:
            return
        transport = request.transport
        if transport is None or transport.get_extra_info("sslcontext") is not None:
            return
        if everywhere or is_on_loopback(transport):
            raise HostUnknown(
                f"this mirror does not answer to the name {unknown[:100]!r}: use its address, or set server.public_url (or server.hosts) to the"
                " name under which it is reached"
            )

    def _knows(self, host: str) -> bool:
        match = _HOST.fullmatch(host.strip().lower())
        if match is None:
            return False
        if match["ipv6"] is not None:
            return _is_address(match["ipv6"].partition("%")[0])
        name = match["name"].removesuffix(".")
        return name in self._names or is_private_name(name) or _is_address(name)


def machine_names() -> set[str]:
    """Returns the machine's hostname, and the names that /etc/hosts has beside it (hosts(5)). Asks no server."""
    own = socket.gethostname().lower()
    try:
        lines = read_file(_HOSTS_FILE, _LARGEST_HOSTS_FILE, follow=True).decode(errors="replace").lower().splitlines()
    except OSError:
        return {own}
    entries = (line.partition("#")[0].split()[1:] for line in lines)
    return {own}.union(*(names for names in entries if own in names))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def names_this_machine(host: str) -> bool:
    """Returns whether the value of a Host header can only have been meant for the machine that sent it: a loopback address, or a name without a domain."""
    match = _HOST.fullmatch(host.strip().lower())
    if match is None:
        return False
    name = match["ipv6"] or match["name"].removesuffix(".")
    return ("." not in name and ":" not in name) or name.endswith(".localhost") or is_loopback(name)


def is_on_loopback(transport: asyncio.BaseTransport) -> bool:
    """Returns whether a connection came to a loopback address of this machine."""
    address = transport.get_extra_info("sockname")
    return isinstance(address, tuple) and is_loopback(str(address[0]))
