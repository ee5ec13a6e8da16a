"""Pushes to a mirror under test, request by request."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest

HOSTED = {"repositories": ["team/**", "class/**"]}
"""Settings under which these repositories live in the mirror."""


@dataclass(frozen=True)
class Said:
    """A response."""

    status: int
    headers: Any
    body: bytes

    @property
    def code(self) -> str:
        """The error's code."""
        return str(json.loads(self.body)["errors"][0]["code"])

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["errors"][0]["message"])


async def say(session: aiohttp.ClientSession, method: str, path: str, body: Any = None, **headers: str) -> Said:
    """Sends a request; header names have underscores for hyphens."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, bytes):
        # aiohttp warns of large bodies of bytes.
        body = io.BytesIO(body)
    async with session.request(method, path, data=body, headers=sent, allow_redirects=False) as response:
        return Said(response.status, response.headers, await response.read())


async def push_blob(session: aiohttp.ClientSession, repository: str, data: bytes, algorithm: str = "sha256") -> Digest:
    """Pushes a blob as docker does: POST, PATCH, PUT."""
    digest = Digest.of(data, algorithm)
    begun = await say(session, "POST", f"/v2/{repository}/blobs/uploads/")
    assert begun.status == 202, begun
    sent = await say(session, "PATCH", begun.headers["Location"], data)
    assert sent.status == 202, sent
    done = await say(session, "PUT", f"{sent.headers['Location']}?digest={digest}")
    assert done.status == 201, done
    return digest


def manifest_of(config: bytes, *layers: bytes, **fields: Any) -> bytes:
    """An image's manifest."""

    def described(data: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [described(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
        **fields,
    }
    return json.dumps(document).encode()


async def put_manifest(
    session: aiohttp.ClientSession, repository: str, reference: str, body: bytes, media_type: str = OCI_MANIFEST
) -> Said:
    return await say(session, "PUT", f"/v2/{repository}/manifests/{reference}", body, Content_Type=media_type)


async def push_image(
    session: aiohttp.ClientSession, repository: str, reference: str, *layers: bytes, **fields: Any
) -> tuple[Digest, bytes]:
    """Pushes an image; returns its manifest."""
    for data in (b"{}", *layers):
        await push_blob(session, repository, data)
    body = manifest_of(b"{}", *layers, **fields)
    done = await put_manifest(session, repository, reference, body)
    assert done.status == 201, done
    return Digest.of(body), body
