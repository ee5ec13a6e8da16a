"""Documents of images that clients do not get yet, read for a person."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from mirror import wiring
from mirror.cache.cache import Cache
from mirror.config import load
from mirror.errors import ManifestUnknown, MirrorError
from mirror.names import Digest, Repository
from tests.support.scripted import Corrupt, Scripted

APP = Repository("docker.io", "library/app")


def opened(tmp_path: Path, upstream: Scripted) -> AbstractAsyncContextManager[Cache]:
    registries = {"docker.io": {"endpoints": [upstream.url]}}
    hosted = {"repositories": ["team/*"]}
    waits = {"connect_timeout": 1, "header_timeout": 1, "stall_timeout": 1, "attempts": 1}
    tree = {"cache": {"dir": str(tmp_path / "cache")}, "registries": registries, "hosted": hosted, "upstream": waits}
    return wiring.opened(load(None, {}, tree))


async def test_nobody_is_asked_about_what_lives_here(tmp_path: Path, upstream: Scripted) -> None:
    """The names of hosted repositories are no registry's affair."""
    async with opened(tmp_path, upstream) as cache:
        with pytest.raises(ManifestUnknown, match="lives in this mirror"):
            await cache.previews.documents(Repository("docker.io", "team/app"), Digest.of(b"1"), [None])
    assert upstream.asked == []


async def test_no_wrong_byte_is_shown(tmp_path: Path, upstream: Scripted) -> None:
    """A configuration that is not what its digest says is an error, and the next who asks gets the right one."""
    image = upstream.add_image("library/app", configuration={"config": {"User": "ann"}, "rootfs": {"type": "layers"}})
    upstream.fail(str(image.config), Corrupt(3), times=3)
    async with opened(tmp_path, upstream) as cache:
        with pytest.raises(MirrorError):
            await cache.previews.documents(APP, image.digest, [None])
        upstream.heal()
        [found] = await cache.previews.documents(APP, image.digest, [None])
        assert found.settings.user == "ann"
        assert await cache.store.manifest(image.digest) is None
