"""Asking the endpoints of a registry in turn, until one has an answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mirror.errors import (
    Denied,
    Invalid,
    MirrorError,
    TokenServiceFailed,
    Unknown,
    UpstreamInvalid,
    UpstreamLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
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
    *,
    first_answer: bool,
) -> _T:
    """What the first endpoint that can says; `first_answer` takes the first one's no for an answer. There within the header timeout.

    `ask` is given an endpoint and the deadline, in the event loop's time. Raises Unknown, Denied, UpstreamError.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeouts.header
    left = list(endpoints)
    errors: list[MirrorError] = []
    for attempt in range(timeouts.attempts):
        for endpoint in list(left):
            if not endpoint.breaker.allows():
                left.remove(endpoint)
                continue
            try:
                answer = await ask(endpoint, deadline)
            except (UpstreamUnreachable, UpstreamTimeout) as error:
                endpoint.breaker.failed(error.message)
                errors.append(error)
                if isinstance(error, UpstreamTimeout):
                    left.remove(endpoint)
            except TokenServiceFailed as error:
                errors.append(error)
            except UpstreamLimited as error:
                errors.append(error)
                if error.retry_after is None or error.retry_after > _SOON:
                    left.remove(endpoint)
            except (Unknown, Denied, UpstreamInvalid, Invalid) as error:
                if not isinstance(error, UpstreamInvalid):
                    endpoint.breaker.succeeded()
                    if first_answer:
                        raise
                errors.append(error)
                left.remove(endpoint)
            else:
                endpoint.breaker.succeeded()
                return answer
        if not errors:
            raise UpstreamUnreachable(f"{registry} is left alone for a while after failures: {endpoints[0].breaker.last_error}")
        wait = _pause(attempt, errors[-1])
        if not left or loop.time() + wait >= deadline or attempt + 1 == timeouts.attempts:
            break
        await asyncio.sleep(wait)
    raise min(errors, key=_weight)


def _pause(attempt: int, error: MirrorError) -> float:
    if isinstance(error, UpstreamLimited) and error.retry_after is not None:
        return error.retry_after
    return random.uniform(0.05, 0.2 * 2**attempt)


def _weight(error: MirrorError) -> int:
    """Which of several endpoints' errors is told: a 404 is an answer, the others are the lack of one."""
    for weight, kind in enumerate((Unknown, Denied, UpstreamLimited, UpstreamInvalid)):
        if isinstance(error, kind):
            return weight
    return 9
