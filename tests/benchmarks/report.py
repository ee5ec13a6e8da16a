"""What is printed and written: each figure, the mirror's ratio to each peer, and whether a bar is met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OWN = "mirror"
DOCKER_REGISTRY = "docker-registry 2.8"
NGINX = "nginx"


@dataclass(frozen=True)
class Bar:
    """What the mirror's figure must be: `holds` is given it and the figure of `peer`, or 0.0 where no peer is named."""

    text: str
    holds: Callable[[float, float], bool]
    peer: str | None = None

    def verdict(self, values: dict[str, float]) -> str:
        if self.peer is not None and self.peer not in values:
            return f"not judged: {self.peer} is not installed"
        return "pass" if self.holds(values[OWN], values[self.peer] if self.peer else 0.0) else "FAIL"


TAG_RATE = Bar("at least 40 x docker-registry 2.8", lambda own, peer: own >= 40 * peer, DOCKER_REGISTRY)
WARM_BLOB = Bar("at least 0.8 x nginx", lambda own, peer: own >= 0.8 * peer, NGINX)
COLD_BLOB = Bar("at most 1.5 x docker-registry 2.8", lambda own, peer: own <= 1.5 * peer, DOCKER_REGISTRY)
FIRST_BYTE = Bar("within 20 ms of docker-registry 2.8", lambda own, peer: own <= peer + 20, DOCKER_REGISTRY)
UPSTREAM_BYTES = Bar("exactly 1.00 x", lambda own, _: abs(own - 1) < 0.005)  # response headers are counted too
MEMORY = Bar("under 150 MB", lambda own, _: own < 150)
READY = Bar("within 1 s", lambda own, _: own <= 1)


@dataclass
class Report:
    """The figures, printed as they come. With `judged` off, for sizes at which the bars mean nothing, no verdicts."""

    judged: bool = True
    figures: dict[str, Any] = field(default_factory=dict)
    """By title: ``unit``, ``values`` by peer, and ``bar`` and ``verdict`` where there are."""

    def add(self, title: str, values: dict[str, float], unit: str, bar: Bar | None = None) -> None:
        figure: dict[str, Any] = {"unit": unit, "values": values}
        print(f"\n{title}")
        for peer, value in values.items():
            ratio = "" if peer == OWN or not value else f"   mirror ÷ it = {values[OWN] / value:.2f}"
            print(f"  {peer:<20} {_shown(value):>10} {unit}{ratio}")
        if bar is not None:
            figure |= {"bar": bar.text, "verdict": bar.verdict(values) if self.judged else "not judged at this size"}
            print(f"  bar: {bar.text}: {figure['verdict']}")
        self.figures[title] = figure
        print(end="", flush=True)

    def close(self) -> None:
        """Prints the verdicts once more, together."""
        verdicts = [(figure["verdict"], title, figure["bar"]) for title, figure in self.figures.items() if "bar" in figure]
        if verdicts and self.judged:
            print("\nBars")
            for verdict, title, bar in verdicts:
                print(f"  {verdict:<6} {title}: {bar}")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}" if value < 10 else f"{value:.1f}"
