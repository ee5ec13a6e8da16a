"""Failover: asks the endpoints of a registry in turn until one answers."""

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
"""Seconds of Retry-After up to which the same endpoint is asked again while a client waits."""


async def with_failover(
    registry: str,
    endpoints: Sequence[Endpoint],
    timeouts: Timeouts,
    ask: Callable[[Endpoint, float], Awaitable[_T]],
    repository: Repository,
    *,
    mutable: bool,
) -> _T:
    """Returns the first endpoint's successful answer, within the header timeout.

    If an endpoint does not have the content, or refuses it, the next one is asked. For `mutable` content, a tag or a list, the registry's own endpoint is
    authoritative: what it does not have is gone. `ask` gets an endpoint and its deadline, in the event loop's time; the remaining time is shared equally among the
    endpoints not asked yet. Raises Unknown, Denied, UpstreamError.
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
                        f"{endpoint.name} is paused for {math.ceil(endpoint.breaker.pause_left or 1)} s after failures: {endpoint.breaker.last_error}"
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
                # Any answer shows that the endpoint works.
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
    raise _final(errors)


def _latest_limit(errors: list[MirrorError]) -> float | None:
    return errors[-1].retry_after if errors and isinstance(errors[-1], UpstreamLimited) else None


def _final(errors: list[MirrorError]) -> MirrorError:
    """Returns the error to raise. Unknown is raised only if all endpoints gave it, and it is certain only if all of them are."""
    lacking = [error for error in errors if not isinstance(error, Unknown)]
    return min(lacking or errors, key=_weight)


def _weight(error: MirrorError) -> int:
    if isinstance(error, Unknown):
        return 1 if error.certain else 0
    kinds = (Denied, UpstreamLimited, UpstreamInvalid)
    return next((weight for weight, kind in enumerate(kinds) if isinstance(error, kind)), len(kinds))
