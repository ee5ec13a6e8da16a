"""Asks a registry about each client of it, with the client's own user and password, whether it may pull: once a minute for each client and repository.

What is cached is shared by all clients of a registry with ``credentials = "client"``, and given only to those to whom the registry itself gives it. Whoever has
sent no user and password is one client more.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol
from weakref import WeakValueDictionary

from mirror.client_login import ClientLogin, on_behalf_of
from mirror.errors import Denied, MirrorError, Unknown, UpstreamError, UpstreamUnreachable
from mirror.names import Reference, Repository
from mirror.tasks import SingleFlight

_HOLDS = 60.0
"""Seconds for which a registry's answer holds."""
_UNKNOWN_HOLDS = 5.0
"""The same if it does not have what was asked for, which may be pushed at any moment."""
_MOST = 50_000
_AT_ONCE = 8
"""Users and passwords from one address that are checked at the same time."""

_Key = tuple[bytes, Repository | None]
"""A client, and a repository, or None for its user and password alone. Passwords are not kept here."""


class Clients(Protocol):
    """What a registry is asked, for the client whom the task works for. Raises MirrorError."""

    async def check_login(self) -> None: ...
    async def check_pull(self, repository: Repository, reference: Reference | None, *, is_blob: bool) -> None: ...


class UpstreamChecks:
    """Asks, and remembers the answers."""

    def __init__(
        self,
        graces: Mapping[str, float],
        ask: Callable[[str], Clients],
        lives_here: Callable[[Repository], bool],
        wrong: Callable[[str, str], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`graces` are the registries with ``credentials = "client"``, with for how many seconds an answer holds while one cannot be asked.
        No registry is asked about repositories that live here. `wrong` is called with the address and the user of each login that is refused."""
        self._graces = graces
        self._ask_registry = ask
        self._lives_here = lives_here
        self._wrong = wrong
        self._clock = clock
        self._allowed: OrderedDict[_Key, float] = OrderedDict()
        """When it was last asked, of those that may."""
        self._refused: OrderedDict[tuple[_Key, Reference | None], tuple[MirrorError, float]] = OrderedDict()
        """Until when an error holds; of a whole repository, under None."""
        self._asking: SingleFlight[None] = SingleFlight()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def aclose(self) -> None:
        await self._asking.aclose()

    def take(self, graces: Mapping[str, float]) -> None:
        """Puts other settings in force at once."""
        if graces.keys() != self._graces.keys():
            self._allowed.clear()
            self._refused.clear()
        self._graces = graces

    @property
    def active(self) -> bool:
        """True if there is a registry whose clients are checked."""
        return bool(self._graces)

    def concerns(self, repository: Repository) -> bool:
        """Returns whether each client of a repository is checked."""
        return repository.registry in self._graces and not self._lives_here(repository)

    def allows(self, login: ClientLogin | None, repository: Repository) -> bool:
        """Returns whether a client may pull from a repository, as far as is known without asking: False for one that was not checked in the last minute."""
        return not self.concerns(repository) or self._holds(self._key(login, repository), _HOLDS)

    async def check_login(self, login: ClientLogin, network: str) -> None:
        """Returns if the registry takes a client's user and password. `network` is where it comes from. Raises Denied, TooManyGuesses, UpstreamError."""
        await self._check(login, None, None, network, is_blob=False)

    async def check(
        self, login: ClientLogin | None, repository: Repository, reference: Reference | None, network: str, *, is_blob: bool
    ) -> None:
        """Returns if a client may pull from a repository, where it asks for `reference`, or for lists if that is None. Raises Denied, Unknown, TooManyGuesses, UpstreamError."""
        if self.concerns(repository):
            # What was sent for another registry is not sent to this one: to it, the client has sent nothing.
            known = login if login is not None and login.registry == repository.registry else None
            await self._check(known, repository, reference, network, is_blob=is_blob)

    async def _check(
        self,
        login: ClientLogin | None,
        repository: Repository | None,
        reference: Reference | None,
        network: str,
        *,
        is_blob: bool,
    ) -> None:
        registry = repository.registry if repository is not None else login.registry if login is not None else ""
        key, was_asked = self._key(login, repository), False
        while not self._holds(key, _HOLDS):
            for refused in ((key, None), (key, reference)):
                if (known := self._refused.get(refused)) is not None and 0 < known[1] - self._clock() <= _HOLDS:
                    if was_asked and login is not None and isinstance(known[0], Denied):
                        # Whoever guesses has another password each time.
                        await self._wrong(network, login.user)
                    raise type(known[0])(known[0].message)
            try:
                # Others may be asking for something else of the same repository: what they hear is heard here too.
                _, joined = await self._asking.do(
                    key, lambda: self._ask(registry, login, repository, reference, network, is_blob=is_blob)
                )
                was_asked = not joined
            except UpstreamError as error:
                if self._holds(key, self._graces.get(registry, 0.0)):
                    return
                # Also where the mirror is offline: what is cached is not told to those who may not have it.
                raise UpstreamUnreachable(
                    f"{registry} cannot be asked now whether this client may have it: {error.message}"
                ) from None

    async def _ask(
        self,
        registry: str,
        login: ClientLogin | None,
        repository: Repository | None,
        reference: Reference | None,
        network: str,
        *,
        is_blob: bool,
    ) -> None:
        """Asks, and remembers the answer. Raises UpstreamError."""
        key = self._key(login, repository)
        clients = self._ask_registry(registry)
        turn = self._turns.get(network)
        if turn is None:
            turn = self._turns[network] = asyncio.Semaphore(_AT_ONCE)
        try:
            async with turn:
                # Not before: with many clients at one address it may have waited for longer than an answer holds.
                began = self._clock()
                with on_behalf_of(login):
                    if repository is None:
                        await clients.check_login()
                    else:
                        await clients.check_pull(repository, reference, is_blob=is_blob)
        except Denied as error:
            self._allowed.pop(key, None)
            self._refuse(key, None, error, _HOLDS)
        except Unknown as error:
            # It may be the answer to a client who may not know of it, or only this may be missing.
            self._allowed.pop(key, None)
            self._refuse(key, reference, error, _UNKNOWN_HOLDS)
        else:
            self._allowed[key] = began
            self._allowed.move_to_end(key)
            if len(self._allowed) > _MOST:
                self._allowed.popitem(last=False)

    def _refuse(self, key: _Key, reference: Reference | None, error: MirrorError, seconds: float) -> None:
        self._refused[key, reference] = error, self._clock() + seconds
        self._refused.move_to_end((key, reference))
        if len(self._refused) > _MOST:
            self._refused.popitem(last=False)

    def _holds(self, key: _Key, seconds: float) -> bool:
        # What was answered in the future is not believed: the clock was set back.
        return 0 <= self._clock() - self._allowed.get(key, float("-inf")) < seconds

    def _key(self, login: ClientLogin | None, repository: Repository | None) -> _Key:
        is_for = login is not None and (repository is None or login.registry == repository.registry)
        return login.key if login is not None and is_for else b"", repository
