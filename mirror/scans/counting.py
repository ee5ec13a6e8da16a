"""Reads a scanner's report in a process of its own: the memory that it takes is bounded, and given back, and no pull waits while it is read.

JSON of 64 MiB can take more than 1 GiB as Python's objects, and Python reads it in one go, in which nothing else runs. What is read here is what the program
that this process starts prints: ``python -m mirror.scans.counting REPORT``.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

from mirror.scans.reports import read_report
from mirror.storage.scans import SEVERITIES

_MEMORY = 512 * 1024 * 1024
"""Bytes of address space. Reports as scanners write them, of 64 MiB, need half."""
_TIME = 60
"""Seconds of a processor."""
_PATIENCE = 600.0
"""Seconds in all, with a low priority on a busy machine."""
_MOST_TOLD = 300
_NICE = 10
"""As nice(2) has it."""


async def count_findings(report: Path) -> Mapping[str, int]:
    """Returns the number of findings of each severity in a report. Raises ValueError if it is none of a known form, or takes too much to read; OSError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        # Scanners may leave files where they ran, and none of them is a module of ours.
        "-P",
        "-m",
        "mirror.scans.counting",
        str(report),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            printed, _ = await process.communicate()
    except TimeoutError:
        raise ValueError(f"its report could not be read in {_PATIENCE:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        told = json.loads(printed)
        if isinstance(told, str):
            raise ValueError(told)
        return {severity: told[severity] for severity in SEVERITIES if severity in told}
    except (TypeError, json.JSONDecodeError):
        raise ValueError(
            f"its report takes more than {_TIME} s of a processor or {_MEMORY >> 20} MiB of memory to read"
        ) from None


def main(file: str) -> None:
    """Prints the counts as JSON, or a text that says why there are none."""
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_TIME, _TIME))
    try:
        print(json.dumps(read_report(Path(file).read_bytes())))
    except ValueError as error:
        print(json.dumps(str(error)[:_MOST_TOLD]))


if __name__ == "__main__":
    main(sys.argv[1])
