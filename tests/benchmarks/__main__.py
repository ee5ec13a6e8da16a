"""``python -m tests.benchmarks [--quick] [--only NAME …] [--json FILE]``: prints each figure, the mirror's ratio to each peer, and the bars."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import measure
from tests.benchmarks.measure import Scale
from tests.benchmarks.origin import REPOSITORY, Origin
from tests.benchmarks.peers import Peer, start_all

QUICK = Scale(rounds=1, seconds=1, blob=20_000_000, shared=5_000_000, huge=50_000_000, readers=20, cached=1000)
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
    figures = run(QUICK if options.quick else Scale(), options.only)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def run(scale: Scale, only: Any) -> dict[str, Any]:
    """All figures, by measurement and peer."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mirror-bench-") as name:
        folder = Path(name)
        origin = Origin(folder / "origin")
        peers: list[Peer] = []
        try:
            if {"manifests", "warm", "cold"} & set(only):
                peers = start_all(folder / "peers", origin.url)
                _side_by_side(figures, scale, only, origin, peers)
            if "crowd" in only:
                found = measure.crowd(folder / "crowd", origin, scale.shared, scale.rate)
                _show(
                    figures,
                    "10 clients, upstream bytes ÷ blob",
                    {peer: value[0] for peer, value in found.items()},
                    "x",
                    "exactly 1.00 x",
                )
                _show(figures, "10 clients, last one done", {peer: value[1] for peer, value in found.items()}, "s")
            if "memory" in only:
                held = measure.memory_with_readers(folder / "memory", origin, scale.huge, scale.readers)
                for state, value in held.items():
                    _show(
                        figures,
                        f"{scale.readers} clients on {scale.huge // 10**6} MB, {state}, peak memory",
                        {"mirror": value / 1e6},
                        "MB",
                        "< 150 MB",
                    )
            if "start" in only:
                seconds = measure.start_with(folder / "start", origin, scale.cached)
                _show(figures, f"ready with {scale.cached} cached blobs", {"mirror": seconds}, "s", "<= 1 s")
        finally:
            for peer in peers:
                peer.stop()
            origin.stop()
    return figures


def _side_by_side(figures: dict[str, Any], scale: Scale, only: Any, origin: Origin, peers: list[Peer]) -> None:
    if "manifests" in only:
        digest = origin.add_image()
        for title, reference, bar in (("by tag", "latest", ">= 40 x docker-registry 2.8"), ("by digest", digest, "")):
            path = f"/v2/{REPOSITORY}/manifests/{reference}"
            found = measure.in_turn(peers, scale.rounds, partial(measure.requests_per_second, path=path, seconds=scale.seconds))
            _show(figures, f"warm manifest {title}", found, "req/s", bar)
    if "warm" in only:
        digest = origin.add_blob(scale.blob)
        for peer in peers:
            measure.throughput(peer, digest, 1)
        for clients, bar in ((1, ">= 0.8 x nginx"), (8, "")):
            found = measure.in_turn(peers, scale.rounds, partial(measure.throughput, digest=digest, clients=clients))
            _show(figures, f"warm blob, {clients} client{'s' if clients > 1 else ''}", found, "B/s", bar)
    if "cold" in only:
        colds = measure.colds(peers, origin, scale.blob, scale.rounds)
        _show(figures, "cold blob, whole", {peer: one.total for peer, one in colds.items()}, "s", "<= 1.5 x docker-registry 2.8")
        first = {peer: one.first_byte * 1000 for peer, one in colds.items()}
        _show(figures, "cold blob, first byte", first, "ms", "within 20 ms of docker-registry 2.8")
        _show(figures, "cold blob, CPU", {peer: one.cpu for peer, one in colds.items()}, "s")


def _show(figures: dict[str, Any], title: str, found: dict[str, float], unit: str, bar: str = "") -> None:
    figures[title] = {"unit": unit, "bar": bar, **found}
    own = found["mirror"]
    print(f"\n{title}" + (f"   (bar: {bar})" if bar else ""))
    for peer, value in found.items():
        ratio = "" if peer == "mirror" or not value else f"   mirror ÷ it = {own / value:.2f}"
        print(f"  {peer:<20} {value:>12,.3f} {unit}{ratio}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
