"""Faults of a registry that come together: none of them hides another."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support.mirrors import Mirror
from tests.support.scripted import (
    Chunked,
    Corrupt,
    Cut,
    Delay,
    Fault,
    Headers,
    Length,
    NoRange,
    Rate,
    Scripted,
    Status,
    WrongRange,
)

SIZE = 300_000

BLOBS: dict[str, Callable[[], Fault]] = {
    "late, and cut": lambda: Delay(0.1) & Cut(50_000),
    "without a length, and cut": lambda: Chunked() & Cut(50_000),
    "without a length, and wrong": lambda: Chunked() & Corrupt(10),
    "too long by its length, and wrong": lambda: Length(SIZE + 5000) & Corrupt(10),
    "cut, and wrong before": lambda: Cut(50_000) & Corrupt(10),
    "cut, and goes on without ranges": lambda: NoRange() & Cut(100_000),
    "cut, and goes on elsewhere": lambda: WrongRange() & Cut(100_000),
    "slow, late, and wrong at the end": lambda: Rate(SIZE * 4) & Delay(0.1) & Corrupt(SIZE - 1),
    "late, and refused": lambda: Delay(0.1) & Status(503),
}


@pytest.mark.parametrize("faults", BLOBS.values(), ids=BLOBS.keys())
async def test_a_blob_whose_faults_come_together(mirror: Mirror, upstream: Scripted, faults: Callable[[], Fault]) -> None:
    """In two answers in a row: the client has all of the right bytes, or can tell that it has not; nothing wrong is kept, and then it is fetched and kept."""
    blob = upstream.add_blob(data := os.urandom(SIZE))
    upstream.fail(str(blob), faults(), faults())
    url = f"/v2/library/app/blobs/{blob}"
    first = await mirror.get(url)
    assert first.body == data or first.cut or first.status == 503, (first.status, len(first.body))
    # A connection that breaks is followed by six others at most.
    assert upstream.count("GET", str(blob)) <= 7
    upstream.heal()
    again = await mirror.get(url)
    assert (again.status, again.cut, again.body) == (200, False, data)
    await mirror.until_cached(blob)
    asked = upstream.count("GET", str(blob))
    assert (await mirror.get(url)).body == data
    assert upstream.count("GET", str(blob)) == asked


MANIFESTS: dict[str, Callable[[], Fault]] = {
    "late, and of another type": lambda: Delay(0.1) & Headers({"Content-Type": "text/html"}),
    "wrong, and without its digest": lambda: Corrupt(5) & Headers({"Docker-Content-Digest": None}),
    "wrong, and named by a digest that is none": lambda: Corrupt(5) & Headers({"Docker-Content-Digest": "sha256:no"}),
    "late, and refused": lambda: Delay(0.1) & Status(503),
}


@pytest.mark.parametrize("faults", MANIFESTS.values(), ids=MANIFESTS.keys())
async def test_a_manifest_whose_faults_come_together(mirror: Mirror, upstream: Scripted, faults: Callable[[], Fault]) -> None:
    """By digest: its very bytes, or an error; the next request has them."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail(str(image.digest), faults(), faults())
    url = f"/v2/library/app/manifests/{image.digest}"
    first = await mirror.get(url)
    assert (first.status, first.body) == (200, image.body) or first.status == 503, (first.status, first.body)
    assert upstream.count("GET", str(image.digest)) <= 3
    upstream.heal()
    assert (await mirror.get(url)).body == image.body
