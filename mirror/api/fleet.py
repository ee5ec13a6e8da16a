"""What other mirrors of the fleet ask and tell this one beside content. Only this mirror answers: none of it goes on to another one.

::

    GET   /fleet/state      how this mirror is: its version, clock, list, figures
    GET   /fleet/images     the cached images (?search=), as ``mirror ls --json`` has them
    GET   /fleet/pulls      the newest entries of its audit log (?wanted= an object with a list of values by field, &count=)
    POST  /fleet/changes    a change by hand; answers what came of it for each image or digest

Whoever asks shows the token of the fleet (fleet.token_file).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from mirror.access.accounts import Accounts
from mirror.access.audit import read_audit_log
from mirror.access.guesses import Guesses
from mirror.access.pulls import wanted_entries
from mirror.access.sessions import LASTS
from mirror.api.browser_logins import Ended
from mirror.api.client_network import client_network
from mirror.api.context import RequestContext
from mirror.api.request_body import patient_reader
from mirror.api.targets import Target
from mirror.cache.cache import Cache
from mirror.cache.image_documents import describe
from mirror.errors import MirrorError, NotAllowed, RequestInvalid, RouteUnknown, Unknown, Unsupported
from mirror.fleet_documents import ACCOUNT_ACTIONS, END_SESSION, FIGURES, MOST_LATE, Change, Outcome, State
from mirror.names import Digest, Reference, Repository, Tag
from mirror.regular_files import NoFile
from mirror.storage.sightings import Block, Released

PREFIX = "/fleet/"
_LARGEST = 4 * 1024 * 1024
"""Bytes of a change."""
_MOST_ENTRIES = 10_000
_SESSION = re.compile(r"[0-9]{1,11}\.[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Own:
    """What this mirror says of itself."""

    url: str
    version: str
    mirrors: Sequence[str]
    parents: Sequence[str]
    max_size: int
    tag_ttl: float
    degraded: Callable[[], list[str]]
    audit_log: Path | None
    tables: Callable[[], Mapping[str, str]]
    """Digests; see `State.tables`."""


class FleetRequests:
    """Answers other mirrors of the fleet."""

    def __init__(
        self, cache: Cache, own: Own, parse: Callable[[str], tuple[Repository, Reference]], accounts: Accounts, ended: Ended
    ) -> None:
        """`parse` takes an image's name. Raises Invalid."""
        self._cache = cache
        self._accounts = accounts
        self._ended = ended
        self._own = own
        self._parse = parse
        self._guesses = Guesses()

    async def answer(self, context: RequestContext, target: Target) -> web.Response:
        """Raises MirrorError."""
        request = context.request
        if not context.is_trusted_mirror:
            await self._guesses.wrong(client_network(request.remote))
            raise NotAllowed(
                "this is for mirrors of the same fleet: what was sent is not the token in this mirror's fleet.token_file, which is to be the same at each"
            )
        match request.method, target.path.removeprefix(PREFIX):
            case "GET", "state":
                return _json((await self.state()).document())
            case "GET", "images":
                page = await self._cache.inventory.images(target.query.get("search", ""))
                return _json({"images": [describe(image, self._own.tag_ttl) for image in page.entries]})
            case "GET", "pulls":
                return _json({"pulls": await self._pulls(target)})
            case "POST", "changes":
                change = Change.parse(await _body(request))
                return _json({"outcomes": [(await self._changed(change, name)).document() for name in change.names]})
            case _, ("state" | "images" | "pulls" | "changes"):
                raise Unsupported(f"{request.method} is not supported here", "POST" if target.path.endswith("changes") else "GET")
        raise RouteUnknown("there is nothing here: mirrors of a fleet ask for state, images, pulls and changes")

    async def state(self) -> State:
        """How this mirror is. Raises CatalogFailed."""
        totals, own = await self._cache.inventory.totals(), self._own
        traffic = totals.traffic
        figures = (totals.size, own.max_size, totals.images, traffic.requests, traffic.hits, traffic.sent, traffic.fetched)
        return State(
            own.url,
            own.version,
            time.time(),
            tuple(own.mirrors),
            tuple(own.parents),
            tuple(own.degraded()),
            dict(zip(FIGURES, figures, strict=True)),
            own.tables(),
        )

    async def _pulls(self, target: Target) -> list[dict[str, Any]]:
        file = self._own.audit_log
        if file is None:
            raise RequestInvalid("it has no audit log: set server.audit_log")
        try:
            count = min(max(int(target.query.get("count", "50")), 1), _MOST_ENTRIES)
            wanted = json.loads(target.query.get("wanted", "{}"))
            values = {str(key): frozenset(map(str, found)) for key, found in wanted.items()}
        except (ValueError, TypeError, AttributeError):
            raise RequestInvalid("count, and wanted with values by the fields of entries, are expected") from None

        def read() -> list[dict[str, Any]]:
            try:
                return wanted_entries(read_audit_log(file), values)[-count:]
            except NoFile:
                return []

        try:
            return await asyncio.to_thread(read)
        except OSError as error:
            raise RequestInvalid(f"its audit log cannot be read: {error.strerror}") from None

    # ------------------------------------------------------------------ changes

    async def _changed(self, change: Change, name: str) -> Outcome:
        try:
            return await self._change(change, name)
        except Unknown as error:
            return Outcome(name, error.message, absent=True)
        except MirrorError as error:
            return Outcome(name, error.message)

    async def _change(self, change: Change, name: str) -> Outcome:
        """Raises MirrorError: Unknown where there is nothing to change."""
        images = self._cache.images
        if change.action in ACCOUNT_ACTIONS:
            return await asyncio.to_thread(self._accounts.take, change, name)
        if change.action == END_SESSION:
            return await self._end_session(name)
        if change.action == "block":
            await images.block(Block(Digest.parse(name), change.why, change.who, time.time()))
            return Outcome(name)
        if change.action == "unblock":
            await images.unblock(Digest.parse(name), change.who)
            return Outcome(name)
        repository, reference = self._parse(name)
        match change.action:
            case "pin":
                await images.pin(repository, reference)
            case "unpin":
                if not await images.unpin(repository, reference):
                    return Outcome(name, f"{name} was not pinned", absent=True)
            case "delete":
                await images.delete(repository, reference, change.force)
            case "refresh":
                if isinstance(reference, Tag) and await self._cache.store.tag(repository, reference) is None:
                    # Nobody has asked for it here.
                    return Outcome(name, f"{name} is not cached", absent=True)
                await images.refresh(repository, reference)
            case "release":
                if not isinstance(reference, Tag) or not change.digest:
                    raise RequestInvalid("a tag, and the digest that is released, are expected")
                released = Released(time.time(), change.who, change.why)
                await images.release(repository, reference, released, Digest.parse(change.digest))
        return Outcome(name)

    async def _end_session(self, name: str) -> Outcome:
        """Raises RequestInvalid."""
        now = time.time()
        # It becomes the name of a file, which is kept until the session is over.
        if _SESSION.fullmatch(name) is None or int(name.partition(".")[0]) > now + LASTS + MOST_LATE:
            raise RequestInvalid("the name of a session is expected")
        await asyncio.to_thread(self._ended.add, name, now)
        return Outcome(name)


async def _body(request: web.BaseRequest) -> Any:
    read, body = patient_reader(request), bytearray()
    while data := await read():
        body += data
        if len(body) > _LARGEST:
            raise RequestInvalid(f"a change of at most {_LARGEST} bytes is expected")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RequestInvalid("JSON is expected") from None


def _json(document: Any) -> web.Response:
    return web.json_response(document, headers={"Cache-Control": "no-store"})
