"""Reads cosign's signatures, which are there in two forms, and has them verified by keys or identities.

The old form is an image with the tag ``sha256-<hex>.sig``, whose layers are payloads ("simple signing") and have their signatures in annotations (cosign's
specs/SIGNATURE_SPEC.md). The new one is a sigstore bundle among the referrers: an in-toto statement whose subject is the digest, in an envelope.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol

from mirror.errors import DigestInvalid, MirrorError, Unknown
from mirror.guards.sources import Documents
from mirror.manifests import Manifest
from mirror.names import Digest, Repository, Tag

log = logging.getLogger(__name__)

PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT = "application/vnd.in-toto+json"
_SIGNED = "https://sigstore.dev/cosign/sign/v1"
_OF_IMAGE = re.compile(r"sha(256|512)-[0-9a-f]{64,128}(\.(sig|att|sbom))?")
MOST = 50
"""Signatures of one image that are looked at."""


class BadSignature(Exception):
    """A signature does not count; the text says why."""


class Verifier(Protocol):
    """Says whose signatures count. What it is given comes from anybody."""

    def verify(self, payload: bytes, signature: bytes, annotations: Mapping[str, Any]) -> None:
        """Verifies a signature of the old form; `annotations` are those of the payload's layer. Raises BadSignature."""
        ...

    def statement(self, bundle: bytes) -> bytes:
        """Returns the in-toto statement of a sigstore bundle. Raises BadSignature."""
        ...


Signers = tuple[Verifier, ...]
"""One of them must have signed."""


def is_signature(tag: str) -> bool:
    """Returns whether a tag is one of those that cosign and clients without a referrers API make for what refers to an image: it needs no signature itself."""
    return _OF_IMAGE.fullmatch(tag) is not None


async def is_signed(signers: Signers, documents: Documents, repository: Repository, digest: Digest) -> bool:
    """Returns whether one of the signers has signed a manifest, in either form. Raises MirrorError if that cannot be found out."""
    faults: dict[str, None] = {}
    seen = 0
    async with aclosing(_candidates(documents, repository, digest)) as found:
        async for content, annotations in found:
            seen += 1
            for one in signers:
                try:
                    if _verified(one, content, annotations, digest):
                        return True
                except BadSignature as fault:
                    faults[str(fault)] = None
            if seen == MOST:
                break
    if faults:
        log.info("%s@%s: signatures of it do not count: %s", repository, digest, "; ".join(faults))
    return False


def _verified(signer: Verifier, content: bytes, annotations: Mapping[str, Any] | None, digest: Digest) -> bool:
    """Returns whether a payload, or a bundle if there are no annotations, is a signature of `digest`. Raises BadSignature if it would be a good one of somebody else's."""
    if annotations is None:
        # What it says is looked at before, since to verify it takes milliseconds, and again once it is known who said it.
        return _states(_unverified(content), digest) and _states(signer.statement(content), digest)
    if not _names(parsed(content), digest):
        return False
    signer.verify(content, decoded(annotations.get(_SIGNATURE)), annotations)
    return True


async def _candidates(
    documents: Documents, repository: Repository, digest: Digest
) -> AsyncGenerator[tuple[bytes, Mapping[str, Any] | None], None]:
    """Yields payloads with the annotations of their layers, and bundles. Raises MirrorError."""
    fault: MirrorError | None = None
    try:
        manifest = await documents.manifest(repository, Tag(f"{digest.algorithm}-{digest.hex}.sig"))
        for layer in _layers(manifest):
            if layer.get("mediaType") == PAYLOAD and isinstance(layer.get("annotations"), dict):
                with suppress(DigestInvalid):
                    yield await documents.blob(repository, Digest.parse(str(layer.get("digest")))), layer["annotations"]
    except Unknown:
        pass
    except MirrorError as error:
        # Offline nobody can say that there is no such tag, and there may be a bundle.
        fault = error
    for referrer in (await documents.referrers(repository, digest))[:MOST]:
        with suppress(Unknown):
            for layer in _layers(await documents.manifest(repository, referrer)):
                with suppress(DigestInvalid):
                    yield await documents.blob(repository, Digest.parse(str(layer.get("digest")))), None
    if fault is not None:
        raise fault


def _layers(manifest: Manifest) -> list[dict[str, Any]]:
    return [layer for layer in entries(parsed(manifest.body), "layers")[:MOST] if isinstance(layer, dict)]


def _unverified(bundle: bytes) -> bytes:
    envelope = parsed(bundle).get("dsseEnvelope")
    return decoded(envelope.get("payload")) if isinstance(envelope, dict) else b""


def _names(payload: dict[str, Any], digest: Digest) -> bool:
    critical = payload.get("critical")
    image = critical.get("image") if isinstance(critical, dict) else None
    return isinstance(image, dict) and image.get("docker-manifest-digest") == str(digest)


def _states(text: bytes, digest: Digest) -> bool:
    """Returns whether a statement is one that something was signed, and is about `digest`."""
    statement = parsed(text)
    if statement.get("predicateType") != _SIGNED:
        return False
    subjects = [one.get("digest") for one in entries(statement, "subject") if isinstance(one, dict)]
    return any(isinstance(one, dict) and one.get(digest.algorithm) == digest.hex for one in subjects)


def parsed(text: bytes) -> dict[str, Any]:
    """Returns a JSON object; an empty one for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def entries(document: Mapping[str, Any], name: str) -> Sequence[Any]:
    """Returns a list in a document; an empty one if it is not there."""
    found = document.get(name)
    return found if isinstance(found, list) else []


def decoded(text: Any) -> bytes:
    """Returns what is in Base64; empty for anything else."""
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return b""
