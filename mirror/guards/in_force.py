"""Puts rules, block lists and blocks by hand in force in a cache, and follows their changes. Nothing is decided as long as there are none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from mirror import metrics
from mirror.errors import CatalogFailed, MirrorError, Offline
from mirror.guards.blocklist import Blocklist, Files, parse, read_list
from mirror.guards.gate import Gate
from mirror.guards.rules import Rule
from mirror.guards.sources import Documents
from mirror.redaction import redacted
from mirror.storage.sightings import HeldTag
from mirror.storage.store import Store
from mirror.tasks import BackgroundTask, close_all

log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks at whether a file has changed."""
_ASK = 60.0
"""Seconds between two requests for a list by its URL."""
_SHOW = 60.0
"""Seconds between two looks at what is held back."""

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
        self._files = Files()
        self._read: dict[str, Mapping[str, str]] = {}
        """What each file and URL says, or said last."""
        self._tags: dict[str, str] = {}
        """ETags of lists, by URL."""
        self._asked: dict[str, float] = {}
        self._unanswered: set[str] = set()
        """URLs whose lists could not be had when they were asked last."""
        self._gate = Gate(store, documents)
        # A URL that does not answer holds up no file.
        self._following = [BackgroundTask(this) for this in (self._follow_files, self._follow_urls, self._follow_held)]

    async def load(self) -> None:
        """Reads block lists, those with a URL as they were kept last, and what was blocked by hand. Call it before `start`."""
        for url in self._sources(urls=True):
            kept = await self._store.document(_key(url))
            if kept is not None and url not in self._read:
                # Earlier versions kept the text.
                with contextlib.suppress(ValueError):
                    entries = kept.get("entries")
                    if not isinstance(entries, dict):
                        entries = parse(str(kept.get("text", "?")), redacted(url))
                    self._take_lists({url: entries})
                    self._tags[url] = str(kept["etag"])
        await self._read_files()
        await self.load_blocks()

    async def load_blocks(self) -> None:
        """Reads what was blocked by hand, and forgets what was decided: call it when that has changed, or something was released."""
        await self._gate.load()
        self._show()

    def start(self) -> None:
        """Follows the changes of block lists. Those by hand are followed by calling `load_blocks`."""
        for following in self._following:
            following.start()

    async def aclose(self) -> None:
        """Follows no changes any more."""
        await close_all(*(following.aclose for following in self._following))

    def take(self, tables: Sequence[tuple[Rule, tuple[str, ...]]]) -> None:
        """Puts other rules in force, each with the sources of its block list. What these said last counts at once."""
        lists = {sources: Blocklist(sources) for _, sources in tables if sources}
        self._lists = list(lists.values())
        for one in self._lists:
            one.put_in_force(self._read)
        self._gate.take([replace(rule, blocked=lists[sources].entries) if sources else rule for rule, sources in tables])
        self._show()

    def _sources(self, *, urls: bool) -> list[str]:
        """All files or URLs, each once."""
        found = dict.fromkeys(source for one in self._lists for source in one.sources)
        return [source for source in found if source.startswith(("http://", "https://")) == urls]

    def _take_lists(self, found: Mapping[str, Mapping[str, str]]) -> None:
        self._read.update(found)
        # One source may be in several lists.
        changes = [one.put_in_force(self._read) for one in self._lists]
        if any(changes):
            self._changed()

    def _changed(self) -> None:
        self._gate.forget()
        self._show()

    def _show(self) -> None:
        self._put_in_force(self._gate if self._gate.active else None)

    async def _follow_files(self) -> None:
        while True:
            await self._read_files()
            await asyncio.sleep(_LOOK)

    async def _follow_urls(self) -> None:
        while True:
            now = time.monotonic()
            due = [url for url in self._sources(urls=True) if now >= self._asked.get(url, now - _ASK) + _ASK]
            self._asked.update(dict.fromkeys(due, now))
            await asyncio.gather(*map(self._ask, due))
            await asyncio.sleep(_LOOK)

    async def _follow_held(self) -> None:
        """Shows in the metrics what is held back."""
        while True:
            held = await self._held() if self._gate.active else []
            metrics.guard_held_tags.set(len(held))
            metrics.guard_held_seconds.set(max(time.time() - min((tag.since for tag in held), default=math.inf), 0.0))
            await asyncio.sleep(_SHOW)

    async def _held(self) -> list[HeldTag]:
        """What is served in its old meaning; what is refused is not waited for by anybody."""
        try:
            return [tag for tag in await self._store.held() if tag.served not in (None, tag.new)]
        except CatalogFailed:
            return []

    def _show_faults(self) -> None:
        named = {*self._sources(urls=False), *self._sources(urls=True)}
        metrics.guard_lists_unreadable.set(len(named & {*self._files.faulty, *self._unanswered}))

    async def _read_files(self) -> None:
        if (files := self._sources(urls=False)) and (found := await asyncio.to_thread(self._files.read_changed, files)):
            self._take_lists(found)
        self._show_faults()

    async def _ask(self, url: str) -> None:
        """Asks for a list. One that cannot be had stays as it is."""
        if self._download is None:
            return
        try:
            if (answer := await self._download(url, self._tags.get(url, ""))) is None:
                self._unanswered.discard(url)
                return
            etag = answer[1]
            found = await asyncio.to_thread(read_list, answer[0], redacted(url))
        except (MirrorError, ValueError) as error:
            log.warning("the block list %s cannot be had: %s; what it said last stays in force", redacted(url), error)
            if not isinstance(error, Offline):
                self._unanswered.add(url)
            return
        await self._store.set_document(_key(url), {"entries": found, "etag": etag})
        self._tags[url] = etag
        self._unanswered.discard(url)
        self._take_lists({url: found})


def _key(url: str) -> str:
    return f"blocklist {url}"
