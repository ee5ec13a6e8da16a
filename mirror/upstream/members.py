"""Asks and tells all mirrors of a fleet at once what is no content: how they are, what they have, changes by hand.

A mirror that is asked so never asks or tells another one: nothing goes around in a circle, whatever the lists say.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from mirror.cdn_loop import HEADER, PEER, Passed
from mirror.errors import MirrorError, UpstreamError, UpstreamFailed, UpstreamInvalid, UpstreamTimeout, UpstreamUnreachable
from mirror.fleet_documents import Change, Member, State, Told, printable
from mirror.upstream.fleet import FleetSettings
from mirror.upstream.places import authorization
from mirror.upstream.trust import trusting

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_CONNECT = 3.0
"""Seconds for a connection: a mirror of the same fleet is near."""
_ANSWER = 5.0
"""Seconds for an answer to a question."""
_CHANGE = 60.0
"""Seconds for a change, for which a registry may have to be asked."""
_LARGEST = 64 * 1024 * 1024
"""Bytes of an answer, such as a list of all images."""


class Members:
    """The mirrors of a fleet."""

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self.mirrors = tuple(settings.mirrors)
        self.others = tuple(url for url in settings.mirrors if url != settings.own)
        self.own_state: Callable[[], Awaitable[State]] | None = None
        """Returns how this mirror is itself, where it need not be asked for that. Raises MirrorError."""
        # Not its own name: it may ask itself.
        self._name = f"mirror-{token_hex(8)}"

    @property
    def can_tell(self) -> bool:
        """True if there are others, and something to prove with that this one belongs to them."""
        return bool(self.others) and self._settings.has_token

    async def tell(self, change: Change) -> Told:
        """Tells all others of a change. Raises only CancelledError."""
        told = Told()
        if change.who:
            change = replace(change, who=f"{change.who}, at {self._settings.own}")
        for url, answer in (await self._all(self.others, "POST", "changes", _CHANGE, change.document())).items():
            if isinstance(answer, UpstreamError):
                told.faults[url] = answer.message
            else:
                told.add(url, change.names, answer)
        return told

    async def states(self, mirrors: Sequence[str] | None = None) -> list[Member]:
        """Returns how mirrors are, those of the list by default, in its order. Raises only CancelledError."""
        asked = time.time()
        if mirrors is not None or self.own_state is None:
            answers = await self._all(self.mirrors if mirrors is None else mirrors, "GET", "state", _ANSWER)
            return [_member(url, answer, asked) for url, answer in answers.items()]
        answers = await self._all(self.others, "GET", "state", _ANSWER)
        found = {url: _member(url, answer, asked) for url, answer in answers.items()}
        own = str(self._settings.own)
        try:
            found[own] = Member(own, await self.own_state())
        except MirrorError as error:
            found[own] = Member(own, None, error.message)
        return [found[url] for url in self.mirrors]

    async def lists(self, what: str, query: Mapping[str, str]) -> dict[str, list[dict[str, Any]] | UpstreamError]:
        """Returns what all mirrors have to say: ``images`` or ``pulls``, a list of objects, or why a mirror says nothing. Raises only CancelledError."""
        answers = await self._all(self.mirrors, "GET", f"{what}?{urlencode(query)}", _CHANGE)
        return {url: answer if isinstance(answer, UpstreamError) else _list(url, answer, what) for url, answer in answers.items()}

    async def _all(
        self, mirrors: Sequence[str], method: str, path: str, seconds: float, document: Any = None
    ) -> dict[str, Any | UpstreamError]:
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

        headers = {HEADER: Passed().extended(self._name, PEER), "Accept": "application/json"}
        try:
            # In a thread: certificates are read.
            context = await asyncio.to_thread(trusting, self._settings.ca_file)
            headers |= authorization(self._settings.token())
        except (OSError, ValueError) as error:
            return dict.fromkeys(mirrors, UpstreamInvalid(f"fleet.token_file or fleet.ca_file cannot be used here: {error}"))
        timeout = ClientTimeout(total=seconds, connect=_CONNECT)
        # No cookies, no proxy, nothing from a .netrc.
        async with ClientSession(
            connector=TCPConnector(ssl=context), cookie_jar=DummyCookieJar(), timeout=timeout, headers=headers
        ) as session:
            ask = partial(_ask, session, method, path, document)
            return dict(zip(mirrors, await asyncio.gather(*map(ask, mirrors)), strict=True))


async def _ask(session: ClientSession, method: str, path: str, document: Any, url: str) -> Any | UpstreamError:
    """Returns the JSON that a mirror answers, or why it does not."""
    from aiohttp import ClientError

    try:
        async with session.request(method, f"{url}/fleet/{path}", json=document, allow_redirects=False) as response:
            body = bytearray()
            async for data in response.content.iter_any():
                body += data
                if len(body) > _LARGEST:
                    return UpstreamInvalid(f"it has sent more than {_LARGEST} bytes")
            answer = json.loads(body) if response.content_type == "application/json" else None
    except TimeoutError:
        return UpstreamTimeout("it does not answer in time")
    except (ClientError, OSError) as error:
        return UpstreamUnreachable(f"no connection: {_brief(error)}")
    except (ValueError, RecursionError):
        return UpstreamInvalid("its answer is not JSON")
    return answer if response.status == 200 and answer is not None else _refusal(response, answer)


def _refusal(response: ClientResponse, answer: Any) -> UpstreamError:
    try:
        said = str(answer["errors"][0]["message"])[:500]
    except (TypeError, KeyError, IndexError):
        said = ""
    if response.status == 404 or not said:
        return UpstreamInvalid(f"HTTP {response.status}: it is no mirror of this version with a fleet")
    return UpstreamFailed(f"HTTP {response.status}: {printable(said)}")


def _member(url: str, answer: Any | UpstreamError, asked: float) -> Member:
    if isinstance(answer, UpstreamError):
        dead = isinstance(answer, UpstreamTimeout) or (
            isinstance(answer, UpstreamUnreachable) and not isinstance(answer, UpstreamFailed)
        )
        return Member(url, None, answer.message, alive=not dead)
    try:
        state = State.parse(answer)
    except ValueError as error:
        return Member(url, None, str(error))
    now = time.time()
    # It read its clock at some time in between.
    late = min(state.time - asked, 0.0) + max(state.time - now, 0.0)
    return Member(url, state, late=late)


def _list(url: str, answer: Any, key: str) -> list[dict[str, Any]] | UpstreamError:
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return UpstreamInvalid(f"{url} has sent no list")
    return found


def _brief(error: BaseException) -> str:
    # aiohttp's own words have more of Python than of the network.
    number = error.errno if isinstance(error, OSError) else None
    text = os.strerror(number) if number and number > 0 else str(error)
    return printable(text or type(error).__name__)[:200]
