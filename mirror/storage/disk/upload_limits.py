"""How many uploads may be unfinished, and how many bytes they may have: of one client, and of all.

Clients that end or cancel what they begin meet none of this. An upload that nobody has continued for `_IDLE` seconds goes, the oldest first, where one more is begun
than its client may have, or where its bytes are in the way of others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from mirror.errors import LimitReached
from mirror.storage.disk.uploads import Unfinished, UploadFiles
from mirror.units import format_size

_EACH = 500
"""Of one client. A CI farm behind one address pushes some hundreds of layers at once."""
_ALL = 4000
_UNCHECKED = 1024 * 1024
"""Bytes that an upload may have in any case: `_EACH` of them are no harm."""
_IDLE = 300.0
"""Seconds."""
_SHARE = 2
"""One client's may have half of what there is room for, beside the largest of them: that may have all of it, as one alone may."""
_RETRY = 60.0
"""Seconds after which a client that has too many may try again."""


class UploadLimits:
    """Methods block."""

    def __init__(self, files: UploadFiles) -> None:
        self._files = files

    def check_number(self, whose: str) -> None:
        """Returns if one more upload may be begun; deletes the one that was not continued for longest if there are as many as may be. Raises LimitReached."""
        found = list(self._files.unfinished())
        own = [upload for upload in found if upload.owner == whose]
        if len(own) < _EACH and len(found) < _ALL:
            return
        if len(own) < _EACH:
            # Those of whoever has most.
            [(most, _)] = Counter(upload.owner for upload in found).most_common(1)
            if not self._drop_idle((upload for upload in found if upload.owner == most), 1):
                raise LimitReached(f"{len(found)} uploads are in progress here: try again in {_RETRY:.0f} s", _RETRY)
        elif not self._drop_idle(own, 1):
            raise LimitReached(
                f"you have begun {len(own)} uploads and not ended them: end or cancel some, or try again in {_RETRY:.0f} s",
                _RETRY,
            )

    def check_size(self, whose: str, upload: str, size: int, capacity: int) -> None:
        """Returns if an upload of a client may have `size` bytes of the `capacity` that there is in all; deletes others of that client that were not continued.
        Raises LimitReached."""
        if size <= _UNCHECKED:
            return
        most = capacity // _SHARE
        others = [one for one in self._files.unfinished() if one.owner == whose and one.id != upload and one.size]
        if size < max((one.size for one in others), default=0):
            others.remove(max(others, key=lambda one: one.size))
        else:
            size = 0
        here = sum(one.size for one in others)
        if (over := here + size - most) <= 0:
            return
        freed = self._drop_idle(others, over)
        if freed < min(over, here):
            raise LimitReached(
                f"your uploads in progress may have {format_size(most)} beside the largest: end or cancel some, or try again in {_RETRY:.0f} s",
                _RETRY,
            )

    def make_room(self, size: int) -> int:
        """Deletes uploads that nobody has continued until `size` bytes are free, and returns how many are."""
        return self._drop_idle(self._files.unfinished(), size)

    def _drop_idle(self, uploads: Iterable[Unfinished], size: int) -> int:
        """Returns the bytes that are free then; an empty one counts as one byte."""
        freed, latest = 0, time.time() - _IDLE
        for upload in sorted(uploads, key=lambda upload: upload.written):
            if freed >= size or upload.written >= latest:
                break
            if self._files.drop(upload):
                freed += max(upload.size, 1)
        return freed
