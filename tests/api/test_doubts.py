"""When a client that asks again is taken to have found wrong bytes."""

from __future__ import annotations

import pytest

from mirror.api.doubts import Doubts
from mirror.names import Digest

BLOB, OTHER = Digest.of(b"blob"), Digest.of(b"other")


def test_only_who_was_given_a_blob_a_moment_ago_doubts_it() -> None:
    """The same client, the same blob, within ten minutes."""
    now = 0.0
    doubts = Doubts(lambda: now)
    assert not doubts.doubts("a", BLOB)
    doubts.given("a", BLOB)
    assert not doubts.doubts("b", BLOB)
    assert not doubts.doubts("a", OTHER)
    now = 599
    assert doubts.doubts("a", BLOB)
    doubts.given("a", OTHER)
    now = 599 + 600
    assert not doubts.doubts("a", OTHER)


def test_a_blob_is_doubted_once_an_hour() -> None:
    """A hundred machines behind one address ask for the same again and again: it is not read again for each."""
    now = 0.0
    doubts = Doubts(lambda: now)
    told = []
    for _ in range(100):
        doubts.given("a", BLOB)
        told.append(doubts.doubts("a", BLOB))
        now += 60
    assert [number for number, one in enumerate(told) if one] == [0, 60]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask: the oldest go."""
    monkeypatch.setattr("mirror.api.doubts._MOST", 10)
    doubts = Doubts()
    for number in range(100):
        doubts.given(str(number), BLOB)
    assert not doubts.doubts("89", BLOB)
    assert doubts.doubts("90", BLOB)
