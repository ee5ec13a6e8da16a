"""Formats sizes, rates, times, numbers and names for the dashboard. A no-break space joins a number and its unit."""

from __future__ import annotations

import time
from urllib.parse import quote

from markupsafe import Markup, escape

from mirror.units import format_size

_NO_BREAK = "\u00a0"
_SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_SPANS_ZH = {"d": "天", "h": "小时", "min": "分钟", "s": "秒"}


def size(count: float) -> str:
    return format_size(count).replace(" ", _NO_BREAK)


def rate(per_second: float) -> str:
    return f"{size(per_second)}/s"


def number(count: int) -> str:
    return f"{count:,}"


def percent(part: float, whole: float) -> str:
    """Formats a ratio. 100 % means all of it: anything less is shown as 99.9 % at most."""
    if whole <= 0:
        return "—"
    value = 100 * part / whole
    if part < whole:
        value = min(value, 99.9)
    return f"{value:.0f}{_NO_BREAK}%" if value in (0, 100) or 10 <= value < 99 else f"{value:.1f}{_NO_BREAK}%"


def span(seconds: float, language: str) -> str:
    """Formats a duration in its largest unit, and the next one if the first number is below 10: ``2 h 5 min``."""
    if 0 < seconds < 1:
        return f"{max(1, round(seconds * 1000))}{_NO_BREAK}{'毫秒' if language == 'zh' else 'ms'}"
    left, parts = round(max(seconds, 0)), []
    for length, unit in _SPANS:
        count, left = divmod(left, int(length))
        if count:
            parts.append((count, unit))
        elif parts:
            break
        if len(parts) == 2 or (parts and parts[0][0] >= 10):
            break
    return _NO_BREAK.join(_counted(count, unit, language) for count, unit in parts or [(0, "s")])


def ago(moment: float, language: str) -> str:
    """Formats the time since `moment`, rounded down to one unit."""
    seconds = time.time() - moment
    if seconds < 10:
        return "刚刚" if language == "zh" else "just now"
    if seconds < 60:
        return f"不到{_NO_BREAK}1{_NO_BREAK}分钟前" if language == "zh" else f"<{_NO_BREAK}1{_NO_BREAK}min{_NO_BREAK}ago"
    count, unit = next((int(seconds // length), unit) for length, unit in _SPANS if seconds >= length)
    return f"{_counted(count, unit, language)}{'前' if language == 'zh' else f'{_NO_BREAK}ago'}"


def _counted(count: int, unit: str, language: str) -> str:
    return f"{count}{_NO_BREAK}{_SPANS_ZH[unit] if language == 'zh' else unit}"


def clock(moment: float) -> str:
    """Formats a time in UTC, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


def date(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def machine_time(moment: float) -> str:
    """Formats a time for the ``datetime`` attribute of HTML."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def short(digest: str) -> str:
    """Returns the algorithm and the first 12 digits of a digest."""
    algorithm, colon, encoded = digest.partition(":")
    return f"{algorithm}{colon}{encoded[:12]}"


def breakable(name: object) -> Markup:
    """Returns an image's name as HTML that breaks after slashes and before the tag only."""
    return Markup("/<wbr>").join(escape(part).replace(":", Markup("<wbr>:")) for part in str(name).split("/"))


def platform(name: str) -> str:
    """Returns a platform without ``linux/``, which nearly all images are for."""
    return name.removeprefix("linux/")


def tar(name: str, platform: str | None = None) -> str:
    """Returns the link to an image's tar, of one platform, or of all that are cached whole."""
    return f"/export/{quote(name, safe='/:@')}.tar{f'?platform={platform}' if platform else ''}"


def familiar(image: object) -> str:
    """Returns an image's name as Docker's users write it: without ``docker.io/`` and ``library/``."""
    return str(image).removeprefix("docker.io/").removeprefix("library/") if str(image).startswith("docker.io/") else str(image)
