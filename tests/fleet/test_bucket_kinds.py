"""Buckets of Google and of Azure: what URLs their objects are read by, and what is said where none can be signed. Nothing is sent."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mirror.upstream.objects import BucketFailed, Objects

ENDPOINT = "http://127.0.0.1:1/account"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Objects]:
    objects = Objects(url, ENDPOINT, None)
    yield objects
    await objects.aclose()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_azure(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """By the endpoint of the settings, with the right to read, which HEAD needs too."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(bytes(64)).decode())
    async with opened("az://account/images/some/prefix") as objects:
        url = await objects.sign(method, "a/b")
    assert str(url.with_query(None)) == f"{ENDPOINT}/images/some/prefix/a/b"
    assert (url.query["sp"], url.query["sr"]) == ("r", "b")


async def test_google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the endpoint of the settings, signed with the key of a service account."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "client_email": "mirror@lan", "private_key_id": "1", "private_key": key.decode()}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    async with opened("gs://images.lan/some/prefix") as objects:
        url = await objects.sign("GET", "a/b")
    assert str(url.with_query(None)) == f"{ENDPOINT}/images.lan/some/prefix/a/b"
    assert url.query["X-Goog-Credential"].startswith("mirror@lan/")


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=2", "set AZURE_STORAGE_ACCOUNT_KEY instead"),
        ("AZURE_SKIP_SIGNATURE", "true", "unset it"),
        ("AZURE_STORAGE_TOKEN", "token", "Storage Blob Delegator"),
    ],
)
async def test_credentials_that_sign_nothing(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str) -> None:
    """What would, is said: it is not the bucket that is unwell."""
    monkeypatch.setenv(variable, value)
    async with opened("az://account/images") as objects:
        with pytest.raises(BucketFailed, match=told):
            await objects.sign("GET", "a/b")
