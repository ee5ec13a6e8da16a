"""``python -m benchmarks.fleet [--gb N] [--seconds N] [--card N] [--upstream N]``: how many mirrors it takes for 100, 1,000 and 10,000 nodes, by the formula of docs/scale.md and by the simulation."""

from __future__ import annotations

import argparse
import math

from benchmarks.fleet.model import MEASURED, MEASURED_LOAD, Fleet, Load, simulate

GB = 1e9
NODES = (100, 1_000, 10_000)
SHARES = (0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02)
"""Of the layers in an image, by size: one of a framework, one of a base, some small ones."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--gb", type=float, default=5.0, help="size of the image")
    parser.add_argument("--seconds", type=float, default=600.0, help="within which all nodes are to have it")
    parser.add_argument("--card", type=float, default=1.1, help="of a mirror and of a node, in GB/s")
    parser.add_argument("--upstream", type=float, default=0.11, help="what the registry gives, in GB/s")
    options = parser.parse_args(arguments)
    print("calibration                 measured  simulated")
    for name, (fleet, measured) in MEASURED.items():
        print(f"  {name:<24}{measured:>8.1f} s{simulate(fleet, MEASURED_LOAD).seconds:>9.1f} s")
    print(
        f"\n{options.gb:g} GB within {options.seconds:g} s, cards of {options.card:g} GB/s, {options.upstream:g} GB/s from the registry"
    )
    print("   nodes  mirrors  seconds  x upstream  GB between mirrors")
    for nodes in NODES:
        load = Load(nodes, [share * options.gb * GB for share in SHARES], options.card * GB)
        count = by_formula(nodes, options.gb, options.seconds, options.card)
        for mirrors in sorted({1, count, enough(load, options.seconds, options.card, options.upstream, count)}):
            found = simulate(Fleet(mirrors, options.card * GB, options.upstream * GB), load)
            by = "  by the formula" if mirrors == count else ""
            print(
                f"{nodes:>8,}{mirrors:>9,}{found.seconds:>9,.0f}{found.upstream / options.gb / GB:>12.2f}{found.between / GB:>20,.0f}{by}"
            )
    return 0


def by_formula(nodes: int, gb: float, seconds: float, card: float) -> int:
    """k ≈ nodes x GB ÷ (seconds x card in GB/s), rounded up."""
    return max(1, math.ceil(nodes * gb / (seconds * card)))


def enough(load: Load, seconds: float, card: float, upstream: float, count: int) -> int:
    """Returns a number of mirrors, `count` or little above the least, with which all nodes are done in time; `count` if no number helps."""
    mirrors = count
    for _ in range(8):
        took = simulate(Fleet(mirrors, card * GB, upstream * GB), load).seconds
        if took <= seconds:
            return mirrors
        # More mirrors are also more to which each home sends its layers, so that twice as many are less than twice as fast.
        mirrors = math.ceil(mirrors * (took / seconds) ** 2)
    return count


if __name__ == "__main__":
    raise SystemExit(main())
