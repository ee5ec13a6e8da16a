"""Verifies cosign's signatures by public keys: ECDSA, RSA and Ed25519, as ``cosign sign --key`` makes them.

There are two forms. The old one is an image with the tag ``sha256-<hex>.sig``, whose layers are payloads ("simple signing") and have their signatures in annotations
(cosign's specs/SIGNATURE_SPEC.md). The new one is a sigstore bundle among the referrers: a DSSE envelope (secure-systems-lab/dsse, "protocol.md") over an in-toto
statement whose subject is the digest.

The library is an extra, ``registry-mirror[sign]``.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from mirror.errors import DigestInvalid, MirrorError, Unknown
from mirror.guards.sources import Documents
from mirror.manifests import Manifest
from mirror.names import Digest, Repository, Tag

PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_STATEMENT = "application/vnd.in-toto+json"
_SIGNED = "https://sigstore.dev/cosign/sign/v1"
_OF_IMAGE = re.compile(r"sha(256|512)-[0-9a-f]{64,128}(\.(sig|att|sbom))?")
_MOST = 50
"""Signatures of one image that are looked at."""

Read = Callable[[Digest], Awaitable[bytes]]
"""Returns a small blob. Raises MirrorError."""


def is_signature(tag: str) -> bool:
    """Returns whether a tag is one of those that cosign and clients without a referrers API make for what refers to an image: it needs no signature itself."""
    return _OF_IMAGE.fullmatch(tag) is not None


class Keys:
    """Public keys, one of which must have signed."""

    def __init__(self, pems: Sequence[bytes]) -> None:
        """Raises ValueError if one is not in PEM, ImportError without the library."""
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        self._pems = tuple(pems)
        self._keys = [load_pem_public_key(pem) for pem in pems]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and other._pems == self._pems

    def __hash__(self) -> int:
        return hash(self._pems)

    async def signed_payloads(self, digest: Digest, manifest: Manifest, read: Read) -> bool:
        """Returns whether the manifest of a tag ``sha256-<hex>.sig`` has a signature of `digest` by one of the keys. Raises MirrorError."""
        for layer in _list(_object(manifest.body), "layers")[:_MOST]:
            if not isinstance(layer, dict) or layer.get("mediaType") != PAYLOAD or not isinstance(layer.get("annotations"), dict):
                continue
            signature = _decoded(layer["annotations"].get(_SIGNATURE))
            with suppress(DigestInvalid):
                payload = await read(Digest.parse(str(layer.get("digest"))))
                if _names(_object(payload), digest) and self._verify(signature, payload):
                    return True
        return False

    async def signed_bundle(self, digest: Digest, manifest: Manifest, read: Read) -> bool:
        """Returns whether the manifest of a sigstore bundle has a signature of `digest` by one of the keys. Raises MirrorError."""
        for layer in _list(_object(manifest.body), "layers")[:_MOST]:
            with suppress(DigestInvalid):
                if isinstance(layer, dict) and self.signed_envelope(digest, await read(Digest.parse(str(layer.get("digest"))))):
                    return True
        return False

    def signed_envelope(self, digest: Digest, bundle: bytes) -> bool:
        """Returns whether a sigstore bundle is a signature of `digest` by one of the keys."""
        envelope = _object(bundle).get("dsseEnvelope")
        if not isinstance(envelope, dict) or envelope.get("payloadType") != _STATEMENT:
            return False
        payload = _decoded(envelope.get("payload"))
        statement = _object(payload)
        subjects = [one.get("digest") for one in _list(statement, "subject") if isinstance(one, dict)]
        if statement.get("predicateType") != _SIGNED:
            return False
        if not any(isinstance(one, dict) and one.get(digest.algorithm) == digest.hex for one in subjects):
            return False
        signed = b"DSSEv1 %d %s %d %s" % (len(_STATEMENT), _STATEMENT.encode(), len(payload), payload)
        signatures = [one.get("sig") for one in _list(envelope, "signatures") if isinstance(one, dict)]
        return any(self._verify(_decoded(signature), signed) for signature in signatures[:_MOST])

    def _verify(self, signature: bytes, data: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

        for key in self._keys:
            with suppress(InvalidSignature):
                if isinstance(key, ec.EllipticCurvePublicKey):
                    key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
                elif isinstance(key, rsa.RSAPublicKey):
                    key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
                elif isinstance(key, ed25519.Ed25519PublicKey):
                    key.verify(signature, data)
                else:
                    continue
                return True
        return False


def _names(payload: dict[str, Any], digest: Digest) -> bool:
    critical = payload.get("critical")
    image = critical.get("image") if isinstance(critical, dict) else None
    return isinstance(image, dict) and image.get("docker-manifest-digest") == str(digest)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _list(document: dict[str, Any], name: str) -> list[Any]:
    found = document.get(name)
    return found if isinstance(found, list) else []


def _decoded(text: Any) -> bytes:
    """Base64; empty for anything else."""
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return b""


async def is_signed(keys: Keys, documents: Documents, repository: Repository, digest: Digest) -> bool:
    """Returns whether one of the keys has signed a manifest, in either form. Raises MirrorError if that cannot be found out."""

    async def read(blob: Digest) -> bytes:
        return await documents.blob(repository, blob)

    fault: MirrorError | None = None
    try:
        manifest = await documents.manifest(repository, Tag(f"{digest.algorithm}-{digest.hex}.sig"))
        if await keys.signed_payloads(digest, manifest, read):
            return True
    except Unknown:
        pass
    except MirrorError as error:
        # Offline nobody can say that there is no such tag, and there may be a bundle.
        fault = error
    for referrer in (await documents.referrers(repository, digest))[:_MOST]:
        with suppress(Unknown):
            if await keys.signed_bundle(digest, await documents.manifest(repository, referrer), read):
                return True
    if fault is not None:
        raise fault
    return False
