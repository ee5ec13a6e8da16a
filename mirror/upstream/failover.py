"""Failover: asks the endpoints of a registry in turn until one answers."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mirror.backoff import pause
from mirror.errors import (
    Denied,
    DigestMismatch,
    MirrorError,
    Offline,
    RegionBlocked,
    TokenServiceFailed,
    Unknown,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
    is_refusal,
)
from mirror.names import Repository
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.health import AS_GOOD
from mirror.upstream.transport import Timeouts

_T = TypeVar("_T")

HEAD_START = 0.6
"""Seconds that an endpoint has before the next one is asked too, at most."""
_QUICK = 0.1
"""Seconds of latency up to which no other endpoint is preferred."""
_MOST_SHOWN = 5
"""Endpoints whose answers an error has."""
_LISTS = "(lists)"
_LONGEST_ANSWER = 250
"""Characters of an error for one endpoint."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about: what its failure or refusal is held against."""

    failing: str
    """For the breaker: a repository, or all lists together, so that they never open it alone."""
    refused: str
    """For the standing: a repository, or its lists."""
    lists: bool = False

    @classmethod
    def of(cls, repository: Repository, *, lists: bool = False) -> Subject:
        return cls(_LISTS, f"{repository} {_LISTS}", True) if lists else cls(str(repository), str(repository))


class Unfinished:
    """Requests that continue after another endpoint answered first: their outcome still counts for the ranking."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        self.keep(asyncio.create_task(work))

    def probe(
        self, endpoints: Sequence[Endpoint], ask_one: Callable[[Endpoint, float], Awaitable[object]], deadline: float
    ) -> None:
        """Asks those that are asked last, and for which a probe is due, for what another one had: this shows whether they are well again."""
        for endpoint in endpoints:
            if endpoint.standing.probe_due(endpoint.breaker.state):
                self.start(_probe(endpoint, ask_one, deadline))

    async def aclose(self) -> None:
        """Cancels them, and waits for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # What went wrong is recorded where it happened; this marks it as retrieved.
            task.exception()


