"""Where requests begin and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.api.framing import LONGEST_HEAD, Framing, HeadTooLong

GET = b"GET / HTTP/1.1\r\nHost: m\r\n\r\n"
POST = b"POST /login HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /"


def fed(*pieces: bytes) -> tuple[list[int], Framing]:
    framing = Framing()
    return [size for piece in pieces for size in framing.feed(piece)], framing


@pytest.mark.parametrize(
    ("sent", "sizes"),
    [
        (GET, [len(GET)]),
        (GET * 3, [len(GET)] * 3),
        (POST, [len(POST) - 5]),
        (POST + GET + POST, [len(POST) - 5, len(GET), len(POST) - 5]),
        (b"\r\n" + GET + b"\r\n\r\n" + GET, [len(GET)] * 2),
        (b"POST / HTTP/1.1\r\ncontent-length:\t0 \r\n\r\n" + GET, [39, len(GET)]),
    ],
)
def test_heads_are_found_however_they_come(sent: bytes, sizes: list[int]) -> None:
    """In one piece, byte by byte, and cut in two anywhere; bodies are not taken for heads."""
    for pieces in ([sent], [bytes([byte]) for byte in sent], *([sent[:cut], sent[cut:]] for cut in range(len(sent)))):
        found, framing = fed(*pieces)
        assert found == sizes
        assert framing.at_boundary


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length:\r\n 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
        b"CONNECT m:1 HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_unclear_is_not_followed(head: bytes) -> None:
    """Its head is found; whatever comes after is not taken for a request."""
    found, framing = fed(head, GET)
    assert found == [len(head)]
    assert framing.endless
    assert not framing.at_boundary


def test_a_head_may_not_be_longer_than_it_may() -> None:
    """The bound is for all of a head, not for its fields, in one piece or many."""
    most = b"GET / HTTP/1.1\r\nX: " + b"x" * (LONGEST_HEAD - 23) + b"\r\n\r\n"
    assert len(most) == LONGEST_HEAD
    assert fed(most)[0] == [LONGEST_HEAD]
    with pytest.raises(HeadTooLong):
        fed(most[:30] + b"x" + most[30:])
    with pytest.raises(HeadTooLong):
        fed(GET, *[most[:-4]] * 2)


@given(st.lists(st.sampled_from([GET, POST]), max_size=5), st.data())
def test_cuts_do_not_matter(requests: list[bytes], data: st.DataObject) -> None:
    """As many heads as requests, wherever packets end."""
    sent = b"".join(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    pieces = [sent[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    found, framing = fed(*pieces)
    assert len(found) == len(requests)
    assert framing.at_boundary
