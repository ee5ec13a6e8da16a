"""Events as JSON, in the form of distribution's notifications (distribution, "Work with notifications"; its Go types in ``notifications/event.go``).

What that form has no field for is in an object ``mirror`` of the event.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mirror.events import Event
from mirror.manifests import Descriptor
from mirror.names import Repository

MEDIA_TYPE = "application/vnd.docker.distribution.events.v2+json"
_MOST_REFERENCES = 200
"""An index may name thousands, and events wait in memory."""
_MOST_OF_REFERENCES = 64 * 1024
"""Characters of them all: media types and sizes are the word of whoever pushes, and one event must not push all others out of the queue."""


def envelope(event: Event, moment: float, public_url: str | None, source: Mapping[str, str]) -> bytes:
    """Returns the body that tells of one event. `moment` is when it happened, in seconds since the epoch; `public_url` is the mirror's."""
    request = event.request
    told: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "timestamp": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment))}.{int(moment * 1000) % 1000:03d}Z",
        "action": event.action.value,
        "target": _target(event, public_url or (request.origin if request is not None else "")),
        "request": {}
        if request is None
        else {
            "id": str(uuid.uuid4()),
            "addr": request.address,
            "host": request.origin.partition("://")[2],
            "method": request.method,
            "useragent": request.user_agent,
        },
        "actor": {"name": event.actor} if event.actor else {},
        "source": source,
    }
    if event.details:
        told["mirror"] = event.details
    return json.dumps({"events": [told]}).encode()


def _target(event: Event, base: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if event.media_type:
        found["mediaType"] = event.media_type
    if event.digest is not None:
        found["digest"] = str(event.digest)
    if event.size is not None:
        # `length` is what `size` was called before.
        found["size"] = found["length"] = event.size
    if event.repository is not None:
        name = _name(event.repository)
        found["repository"] = name
        if base and event.digest is not None:
            kind = "blobs" if event.is_blob else "manifests"
            found["url"] = f"{base.rstrip('/')}/v2/{quote(name, safe='/:')}/{kind}/{event.digest}"
    if event.tag:
        found["tag"] = event.tag
    if event.references and len(event.references) <= _MOST_REFERENCES:
        references = [_described(one) for one in event.references]
        if len(json.dumps(references)) <= _MOST_OF_REFERENCES:
            found["references"] = references
    return found


def _described(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


def _name(repository: Repository) -> str:
    """The repository's name in URLs of the mirror."""
    return repository.path if repository.registry == "docker.io" else str(repository)
