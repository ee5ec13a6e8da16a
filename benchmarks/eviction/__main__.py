"""``python -m benchmarks.eviction [--trace FILE | --names FILE] [--seeds N]``: how often the policies hit, by bytes and by requests, in caches of 1 to 50 % of all that is asked for.

A trace of one's own has a line a request, ``time digest size``, with white space or commas between: seconds, a name, bytes. A
trace of names only (``--names``) has one a line, and made-up sizes. Without one, the made-up ones
of traces.py are used, and each figure is the median over the seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

from benchmarks.eviction.policies import POLICIES
from benchmarks.eviction.traces import SKEWED, WORKLOADS, Figures, Request, read, read_names, synthetic

SIZES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Cache sizes, as shares of the working set."""

OWN, BAR = "S3-FIFO, adaptive", 1.10
"""What the mirror's policy must reach of LRU's byte hit ratio on the skewed workload, at 10 %."""

BEHIND_LRU = 0.01
"""By how much of the byte hit ratio, of 1, the mirror's policy may be behind LRU at any size."""

Ratios = tuple[float, float]
"""Hits by bytes and by requests, each of 1."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.eviction", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a trace to use instead of the made-up ones")
    parser.add_argument("--names", type=Path, metavar="FILE", help="a trace of names only, with made-up sizes")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="made-up traces of each kind")
    options = parser.parse_args(arguments)
    if file := options.trace or options.names:
        try:
            trace = read(file) if options.trace else read_names(file)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        compare(str(file), [trace])
        return 0
    overall: dict[str, list[float]] = {}
    reached = 0.0
    for workload in WORKLOADS:
        table = compare(workload.name, [synthetic(workload, seed) for seed in range(max(1, options.seeds))])
        for policy, ratios in table.items():
            overall.setdefault(policy, []).append(mean(by_bytes for by_bytes, _ in ratios))
        if workload is SKEWED:
            tenth = SIZES.index(0.1)
            reached = table[OWN][tenth][0] / table["LRU"][tenth][0]
    print("\nByte hit ratio, mean over all sizes and kinds")
    for policy, means in overall.items():
        print(f"  {policy:<18} {mean(means):6.1%}")
    print(
        f"\nbar: {OWN} at least {BAR:.2f} x LRU by bytes, {SKEWED.name}, 10 %: {reached:.2f}, {'pass' if reached >= BAR else 'FAIL'}"
    )
    return 0 if reached >= BAR else 1


def compare(title: str, traces: Sequence[Sequence[Request]]) -> dict[str, list[Ratios]]:
    """Prints and returns the ratios of each policy, by size: medians over the traces."""
    figures = [Figures.of(trace) for trace in traces]
    print(f"\n{title}: {figures[0]}" + (f"; {len(traces)} such" if len(traces) > 1 else ""))
    table = {policy: [_medians(policy, size, traces, figures) for size in SIZES] for policy in POLICIES}
    for index, kind in enumerate(("by bytes", "by requests")):
        print(f"  {'hits ' + kind:<20}" + "".join(f"{size:>8.0%}" for size in SIZES))
        for policy, ratios in table.items():
            print(f"    {policy:<18}" + "".join(f"{ratio[index]:>8.1%}" for ratio in ratios), flush=True)
    return table


def _medians(policy: str, size: float, traces: Sequence[Sequence[Request]], figures: Sequence[Figures]) -> Ratios:
    found = [play(policy, int(size * its.working_set), trace) for trace, its in zip(traces, figures, strict=True)]
    return median(by_bytes for by_bytes, _ in found), median(by_requests for _, by_requests in found)


def play(policy: str, capacity: int, trace: Sequence[Request]) -> Ratios:
    """The hits of one policy in a cache of `capacity` bytes that begins empty."""
    cache = POLICIES[policy](capacity)
    hits = [size for blob, size in trace if cache.request(blob, size)]
    return sum(hits) / (sum(size for _, size in trace) or 1), len(hits) / max(1, len(trace))


if __name__ == "__main__":
    sys.exit(main())
