"""Where a response ends, and what is no response. Each case was compared with what Go's net/http makes of it; where the two differ, the case says so."""

from __future__ import annotations

import h11
import pytest

from mirror.errors import UpstreamInvalid, UpstreamUnreachable
from mirror.upstream.receiver import Response
from tests.support.raw import serving, transport

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = b"Content-Length: 2\r\n\r\n"


async def body_of(response: Response) -> bytes:
    """All of it. Raises OSError, h11.RemoteProtocolError where it breaks off."""
    got = bytearray()
    try:
        while data := await response.read(5):
            got += data
    finally:
        await response.aclose()
    return bytes(got)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        # Go refuses it; RFC 9110, section 8.6, allows to take it for one.
        OK + b"Content-Length: 2, 2\r\n\r\nok",
        OK + b"Content-Length: 02\r\n\r\nok",
        OK + b"Content-Length: 7\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"0002;name=value\r\nok\r\n00\r\n\r\n",
        CHUNKED + b'2;name="a b"\r\nok\r\n0\r\n\r\n',
        CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\nTrailer: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200\r\n" + LENGTH + b"ok",
        b"HTTP/1.1 200 Gr\xfc\xdfe\r\n" + LENGTH + b"ok",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + LENGTH + b"ok",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 5\r\n\r\n" * 9 + OK + LENGTH + b"ok",
        OK + b"Folded: a\r\n b\r\n" + LENGTH + b"ok",
        OK + b"Bytes: \xe4\xf6\r\n" + LENGTH + b"ok",
        OK + b"Long: " + b"a" * 50_000 + b"\r\n" + LENGTH + b"ok",
        OK + b"".join(b"Name-%d: a\r\n" % number for number in range(2000)) + LENGTH + b"ok",
        OK + b"Connection: disclosed\r\n" + LENGTH + b"ok",
        # Go keeps a field whose name has a space under that name, which no code asks for.
        OK + b"Spaced : a\r\n" + LENGTH + b"ok",
        OK + b"First: a\r\nTwo words: a\r\n folded\r\n" + LENGTH + b"ok",
        OK + b"Content-Length : 7\r\n" + LENGTH + b"ok",
        b"HTTP/1.1 103 Early Hints\r\nLink : </x>\r\n\r\n" + OK + b"Spaced : a\r\n" + LENGTH + b"ok",
        OK + b"Spaced : a\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n",
        OK + b"Content-Encoding: gzip\r\n" + LENGTH + b"ok",
    ],
)
async def test_a_body_ends_where_it_says_and_its_connection_serves_the_next_request(answer: bytes) -> None:
    """By length or by chunks, after any number of interim responses, with lines that end as they like: every request is answered, over one connection."""
    async with serving(answer) as server, transport() as way:
        for _ in range(3):
            assert await body_of(await way.request("GET", server.url, {})) == b"ok"
        assert (server.connections, server.requests) == (1, 3)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"\r\nok",
        OK + b"Connection: Close\r\n" + LENGTH + b"ok",
        OK + b"Connection: keep-alive\r\nConnection: x , close\r\n" + LENGTH + b"ok",
        OK + b"Connection: keep-alive, close\r\n" + LENGTH + b"ok",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\n" + LENGTH + b"ok",
        OK + LENGTH + b"ok and more",
        CHUNKED + b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ],
)
async def test_a_connection_that_ends_or_says_more_is_not_used_again(answer: bytes) -> None:
    """A body up to the end of its connection is whole there; what comes after a body is nobody's."""
    async with serving(answer, close=True) as server, transport() as way:
        for number in range(1, 4):
            assert await body_of(await way.request("GET", server.url, {})) == b"ok"
            assert (server.connections, server.requests) == (number, number)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", OK + LENGTH),
        ("HEAD", OK + LENGTH + b"ok"),
        ("HEAD", OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n"),
        ("HEAD", CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n" + LENGTH),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n" + LENGTH),
    ],
)
async def test_what_has_no_body_has_none(method: str, answer: bytes) -> None:
    """Whatever its headers say, and whatever comes all the same: the next request is not answered with it."""
    async with serving(answer) as server, transport() as way:
        for number in range(1, 4):
            response = await way.request(method, server.url, {})
            assert response.status in (200, 204, 304)
            assert await body_of(response) == b""
            assert server.requests == number


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        OK + b"Content-Length: 2, 3\r\n\r\nok",
        OK + b"Content-Length: +2\r\n\r\nok",
        OK + b"Content-Length: -2\r\n\r\nok",
        OK + b"Content-Length: 0x2\r\n\r\nok",
        OK + b"Content-Length: two\r\n\r\nok",
        OK + b"Content-Length: \r\n\r\nok",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\nok",
        OK + b"Content-Length: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\nok",
        b"HTTP/1.1 2000 OK\r\n" + LENGTH + b"ok",
        b"http/1.1 200 OK\r\n" + LENGTH + b"ok",
        b"ICY 200 OK\r\n\r\nok",
        b"<html>\r\n\r\n",
        OK + b"No colon\r\n" + LENGTH + b"ok",
        OK + b": no name\r\n" + LENGTH + b"ok",
        OK + b"Zero: a\x00b\r\n" + LENGTH + b"ok",
        OK + b"Return: a\rb\r\n" + LENGTH + b"ok",
        OK + b"Na(me): a\r\n" + LENGTH + b"ok",
        OK + b"Tab\t: a\r\n" + LENGTH + b"ok",
        OK + b"Spaced : a\r\nNa(me): a\r\n" + LENGTH + b"ok",
        OK + b" Folded: a\r\n" + LENGTH + b"ok",
        OK + LENGTH[:-2] + b"No colon : but one\x00\r\n" + b"\r\nSpaced : a\r\n\r\n",
        # Go gives it to its caller; a mirror asks for no other protocol.
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused(answer: bytes) -> None:
    """Lengths that differ or are no numbers, codings that nobody asked for, malformed heads: upstream's fault, in one line, and the connection is not used again."""
    async with serving(answer) as server, transport() as way:
        for number in range(1, 3):
            with pytest.raises(UpstreamInvalid, match="not HTTP") as raised:
                await way.request("GET", server.url, {})
            assert raised.value.message.isprintable()
            assert server.connections == number


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-"])
async def test_a_connection_that_ends_before_a_response(answer: bytes) -> None:
    """Nothing, or half of a head: no answer."""
    async with serving(answer, close=True) as server, transport() as way:
        with pytest.raises((UpstreamUnreachable, UpstreamInvalid)):
            await way.request("GET", server.url, {})
        assert server.requests == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 3\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok",
        CHUNKED + b"3\r\nok",
        CHUNKED + b"2\r\nok",
        CHUNKED + b"2\r\nok\r\n",
        CHUNKED + b"2\r\nok\r\n0",
        CHUNKED + b"2\r\nok\r\n0\r\n",
        CHUNKED + b"2\r\nok!0\r\n\r\n",
        CHUNKED + b"xy\r\nok\r\n0\r\n\r\n",
        # RFC 9112, section 7.1.1, allows this space; Go refuses it too.
        CHUNKED + b"2 ;name=value\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"2\nok\r\n0\r\n\r\n",
    ],
)
async def test_a_body_that_breaks_off_is_never_taken_for_whole(answer: bytes) -> None:
    """Short of its length, or without its last chunk."""
    async with serving(answer, close=True) as server, transport() as way:
        response = await way.request("GET", server.url, {})
        with pytest.raises((OSError, h11.RemoteProtocolError)):
            await body_of(response)
        assert server.requests == 1
