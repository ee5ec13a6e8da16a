"""The picture: each contender's time, as a multiple of the mirror's, on a logarithmic axis; SVG, drawn by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from benchmarks.measure import Figures
from benchmarks.peers import DIRECT, DISTRIBUTION3, DOCKER_REGISTRY, NGINX, OWN, SINGLE
from benchmarks.scenarios import Scenario

_COLOURS = {
    OWN: "#0b6e4f",
    DOCKER_REGISTRY: "#c1432e",
    NGINX: "#2b6cb0",
    DISTRIBUTION3: "#d98e04",
    DIRECT: "#555555",
    SINGLE: "#8a4fa3",
}
_LABELS, _WIDTH, _ROW, _TOP = 400, 560, 26, 64


def draw(measured: Sequence[tuple[Scenario, Mapping[str, Figures]]]) -> str:
    """An SVG document. Right of the line is slower than the mirror, left of it faster."""
    rows = [(scenario, _ratios(scenario, figures)) for scenario, figures in measured]
    rows = [(scenario, ratios) for scenario, ratios in rows if len(ratios) > 1]
    every = [ratio for _, ratios in rows for ratio, _ in ratios.values()]
    low, high = (math.floor(math.log10(min(every, default=1)) - 0.1), math.ceil(math.log10(max(every, default=1)) + 0.1))
    height = _TOP + _ROW * len(rows) + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABELS + _WIDTH + 40}" height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="20" font-size="14" font-weight="bold">Time of each, as a multiple of the mirror\'s (right: slower; hollow: given up there)</text>',
        *_legend(),
        *_axis(low, high, height),
    ]

    def x(ratio: float) -> float:
        return _LABELS + _WIDTH * (math.log10(ratio) - low) / (high - low)

    for number, (scenario, ratios) in enumerate(rows):
        y = _TOP + _ROW * number + _ROW / 2
        lines.append(f'<text x="10" y="{y + 4}">{escape(scenario.title)}</text>')
        lines.append(f'<line x1="{_LABELS}" x2="{_LABELS + _WIDTH}" y1="{y}" y2="{y}" stroke="#eeeeee"/>')
        for name, (ratio, finished) in ratios.items():
            paint = (
                f'fill="{_COLOURS[name]}" fill-opacity="0.85"'
                if finished
                else f'fill="white" stroke="{_COLOURS[name]}" stroke-width="2"'
            )
            label = f"{name}: {'' if finished else 'more than '}{ratio:.2f}"
            lines.append(f'<circle cx="{x(ratio):.1f}" cy="{y}" r="5" {paint}><title>{escape(label)}</title></circle>')
    return "\n".join([*lines, "</svg>\n"])


def _ratios(scenario: Scenario, figures: Mapping[str, Figures]) -> dict[str, tuple[float, bool]]:
    """By contender; with False, it was given up and the ratio is more than that."""
    own = figures.get(OWN, Figures())
    figures = {name: one for name, one in figures.items() if name in _COLOURS}
    if own.seconds:
        return {name: ((one.seconds or scenario.limit) / own.seconds, one.seconds is not None) for name, one in figures.items()}
    if own.rate:
        return {name: (own.rate / one.rate, True) for name, one in figures.items() if one.rate}
    return {}


def _legend() -> Iterator[str]:
    for number, (name, colour) in enumerate(_COLOURS.items()):
        x = 16 + 160 * number
        yield f'<circle cx="{x}" cy="40" r="5" fill="{colour}"/><text x="{x + 10}" y="44">{escape(name)}</text>'


def _axis(low: int, high: int, height: int) -> Iterator[str]:
    for power in range(low, high + 1):
        x = _LABELS + _WIDTH * (power - low) / (high - low)
        stroke = "#0b6e4f" if power == 0 else "#cccccc"
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height - 24}" stroke="{stroke}"/>'
        yield f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{10.0**power:g} x</text>'
