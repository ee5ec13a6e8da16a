"""Settings of who is told of what happens."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from mirror.config.tables import Duration, RepositoryPatterns, Table, readable

_SHORTEST_SECRET = 16
EventName = Literal["push", "pull", "delete", "tag_moved", "guard", "quota", "login_locked"]


class Webhook(Table):
    name: str = Field("", max_length=40, pattern=r"^[ -~]*$", description="for logs and metrics; by default the table's number")
    url: SecretStr = Field(description="where events are posted, `http` or `https`; no more than its host is shown")
    events: tuple[EventName, ...] = Field(
        ("push", "pull", "delete", "tag_moved", "guard", "quota", "login_locked"),
        description="which: `push`, `pull` (an image's first), `delete`, `tag_moved`, `guard`, `quota`, `login_locked`; default all",
    )
    repositories: RepositoryPatterns = Field(
        ("**",), min_length=1, description="of which repositories, such as `class/**` or `ghcr.io/owner/*`; default all"
    )
    secret_file: Path | None = Field(
        None, description="a file with a secret of 16 characters or more that bodies are signed with, read at each use"
    )
    authorization_file: Path | None = Field(
        None, description="a file with the value of the header `Authorization`, such as `Bearer …`, read at each use"
    )
    ca_file: Path | None = Field(
        None, description="PEM of the authorities that the receiver's certificate may come from, beside the system's"
    )
    timeout: Duration = Field(5.0, gt=0, description="how long a receiver may take to answer")

    @field_validator("url")
    @classmethod
    def _url(cls, value: SecretStr) -> SecretStr:
        try:
            url = urlsplit(value.get_secret_value())
            port = url.port
        except ValueError:
            raise ValueError("a URL with http or https is expected") from None
        if url.scheme not in ("http", "https") or not url.hostname or port == 0 or url.fragment:
            raise ValueError("a URL with http or https is expected")
        if url.username is not None or url.password is not None:
            raise ValueError("a URL without a user and a password is expected: a file named by authorization_file has them")
        return value

    @field_validator("events")
    @classmethod
    def _events(cls, value: tuple[EventName, ...]) -> tuple[EventName, ...]:
        if not value:
            raise ValueError("a webhook for no event is not needed: remove the table, or events")
        return value

    @field_validator("secret_file")
    @classmethod
    def _secret(cls, value: Path | None) -> Path | None:
        if value is not None and len(readable(value).strip()) < _SHORTEST_SECRET:
            raise ValueError(f"the secret is too easy to guess: at least {_SHORTEST_SECRET} characters are expected")
        return value

    @field_validator("authorization_file", "ca_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None:
            readable(value)
        return value

    @property
    def host(self) -> str:
        """Where its receiver is."""
        return urlsplit(self.url.get_secret_value()).hostname or ""
