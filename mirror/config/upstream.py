"""Settings for all upstream registries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from mirror.config.rates import RateHours
from mirror.config.tables import Duration, Rate
from mirror.config.ways import Proxy, WayOut


class Upstream(WayOut):
    registries: Literal["known", "listed"] = Field(
        "known",
        description="`known` mirrors well-known public registries without a table of their own; `listed` only the default ones and those with a table",
    )
    proxy: Proxy = Field(
        "environment",
        description="`environment` for what `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, `none`, or the URL of an `http`, `https`, `socks5` or `socks5h` proxy (`socks5h`: it resolves the names)",
    )
    offline: bool = Field(
        False,
        description="true: no registry is asked and no name resolved, cached tags and lists do not expire; `mirror serve --offline` sets it, and SIGHUP changes it",
    )
    max_rate: Rate = Field(
        0, description="bytes per second at which content is downloaded, of all registries together; 0 for no limit"
    )
    rate: tuple[RateHours, ...] = Field(
        (), description="hours with another limit, each a table `[[upstream.rate]]`; of several that hold the first counts"
    )
    connect_timeout: Duration = Field(5.0, description="time limit for connecting to an upstream")
    header_timeout: Duration = Field(
        20.0, description="time limit for an upstream's response headers; containerd gives up after 30 s"
    )
    stall_timeout: Duration = Field(
        15.0, description="time limit for the next bytes of a body, after which it is resumed on another connection"
    )
    attempts: int = Field(3, ge=1, le=10, description="attempts at each endpoint before an error")
    connections_per_blob: int = Field(
        16,
        ge=1,
        le=64,
        description="maximum number of parallel connections for one blob, used where that is faster; 1 for never more than one",
    )
    connections_per_endpoint: int = Field(
        32, ge=1, description="maximum number of connections to one endpoint; the first one of each blob is always allowed"
    )
    connections: int = Field(64, ge=1, description="the same over all endpoints, each of which has an equal share")

    @field_validator("rate", mode="before")
    @classmethod
    def _tables(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping | RateHours) for one in value):
            raise ValueError(
                "tables are expected, each under [[upstream.rate]], with two brackets; a limit at all hours is max_rate"
            )
        return value
