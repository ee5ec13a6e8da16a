"""What is served without asking upstream again."""

from __future__ import annotations

import pytest

from mirror.cache.freshness import is_fresh


@pytest.mark.parametrize(
    ("checked", "ttl", "fresh"),
    [(100.0, 10.0, True), (91.0, 10.0, True), (90.0, 10.0, False), (100.0, 0.0, False), (101.0, 10.0, False), (None, 0.0, True)],
)
def test_freshness_ends_with_the_ttl_and_with_a_clock_that_is_set_back(checked: float | None, ttl: float, fresh: bool) -> None:
    """A digest is always fresh."""
    assert is_fresh(checked, ttl, now=100.0) is fresh
