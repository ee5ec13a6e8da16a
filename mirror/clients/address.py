"""A mirror's address as it is written into clients' settings."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from mirror.local_hosts import is_loopback
from mirror.redaction import redacted

_AUTHORITY = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)(?::[0-9]{1,5})?")

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,}")


@dataclass(frozen=True, slots=True)
class Address:
    """`url` is scheme and authority, without a slash at the end."""

    url: str
    authority: str
    """Host, and port if there is one, as in an image's name."""
    secure: bool
    """https rather than http."""
    loopback: bool
    """In 127.0.0.0/8, which dockerd trusts without TLS."""

    def with_token(self, token: str) -> Address:
        """The same with a secret path in `url`. Raises ValueError."""
        if _TOKEN.fullmatch(token) is None:
            raise ValueError("a token is expected, as mirror token add prints it")
        return dataclasses.replace(self, url=f"{self.url}/t/{token}")

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ValueError."""
        wrong = ValueError(f"a URL such as http://mirror.lan:5000 is expected; found {redacted(url)[:100]!r}")
        try:
            parts = urlsplit(url.strip().lower())
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise wrong from None
        if parts.scheme not in ("http", "https") or host is None or not _AUTHORITY.fullmatch(parts.netloc):
            raise wrong
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(
                f"a URL of host and port only is expected, such as http://mirror.lan:5000; found {redacted(url)[:100]!r}"
            )
        return cls(
            f"{parts.scheme}://{parts.netloc}", parts.netloc, parts.scheme == "https", is_loopback(host) and ":" not in host
        )


def in_order_for(machine: str, addresses: Iterable[Address]) -> list[Address]:
    """Returns addresses of equal mirrors, each once, in the order in which a machine asks them: another for each machine (rendezvous hashing).

    So machines spread over the mirrors, also those whose first mirror is down, and one mirror more moves few of them. `machine` is any text that stands for it;
    with an empty one the order stays as it is.
    """
    once = list({address.authority: address for address in addresses}.values())
    if not machine:
        return once
    return sorted(once, key=lambda address: hashlib.sha256(f"{machine}\0{address.authority}".encode()).digest())
