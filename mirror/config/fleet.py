"""Settings of the other mirrors that are asked before a registry."""

from __future__ import annotations

import hmac
import re
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, field_validator, model_validator

from mirror.config.tables import Table, readable
from mirror.local_hosts import is_loopback
from mirror.redaction import redacted
from mirror.regular_files import LARGEST_SECRET, read_file
from mirror.units import parse_endpoint

_SHORTEST_TOKEN = 16
_BUCKET = re.compile(
    r"(?:s3|gs)://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](?:/[A-Za-z0-9._=-]+)*/?|az://[a-z0-9]{3,24}/[a-z0-9-]{3,63}(?:/[A-Za-z0-9._=-]+)*/?"
)
"""A bucket's name has 3 characters or more; with one of Azure, the storage account comes first."""


class Parent(Table):
    url: str = Field(description="its URL")
    token_file: Path | None = Field(
        None,
        description="a file with a token that this mirror is let in with there, as `mirror token add` makes one there; read at each use. Where it is not set nothing is shown",
    )

    @model_validator(mode="before")
    @classmethod
    def _table(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"url": value}
        if not isinstance(value, Mapping | cls) or (isinstance(value, Mapping) and "url" not in value):
            raise ValueError('a URL or a table is expected: "https://…" or { url = "https://…", token_file = "…" }')
        return value

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        return canonical(value)

    @field_validator("token_file")
    @classmethod
    def _token_file(cls, value: Path | None) -> Path | None:
        return _checked(value)

    def __str__(self) -> str:
        return self.url

    def token(self) -> str | None:
        """Returns the token, the file read anew; None where there is none. Raises OSError, ValueError."""
        return _read_token(self.token_file)


