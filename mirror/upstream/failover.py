"""Failover: asks the endpoints of a registry in turn until one answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
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


async def with_failover(
    registry: str,
    endpoints: Sequence[Endpoint],
    timeouts: Timeouts,
    ask: Callable[[Endpoint, float], Awaitable[_T]],
    repository: Repository,
    *,
    mutable: bool,
    patient: bool = True,
) -> _T:
    """Returns the first endpoint's successful answer, within the header timeout.

    If an endpoint does not have the content, or refuses it, the next one is asked. For `mutable` content, a tag or a list, the registry's own endpoint is
    authoritative: what it does not have is gone. `ask` gets an endpoint and its deadline, in the event loop's time; the remaining time is shared equally among the
    endpoints not asked yet. If no endpoint has an answer, one that limits requests is asked again when it allows that, unless the request is not `patient`.
    Raises Unknown, Denied, UpstreamError.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeouts.header
    left = list(endpoints)
    errors: dict[Endpoint, MirrorError] = {}
    limited: dict[Endpoint, float] = {}
    """When those that answered 429 may be asked again."""
    attempt = 0
    while True:
        for place, endpoint in enumerate(asking := list(left)):
            now = loop.time()
            if now >= deadline:
                break
            if not endpoint.breaker.allows(str(repository)):
                left.remove(endpoint)
                errors[endpoint] = UpstreamUnreachable(
                    f"{endpoint.name} is paused for {math.ceil(endpoint.breaker.pause_left or 1)} s after failures: {endpoint.breaker.last_error}"
                )
                continue
            try:
                answer = await ask(endpoint, now + (deadline - now) / (len(asking) - place))
            except TokenServiceFailed as error:
                endpoint.breaker.succeeded()
                errors[endpoint] = error
            except (UpstreamFailed, UpstreamTimeout) as error:
                endpoint.breaker.failed(error.message, str(repository))
                errors[endpoint] = error
                if isinstance(error, UpstreamTimeout):
                    left.remove(endpoint)
            except UpstreamUnreachable as error:
                endpoint.breaker.failed(error.message)
                errors[endpoint] = error
            except UpstreamLimited as error:
                endpoint.breaker.succeeded()
                errors[endpoint] = error
                left.remove(endpoint)
                if error.retry_after is not None and patient:
                    limited[endpoint] = loop.time() + error.retry_after
            except (Unknown, Denied, UpstreamInvalid, Invalid) as error:
                # It answered, whatever it said.
                endpoint.breaker.succeeded()
                if isinstance(error, Unknown) and error.certain and mutable and endpoint.own:
                    raise
                errors[endpoint] = error
                left.remove(endpoint)
            else:
                endpoint.breaker.succeeded()
                return answer
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
    raise _final(errors)


def _final(errors: Mapping[Endpoint, MirrorError]) -> MirrorError:
    """Returns the error to raise. Unknown is raised only if all endpoints gave it, and it is certain only if all of them are.

    A refusal by the registry itself is raised before anything else, a refusal by another endpoint only if none has failed.
    """
    lacking = [endpoint for endpoint, error in errors.items() if not isinstance(error, Unknown)]
    return errors[min(lacking or errors, key=lambda endpoint: _weight(errors[endpoint], own=endpoint.own))]


def _weight(error: MirrorError, *, own: bool) -> int:
    if isinstance(error, Unknown):
        return 1 if error.certain else 0
    if isinstance(error, Denied):
        return 0 if own else 4
    return 1 if isinstance(error, UpstreamLimited) else 2 if isinstance(error, UpstreamInvalid) else 3
