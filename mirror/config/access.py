"""Settings of who may do what."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mirror.config.tables import RepositoryPatterns, Size, Table, readable
from mirror.local_hosts import is_loopback

ANYONE = "anyone"
_TOKEN, _CERTIFICATE, _ISSUER = "token:", "cert:", "oidc:"
"""How tokens, certificates and issuers begin where a rule names them."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_ROUTED = ipaddress.IPv6Network("2000::/3")


class Access(Table):
    who: tuple[str, ...] = Field(
        min_length=1,
        description="whom the table is about: users such as `alice`, groups such as `@staff`, `@users` for all who have logged in, tokens such as `token:ci`, client certificates such as `cert:laptop`, jobs such as `oidc:github`, addresses such as `10.0.0.0/8`, or `anyone`",
    )
    may: tuple[Literal["pull", "push", "delete", "admin"], ...] = Field(
        ("pull",), description="what they may do: `pull`, `push`, `delete`, `admin`; nothing if it is empty"
    )
    repositories: RepositoryPatterns = Field(
        ("**",), min_length=1, description="with which repositories, such as `class/**` or `ghcr.io/owner/*`; default all"
    )
    requests_per_minute: int | None = Field(
        None, gt=0, description="requests that each user, or else each address, may send; default no limit"
    )
    bytes_per_minute: Size | None = Field(
        None, gt=0, description="content that each user, or else each address, is sent; default no limit"
    )
    bytes_per_month: Size | None = Field(
        None,
        gt=0,
        description="content that each user, or else each address, is sent in a calendar month (UTC); counted on when the mirror is started again; default no limit",
    )
    downloads_at_once: int | None = Field(
        None, gt=0, description="blobs that are sent to each user, or else each address, at the same time; default no limit"
    )

    @field_validator("who")
    @classmethod
    def _who(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if not one.strip("@ ") or one in (_TOKEN, _CERTIFICATE, _ISSUER):
                raise ValueError(f"{one!r} names nobody: alice, @staff, token:ci, 10.0.0.0/8 or anyone are expected")
            if "/" in one and network(one) is None:
                raise ValueError(
                    f"{one!r} is not a range of addresses such as 10.0.0.0/8 or 2001:db8::/32, in which the rest of the bits is 0"
                )
        return value

    @property
    def users(self) -> frozenset[str]:
        named = (one for one in self.who if one != ANYONE and not one.startswith(("@", _TOKEN, _CERTIFICATE, _ISSUER)))
        return frozenset(one for one in named if network(one) is None)

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(one[1:] for one in self.who if one[0] == "@")

    @property
    def tokens(self) -> frozenset[str]:
        return frozenset(one.removeprefix(_TOKEN) for one in self.who if one.startswith(_TOKEN))

    @property
    def certificates(self) -> frozenset[str]:
        return frozenset(one.removeprefix(_CERTIFICATE) for one in self.who if one.startswith(_CERTIFICATE))

    @property
    def issuers(self) -> frozenset[str]:
        return frozenset(one.removeprefix(_ISSUER) for one in self.who if one.startswith(_ISSUER))

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(found for one in self.who if (found := network(one)) is not None)

    @property
    def is_for_everybody(self) -> bool:
        """Whether it is about all who reach the mirror, from whatever address, or from a large part of the Internet."""
        return ANYONE in self.who or any(map(_is_of_the_internet, self.networks))


class Oidc(Table):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$", description="what `who` calls those who have a token of it: `oidc:NAME`"
    )
    issuer: str = Field(description="URL of the issuer, exactly as its tokens have it in `iss`")
    audience: str | None = Field(
        None,
        min_length=1,
        description="what its tokens must have in `aud`: choose a name for this mirror, such as its own host name",
    )
    claims: Mapping[str, str] = Field(
        min_length=1, description='claims that its tokens must have, as patterns with `*`, such as `{repository_owner = "acme"}`'
    )
    ca_file: Path | None = Field(
        None, description="PEM of the authorities that the issuer's certificate may come from; default the system's"
    )

    client_id: str | None = Field(
        None,
        min_length=1,
        description="for logging in to the dashboard by it: what the issuer calls this mirror, registered there with the address `https://MIRROR/oidc/NAME/done`",
    )
    client_secret_file: Path | None = Field(
        None, description="a file with the secret that the issuer gave for it, read at each use"
    )
    user_claim: str | None = Field(
        None,
        min_length=1,
        description="the claim that is the user's name here, as `who` and `[groups]` have it, such as `preferred_username`: only where users of the issuer cannot choose it themselves; default none, and they are `oidc:NAME`",
    )
    groups_claim: str | None = Field(
        None,
        min_length=1,
        description="the claim with the user's groups, such as `groups`; `[groups]` must have those that `who` names",
    )

    @field_validator("issuer")
    @classmethod
    def _issuer(cls, value: str) -> str:
        url = urlsplit(value)
        if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname)):
            raise ValueError("a URL with https is expected: whoever could change its keys on the way could make tokens")
        if "@" in url.netloc or {"?", "#"} & set(value):
            # OpenID Connect Core 1.0, section 2.
            raise ValueError("a URL without user, password, query and fragment is expected")
        return value

    @field_validator("ca_file", "client_secret_file")
    @classmethod
    def _ca_file(cls, value: Path | None) -> Path | None:
        if value is not None:
            readable(value)
        return value

    @model_validator(mode="after")
    def _library(self) -> Oidc:
        if self.audience is None and self.client_id is None:
            raise ValueError("audience is expected, for tokens of jobs, or client_id, for logging in to the dashboard, or both")
        if importlib.util.find_spec("cryptography") is None:
            raise ValueError("this needs the package cryptography: pip install cryptography")
        return self


def _is_of_the_internet(network: Network) -> bool:
    """True for a range that is wider than what anybody has been given: of IPv4 a /8, of IPv6 less than a /16 of what is routed (RFC 4291, section 2.5.4)."""
    if isinstance(network, ipaddress.IPv4Network):
        return network.prefixlen < 8
    return network.prefixlen < 16 and network.overlaps(_ROUTED)


def network(text: str) -> Network | None:
    """A range of addresses, or one address; None for anything else. One of IPv4-mapped addresses is of those that it maps, as clients' addresses are."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        return None
    mapped = getattr(found.network_address, "ipv4_mapped", None)
    return found if mapped is None or found.prefixlen < 96 else ipaddress.IPv4Network((mapped, found.prefixlen - 96))
