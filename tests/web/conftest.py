"""A mirror with an image, for the dashboard to show."""

from __future__ import annotations

import os

import pytest

from tests.support.mirrors import Mirror
from tests.support.scripted import Scripted


@pytest.fixture
async def dashboard(mirror: Mirror, upstream: Scripted) -> Mirror:
    """A mirror that has one image, docker.io/library/app:1."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(2000)])
    await mirror.get("/v2/app/manifests/1")
    for blob in (*image.layers, image.config):
        await mirror.get(f"/v2/app/blobs/{blob}")
        await mirror.until_cached(blob)
    return mirror
