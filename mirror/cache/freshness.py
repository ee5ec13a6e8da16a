"""Whether what upstream said is still good enough to be served without asking again: the one place that decides it, for tags and lists, pulls and people."""

from __future__ import annotations

import time


def is_fresh(checked: float | None, ttl: float, now: float | None = None) -> bool:
    """Returns whether `checked`, in seconds since the epoch, is less than `ttl` seconds ago; always if it is None, as for a digest, which never changes.

    What was checked in the future is not fresh: the clock was set back, and nobody knows how long ago that was.
    """
    return checked is None or 0 <= (time.time() if now is None else now) - checked < ttl
