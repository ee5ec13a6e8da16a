"""What a tag means by the first endpoint that knows it, for ``tags = "first"``; an endpoint that is behind does not turn the tag back.

An endpoint's answer is compared with the cached one only if another endpoint, or none that is remembered, gave that: as long as one endpoint answers, nothing
is compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from mirror.errors import MirrorError, Unknown, UpstreamInvalid
from mirror.names import Digest, Repository, Tag
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.failover import Unfinished, with_endpoint, with_failover
from mirror.upstream.transport import Timeouts

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 10_000


class _Answer(Protocol):
    """A descriptor, or a manifest."""

    @property
    def digest(self) -> Digest: ...


_T = TypeVar("_T", bound=_Answer)


class FirstAnswers:
    """Which endpoint of one registry has named which manifest for a tag last."""

    def __init__(self, registry: str, endpoints: Sequence[Endpoint], timeouts: Timeouts, unfinished: Unfinished) -> None:
        self._registry = registry
        self._endpoints = endpoints
        self._timeouts = timeouts
        self._unfinished = unfinished
        self._several = len({endpoint.place for endpoint in endpoints}) > 1
        self._named: OrderedDict[tuple[Repository, Tag], tuple[Digest, object]] = OrderedDict()

    def note(self, repository: Repository, tag: Tag, digest: Digest, endpoint: Endpoint) -> None:
        """Remembers what an endpoint has said."""
        if self._several:
            self._named[repository, tag] = digest, endpoint.place
            self._named.move_to_end((repository, tag))
            if len(self._named) > _MOST_REMEMBERED:
                self._named.popitem(last=False)

    async def ask(
        self,
        ask: Callable[[Endpoint, float], Awaitable[_T]],
        repository: Repository,
        tag: Tag,
        known: Digest | None,
        is_older: Callable[[Digest], Awaitable[bool]],
        *,
        newer_named: bool = False,
    ) -> _T:
        """Returns the first answer that is not older than `known`, what the tag meant last. If all endpoints that know the tag have an older one, the first counts.

        With `newer_named`, an endpoint has named a newer one that it does not give, so older ones never count.

        `ask` gets an endpoint and its deadline. The registry's own word counts whatever its age, and so does that of the endpoint that named `known` if it is the first to answer. Raises as
        `with_failover` does within the header timeout, and UpstreamInvalid if all answers are older and another endpoint, which does not answer, may have a newer one.
        """
        deadline = asyncio.get_running_loop().time() + self._timeouts.header
        left = list(self._endpoints)
        older: list[tuple[Endpoint, _T]] = []
        while left:
            try:
                endpoint, found = await with_failover(
                    self._registry,
                    left,
                    self._timeouts,
                    with_endpoint(ask),
                    repository,
                    mutable=True,
                    unfinished=self._unfinished,
                    deadline=deadline,
                )
            except MirrorError as error:
                if not older or (isinstance(error, Unknown) and error.certain and any(endpoint.own for endpoint in left)):
                    raise
                if isinstance(error, Unknown) and error.certain and not newer_named:
                    break
                names = ", ".join(endpoint.name for endpoint, _ in older)
                raise UpstreamInvalid(
                    f"{repository.path}:{tag} of {names} is older than the cached one; {error.message}"
                ) from None
            own_word = endpoint.own or (
                not older and not newer_named and self._named.get((repository, tag)) == (known, endpoint.place)
            )
            if not self._several or own_word or found.digest == known or not await is_older(found.digest):
                older = [(endpoint, found)]
                break
            log.info("%s has an older %s:%s than the cached one: the next endpoint is asked", endpoint.name, repository, tag)
            older.append((endpoint, found))
            left = [other for other in left if other.place != endpoint.place]
        else:
            if newer_named:
                names = ", ".join(endpoint.name for endpoint, _ in older)
                raise UpstreamInvalid(f"{repository.path}:{tag} of {names} is older than the cached one")
        endpoint, found = older[0]
        self.note(repository, tag, found.digest, endpoint)
        return found
