"""Backoff: how long to wait before something that failed is tried again."""

from __future__ import annotations

import random

_FIRST = 0.2
_LONGEST = 15.0


def doubled(first: float, failures: int, longest: float) -> float:
    """Returns `first` for no failures in a row, twice as much for each, and `longest` at most."""
    return min(first * 2.0 ** min(failures, 60), longest)


def pause(failures: int, retry_after: float | None = None) -> float:
    """Returns the seconds to wait after so many failures in a row, counted from 0: at random below a bound that doubles ("full jitter"), so that clients that
    failed together do not return together.

    What upstream asked for with `retry_after` counts instead, up to 15 s.
    """
    if retry_after is not None:
        return min(retry_after, _LONGEST)
    return random.uniform(0.05, doubled(_FIRST, failures, _LONGEST))
