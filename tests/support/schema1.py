"""Signed manifests of schema 1, as Docker made them until 2017."""

from __future__ import annotations

import base64
import json
from typing import Any


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def sign(payload: bytes, **more: Any) -> bytes:
    """A schema 1 manifest with a signature in it, as libtrust writes it: before the last brace."""
    length = payload.rindex(b"\n}")
    protected = {"formatLength": length, "formatTail": base64url(payload[length:]), "time": "2016-01-01T00:00:00Z"}
    signature = {"header": {"alg": "ES256"}, "signature": "c2ln", "protected": base64url(json.dumps(protected).encode())}
    return payload[:length] + b',\n   "signatures": ' + json.dumps([signature | more]).encode() + payload[length:]


PAYLOAD = json.dumps(
    {"schemaVersion": 1, "name": "library/app", "tag": "old", "architecture": "amd64", "fsLayers": [], "history": []}, indent=3
).encode()
