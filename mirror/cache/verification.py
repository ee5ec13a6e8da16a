"""Everything cached, read again and hashed; what is damaged is fetched again: for `mirror verify`. The scrub does the same over weeks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum, auto

from mirror.cache.tags import Tags
from mirror.downloads.flight import Progress
from mirror.errors import MirrorError
from mirror.names import Digest, Repository
from mirror.storage.disk.content import Content
from mirror.storage.disk.maintenance.reading import Reading

_NOTED = 256
"""Contents whose verification is written down at once."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that was not what its digest says, or not there. `fault` is why it could not be repaired, empty where it was."""

    digest: Digest
    size: int
    holder: Repository | None
    fault: str


@dataclass
class Verifying:
    """How far it is, in bytes, and what has been found."""

    total: int = 0
    here: int = 0
    count: int = 0
    damaged: list[Damage] = field(default_factory=list)

    def __str__(self) -> str:
        return "verifying"


class _State(Enum):
    WHOLE = auto()
    DAMAGED = auto()
    MISSING = auto()


class Verification:
    """Works beside a running mirror or without one."""

    def __init__(
        self, content: Content, manifests: Tags, fetch: Callable[[Repository, Digest], AsyncGenerator[Progress, None]]
    ) -> None:
        self._content = content
        self._records = content.records
        self._manifests = manifests
        self._fetch = fetch

    async def verify(self, this: Verifying, repair: bool) -> None:
        """Verifies everything; `this` tells how far it is meanwhile. Without `repair` it only looks. Raises OSError, sqlite3.Error."""
        known = await self._records.do(self._records.catalog.content)
        # Files that the catalog does not know yet count as well: they are taken in at the next start.
        found = await self._content.disk.run(lambda: dict(self._content.store.scan()))
        everything = {**found, **known}
        this.total = sum(everything.values())
        whole: list[Digest] = []
        reading = Reading(self._content.store)
        with contextlib.closing(reading):
            await reading.start()
            for digest, size in everything.items():
                state = await self._look(reading, digest, size, repair)
                if state is _State.WHOLE:
                    whole.append(digest)
                elif (damage := await self._damage(digest, size, state is _State.MISSING, repair)) is not None:
                    this.damaged.append(damage)
                this.here += size
                this.count += 1
                if len(whole) >= _NOTED:
                    await self._note(whole)
            await self._note(whole)

    async def _look(self, reading: Reading, digest: Digest, size: int, repair: bool) -> _State:
        try:
            fd = await reading.open(digest)
        except FileNotFoundError:
            return _State.MISSING
        try:
            if await reading.intact(fd, digest, size):
                return _State.WHOLE
            if repair:
                self._content.store.remove_damaged(fd, digest)
            return _State.DAMAGED
        finally:
            os.close(fd)

    async def _damage(self, digest: Digest, size: int, missing: bool, repair: bool) -> Damage | None:
        """What there is to tell of it, once it was tried to repair it; None where it has gone by itself meanwhile, such as by eviction."""
        catalog = self._records.catalog
        if missing and digest not in await self._records.do(catalog.content):
            return None
        holder = await self._records.do(catalog.holder, digest)
        if not repair:
            return Damage(digest, size, holder, "it was to be left as it is")
        is_manifest = await self._records.do(catalog.manifest_type, digest) is not None
        await self._records.do(catalog.forget, [digest])
        if holder is None:
            return Damage(digest, size, None, "no repository is known that has it; it is fetched again when a client asks for it")
        try:
            await self.restore(holder, digest, is_manifest)
        except MirrorError as error:
            return Damage(digest, size, holder, error.message)
        return Damage(digest, size, holder, "")

    async def restore(self, holder: Repository, digest: Digest, is_manifest: bool) -> None:
        """Brings back what was damaged, and is neither on the disk nor in the catalog now. Raises MirrorError."""
        if not is_manifest:
            async with aclosing(self._fetch(holder, digest)) as looks:
                async for _ in looks:
                    pass
        elif (in_memory := self._content.hot_manifest(digest)) is not None:
            # It was verified when it came there.
            await self._content.add_manifest(holder, in_memory)
        else:
            await self._manifests.get(holder, digest)

    async def _note(self, whole: list[Digest]) -> None:
        await self._records.write(self._records.catalog.set_verified, tuple(whole), time.time())
        whole.clear()
