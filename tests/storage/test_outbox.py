"""The queue of what has to be written to a bucket: what enters it, what is dropped, and that nothing newer is lost with what was written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.manifests import Descriptor
from mirror.names import Digest, Repository, Tag
from mirror.storage.disk.catalog import outbox
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.store import TagRecord

REPOSITORY = Repository("docker.io", "library/app")
BLOB = Digest.of(b"blob")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "catalog"


@contextlib.contextmanager
def opened(folder: Path, bucket: str | None = "s3://images") -> Iterator[Catalog]:
    with contextlib.closing(Catalog(folder, bucket=bucket)) as catalog:
        yield catalog


def meaning(text: bytes, checked: float) -> TagRecord:
    return TagRecord(Descriptor("application/vnd.oci.image.manifest.v1+json", Digest.of(text), 10), checked)


def waiting(catalog: Catalog) -> list[str]:
    return [str(entry.reference) for entry in catalog.outbox.take(100)]


def test_what_is_added_waits_until_it_is_written(folder: Path) -> None:
    """Also over a restart; content once, however often it is added."""
    with opened(folder) as catalog:
        catalog.add(BLOB, 4)
        catalog.add(BLOB, 4)
        catalog.set_tag(REPOSITORY, "1", meaning(b"one", 1.0))
    with opened(folder) as catalog:
        assert waiting(catalog) == [str(BLOB), "1"]
        blob, tag = catalog.outbox.take(2)
        assert (blob.repository, blob.is_cached, blob.is_manifest, tag.repository) == (None, True, False, REPOSITORY)
        catalog.outbox.put_back(blob)
        assert waiting(catalog) == ["1", str(BLOB)]
        for entry in catalog.outbox.take(2):
            catalog.outbox.done(entry)
        assert waiting(catalog) == []
    with opened(folder) as catalog:
        assert waiting(catalog) == []


def test_a_tag_that_moves_while_it_is_written_is_written_again(folder: Path) -> None:
    """What was written is the old meaning. That this mirror has asked the registry for the new one is not forgotten with the old one, but once that is written."""
    with opened(folder) as catalog:
        for text in (b"one", b"two"):
            catalog.outbox.note_fetched(REPOSITORY, Tag("1"))
            catalog.set_tag(REPOSITORY, "1", meaning(text, 1.0))
            if text == b"one":
                [entry] = catalog.outbox.take(1)
        catalog.outbox.done(entry)
        [newer] = catalog.outbox.take(1)
        assert (entry.is_fetched, newer.is_fetched) == (True, True)
        catalog.outbox.done(newer)
        catalog.set_tag(REPOSITORY, "1", meaning(b"three", 3.0))
        assert [one.is_fetched for one in catalog.outbox.take(2)] == [False]


def test_a_new_bucket_gets_what_is_here_already(folder: Path) -> None:
    """And nothing waits where there is none."""
    with opened(folder, None) as catalog:
        catalog.add(BLOB, 4)
        catalog.set_tag(REPOSITORY, "1", meaning(b"one", 1.0))
    for bucket in ("s3://one", "s3://two"):
        with opened(folder, bucket) as catalog:
            assert waiting(catalog) == [str(BLOB), "1"]
            for entry in catalog.outbox.take(2):
                catalog.outbox.done(entry)


def test_too_much_drops_the_oldest_and_is_counted(folder: Path) -> None:
    """Whatever the bucket does, the queue stays bounded."""
    more = 3
    with opened(folder) as catalog:
        with catalog.changing():
            for number in range(outbox.MOST + more):
                catalog._db.execute(
                    "INSERT INTO outbox (registry, path, reference) VALUES (?, ?, ?)",
                    (REPOSITORY.registry, REPOSITORY.path, f"t{number}"),
                )
        assert catalog.outbox.counts() == (outbox.MOST, more)
        assert catalog.outbox.counts() == (outbox.MOST, 0)
        assert waiting(catalog)[0] == f"t{more}"


def test_a_new_bucket_gets_the_newest_of_too_much(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags, and what was used last; the rest is counted as dropped."""
    monkeypatch.setattr(outbox, "MOST", 3)
    with opened(folder, None) as catalog:
        contents = [Digest.of(b"%d" % number) for number in range(4)]
        for digest in contents:
            catalog.add(digest, 1)
        catalog.touch({digest: float(number) for number, digest in enumerate(contents)})
        catalog.set_tag(REPOSITORY, "1", meaning(b"one", 0.0))
    with opened(folder) as catalog:
        assert catalog.outbox.counts() == (3, 2)
        assert waiting(catalog) == [*map(str, contents[2:]), "1"]


def test_content_waits_again_once_another_repository_has_it(folder: Path) -> None:
    """Whether it may be written depends on whose it is."""
    with opened(folder) as catalog:
        catalog.possessions.note(REPOSITORY, [BLOB], True)
        assert waiting(catalog) == []
        catalog.add(BLOB, 4)
        [entry] = catalog.outbox.take(1)
        catalog.outbox.done(entry)
        catalog.possessions.note(REPOSITORY, [BLOB], True)
        assert waiting(catalog) == []
        catalog.possessions.note(Repository("quay.io", "app"), [BLOB], True)
        assert waiting(catalog) == [str(BLOB)]


def test_content_that_is_gone_or_wrong_is_told(folder: Path) -> None:
    """Gone: it need not be written. Wrong in the bucket: what is there is replaced, once."""
    with opened(folder) as catalog:
        catalog.add(BLOB, 4)
        catalog.outbox.note_wrong(BLOB)
        [entry] = catalog.outbox.take(1)
        assert entry.is_wrong
        catalog.outbox.done(entry)
        with catalog.changing():
            catalog.drop(BLOB)
        catalog.add(BLOB, 4)
        [entry] = catalog.outbox.take(1)
        assert not entry.is_wrong
        with catalog.changing():
            catalog.drop(BLOB)
        [entry] = catalog.outbox.take(1)
        assert not entry.is_cached
        assert entry.reference == BLOB


def test_a_row_that_is_no_name_is_dropped(folder: Path) -> None:
    """Whatever is in the database, the queue goes on behind it."""
    with opened(folder) as catalog:
        with catalog.changing():
            for row in (("", "", "no digest"), ("docker.io", "library/app", "/")):
                catalog._db.execute("INSERT INTO outbox (registry, path, reference) VALUES (?, ?, ?)", row)
        catalog.set_tag(REPOSITORY, Tag("1").value, meaning(b"one", 1.0))
        assert waiting(catalog) == ["1"]
        assert catalog.outbox.counts()[0] == 1
