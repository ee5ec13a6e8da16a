"""Puts rules, block lists and blocks by hand in force in a cache, and follows their changes. Nothing is decided as long as there are none."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from mirror.errors import MirrorError
from mirror.guards.blocklist import Blocklist, parse
from mirror.guards.gate import Gate
from mirror.guards.rules import Rule
from mirror.guards.sources import Documents
from mirror.storage.store import Store
from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks at whether a file has changed."""
_ASK = 60.0
"""Seconds between two requests for a list by its URL."""

Download = Callable[[str, str], Awaitable[tuple[bytes, str] | None]]
"""Returns what is at a URL, and its ETag; None if it still has the ETag that is given. Raises MirrorError."""


class Guarding:
    """The rules of one process."""

    def __init__(
        self, store: Store, documents: Documents, put_in_force: Callable[[Gate | None], None], download: Download | None = None
    ) -> None:
        """`put_in_force` is called with what decides from then on, None if there is nothing to decide by. Without `download`, lists count as they were kept last."""
        self._store = store
        self._put_in_force = put_in_force
        self._download = download
        self._lists: list[Blocklist] = []
        self._tags: dict[str, str] = {}
        """ETags of lists, by URL."""
        self._asked: dict[str, float] = {}
        self._gate = Gate(store, documents)
        self._following = BackgroundTask(self._follow)

    async def load(self) -> None:
        """Reads block lists, those with a URL as they were kept last, and what was blocked by hand."""
        for one in self._lists:
            for url in one.urls:
                kept = await self._store.document(_key(url))
                if kept is not None and url not in self._tags:
                    self._tags[url] = str(kept["etag"])
                    one.put_in_force({url: parse(str(kept["text"]), url)})
        await self._read_files()
        await self._gate.load()
        self._show()

    def start(self) -> None:
        """Follows the changes of block lists. Those by hand are followed by calling `load`."""
        self._following.start()

    async def aclose(self) -> None:
        """Follows no changes any more."""
        await self._following.aclose()

    def take(self, tables: Sequence[tuple[Rule, tuple[str, ...]]]) -> None:
        """Puts other rules in force, each with the sources of its block list. Lists that were there before keep their entries."""
        known = {one.sources: one for one in self._lists}
        lists = {sources: known.get(sources) or Blocklist(sources) for _, sources in tables if sources}
        self._lists = list(lists.values())
        self._gate.take([replace(rule, blocked=lists[sources].entries) if sources else rule for rule, sources in tables])
        self._show()

    def _changed(self) -> None:
        self._gate.forget()
        self._show()

    def _show(self) -> None:
        self._put_in_force(self._gate if self._gate.active else None)

    async def _follow(self) -> None:
        while True:
            await self._read_files()
            await self._ask()
            await asyncio.sleep(_LOOK)

    async def _read_files(self) -> None:
        for one in self._lists:
            if one.put_in_force(await asyncio.to_thread(one.read_changed_files)):
                self._changed()

    async def _ask(self) -> None:
        """Asks for the lists whose time has come. One that cannot be had stays as it is."""
        for one in self._lists:
            for url in one.urls if self._download is not None else ():
                now = time.monotonic()
                if now < self._asked.get(url, now - _ASK) + _ASK:
                    continue
                self._asked[url] = now
                try:
                    found = await self._download(url, self._tags.get(url, "")) if self._download is not None else None
                except MirrorError as error:
                    log.warning("the block list %s cannot be had: %s; what it said last stays in force", url, error)
                    continue
                if found is None:
                    continue
                text, self._tags[url] = found[0].decode(errors="replace"), found[1]
                await self._store.set_document(_key(url), {"text": text, "etag": found[1]})
                if one.put_in_force({url: await asyncio.to_thread(parse, text, url)}):
                    self._changed()


def _key(url: str) -> str:
    return f"blocklist {url}"
