"""Signs bundles with Ed25519 keys (RFC 8032), and checks signatures.

``bundle.sig`` has two lines: the id of the key, which is the first 16 hex digits of the SHA-256 of the 32 bytes of the public key, and the base64 of the signature over the
bytes of ``SHA256SUMS``. That names the digest of everything else in the bundle. Keys are PEM files::

    openssl genpkey -algorithm ed25519 -out lab.key
    openssl pkey -in lab.key -pubout -out lab.pub

The library is an extra, ``registry-mirror[sign]``, because only few need it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

_EXTRA = "signing needs the extra `sign`: pip install 'registry-mirror[sign]'"


class KeyUnusable(ValueError):
    """A key file that holds no Ed25519 key of the kind that is needed, or the library is missing."""


class SignatureWrong(ValueError):
    """A bundle's signature is malformed, by another key, or not over these bytes."""


def signer(pem: bytes) -> Callable[[bytes], bytes]:
    """Returns a function that makes the content of bundle.sig for that of SHA256SUMS. Raises KeyUnusable."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise KeyUnusable(_EXTRA) from None
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise KeyUnusable(f"no private key without a password, in PEM: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable("not an Ed25519 key: `openssl genpkey -algorithm ed25519` makes one")

    def sign(sums: bytes) -> bytes:
        return f"{_key_id(key.public_key())}\n{base64.b64encode(key.sign(sums)).decode()}\n".encode()

    return sign


def verify(sums: bytes, signature: bytes, pem: bytes) -> None:
    """Checks the content of bundle.sig for that of SHA256SUMS by a public key. Raises SignatureWrong, KeyUnusable."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise KeyUnusable(_EXTRA) from None
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError) as error:
        raise KeyUnusable(f"no public key in PEM: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyUnusable("not an Ed25519 key: `openssl pkey -pubout` writes the public key of a private one")
    try:
        key_id, encoded = signature.decode("ascii").split()
        raw = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise SignatureWrong("bundle.sig is malformed: a key id and a base64 signature are expected") from None
    if key_id != _key_id(key):
        raise SignatureWrong(f"the bundle is signed by the key {key_id[:32]}, and {_key_id(key)} is required")
    try:
        key.verify(raw, sums)
    except InvalidSignature:
        raise SignatureWrong("the bundle's signature does not fit SHA256SUMS: it was changed after it was signed") from None


def _key_id(key: Any) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]
