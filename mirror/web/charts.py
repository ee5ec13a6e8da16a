"""The charts, worked out here: templates draw what these say as SVG."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.storage.disk.catalog.history import Day, History

WIDTH, HEIGHT = 240, 48
_BARS = (600, 96)
_GAP = 4


@dataclass(frozen=True, slots=True)
class Line:
    """A curve and the area below it, as path data; what it begins and ends with."""

    line: str
    area: str
    first: tuple[int, int]
    last: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Bar:
    """A day: where it stands, and how high what came from the cache and from upstream is."""

    day: Day
    x: float
    width: float
    cached: tuple[float, float]
    """Top and height."""
    fetched: tuple[float, float]


def trend(history: History, now_size: int, now: float) -> Line | None:
    """The size of the cache over time; None where there is too little to tell."""
    sizes = [*history.sizes, (int(now), now_size)]
    begin, end = sizes[0][0], sizes[-1][0]
    if end - begin < 3600:
        return None
    # As many points as the picture is wide.
    step = max(1, len(sizes) // WIDTH)
    chosen = sizes[:-1:step] + sizes[-1:]
    most = max(size for _, size in chosen) or 1
    points = [
        f"{(moment - begin) / (end - begin) * WIDTH:.1f} {HEIGHT - 2 - size / most * (HEIGHT - 6):.1f}" for moment, size in chosen
    ]
    line = "M" + "L".join(points)
    return Line(line, f"{line}V{HEIGHT}H0Z", sizes[0], sizes[-1])


def bars(history: History) -> list[Bar]:
    """The days' traffic; empty where there was none."""
    most = max((max(day.sent, day.fetched) for day in history.days), default=0)
    if not most:
        return []
    width, height = _BARS
    each = width / len(history.days)
    found = []
    for place, day in enumerate(history.days):
        total = max(day.sent, day.fetched) / most * (height - 2)
        fetched = day.fetched / most * (height - 2)
        found.append(
            Bar(
                day,
                round(place * each + _GAP / 2, 1),
                round(each - _GAP, 1),
                (round(height - total, 1), round(total - fetched, 1)),
                (round(height - fetched, 1), round(fetched, 1)),
            )
        )
    return found
