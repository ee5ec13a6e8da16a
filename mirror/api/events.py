"""Events that come of requests."""

from __future__ import annotations

from collections.abc import Mapping

from mirror.api.context import RequestContext
from mirror.events import Action, Event, Request
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository

_LONGEST = 200
"""Characters of a client's words."""


def request_event(
    context: RequestContext,
    action: Action,
    repository: Repository | None,
    *,
    tag: str = "",
    digest: Digest | None = None,
    is_blob: bool = False,
    media_type: str = "",
    size: int | None = None,
    references: tuple[Descriptor, ...] = (),
    details: Mapping[str, object] | None = None,
    once: str = "",
) -> Event:
    """Returns the event of a request, with who has sent it."""
    request = context.request
    return Event(
        action,
        repository,
        tag,
        digest,
        is_blob,
        media_type,
        size,
        references,
        context.who,
        Request(
            request.remote or "",
            f"{request.scheme}://{request.host[:_LONGEST]}",
            request.method,
            request.headers.get("User-Agent", "")[:_LONGEST],
        ),
        details or {},
        once,
    )
