"""A body that has begun: what goes wrong then is no second answer."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from mirror.api import context, sending
from tests.support.mirrors import Mirror
from tests.support.scripted import Scripted

SIZE = 300_000


async def cached(mirror: Mirror, upstream: Scripted) -> tuple[str, bytes]:
    blob = upstream.add_blob(data := os.urandom(SIZE))
    await mirror.get(url := f"/v2/library/app/blobs/{blob}")
    await mirror.until_cached(blob)
    return url, data


async def test_without_a_descriptor_for_sendfile_the_bytes_come_all_the_same(
    mirror: Mirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket's descriptor cannot be duplicated, since there are no more: the blob is read and written instead, whole and in ranges; upstream is not asked."""
    url, data = await cached(mirror, upstream)

    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(sending, "os", _WithoutDup(none_left))
    whole = await mirror.get(url)
    assert (whole.status, whole.cut, whole.body) == (200, False, data)
    part = await mirror.get(url, Range=f"bytes=10-{SIZE - 10}")
    assert (part.status, part.body) == (206, data[10 : SIZE - 9])
    assert upstream.count("GET", "/blobs/") == 1


class _WithoutDup:
    """The module `os`, with another `dup`."""

    def __init__(self, dup: Any) -> None:
        self.dup = dup

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), MemoryError(), OSError(errno.EIO, "I/O error")])
async def test_an_error_within_a_body_is_no_part_of_it(
    mirror: Mirror, upstream: Scripted, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ends, whatever it was: what came is the beginning of the blob, and nothing else. The next request gets all of it."""
    url, data = await cached(mirror, upstream)
    with monkeypatch.context() as patch:

        async def fail(*_: Any) -> None:
            raise error

        patch.setattr(context, "send_each", fail)
        broken = await mirror.get(url)
    assert (broken.status, broken.cut) == (200, True)
    assert data.startswith(broken.body)
    assert (await mirror.get(url)).body == data
    assert upstream.count("GET", "/blobs/") == 1
