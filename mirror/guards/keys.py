"""Signatures by public keys: ECDSA, RSA and Ed25519, as ``cosign sign --key`` makes them.

The library is an extra, ``registry-mirror[sign]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mirror.guards.signatures import MOST, STATEMENT, BadSignature, decoded, entries, parsed


class Keys:
    """Public keys, one of which must have signed. Implements `mirror.guards.signatures.Verifier`."""

    def __init__(self, pems: Sequence[bytes]) -> None:
        """Raises ValueError if one is not in PEM, ImportError without the library."""
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        self._pems = tuple(pems)
        self._keys = [load_pem_public_key(pem) for pem in pems]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and other._pems == self._pems

    def __hash__(self) -> int:
        return hash(self._pems)

    def verify(self, payload: bytes, signature: bytes, annotations: Mapping[str, Any]) -> None:
        if not self._has_signed(payload, signature):
            raise BadSignature("none of the keys made it")

    def statement(self, bundle: bytes) -> bytes:
        """The envelope is one of DSSE (secure-systems-lab/dsse, "protocol.md")."""
        envelope = parsed(bundle).get("dsseEnvelope")
        if not isinstance(envelope, dict) or envelope.get("payloadType") != STATEMENT:
            raise BadSignature("it is no envelope with a statement")
        payload = decoded(envelope.get("payload"))
        signed = b"DSSEv1 %d %s %d %s" % (len(STATEMENT), STATEMENT.encode(), len(payload), payload)
        signatures = [one.get("sig") for one in entries(envelope, "signatures") if isinstance(one, dict)]
        if not any(self._has_signed(signed, decoded(signature)) for signature in signatures[:MOST]):
            raise BadSignature("none of the keys made it")
        return payload

    def _has_signed(self, data: bytes, signature: bytes) -> bool:
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
