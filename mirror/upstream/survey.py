"""Asks the endpoints of a registry at the same time what a tag means, for ``tags = "newest"``: some public mirrors serve tags that are hours old."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from mirror.errors import MirrorError, Unknown, UpstreamError, UpstreamInvalid
from mirror.manifests import INDEXES, Descriptor, Manifest, entries_of
from mirror.names import Digest, Repository
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.failover import HEAD_START, Subject, Unfinished, ask_and_record, final_error, paused, with_failover
from mirror.upstream.transport import Timeouts

_GRACE = 2.0
"""Seconds for which the other endpoints are waited for once one has answered."""
_MOST_NAMED = 1000
_MOST_CHILDREN = 50


@dataclass(frozen=True, slots=True)
class TagAnswers:
    """What endpoints say that a tag means."""

    descriptors: tuple[Descriptor, ...]
    """Different ones only, in the configured order of the endpoints; at least one."""
    decided: bool
    """True if the first one counts without a comparison: it is the registry's own word, or the first answer is wanted."""
    unanimous: bool
    """True if all configured endpoints have given this one answer."""


class Surveys:
    """Surveys of one registry's endpoints, and which endpoint named which manifest."""

    def __init__(self, registry: str, endpoints: Sequence[Endpoint], timeouts: Timeouts, unfinished: Unfinished) -> None:
        self._registry = registry
        self._endpoints = endpoints
        self._timeouts = timeouts
        self._unfinished = unfinished
        self._named: OrderedDict[Digest, Endpoint] = OrderedDict()

    def ranked(self, digest: Digest) -> Sequence[Endpoint]:
        """Returns the endpoints, first the one that named a manifest in a survey: others may not have it yet."""
        named = self._named.get(digest)
        return self._endpoints if named is None else [named, *(other for other in self._endpoints if other is not named)]

    def note_children(self, manifest: Manifest) -> None:
        """Remembers for the manifests of an index the endpoint that named it."""
        named = self._named.get(manifest.digest)
        if named is not None and manifest.media_type in INDEXES:
            for entry in entries_of(manifest.body)[:_MOST_CHILDREN]:
                self._note(entry.descriptor.digest, named)

    def _note(self, digest: Digest, endpoint: Endpoint) -> None:
        self._named[digest] = endpoint
        self._named.move_to_end(digest)
        if len(self._named) > _MOST_NAMED:
            self._named.popitem(last=False)

    async def ask(self, ask: Callable[[Endpoint, float], Awaitable[Descriptor]], repository: Repository) -> TagAnswers:
        """Asks the registry's own endpoint, and if that has not answered after its head start, all others at once; those that are asked last only if no other answers.

        `ask` gets an endpoint and its deadline in the event loop's time. It waits `_GRACE` seconds after the first answer, or until the registry's own endpoint
        answers. If none has an answer, it goes on as `with_failover` does. Takes no longer than the header timeout. Raises Unknown, Denied, UpstreamError.
        """
        for endpoint in self._endpoints:
            endpoint.check_online()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeouts.header
        subject = Subject.of(repository)
        found: dict[Endpoint, Descriptor] = {}
        errors: dict[Endpoint, MirrorError] = {}
        running: dict[asyncio.Task[Descriptor], Endpoint] = {}

        async def ask_one(endpoint: Endpoint, until: float) -> Descriptor:
            return await ask_and_record(endpoint, ask, until, subject, _GRACE)

        async def take_until(until: float) -> None:
            """Collects answers until a time, or until the registry's own endpoint has given one. Raises its Unknown."""
            while running and not decided() and (left := min(until, deadline) - loop.time()) > 0:
                done, _ = await asyncio.wait(running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    endpoint = running.pop(task)
                    error = task.exception()
                    if error is None:
                        found[endpoint] = task.result()
                        until = min(until, loop.time() + _GRACE)
                    elif not isinstance(error, MirrorError) or (isinstance(error, Unknown) and error.certain and endpoint.own):
                        raise error
                    else:
                        errors[endpoint] = error

        def decided() -> bool:
            return any(endpoint.own for endpoint in found)

        well = [endpoint for endpoint in self._endpoints if not endpoint.is_asked_last(subject.refused)]
        waves = [
            ([endpoint for endpoint in well if endpoint.own], min(HEAD_START, self._timeouts.header / 8)),
            ([endpoint for endpoint in well if not endpoint.own], min(_GRACE, self._timeouts.header / 2)),
            ([endpoint for endpoint in self._endpoints if endpoint not in well], self._timeouts.header),
        ]
        try:
            for wave, seconds in waves:
                if found:
                    break
                for endpoint in wave:
                    if endpoint.breaker.allows(subject.failing):
                        running[asyncio.create_task(ask_one(endpoint, deadline))] = endpoint
                    else:
                        errors[endpoint] = paused(endpoint)
                await take_until(loop.time() + seconds)
        finally:
            for task in running:
                if not found:
                    task.cancel()
                self._unfinished.keep(task)
        if not found:
            return await self._retry(ask, repository, errors, list(running.values()), deadline)
        if not decided():
            for endpoint in running.values():
                endpoint.standing.overtaken()
        idle = [endpoint for endpoint in self._endpoints if endpoint not in (*found, *errors, *running.values())]
        self._unfinished.probe(idle, ask_one, loop.time() + self._timeouts.header)
        return self._counted(found)

    async def _retry(
        self,
        ask: Callable[[Endpoint, float], Awaitable[Descriptor]],
        repository: Repository,
        errors: dict[Endpoint, MirrorError],
        silent: list[Endpoint],
        deadline: float,
    ) -> TagAnswers:
        """Asks those again that failed, though they may have the tag. Raises Unknown, Denied, UpstreamError."""
        failed = [*silent, *(endpoint for endpoint, error in errors.items() if _may_have_it(error))]
        if not failed:
            raise final_error(self._registry, errors)
        try:
            answer = await with_failover(
                self._registry,
                failed,
                self._timeouts,
                ask,
                repository,
                mutable=True,
                unfinished=self._unfinished,
                deadline=deadline,
            )
        except MirrorError as error:
            raise final_error(self._registry, {**errors, **dict.fromkeys(failed, error)}) from None
        return TagAnswers((answer,), False, False)

    def _counted(self, found: dict[Endpoint, Descriptor]) -> TagAnswers:
        answers = [(endpoint, found[endpoint]) for endpoint in self._endpoints if endpoint in found]
        if decided := [answer for answer in answers if answer[0].own]:
            answers = decided[:1]
        different: dict[Digest, Descriptor] = {}
        for endpoint, descriptor in answers:
            if descriptor.digest not in different:
                different[descriptor.digest] = descriptor
                self._note(descriptor.digest, endpoint)
        unanimous = len(different) == 1 and len(found) == len(self._endpoints)
        return TagAnswers(tuple(different.values()), bool(decided), unanimous)


def _may_have_it(error: MirrorError) -> bool:
    return isinstance(error, UpstreamError) and not isinstance(error, UpstreamInvalid)
