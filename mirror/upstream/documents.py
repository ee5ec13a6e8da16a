"""Manifests as upstream's responses describe and hold them."""

from __future__ import annotations

from mirror import metrics
from mirror.errors import DigestInvalid, DigestMismatch
from mirror.manifests import MAX_SIZE, MEDIA_TYPES, Descriptor, Manifest, media_type_of, payload_of
from mirror.names import Digest, Reference
from mirror.upstream.receiver import Response
from mirror.upstream.transport import length_of, shown

_MOST_DIGITS = 10


def described(response: Response, reference: Reference, endpoint: str) -> Descriptor | None:
    """Returns what the response to a HEAD says of a manifest; None if its headers are of no use. `endpoint` names who sent it."""
    digest, size = digest_of(response), length_of(response)
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if "Content-Encoding" in response.headers:
        # The length is that of the encoded document.
        return None
    if digest is None or not size or media_type not in MEDIA_TYPES or size > MAX_SIZE:
        return None
    if isinstance(reference, Digest) and digest != reference:
        return None
    return Descriptor(media_type, digest, size, endpoint)


def verified(response: Response, body: bytes, reference: Reference, endpoint: str, registry: str) -> Manifest:
    """Returns the manifest that a response holds, whose body is `body`. Raises DigestMismatch, UpstreamInvalid."""
    wanted = reference if isinstance(reference, Digest) else digest_of(response)
    actual = Digest.of(body, wanted.algorithm if wanted is not None else "sha256")
    if wanted is not None and actual != wanted and (payload := payload_of(body)) is not None:
        actual = Digest.of(payload, wanted.algorithm)
    if wanted is not None and actual != wanted:
        metrics.verification_failures.labels(registry).inc()
        raise DigestMismatch(f"{shown(response.url)} sent bytes with the digest {actual}, not {wanted}")
    media_type = media_type_of(body, response.headers.get("Content-Type"), verified=wanted is not None)
    return Manifest(media_type, actual, body, endpoint)


def digest_of(response: Response) -> Digest | None:
    """Returns what Docker-Content-Digest says; None if it says nothing."""
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None


def age_of(response: Response) -> int:
    """Returns Age in seconds (RFC 9111, section 5.1): for how long a cache has had it; 0 if there is none."""
    value = response.headers.get("Age", "").strip()
    return int(value) if value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS else 0
