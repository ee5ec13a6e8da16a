"""``python -m tests.benchmarks [--quick] [--only NAME …] [--json FILE]``: prints each figure, the mirror's ratio to each peer, and the bars."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import measure, report
from tests.benchmarks.measure import Scale
from tests.benchmarks.origin import REPOSITORY, Origin
from tests.benchmarks.peers import Peer, install_distribution3, side_by_side
from tests.benchmarks.report import Report

QUICK = Scale(rounds=1, seconds=1, blob=20_000_000, shared=5_000_000, huge=50_000_000, readers=20, cached=1000, judged=False)
MEASUREMENTS = ("manifests", "warm", "cold", "crowd", "memory", "start")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, for machines")
    options = parser.parse_args(arguments)
    for program in ("docker-registry", "curl", "wrk"):
        if shutil.which(program) is None:
            print(f"{program} is needed for the benchmarks and is not installed", file=sys.stderr)
            return 1
    install_distribution3()
    figures = run(QUICK if options.quick else Scale(), options.only)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    return 0


def run(scale: Scale, only: Collection[str] = MEASUREMENTS) -> dict[str, Any]:
    """All figures, as report.Report keeps them."""
    figures = Report(scale.judged)
    with tempfile.TemporaryDirectory(prefix="mirror-bench-") as name:
        folder = Path(name)
        origin = Origin(folder / "origin")
        try:
            if {"manifests", "warm", "cold"} & set(only):
                with side_by_side(folder / "peers", origin.url) as peers:
                    _compare(figures, scale, only, origin, peers)
            if "crowd" in only:
                _crowd(figures, scale, folder / "crowd", origin)
            if "memory" in only:
                held = measure.memory_with_readers(folder / "memory", origin, scale.huge, scale.readers)
                for state, value in held.items():
                    title = f"{scale.readers} clients on {scale.huge // 10**6} MB, {state}, peak memory"
                    figures.add(title, {report.OWN: value / 1e6}, "MB", report.MEMORY)
            if "start" in only:
                seconds = measure.start_with(folder / "start", origin, scale.cached)
                figures.add(f"ready with {scale.cached} cached blobs", {report.OWN: seconds}, "s", report.READY)
        finally:
            origin.stop()
    figures.close()
    return figures.figures


def _compare(figures: Report, scale: Scale, only: Collection[str], origin: Origin, peers: list[Peer]) -> None:
    if "manifests" in only:
        digest = origin.add_image()
        for title, reference, bar in (("by tag", "latest", report.TAG_RATE), ("by digest", digest, None)):
            path = f"/v2/{REPOSITORY}/manifests/{reference}"
            found = measure.in_turn(peers, scale.rounds, partial(measure.requests_per_second, path=path, seconds=scale.seconds))
            figures.add(f"warm manifest {title}", found, "req/s", bar)
    if "warm" in only:
        digest = origin.add_blob(scale.blob)
        for peer in peers:
            measure.throughput(peer, digest, scale.blob, 1)
        for clients, title, bar in ((1, "1 client", report.WARM_BLOB), (8, "8 clients", None)):
            take = partial(measure.throughput, digest=digest, size=scale.blob, clients=clients)
            found = measure.in_turn(peers, scale.rounds, take)
            figures.add(f"warm blob, {title}", {peer: value / 1e6 for peer, value in found.items()}, "MB/s", bar)
    if "cold" in only:
        colds = measure.colds(peers, origin, scale.blob, scale.rounds)
        first = {peer: one.first_byte * 1000 for peer, one in colds.items()}
        figures.add("cold blob, whole", {peer: one.total for peer, one in colds.items()}, "s", report.COLD_BLOB)
        figures.add("cold blob, first byte", first, "ms", report.FIRST_BYTE)
        figures.add("cold blob, CPU", {peer: one.cpu for peer, one in colds.items()}, "s")


def _crowd(figures: Report, scale: Scale, folder: Path, origin: Origin) -> None:
    crowds = measure.crowd(folder, origin, scale.shared, scale.rate)
    fetched = {peer: one.fetched for peer, one in crowds.items()}
    figures.add("10 clients, upstream bytes ÷ blob", fetched, "x", report.UPSTREAM_BYTES)
    figures.add("10 clients, first byte of the last one", {peer: one.first_byte for peer, one in crowds.items()}, "s")
    figures.add("10 clients, last one done", {peer: one.total for peer, one in crowds.items()}, "s")


if __name__ == "__main__":
    sys.exit(main())
