"""What scanners have found in images: kept by the digest of a manifest, for each scanner its last result. Times in seconds since the epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.names import Digest
from mirror.storage.store import Store

SEVERITIES = ("none", "low", "medium", "high", "critical")
"""From the least to the worst."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scanner found last, and why it has failed since; `counts` are findings by severity, those that have none left out."""

    scanner: str
    worst: str | None
    """One of `SEVERITIES`; None if it has never succeeded."""
    counts: Mapping[str, int] = field(default_factory=dict)
    scanned: float | None = None
    tried: float = 0.0
    fault: str = ""


def worse(severities: list[str]) -> str | None:
    """Returns the worst of some severities; None if there are none."""
    return max(severities, key=SEVERITIES.index, default=None)


async def scan_results(store: Store, digest: Digest) -> list[ScanResult]:
    """Returns what scanners found in the image of a manifest. Empty if none has looked at it, or the catalog fails."""
    return results_in(await store.document(key_of(digest)) or {})


def results_in(document: Mapping[str, Any]) -> list[ScanResult]:
    """Returns the results that are kept under the key of a manifest."""
    found = []
    for name, kept in document.items():
        # What is not as it was written is looked at anew.
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):
            counts = {severity: int(count) for severity, count in kept["counts"].items() if severity in SEVERITIES}
            worst, scanned = kept["worst"], kept["scanned"]
            found.append(
                ScanResult(
                    name,
                    worst if worst in SEVERITIES else None,
                    counts,
                    None if scanned is None else float(scanned),
                    float(kept["tried"]),
                    str(kept["fault"]),
                )
            )
    return found


async def keep_scan_result(store: Store, digest: Digest, result: ScanResult) -> None:
    """Keeps a result in place of the one that the same scanner had. One process does so at a time."""
    document = await store.document(key_of(digest)) or {}
    document[result.scanner] = {
        "worst": result.worst,
        "counts": dict(result.counts),
        "scanned": result.scanned,
        "tried": result.tried,
        "fault": result.fault,
    }
    await store.set_document(key_of(digest), document)


def key_of(digest: Digest) -> str:
    """Returns under which key of the store's documents they are."""
    return f"scans {digest}"
