"""Backoff: how long to wait before something that failed is tried again."""

from __future__ import annotations

import random

_FIRST = 0.2
_LONGEST = 15.0


def pause(failures: int, retry_after: float | None = None) -> float:
    """Seconds after so many failures in a row, counted from 0: doubling, at random below that ("full jitter"), so that those who failed together come back apart.

    What upstream asked for with `retry_after` counts instead, up to 15 s.
    """
    if retry_after is not None:
        return min(retry_after, _LONGEST)
    return random.uniform(0.05, min(_FIRST * 2**failures, _LONGEST))
