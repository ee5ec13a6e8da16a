"""The arithmetic of what is here."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mirror.storage.extents import Extents

intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair))), max_size=12)


@given(intervals, st.integers(0, 70))
def test_extents_are_the_set_of_their_bytes(added: list[tuple[int, int]], position: int) -> None:
    """Compared with a plain set of offsets, whatever is added in whatever order."""
    extents, model = Extents(), set[int]()
    for start, end in added:
        extents.add(start, end)
        model |= set(range(start, end))
    assert extents.total == len(model)
    pairs = list(extents)
    assert all(start < end for start, end in pairs)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(pairs))
    end = position
    while end in model:
        end += 1
    assert extents.covered_until(position) == end
    missing = [offset for offset in range(position, 64) if offset not in model]
    gap = extents.next_gap(position, 64)
    if not missing:
        assert gap is None
    else:
        assert gap is not None
        assert gap[0] == missing[0]
        assert gap[1] is not None
        assert set(range(gap[0], gap[1])).isdisjoint(model)
        assert gap[1] == 64 or gap[1] in model
