"""Caps on the rate of downloads, and the hours at which others hold."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import BeforeValidator, ConfigDict, Field

from mirror.config.tables import Rate, Table
from mirror.units import format_size

_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::00)?|24:00")
_DAY = 24 * 60


def _minutes(value: Any) -> int:
    """Returns minutes since midnight, of a TOML time too. Raises ValueError."""
    text = value.isoformat() if isinstance(value, dt.time) else value
    match = _CLOCK.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError('a time of day such as "08:00" is expected')
    return _DAY if match[1] is None else int(match[1]) * 60 + int(match[2])


Clock = Annotated[int, BeforeValidator(_minutes)]


class RateHours(Table):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, serialize_by_alias=True)

    begin: Clock = Field(
        alias="from", description="time of day from which on it holds, such as `08:00`, in the machine's local time"
    )
    end: Clock = Field(
        alias="to",
        description="time of day at which it ends; before `from`, it is that of the next day; the same as `from`, it holds all day",
    )
    rate: Rate = Field(description="bytes per second in these hours instead of `max_rate`; 0 for no limit")
    registry: str | None = Field(
        None, description="a registry's name, whose own `max_rate` this replaces; by default that of all"
    )

    def holds(self, minute: int) -> bool:
        """Returns whether it holds at a minute of the day."""
        length = (self.end - self.begin) % _DAY or _DAY
        return (minute - self.begin) % _DAY < length

    def __str__(self) -> str:
        hours = f"{self.begin // 60:02}:{self.begin % 60:02} to {self.end // 60:02}:{self.end % 60:02}"
        rate = f"{format_size(self.rate)}/s" if self.rate else "no limit"
        return f"{rate} from {hours}" + (f" for {self.registry}" if self.registry else "")


class _Capped(Protocol):
    @property
    def max_rate(self) -> int: ...


class _Hours(_Capped, Protocol):
    @property
    def rate(self) -> tuple[RateHours, ...]: ...


class _Settings(Protocol):
    @property
    def upstream(self) -> _Hours: ...
    @property
    def registries(self) -> Mapping[str, _Capped]: ...
    @property
    def unlisted(self) -> Mapping[str, _Capped]: ...


def rates_at(settings: _Settings, when: float) -> tuple[int, dict[str, int]]:
    """Returns the caps at a time, in bytes per second: of all registries, and of each that has one. 0 is none. `when` is in seconds since the epoch."""
    clock = time.localtime(when)
    minute = clock.tm_hour * 60 + clock.tm_min
    held: dict[str | None, int] = {}
    for one in settings.upstream.rate:
        if one.holds(minute):
            held.setdefault(one.registry, one.rate)
    registries = {**settings.unlisted, **settings.registries}
    caps = {name: held.get(name, registry.max_rate) for name, registry in registries.items()}
    return held.get(None, settings.upstream.max_rate), {name: rate for name, rate in caps.items() if rate}
