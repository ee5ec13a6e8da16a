"""``python -m benchmarks [--quick] [--only NAME …] [--repeat N] [--workers N] [--out FOLDER]``: prints a table for each scenario, and the bars."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks import plot, report
from benchmarks.measure import Figures, measure
from benchmarks.origin import Origin
from benchmarks.peers import DISTRIBUTION3, OWN, absent, install_distribution3
from benchmarks.scenarios import ASKING, BARS, QUICK, SCENARIOS, Kind, Scenario


def main(arguments: list[str] | None = None) -> int:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=…", description="The mirror beside what people use today, in one run on one machine."
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: to see that it runs; no bars")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--repeat", type=int, metavar="N", help="rounds of everything, of which medians are taken")
    parser.add_argument("--workers", type=int, metavar="N", help="processes of the mirror, and of nginx")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("build/bench"),
        help="for table.md, plot.svg, figures.json  [build/bench]",
    )
    options = parser.parse_args(arguments)
    if shutil.which("docker-registry") is None:
        print(
            "docker-registry (Debian's package docker-registry) is the upstream of all benchmarks, and is not installed",
            file=sys.stderr,
        )
        return 1
    chosen = [scenario for scenario in SCENARIOS if scenario.name in options.only]
    if any(DISTRIBUTION3 in scenario.contenders for scenario in chosen):
        install_distribution3()
    if options.quick:
        chosen = [scenario.at_most(QUICK) for scenario in chosen]
    if options.repeat is not None:
        chosen = [replace(scenario, rounds=options.repeat) for scenario in chosen]
    lines, results = run(chosen, options.workers, judged=not options.quick)
    measured = [(scenario, results[scenario.name]) for scenario in chosen if scenario.name in results]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    (options.out / "plot.svg").write_text(plot.draw(measured))
    figures = {name: {peer: asdict(one) for peer, one in found.items()} for name, found in results.items()}
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {options.out}: table.md, plot.svg, figures.json")
    return 0


def run(scenarios: Sequence[Scenario], workers: int | None, *, judged: bool) -> tuple[list[str], dict[str, dict[str, Figures]]]:
    """Every scenario in turn: the lines of the report, which are printed as they come, and the figures by scenario and contender.

    `judged` is False for sizes at which the bars mean nothing.
    """
    lines: list[str] = []

    def say(more: Sequence[str]) -> None:
        lines.extend(more)
        print(*more, sep="\n", flush=True)

    missing = absent()
    say([*(f"not measured: {name}: {reason}" for name, reason in missing.items()), ""])
    results: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="mirror-bench-origin-") as folder:
        origin = Origin(Path(folder))
        try:
            for scenario in scenarios:
                here = [name for name in scenario.contenders if name not in missing]
                if lacking := _lacking(scenario.kind):
                    say([f"`{scenario.name}` is left out: {lacking}", ""])
                elif here == [OWN] and scenario.contenders != (OWN,):
                    say([f"`{scenario.name}` is left out: there is nobody to compare with", ""])
                else:
                    results[scenario.name] = measure(scenario, origin, here, workers)
                    say(list(report.table(scenario, results[scenario.name])))
        finally:
            origin.stop()
    if judged:
        say(["### Bars", "", *report.bars(BARS, results), ""])
    return lines, results


def _lacking(kind: Kind) -> str:
    """What keeps scenarios of that kind from being measured here."""
    programs = {Kind.DOCKERD: ["dockerd", "docker"], **{asking: ["wrk"] for asking in ASKING}}.get(kind, [])
    absent_ones = [f"{program} is not installed" for program in programs if shutil.which(program) is None]
    return ", ".join(absent_ones + (["dockerd runs as root only"] if kind is Kind.DOCKERD and os.geteuid() != 0 else []))


if __name__ == "__main__":
    sys.exit(main())
