"""Detects clients that ask again for a blob they were sent whole a moment ago: it may have been damaged.

Clients do not report that a digest did not match. They fail and try again (kubelet within five minutes), and a damaged file would give them the same bytes for
ever. So the blob is verified in the background; if it is damaged, it is removed, and the next request fetches it again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from mirror.names import Digest

_WITHIN = 600.0
"""Seconds after which asking again is no sign of damage."""
_INTERVAL = 3600.0
"""Seconds in which a blob is verified at most once: many clients may share one address."""
_MOST = 10_000


class RepeatReads:
    """Remembers which clients were sent which blobs, and which blobs were verified; bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: OrderedDict[Hashable, float] = OrderedDict()
        self._verified: OrderedDict[Hashable, float] = OrderedDict()

    def given(self, client: str | None, digest: Digest) -> None:
        """Notes that a client was sent a whole blob."""
        self._note(self._given, (client, digest))

    def is_repeat(self, client: str | None, digest: Digest) -> bool:
        """True if a blob that a client asks for should be verified: it was sent to the client within `_WITHIN`, and not verified within `_INTERVAL`."""
        now = self._clock()
        if (
            now - self._given.get((client, digest), -_WITHIN) >= _WITHIN
            or now - self._verified.get(digest, -_INTERVAL) < _INTERVAL
        ):
            return False
        self._note(self._verified, digest)
        return True

    def _note(self, kept: OrderedDict[Hashable, float], key: Hashable) -> None:
        kept[key] = self._clock()
        kept.move_to_end(key)
        if len(kept) > _MOST:
            kept.popitem(last=False)
