"""Rates, times and numbers, as people read them. Sizes are those of the settings and the commands (quantities.py)."""

from __future__ import annotations

import time

from mirror.units import format_size

_SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_SPANS_ZH = {"d": "天", "h": "小时", "min": "分钟", "s": "秒"}


def rate(per_second: float) -> str:
    return f"{format_size(per_second)}/s"


def number(count: int) -> str:
    return f"{count:,}"


def percent(part: float, whole: float) -> str:
    """Never 100 % of what is not all."""
    if whole <= 0:
        return "—"
    value = 100 * part / whole
    if part < whole:
        value = min(value, 99.9)
    return f"{value:.0f} %" if value in (0, 100) or 10 <= value < 99 else f"{value:.1f} %"


def span(seconds: float, language: str) -> str:
    """Its largest unit, and the next one where that tells something: ``2 h 5 min``."""
    if 0 < seconds < 1:
        return f"{max(1, round(seconds * 1000))} {'毫秒' if language == 'zh' else 'ms'}"
    left, parts = round(max(seconds, 0)), []
    for length, unit in _SPANS:
        count, left = divmod(left, int(length))
        if count:
            parts.append((count, unit))
        elif parts:
            break
        if len(parts) == 2 or (parts and parts[0][0] >= 10):
            break
    return " ".join(f"{count} {_SPANS_ZH[unit] if language == 'zh' else unit}" for count, unit in parts or [(0, "s")])


def ago(moment: float, language: str) -> str:
    """How long ago, roughly."""
    seconds = time.time() - moment
    if seconds < 10:
        return "刚刚" if language == "zh" else "just now"
    if seconds < 60:
        return "不到 1 分钟前" if language == "zh" else "less than a minute ago"
    count, unit = next((int(seconds // length), unit) for length, unit in _SPANS if seconds >= length)
    return f"{count} {_SPANS_ZH[unit]}前" if language == "zh" else f"{count} {unit} ago"


def clock(moment: float) -> str:
    """The exact time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


def machine_time(moment: float) -> str:
    """As HTML's ``datetime`` wants it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def short(digest: str) -> str:
    """Enough of a digest to tell it from others."""
    algorithm, colon, encoded = digest.partition(":")
    return f"{algorithm}{colon}{encoded[:12]}"
