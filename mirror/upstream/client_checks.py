"""Asks a registry about the client whom the task works for, with the client's own user and password: nothing that another client was given counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mirror.errors import BlobUnknown, Denied, ManifestUnknown, NameUnknown, Unknown, UpstreamInvalid
from mirror.manifests import ACCEPT, ACCEPT_ANY
from mirror.names import Digest, Reference, Repository
from mirror.upstream.endpoint import Endpoint, is_page
from mirror.upstream.failover import Unfinished, with_failover
from mirror.upstream.transport import Timeouts, shown

_FIRST_BYTE = {"Range": "bytes=0-0"}


class ClientChecks:
    """The questions. A refusal says nothing of the endpoint, nor of what others may pull: it is not held against either."""

    def __init__(self, registry: str, endpoint: Endpoint, timeouts: Timeouts, unfinished: Unfinished) -> None:
        """`endpoint` is the one that gets credentials."""
        self._registry = registry
        self._endpoint = endpoint
        self._timeouts = timeouts
        self._unfinished = unfinished

    async def check_login(self) -> None:
        """Returns if the registry takes the client's user and password. Raises Denied, UpstreamError."""
        await self._ask(Repository(self._registry, "login"), lambda endpoint, deadline: endpoint.check_login(deadline))

    async def check_pull(self, repository: Repository, reference: Reference | None, *, is_blob: bool) -> None:
        """Returns if the registry gives the client `reference`: a manifest, a blob, or the tags where that is None. Raises Denied, Unknown, UpstreamError."""

        async def ask(endpoint: Endpoint, deadline: float) -> None:
            endpoint.renew_tokens()
            await _get(endpoint, deadline, repository, reference, is_blob=is_blob)

        await self._ask(repository, ask)

    async def _ask(self, repository: Repository, ask: Callable[[Endpoint, float], Awaitable[None]]) -> None:
        async def ask_one(endpoint: Endpoint, deadline: float) -> Denied | Unknown | None:
            try:
                await ask(endpoint, deadline)
            except (Denied, Unknown) as error:
                return error
            return None

        refused = await with_failover(
            self._registry, [self._endpoint], self._timeouts, ask_one, repository, unfinished=self._unfinished
        )
        if refused is not None:
            raise refused


async def _get(
    endpoint: Endpoint, deadline: float, repository: Repository, reference: Reference | None, *, is_blob: bool
) -> None:
    ways: list[tuple[str, dict[str, str]]]
    if reference is None:
        url, ways = endpoint.url(repository, "tags/list?n=1"), [("GET", {})]
    elif is_blob:
        url, ways = endpoint.url(repository, f"blobs/{reference}"), [("HEAD", {}), ("GET", _FIRST_BYTE)]
    else:
        accept = {"Accept": ACCEPT_ANY if isinstance(reference, Digest) else ACCEPT}
        url, ways = endpoint.url(repository, f"manifests/{reference}"), [("HEAD", accept), ("GET", accept)]
    status = 0
    for method, headers in ways:
        # Not as a blob: the URL that another client was redirected to would be asked, which anybody may read.
        response = await endpoint.send(method, url, repository, headers, deadline, is_list=reference is None)
        response.release()
        status = response.status
        if status in (200, 206) and not is_page(response):
            return
        # Some registries refuse HEAD, or do not know it.
    if status == 404:
        raise _unknown(repository, reference, is_blob=is_blob)
    raise UpstreamInvalid(f"{shown(url)} answered {status}")


def _unknown(repository: Repository, reference: Reference | None, *, is_blob: bool) -> Unknown:
    where = f"{repository.registry} has no"
    if reference is None:
        return NameUnknown(f"{where} repository {repository.path}")
    kind = BlobUnknown if is_blob else ManifestUnknown
    return kind(f"{where} {'blob' if is_blob else 'manifest'} {reference} in {repository.path}")
