"""The files of downloads: they belong together, whenever a process opens them and another ends the download, and none stays behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror import locks, regular_files
from mirror.names import Digest
from mirror.storage.disk import spool as spools
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.spool import Spool

DATA = b"blob"
DIGEST = Digest.of(DATA)


def led(store: BlobStore) -> Spool:
    """A download of which every byte is here."""
    spool = Spool(store, DIGEST)
    assert spool.lead()
    assert spool.current
    spool.set_size(len(DATA))
    spool.write(0, DATA)
    spool.note(0, len(DATA))
    return spool


@pytest.mark.parametrize("end", [Spool.publish, Spool.discard])
@pytest.mark.parametrize("opened", range(2))
def test_a_download_that_ends_while_it_is_opened_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Spool], None], opened: int
) -> None:
    """Whichever of its files the second process has opened by then."""
    store, left = BlobStore(tmp_path), [opened]
    leader = led(store)

    def open_file(path: str, flags: int) -> int:
        if left[0] == 0:
            end(leader)
            leader.release()
        left[0] -= 1
        return real(path, flags)

    real = regular_files.open_file
    monkeypatch.setattr(spools, "open_file", open_file)
    late = Spool(store, DIGEST)
    late.follow()
    if late.lead() and late.current:
        late.discard()
    late.close()
    leader.close()
    assert os.listdir(store.spool) == []


def test_a_download_that_begins_while_another_is_published_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its journal is its own: what the one before deletes is not that."""
    store = BlobStore(tmp_path)
    first, begun = led(store), list[Spool]()

    def replace(source: Path, target: Path) -> None:
        real(source, target)
        if not begun:
            begun.append(led(store))

    real = os.replace
    monkeypatch.setattr("mirror.durable.os.replace", replace)
    first.publish()
    follower = Spool(store, DIGEST)
    follower.follow()
    assert list(follower.have) == [(0, len(DATA))]
    for spool in (first, *begun, follower):
        spool.close()


def test_room_is_not_made_from_a_download_that_began_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download ends between the moment in which its file is opened, to be removed, and that in which it is locked; the one after it keeps its file."""
    store = BlobStore(tmp_path)
    first, begun = led(store), list[Spool]()

    def try_exclusive(fd: int) -> bool:
        if not begun:
            first.publish()
            first.close()
            begun.append(Spool(store, DIGEST))
        return real(fd)

    first.release()
    real = locks.try_exclusive
    monkeypatch.setattr(spools, "try_exclusive", try_exclusive)
    assert spools.make_room(store, 1) == 0
    assert begun[0].current
    begun[0].close()
