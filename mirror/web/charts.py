"""Computes the coordinates of the charts, which templates draw as SVG."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.storage.inventory import Day, History

WIDTH, HEIGHT = 240, 48
_BARS = (600, 120)
_GAP = 4
_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300, 400, 500, 600, 800, 1024)
"""Upper ends of an axis, in its unit."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve and the area below it as SVG path data, and its first and last sample: time in seconds since the epoch, size in bytes."""

    line: str
    area: str
    first: tuple[int, int]
    last: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of one day. `cached`, `passed` and `ahead` are the tops and heights of bytes from the cache, from upstream, and fetched ahead of clients."""

    day: Day
    x: float
    width: float
    cached: tuple[float, float]
    passed: tuple[float, float]
    ahead_x: float
    """`ahead` is drawn in front of the day's bar, and narrower."""
    ahead_width: float
    ahead: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Bars:
    """The traffic of each day, and the totals in bytes."""

    bars: tuple[Bar, ...]
    top: int
    """Bytes at the upper end of the axis."""
    sent: int
    cached: int
    ahead: int


def trend(history: History, now_size: int, now: float) -> Line | None:
    """Returns the curve of the cache's size; None if the samples span less than an hour."""
    sizes = [*history.sizes, (int(now), now_size)]
    begin, end = sizes[0][0], sizes[-1][0]
    if end - begin < 3600:
        return None
    # One point for each unit of width at most.
    step = max(1, len(sizes) // WIDTH)
    chosen = sizes[:-1:step] + sizes[-1:]
    most = max(size for _, size in chosen) or 1
    points = [
        f"{(moment - begin) / (end - begin) * WIDTH:.1f} {HEIGHT - 2 - size / most * (HEIGHT - 6):.1f}" for moment, size in chosen
    ]
    line = "M" + "L".join(points)
    return Line(line, f"{line}V{HEIGHT}H0Z", sizes[0], sizes[-1])


def bars(history: History) -> Bars | None:
    """Returns the bars of each day's traffic; None if there was none."""
    most = max((max(day.sent, day.ahead) for day in history.days), default=0)
    if not most:
        return None
    top = axis_end(most)
    width, height = _BARS
    each = width / len(history.days)
    found = []
    for place, day in enumerate(history.days):
        cached, passed, ahead = (bytes_ / top * height for bytes_ in (day.cached, day.passed, day.ahead))
        x, wide = place * each + _GAP / 2, each - _GAP
        found.append(
            Bar(
                day,
                round(x, 1),
                round(wide, 1),
                (round(height - passed - cached, 1), round(cached, 1)),
                (round(height - passed, 1), round(passed, 1)),
                round(x + wide * 0.35, 1),
                round(wide * 0.3, 1),
                (round(height - ahead, 1), round(ahead, 1)),
            )
        )
    days = history.days
    return Bars(tuple(found), top, sum(day.sent for day in days), sum(day.cached for day in days), sum(day.ahead for day in days))


def axis_end(most: int) -> int:
    """Returns the smallest round number of bytes that is at least `most`."""
    unit = 1
    while most > _STEPS[-1] * unit:
        unit *= 1024
    return next(step * unit for step in _STEPS if step * unit >= most)
