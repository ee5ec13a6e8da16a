"""What is printed and written: a table for each scenario, beside the mirror's figures everybody's ratio to them, and which bars are reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.measure import Figures
from benchmarks.peers import OWN
from benchmarks.scenarios import ASKING, BEST, Bar, Point, Scenario

Results = Mapping[str, Mapping[str, Figures]]
"""By scenario and contender."""

_COLUMNS = (
    "contender",
    "time s",
    "time ÷ mirror's",
    "rate",
    "first byte ms, first client",
    "last client",
    "upstream ÷ image",
    "CPU s/GB",
    "CPU µs/request",
    "CPU ÷ mirror's",
    "peak MB",
    "",
)


def table(scenario: Scenario, figures: Mapping[str, Figures]) -> Iterator[str]:
    """Lines of Markdown."""
    yield f"### `{scenario.name}`: {scenario.title}"
    yield ""
    rows = [list(_row(scenario, name, one, figures.get(OWN, Figures()))) for name, one in figures.items()]
    # Columns in which nobody has anything are left out.
    kept = [number for number in range(len(_COLUMNS)) if any(row[number] for row in rows)]
    widths = [max(len(_COLUMNS[number]), *(len(row[number]) for row in rows)) for number in kept]
    for cells in (_COLUMNS, None, *rows):
        if cells is None:
            line = " | ".join(("-" * (width - 1) + ":") if number else "-" * width for number, width in enumerate(widths))
        else:
            shown = [cells[number] for number in kept]
            line = " | ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(shown, widths, strict=True))
            )
        yield f"| {line} |"
    yield ""


def _row(scenario: Scenario, name: str, one: Figures, own: Figures) -> Iterator[str]:
    yield name
    yield _shown(one.seconds)
    # Of a request, where there are only rates.
    if scenario.kind in ASKING:
        yield _shown(own.rate / one.rate if one.rate and own.rate else None, 2)
    else:
        yield _shown(one.seconds / own.seconds if one.seconds and own.seconds else None, 2)
    unit = "req/s" if scenario.kind in ASKING else "MB/s"
    yield f"{_shown(one.rate)} {unit}" if one.rate is not None else ""
    yield _shown(one.first_byte and one.first_byte * 1000)
    yield _shown(one.last_first_byte and one.last_first_byte * 1000)
    yield _shown(one.upstream, 3)
    yield _shown(one.cpu_per_gb, 2)
    yield _shown(one.cpu_per_request, 1)
    yield _shown(one.cpu_ratio, 2)
    yield _shown(one.memory)
    yield one.note


def _shown(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return ""
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def bars(all_of_them: tuple[Bar, ...], results: Results) -> Iterator[str]:
    """Lines of Markdown: those bars whose scenarios have been measured, with what was."""
    yield "| issue | bar | wanted | measured | |"
    yield "| ----- | --- | -----: | -------: | --- |"
    for bar in all_of_them:
        if bar.first.scenario in results and (bar.second is None or bar.second.scenario in results):
            value = measured(bar, results)
            wanted = f"≥ {bar.at_least:g}" if bar.at_least is not None else f"≤ {bar.at_most:g}"
            yield f"| {bar.issue} | {bar.text} | {wanted} | {_shown(value, 3) or '-'} | {verdict(bar, value)} |"


def measured(bar: Bar, results: Results) -> float | None:
    """None where one of its figures is missing."""
    first = _at(bar.first, results)
    second = _at(bar.second, results) if bar.second is not None else None
    if first is None or bar.second is None:
        return first
    # Clocks are coarse: at toy sizes there are figures of nothing at all.
    return bar.by(first, second) if second else None


def verdict(bar: Bar, value: float | None) -> str:
    """Whether `value` reaches the bar."""
    if value is None:
        return "not judged: a figure is missing"
    reached = (bar.at_least is None or value >= bar.at_least) and (bar.at_most is None or value <= bar.at_most)
    return "reached" if reached else "NOT REACHED"


def _at(point: Point, results: Results) -> float | None:
    found = results.get(point.scenario, {})
    if point.contender == BEST:
        others = [getattr(one, point.figure) for name, one in found.items() if name != OWN]
        return max((value for value in others if value is not None), default=None)
    value: float | None = getattr(found.get(point.contender, Figures()), point.figure)
    return value