async def with_failover(
    registry: str,
    endpoints: Sequence[Endpoint],
    timeouts: Timeouts,
    ask: Callable[[Endpoint, float], Awaitable[_T]],
    repository: Repository,
    *,
    unfinished: Unfinished,
    documents: bool = True,
    mutable: bool = False,
    lists: bool = False,
    patient: bool = True,
    discard: Callable[[_T], Awaitable[None]] | None = None,
    deadline: float | None = None,
) -> _T:
    """Returns the first endpoint's successful answer, within the header timeout or until `deadline`.

    If an endpoint does not have the content, or refuses it, the next one is asked. Those that failed recently, or refused the repository, are asked last. If one has not
    answered within its head start, the next one is asked too, after another head start two more, then four. `ask` gets an endpoint and its deadline. All deadlines are
    in the event loop's time.

    Of `documents`, the registry's own endpoint is authoritative: what it does not have is gone, whatever other endpoints say of `mutable` ones, a tag or a list, and
    unless they have it of others. Requests that are overtaken go on as `unfinished`: their outcome counts for the ranking. Without `documents`, for blobs, the order of
    `endpoints` counts, no endpoint's word is final, and the requests that are overtaken end at once. `discard` is called with an answer that came too late.

    `lists` is True for lists of tags and referrers: if they fail, or are refused, that is held against lists only, whatever the repository.

    If no endpoint has an answer, one that limits requests is asked again when it allows that, unless the request is not `patient`. Raises Unknown, Denied, UpstreamError, whose
    message says what each endpoint answered; Offline before anything else, whatever is known of the endpoints.
    """
    for endpoint in endpoints:
        endpoint.check_online()
    loop = asyncio.get_running_loop()
    if deadline is None:
        deadline = loop.time() + timeouts.header
    subject = Subject.of(repository, lists=lists)
    left = _ranked(endpoints, subject, by_latency=documents and not mutable)
    head_start = min(HEAD_START, timeouts.header / (4 * len(left)))
    errors: dict[Endpoint, MirrorError] = {}
    limited: dict[Endpoint, float] = {}
    """When those that answered 429 may be asked again."""
    authoritative: list[MirrorError] = []
    running: dict[asyncio.Task[_T], Endpoint] = {}
    batches: dict[asyncio.Task[_T], int] = {}
    """Which were asked at a time, by number."""
    batch = 0

    async def ask_one(endpoint: Endpoint, until: float) -> _T:
        return await ask_and_record(endpoint, ask, until, subject, head_start)

    def failed(endpoint: Endpoint, error: BaseException) -> None:
        if not isinstance(error, MirrorError):
            raise error
        if isinstance(error, Unknown) and error.certain and endpoint.own and documents:
            if mutable:
                raise error
            authoritative.append(error)
        errors[endpoint] = error
        if not isinstance(error, TokenServiceFailed | UpstreamUnreachable):
            left.remove(endpoint)
        if isinstance(error, UpstreamLimited) and error.retry_after is not None and patient:
            limited[endpoint] = loop.time() + error.retry_after

    def answered(endpoint: Endpoint) -> None:
        if documents:
            idle = [other for other in endpoints[: endpoints.index(endpoint)] if other not in running.values()]
            unfinished.probe(idle, ask_one, loop.time() + timeouts.header)

    try:
        attempt = 0
        while True:
            queue = list(left)
            width, following = 1, 1
            while (queue or running) and loop.time() < deadline:
                batch += 1
                for _ in range(width):
                    while queue and not queue[0].breaker.allows(subject.failing):
                        endpoint = queue.pop(0)
                        left.remove(endpoint)
                        errors[endpoint] = paused(endpoint)
                    if not queue:
                        break
                    endpoint = queue.pop(0)
                    if not (queue or running):
                        try:
                            answer = await ask_one(endpoint, deadline)
                        except MirrorError as error:
                            failed(endpoint, error)
                            break
                        answered(endpoint)
                        return answer
                    task = asyncio.create_task(ask_one(endpoint, deadline))
                    running[task], batches[task] = endpoint, batch
                if not running:
                    continue
                done, _ = await asyncio.wait(running, timeout=head_start if queue else None, return_when=asyncio.FIRST_COMPLETED)
                # If none answers, the endpoints asked at a time become more, so that a good one at the end of a long list is found soon.
                width, following = (1, following) if done else (following, 2 * following)
                for task in [task for task in running if task in done]:
                    if (fault := task.exception()) is not None:
                        failed(running.pop(task), fault)
                        continue
                    endpoint = running[task]
                    before = list(running)[: list(running).index(task)]
                    for slower in before:
                        # Those asked before it had their head start; their outcome is awaited in the background.
                        if batches[slower] < batches[task]:
                            running[slower].standing.overtaken()
                        if documents:
                            unfinished.keep(slower)
                            running.pop(slower)
                    del running[task]
                    answered(endpoint)
                    return task.result()
            attempt += 1
            if left and attempt < timeouts.attempts:
                wait = pause(attempt - 1)
            elif limited:
                left, wait = [], max(min(limited.values()) - loop.time(), 0.0)
            else:
                break
            if loop.time() + wait >= deadline:
                break
            await asyncio.sleep(wait)
            due = [endpoint for endpoint, when in limited.items() if when <= loop.time()]
            left = [endpoint for endpoint in endpoints if endpoint in left or endpoint in due]
            for endpoint in due:
                del limited[endpoint]
    finally:
        for task in running:
            task.cancel()
            unfinished.start(_end(task, discard))
    if authoritative:
        raise authoritative[0]
    if not errors:
        raise UpstreamTimeout(f"{registry} did not answer in time")
    for endpoint in endpoints:
        # What an endpoint has that did not answer, or was not asked, is not known.
        errors.setdefault(endpoint, UpstreamTimeout(f"{endpoint.name} did not answer in time"))
    raise final_error(registry, errors)


def with_endpoint(
    ask: Callable[[Endpoint, float], Awaitable[_T]],
) -> Callable[[Endpoint, float], Awaitable[tuple[Endpoint, _T]]]:
    """Returns a function for `with_failover` that returns the endpoint too."""

    async def ask_one(endpoint: Endpoint, deadline: float) -> tuple[Endpoint, _T]:
        return endpoint, await ask(endpoint, deadline)

    return ask_one


async def _end(task: asyncio.Task[_T], discard: Callable[[_T], Awaitable[None]] | None) -> None:
    """Waits for the end of a request that nobody waits for any more, and discards its answer."""
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None and discard is not None:
        await discard(task.result())


def _ranked(endpoints: Sequence[Endpoint], subject: Subject, *, by_latency: bool) -> list[Endpoint]:
    """Returns the endpoints in the order in which they are asked: as configured, but for those that are asked last, and `by_latency` those that are clearly slower."""
    latencies = {endpoint: endpoint.standing.latency or 0.0 for endpoint in endpoints}
    slow = AS_GOOD * min((latency for latency in latencies.values() if latency), default=0.0)

    def key(endpoint: Endpoint) -> tuple[bool, float]:
        latency = latencies[endpoint]
        return endpoint.is_asked_last(subject.refused), latency if by_latency and latency > max(slow, _QUICK) else 0.0

    return sorted(endpoints, key=key)


