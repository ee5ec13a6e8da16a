"""All that a bucket is for, behind what a store has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mirror.bucket.hosting import DurableHosted
from mirror.bucket.reading import named_sizes
from mirror.bucket.writing import Writing
from mirror.storage.outbox import Outbox
from mirror.storage.store import Store
from mirror.tasks import close_all
from mirror.upstream.bucket import Bucket
from mirror.upstream.fleet import Fleet


class Behind:
    """The bucket of one store."""

    def __init__(
        self,
        bucket: Bucket,
        fleet: Fleet,
        store: Store,
        outbox: Outbox,
        name: str,
        is_private: Callable[[str | None], bool],
        offline: Callable[[], bool],
    ) -> None:
        """The arguments are those of `Writing` and `DurableHosted`."""
        self._bucket = bucket
        bucket.named_sizes = partial(named_sizes, store)
        self._writing = Writing(bucket, fleet, outbox, store, is_private, offline)
        self.hosted = DurableHosted(store.hosted, store, outbox, bucket, name, offline)

    def start(self) -> None:
        """Begins the work in the background."""
        self._bucket.start()
        self._writing.start()
        self.hosted.start()

    async def aclose(self) -> None:
        self._bucket.objects.give_up()
        await close_all(self.hosted.aclose, self._writing.aclose)
