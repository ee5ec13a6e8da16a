"""Asking the endpoints of a registry in turn, until one has an answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mirror.backoff import pause
from mirror.errors import (
    Denied,
    Invalid,
    MirrorError,
    TokenServiceFailed,
    Unknown,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.names import Repository
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.transport import Timeouts

_T = TypeVar("_T")

_SOON = 3.0
"""Seconds of Retry-After that are waited for while a client waits."""


async def with_failover(
    registry: str,
    endpoints: Sequence[Endpoint],
    timeouts: Timeouts,
    ask: Callable[[Endpoint, float], Awaitable[_T]],
    repository: Repository,
    *,
    mutable: bool,
) -> _T:
    """What the first endpoint that has it says. There within the header timeout.

    What one endpoint does not have, or refuses, the next is asked for. Of what is `mutable`, a tag or a list, the registry's own endpoint has the last word: what
    it does not have is gone. `ask` is given an endpoint and its deadline, in the event loop's time: one that does not answer leaves each endpoint after it an
    equal share of the time. Raises Unknown, Denied, UpstreamError.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeouts.header
    left = list(endpoints)
    errors: list[MirrorError] = []
    for attempt in range(timeouts.attempts):
        for place, endpoint in enumerate(asking := list(left)):
            now = loop.time()
            if now >= deadline:
                break
            if not endpoint.breaker.allows(str(repository)):
                left.remove(endpoint)
                errors.append(
                    UpstreamUnreachable(
                        f"{endpoint.name} is left alone for {math.ceil(endpoint.breaker.pause_left or 1)} s after failures: {endpoint.breaker.last_error}"
                    )
                )
                continue
            try:
                answer = await ask(endpoint, now + (deadline - now) / (len(asking) - place))
            except TokenServiceFailed as error:
                endpoint.breaker.succeeded()
                errors.append(error)
            except (UpstreamFailed, UpstreamTimeout) as error:
                endpoint.breaker.failed(error.message, str(repository))
                errors.append(error)
                if isinstance(error, UpstreamTimeout):
                    left.remove(endpoint)
            except UpstreamUnreachable as error:
                endpoint.breaker.failed(error.message)
                errors.append(error)
            except UpstreamLimited as error:
                endpoint.breaker.succeeded()
                errors.append(error)
                if error.retry_after is None or error.retry_after > _SOON:
                    left.remove(endpoint)
            except (Unknown, Denied, UpstreamInvalid, Invalid) as error:
                # It answered, whatever it said.
                endpoint.breaker.succeeded()
                if isinstance(error, Unknown) and error.certain and mutable and endpoint.own:
                    raise
                errors.append(error)
                left.remove(endpoint)
            else:
                endpoint.breaker.succeeded()
                return answer
        wait = pause(attempt, _latest_limit(errors))
        if not left or loop.time() + wait >= deadline or attempt + 1 == timeouts.attempts:
            break
        await asyncio.sleep(wait)
    raise _told(errors)


def _latest_limit(errors: list[MirrorError]) -> float | None:
    return errors[-1].retry_after if errors and isinstance(errors[-1], UpstreamLimited) else None


def _told(errors: list[MirrorError]) -> MirrorError:
    """Which of several endpoints' errors is told. "Unknown" is an answer only where all of them gave it, and certain where all are: otherwise nobody knows."""
    lacking = [error for error in errors if not isinstance(error, Unknown)]
    return min(lacking or errors, key=_weight)


def _weight(error: MirrorError) -> int:
    if isinstance(error, Unknown):
        return 1 if error.certain else 0
    kinds = (Denied, UpstreamLimited, UpstreamInvalid)
    return next((weight for weight, kind in enumerate(kinds) if isinstance(error, kind)), len(kinds))