async def _probe(endpoint: Endpoint, ask_one: Callable[[Endpoint, float], Awaitable[object]], deadline: float) -> None:
    with contextlib.suppress(MirrorError):
        await ask_one(endpoint, deadline)


async def ask_and_record(
    endpoint: Endpoint, ask: Callable[[Endpoint, float], Awaitable[_T]], until: float, subject: Subject, quick: float
) -> _T:
    """Asks one endpoint, and records the outcome in its breaker and its standing; see `Standing.answered` for `quick`. Raises what `ask` raises."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        answer = await ask(endpoint, until)
    except MirrorError as error:
        _record(endpoint, subject, error)
        raise
    endpoint.breaker.succeeded()
    endpoint.standing.answered(loop.time() - began, quick)
    return answer


def _record(endpoint: Endpoint, subject: Subject, error: MirrorError) -> None:
    """Records an endpoint's error in its breaker and its standing."""
    breaker, standing = endpoint.breaker, endpoint.standing
    if isinstance(error, UpstreamFailed | UpstreamTimeout):
        breaker.failed(error.message, subject.failing)
    elif isinstance(error, UpstreamUnreachable):
        breaker.failed(error.message)
    else:
        # Any other answer shows that the endpoint works.
        breaker.succeeded()
        if not isinstance(error, TokenServiceFailed | Unknown | Offline) or (isinstance(error, Unknown) and not error.certain):
            standing.refused(subject.refused, of_all=not subject.lists)
        if isinstance(error, DigestMismatch):
            standing.lied()


def paused(endpoint: Endpoint) -> UpstreamUnreachable:
    """Returns the error for an endpoint whose breaker lets no request through."""
    seconds = math.ceil(endpoint.breaker.pause_left or 1)
    return UpstreamUnreachable(f"{endpoint.name} is paused for {seconds} s after failures: {endpoint.breaker.last_error}")


def final_error(registry: str, errors: Mapping[Endpoint, MirrorError]) -> MirrorError:
    """Returns the error to raise, which says what each endpoint answered. Unknown is raised only if all endpoints gave it, and it is certain only if all of them are.

    A refusal by the registry itself is raised before anything else, a refusal by another endpoint only if none has failed. Of several ways to one endpoint, those
    that failed do not count if it said by another one what it does not have.
    """
    heard = {endpoint.place for endpoint, error in errors.items() if isinstance(error, Unknown)}
    errors = {endpoint: error for endpoint, error in errors.items() if isinstance(error, Unknown) or endpoint.place not in heard}
    lacking = [endpoint for endpoint, error in errors.items() if not isinstance(error, Unknown)]
    decisive = errors[min(lacking or errors, key=lambda endpoint: _weight(errors[endpoint], own=endpoint.own))]
    if not lacking or isinstance(decisive, Offline):
        return decisive
    # An error may stand for several endpoints.
    answers: dict[MirrorError, str] = {}
    for endpoint, error in sorted(errors.items(), key=lambda item: item[1] is not decisive):
        answers.setdefault(error, _answer(registry, endpoint, error))
    if len(answers) == 1:
        return decisive
    shown = list(answers.values())[:_MOST_SHOWN]
    more = f"; and {len(answers) - len(shown)} more" if len(shown) < len(answers) else ""
    told = copy.copy(decisive)
    told.message = f"none of {registry}'s endpoints gave it: {'; '.join(shown)}{more}"
    told.args = (told.message,)
    if isinstance(told, UpstreamError):
        # One that limits requests may have it.
        told.partly_refused = any(map(is_refusal, answers)) and not any(isinstance(error, UpstreamLimited) for error in answers)
    return told


def _answer(registry: str, endpoint: Endpoint, error: MirrorError) -> str:
    """Returns an endpoint's error in a line of bounded length that names the endpoint."""
    text = error.message
    if isinstance(error, Unknown):
        text = f"{endpoint.name} {text.removeprefix(f'{registry} ')}"
    elif endpoint.name not in text:
        text = f"{endpoint.name}: {text}"
    return text if len(text) <= _LONGEST_ANSWER else f"{text[: _LONGEST_ANSWER - 1]}…"


def _weight(error: MirrorError, *, own: bool) -> int:
    if isinstance(error, Unknown):
        return 1 if error.certain else 0
    if isinstance(error, Denied):
        blocked = isinstance(error, RegionBlocked)
        return -blocked if own else 5 - blocked
    return 1 if isinstance(error, UpstreamLimited) else 2 if isinstance(error, UpstreamInvalid) else 3