class Fleet(Table):
    mirrors: tuple[str, ...] = Field(
        (),
        description='URLs of all mirrors of the fleet, this one too, the same list at each, such as `["http://a.lan:5000", "http://b.lan:5000"]`: each content is fetched from its registry by one of them',
    )
    own: str | None = Field(None, description="which of `fleet.mirrors` this one is")
    parents: tuple[Parent, ...] = Field(
        (),
        description="mirrors that are asked before the registries, such as those of another fleet that is nearer to them: URLs, or tables with the settings below",
    )
    token_file: Path | None = Field(
        None,
        description="a file with a token of 16 characters or more, the same at each of `fleet.mirrors`, and shown to no other: who has it may pull everything from here, so that each checks only its own clients, and change what a fleet changes together: pins, blocks, users and tokens. Read at each use; needed where there are `[[access]]` tables",
    )
    ca_file: Path | None = Field(
        None,
        description="certificates to trust for these mirrors beside the system's, PEM: roots, intermediates or a server's own",
    )
    bucket: str | None = Field(
        None,
        description="URL of a bucket that keeps what is cached, also without a fleet: `s3://NAME` or `s3://NAME/PREFIX`, `gs://NAME`, `az://ACCOUNT/CONTAINER`. It is asked before the registries. Credentials come from the environment (`AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`), from the machine's own account, or from `~/.aws/credentials`; needs the extra `bucket`",
    )
    bucket_endpoint: str | None = Field(
        None,
        description="URL of the server of a bucket that is not Amazon's, Google's or Azure's own, such as `http://minio.lan:9000`; of an `az://` bucket with the account, where that is not in the host's name",
    )
    _pseudonym: str = PrivateAttr(default_factory=lambda: f"mirror-{token_hex(8)}")

    @field_validator("mirrors")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        urls = tuple(map(canonical, value))
        _check_different(urls)
        return urls

    @field_validator("parents")
    @classmethod
    def _different_parents(cls, value: tuple[Parent, ...]) -> tuple[Parent, ...]:
        _check_different([parent.url for parent in value])
        return value

    @field_validator("own")
    @classmethod
    def _own(cls, value: str | None) -> str | None:
        return None if value is None else canonical(value)

    @field_validator("bucket")
    @classmethod
    def _bucket(cls, value: str | None) -> str | None:
        if value is not None and (not _BUCKET.fullmatch(value) or {".", ".."} & set(value.split("/"))):
            raise ValueError("a URL such as s3://NAME, gs://NAME or az://ACCOUNT/CONTAINER is expected, and maybe a prefix")
        return None if value is None else value.rstrip("/")

    @field_validator("bucket_endpoint")
    @classmethod
    def _bucket_endpoint(cls, value: str | None) -> str | None:
        return None if value is None else parse_endpoint(value)

    @field_validator("token_file")
    @classmethod
    def _token_file(cls, value: Path | None) -> Path | None:
        return _checked(value)

    @field_validator("ca_file")
    @classmethod
    def _certificates(cls, value: Path | None) -> Path | None:
        if value is not None:
            readable(value)
        try:
            ssl.create_default_context(cafile=value)
        except ssl.SSLError:
            raise ValueError("a file of certificates in PEM form is expected") from None
        return value

    @model_validator(mode="after")
    def _members(self) -> Fleet:
        if self.mirrors and self.own is None:
            raise ValueError(f"own: which of fleet.mirrors is this one? Set it to one of {_shown(self.mirrors)}")
        if self.own is not None and self.own not in self.mirrors:
            raise ValueError(f"own: one of fleet.mirrors is expected ({_shown(self.mirrors)}); found {self.own}")
        if self.bucket_endpoint is not None and self.bucket is None:
            raise ValueError("bucket_endpoint: it is where fleet.bucket is: set that too")
        if both := set(self.mirrors) & {parent.url for parent in self.parents}:
            raise ValueError(f"parents: {min(both)} is in fleet.mirrors too: keep it in one of them")
        if self.token_file is not None:
            own = _checked_token(self.token_file)
            for parent in self.parents:
                if parent.token_file is not None and hmac.compare_digest(_checked_token(parent.token_file), own):
                    raise ValueError(
                        f"parents: {parent.url} would be shown the token of this fleet, with which it could change it: set token_file to one that was made there"
                    )
        return self

    @property
    def name(self) -> str:
        """What it is called in CDN-Loop: the host and port of `own`, otherwise a name of this start."""
        return self._pseudonym if self.own is None else urlsplit(self.own).netloc

    @property
    def has_token(self) -> bool:
        """Whether there is something to prove with that a mirror belongs to the fleet."""
        return self.token_file is not None

    @property
    def place(self) -> str:
        """What it is called in the bucket, after each start and on another disk too."""
        return "mirror" if self.own is None else urlsplit(self.own).netloc

    def token(self) -> str | None:
        """Returns the token, the file read anew; None where there is none. Raises OSError, ValueError."""
        return _read_token(self.token_file)

    @property
    def in_clear(self) -> list[str]:
        """The other mirrors and parents that are shown a token without TLS, over a network."""
        shown = [url for url in self.mirrors if url != self.own] if self.token_file is not None else []
        shown += [parent.url for parent in self.parents if parent.token_file is not None]
        return [url for url in shown if urlsplit(url).scheme == "http" and not is_loopback(urlsplit(url).hostname)]


def canonical(url: str) -> str:
    """Returns a mirror's URL as all mirrors of a fleet spell it, since the order of places depends on that. Raises ValueError."""
    parts = urlsplit(parse_endpoint(url))
    if parts.path:
        raise ValueError(
            f"a URL of a host and a port is expected, without a path, such as http://mirror.lan:5000; found {redacted(url)}"
        )
    host = (parts.hostname or "").removesuffix(".")
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port not in (None, default) else "")


def _check_different(urls: Sequence[str]) -> None:
    for number, url in enumerate(urls):
        if url in urls[:number]:
            raise ValueError(f"each mirror is expected once: {url} is listed again")


def _checked(file: Path | None) -> Path | None:
    if file is not None:
        _checked_token(file)
    return file


def _checked_token(file: Path) -> str:
    return _token_in(readable(file), file)


def _read_token(file: Path | None) -> str | None:
    return None if file is None else _token_in(read_file(file, LARGEST_SECRET, follow=True), file)


def _token_in(content: bytes, file: Path) -> str:
    token = content.decode(errors="replace").strip()
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"a token of {_SHORTEST_TOKEN} characters or more, without spaces, is expected in {file}")
    return token


def _shown(urls: Sequence[str]) -> str:
    return ", ".join(urls) or "an empty list"
