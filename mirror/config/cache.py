"""Settings of the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from mirror.config.sources import default_cache_dir
from mirror.config.tables import Duration, Rate, Size, Table
from mirror.disk_room import default_limit


class Expire(Table):
    repositories: str = Field(
        min_length=1, description="such as `ci/*` or `ghcr.io/owner/*`; of several tables the first one that fits counts"
    )
    after: Duration = Field(
        gt=0, description="an image unused for this long is deleted, with everything that no other image shares"
    )


class Cache(Table):
    dir: Path = Field(
        default_factory=default_cache_dir,
        description="the cache directory; default `/var/lib/mirror` for root, else `~/.cache/mirror`",
    )
    max_size: Size = Field(
        default_factory=lambda found: default_limit(found.get("dir")),
        description="size that eviction keeps the cache within; default a quarter of the disk that `cache.dir` is on",
    )
    high_watermark: float = Field(0.95, gt=0, le=1, description="share of `max_size` above which eviction begins")
    low_watermark: float = Field(0.9, gt=0, le=1, description="share of `max_size` that eviction then goes down to")
    min_free: float = Field(
        0.05, ge=0, lt=1, description="share of the disk that the cache leaves free, whatever `max_size` says"
    )
    expire: tuple[Expire, ...] = Field(
        (), description="age limits, each a table `[[cache.expire]]`; pinned images are exempt, and nothing expires offline"
    )
    scrub_rate: Rate = Field(
        10_000_000, description="bytes per second at which cached content is verified in the background; 0 for never"
    )
    scrub_interval: Duration = Field(30 * 86400.0, description="how long until it is verified again")
    tag_ttl: Duration = Field(300.0, description="how long a tag is served before upstream is asked again")
    negative_ttl: Duration = Field(10.0, description="how long a 404 is remembered")
    revalidate_timeout: Duration = Field(
        2.0, description="how long a tag's check may delay a client before the cached tag is served"
    )
    prefetch: bool = Field(True, description="download an image's other layers as soon as a client asks for the first")

    @field_validator("dir", mode="before")
    @classmethod
    def _dir(cls, value: Any) -> Any:
        if isinstance(value, str):
            if not value:
                raise ValueError("a folder is expected")
            with contextlib.suppress(RuntimeError):
                return Path(value).expanduser().absolute()
        return value

    @field_validator("expire", mode="before")
    @classmethod
    def _tables(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            raise ValueError("a list of tables is expected, each under [[cache.expire]], with two brackets")
        return value

    @model_validator(mode="after")
    def _watermarks(self) -> Cache:
        if self.low_watermark > self.high_watermark:
            raise ValueError("low_watermark is above high_watermark: eviction could never end")
        return self
