"""What a fleet must reach, in one run: ``python -m benchmarks.fleet.bars``. Needs root, `tc` and `unshare`.

That no pull fails with the bucket down, or with all disks lost, is counted by the tests (tests/fleet/test_bucket.py), not timed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

from benchmarks.fleet import cards, hits
from benchmarks.fleet.network import inside


async def _measure(options: argparse.Namespace) -> None:
    await hits.measure(options.hits)
    await cards.measure(options.rounds, options.size * 1_000_000, fifo=options.fifo)


def main() -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fifo", action="store_true", help="one queue for each card")
    parser.add_argument("--rounds", type=int, default=5, help="of crowds")
    parser.add_argument("--hits", type=int, default=20, help="rounds of hits")
    parser.add_argument("--size", type=int, default=60, help="of the crowds' blob, in MB")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        command = inside("benchmarks.fleet.bars", "--inside", *sys.argv[1:])
        os.execvp(command[0], command)
    logging.disable(logging.CRITICAL)
    asyncio.run(_measure(options))


if __name__ == "__main__":
    main()
