"""What the doctor says of a bucket, of a real S3 server: it does with it what the mirror does."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from mirror.doctor import Finding, Level, bucket
from mirror.doctor.bucket import examine
from tests.doctor.conftest import one, settings
from tests.support.certificates import Authority
from tests.support.s3 import S3


async def found(tree: dict[str, Any], s3: S3, **fleet: str) -> Finding:
    """The only finding."""
    tree["fleet"] = {**s3.settings, **fleet}
    return one(await examine(settings(tree)), "bucket")


def objects(s3: S3) -> list[Path]:
    return [path for path in s3.objects.rglob("*") if path.is_file()]


async def test_one_that_is_well(tree: dict[str, Any], s3: S3, tmp_path: Path) -> None:
    """Also by https with an authority of one's own, and under a prefix. What is written for that is deleted. Without a bucket there is nothing to say."""
    assert (await found(tree, s3)).level is Level.OK
    authority = Authority(tmp_path / "ca")
    s3.stop()
    s3.start("--cert", str(authority.certificate), "--key", str(authority.key))
    assert (await found(tree, s3, bucket="s3://images/some/prefix", ca_file=str(authority.ca))).level is Level.OK
    assert s3.requests("PUT", "/images/some/prefix/mirror-doctor/") == 1
    assert objects(s3) == []
    del tree["fleet"]
    assert await examine(settings(tree)) == []


BAD: dict[str, tuple[dict[str, str], dict[str, str], str, str]] = {
    "no such bucket": ({"bucket": "s3://nothing"}, {}, "answered 404 (NoSuchBucket)", "create it"),
    "another secret": (
        {},
        {"AWS_SECRET_ACCESS_KEY": "another"},
        "answered 403 (SignatureDoesNotMatch)",
        "correct the credentials",
    ),
    "another user": ({}, {"AWS_ACCESS_KEY_ID": "another"}, "answered 404 (XAdminUserNotFound)", "correct the credentials"),
    "another region": ({}, {"AWS_REGION": "eu-west-1"}, "answered 400 (AuthorizationQueryParametersError)", "set AWS_REGION"),
    "nobody listens": ({"bucket_endpoint": "http://127.0.0.1:1"}, {}, "no connection with", "start it"),
    "no credentials": (
        {"bucket": "az://account/images"},
        {"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=2"},
        "no URLs can be signed",
        "in its environment",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_with_it(tree: dict[str, Any], s3: S3, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In its own words, without a secret, and what to do."""
    fleet, environment, told, cure = BAD[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    finding = await found(tree, s3, **fleet)
    assert finding.level is Level.PROBLEM
    assert told in finding.message
    assert "Signature=" not in finding.message
    assert cure in finding.cure


async def test_one_that_may_only_be_read(tree: dict[str, Any], s3: S3) -> None:
    """Reading would go well, so /readyz tells it only once something waits to be written."""
    s3.stop()
    s3.start("--readonly")
    finding = await found(tree, s3)
    assert "cannot be written to: s3://images: it answered 403 Forbidden (AccessDenied)" in finding.message
    assert "s3:PutObject" in finding.cure


async def test_one_that_hangs_is_left(tree: dict[str, Any], s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor does not hang with it."""
    s3.signal(signal.SIGSTOP)
    assert "did not answer in 2 s" in (await found(tree, s3)).message
    monkeypatch.setattr(bucket, "_PATIENCE", 0.1)
    assert "does not answer all requests within 0.1 s" in (await found(tree, s3)).message
