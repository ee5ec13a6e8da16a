"""Settings of who may do what."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, field_validator

from mirror.config.tables import Size, Table
from mirror.patterns import RepositoryPattern

ANYONE = "anyone"
_TOKEN, _CERTIFICATE = "token:", "cert:"
"""How tokens and certificates begin where a rule names them."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Access(Table):
    who: tuple[str, ...] = Field(
        min_length=1,
        description="whom the table is about: users such as `alice`, groups such as `@staff`, `@users` for all who have logged in, tokens such as `token:ci`, client certificates such as `cert:laptop`, addresses such as `10.0.0.0/8`, or `anyone`",
    )
    may: tuple[Literal["pull", "push", "delete", "admin"], ...] = Field(
        ("pull",), description="what they may do: `pull`, `push`, `delete`, `admin`; nothing if it is empty"
    )
    repositories: tuple[str, ...] = Field(
        ("**",), min_length=1, description="with which repositories, such as `class/**` or `ghcr.io/owner/*`; default all"
    )
    requests_per_minute: int | None = Field(
        None, gt=0, description="requests that each user, or else each address, may send; default no limit"
    )
    bytes_per_minute: Size | None = Field(
        None, gt=0, description="content that each user, or else each address, is sent; default no limit"
    )
    downloads_at_once: int | None = Field(
        None, gt=0, description="blobs that are sent to each user, or else each address, at the same time; default no limit"
    )

    @field_validator("who")
    @classmethod
    def _who(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if not one.strip("@ ") or one in (_TOKEN, _CERTIFICATE):
                raise ValueError(f"{one!r} names nobody: alice, @staff, token:ci, 10.0.0.0/8 or anyone are expected")
            if "/" in one and network(one) is None:
                raise ValueError(
                    f"{one!r} is not a range of addresses such as 10.0.0.0/8 or 2001:db8::/32, in which the rest of the bits is 0"
                )
        return value

    @field_validator("repositories")
    @classmethod
    def _repositories(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            RepositoryPattern.parse(one)
        return value

    @property
    def users(self) -> frozenset[str]:
        named = (one for one in self.who if one != ANYONE and not one.startswith(("@", _TOKEN, _CERTIFICATE)))
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
    def networks(self) -> tuple[Network, ...]:
        return tuple(found for one in self.who if (found := network(one)) is not None)


def network(text: str) -> Network | None:
    """A range of addresses, or one address; None for anything else."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None
