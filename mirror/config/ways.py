"""Settings of the way out to registries: the proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mirror.config.tables import Table, readable
from mirror.units import parse_proxy

Proxy = Annotated[str, BeforeValidator(parse_proxy)]


class WayOut(Table):
    """The settings that a registry has, and all registries together have."""

    proxy: Proxy | None = Field(
        None,
        description="`environment`, `none`, or the URL of an `http`, `https`, `socks5` or `socks5h` proxy (`socks5h`: it resolves the names); default as `upstream.proxy`",
    )
    proxy_credentials_file: Path | None = Field(None, description="a file with `user:password` for the proxy, read at each use")

    @field_validator("proxy_credentials_file")
    @classmethod
    def _credentials_file(cls, value: Path | None) -> Path | None:
        if value is not None and b":" not in readable(value):
            raise ValueError("a file that holds user:password is expected")
        return value

    @model_validator(mode="after")
    def _belong_together(self) -> WayOut:
        if self.proxy_credentials_file is not None and self.proxy in (None, "none", "environment"):
            raise ValueError("proxy_credentials_file belongs to the URL of a proxy in proxy, in the same table")
        return self
