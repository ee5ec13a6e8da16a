"""Clients that ask again for a blob which they have just been given whole: they may have found it wrong.

No client tells a registry that a digest did not match; it fails, and is started again by somebody, or by itself (kubelet within five minutes). A disk that has
rotted would give it the same bytes for ever. So the blob is verified in the background, and the request after that gets it anew if it was damaged.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from mirror.names import Digest

_WITHIN = 600.0
"""Seconds after which asking again is no more than asking again."""
_INTERVAL = 3600.0
"""Seconds for which a blob is not verified again: many clients may have one address."""
_MOST = 10_000


class RepeatReads:
    """Remembers who was given what from the cache; what a process remembers of it is bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: OrderedDict[Hashable, float] = OrderedDict()
        self._verified: OrderedDict[Hashable, float] = OrderedDict()

    def given(self, client: str | None, digest: Digest) -> None:
        """A client has been given a blob whole."""
        self._note(self._given, (client, digest))

    def is_repeat(self, client: str | None, digest: Digest) -> bool:
        """Whether a blob that is asked for whole should be verified: the client was given it a moment ago, and it was not verified for `_INTERVAL`."""
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
