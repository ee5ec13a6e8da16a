"""When a client that asks again is taken to have found wrong bytes."""

from __future__ import annotations

import pytest

from mirror.api.repeat_reads import RepeatReads
from mirror.names import Digest

BLOB, OTHER = Digest.of(b"blob"), Digest.of(b"other")


def test_only_who_was_given_a_blob_a_moment_ago_has_it_verified() -> None:
    """The same client, the same blob, within ten minutes."""
    now = 0.0
    repeat_reads = RepeatReads(lambda: now)
    assert not repeat_reads.is_repeat("a", BLOB)
    repeat_reads.given("a", BLOB)
    assert not repeat_reads.is_repeat("b", BLOB)
    assert not repeat_reads.is_repeat("a", OTHER)
    now = 599
    assert repeat_reads.is_repeat("a", BLOB)
    repeat_reads.given("a", OTHER)
    now = 599 + 600
    assert not repeat_reads.is_repeat("a", OTHER)


def test_a_blob_is_verified_once_an_hour() -> None:
    """A hundred machines behind one address ask for the same again and again: it is not read again for each."""
    now = 0.0
    repeat_reads = RepeatReads(lambda: now)
    told = []
    for _ in range(100):
        repeat_reads.given("a", BLOB)
        told.append(repeat_reads.is_repeat("a", BLOB))
        now += 60
    assert [number for number, one in enumerate(told) if one] == [0, 60]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask: the oldest go."""
    monkeypatch.setattr("mirror.api.repeat_reads._MOST", 10)
    repeat_reads = RepeatReads()
    for number in range(100):
        repeat_reads.given(str(number), BLOB)
    assert not repeat_reads.is_repeat("89", BLOB)
    assert repeat_reads.is_repeat("90", BLOB)
