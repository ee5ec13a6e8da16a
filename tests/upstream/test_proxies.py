"""Proxies and trust, as people who know Go's clients expect them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yarl import URL

from mirror.errors import UpstreamInvalid, UpstreamUnreachable
from mirror.upstream.proxies import Proxies
from mirror.upstream.transport import Connections, Timeouts, Transport
from mirror.upstream.trust import trusting
from tests.support.certificates import Authority

PROXY = {"HTTP_PROXY": "http://proxy:3128", "HTTPS_PROXY": "proxy:3129"}


@pytest.mark.parametrize(
    ("exceptions", "url", "direct"),
    [
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("10.0.0.0/8", "http://ten.lan/", False),
        ("fd00::/8", "http://[fd00::5]/", True),
        ("[fd00::5]:80", "http://[fd00::5]/", True),
        ("[fd00::5]:81", "http://[fd00::5]/", False),
        ("lan:5000", "http://lan:5000/", True),
        ("lan:5000", "http://lan:5001/", False),
        ("192.168.1.1:80", "http://192.168.1.1/", True),
        ("192.168.1.1", "http://192.168.1.10/", False),
        ("foo.com,*", "http://bar/", True),
        ("*.foo.com", "http://x.foo.com/", True),
        ("*.foo.com", "http://foo.com/", False),
        (".foo.com", "http://x.foo.com/", True),
        (".foo.com", "http://foo.com/", False),
        ("foo.com", "http://x.foo.com/", True),
        ("foo.com", "http://FOO.com./", True),
        ("foo.com", "http://xfoo.com/", False),
        (" foo.com , bar ", "https://bar/", True),
        ("10.0.0.0/99,nonsense:,", "http://10.0.0.1/", False),
        ("", "http://127.0.0.1:5000/", True),
        ("", "http://127.8.9.1/", True),
        ("", "http://[::1]/", True),
        ("", "http://[::ffff:127.0.0.1]/", True),
        ("10.0.0.0/8", "http://[::ffff:10.0.0.1]/", True),
        ("", "https://localhost/", True),
        ("", "http://registry/", False),
        ("", "https://registry/", False),
    ],
)
def test_no_proxy_means_what_it_means_to_go(exceptions: str, url: str, direct: bool) -> None:
    """Networks, ports, subdomains; and the machine itself is never reached through a proxy."""
    found = Proxies({**PROXY, "NO_PROXY": exceptions}).of(URL(url))
    assert (found is None) == direct
    if found is not None:
        assert str(found.url) == ("http://proxy:3128" if url.startswith("http:") else "http://proxy:3129")


def test_the_upper_case_variable_counts_first() -> None:
    """As Go has it; the lower case one counts where the other is not set."""
    assert str(Proxies({**PROXY, "http_proxy": "http://other:1"}).of(URL("http://x/")).url) == "http://proxy:3128"  # type: ignore[union-attr]
    assert str(Proxies({"http_proxy": "http://other:1"}).of(URL("http://x/")).url) == "http://other:1"  # type: ignore[union-attr]
    assert Proxies({"http_proxy": "http://other:1"}).of(URL("https://x/")) is None
    assert Proxies({"all_proxy": "http://other:1"}).of(URL("https://x/")) is None


@pytest.mark.parametrize(
    "value", ["socks5://p:1080", "socks5h://p", "https://p", "ftp://p", "http://p:99999", "http://", "http://[::1"]
)
def test_a_proxy_that_cannot_be_used_is_refused_in_words(value: str) -> None:
    """At the start, by the variable's name: not by speaking HTTP to what speaks something else."""
    with pytest.raises(OSError, match="HTTPS_PROXY"):
        Proxies({"HTTPS_PROXY": value})


@pytest.mark.parametrize("trusted", ["root", "leaf"])
async def test_a_ca_file_adds_to_the_systems_roots(tmp_path: Path, trusted: str) -> None:
    """A root, or a server's certificate alone, is trusted beside all that the system trusts."""
    authority = Authority(tmp_path)
    file = authority.ca if trusted == "root" else authority.certificate
    context = trusting(file)
    assert len(context.get_ca_certs()) > len(ssl.create_default_context(cafile=file).get_ca_certs()) or trusted == "leaf"
    assert context.cert_store_stats()["x509"] >= trusting(None).cert_store_stats()["x509"] + 1
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority.certificate, authority.key)
    async with served(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", tls) as url:
        transport = Transport(Timeouts(2, 5, 1, 1), Connections(1, 1, 1))
        try:
            response = await transport.request("GET", URL(url), {}, tls=context)
            assert bytes(await response.read(2)) == b"ok"
            await response.aclose()
            with pytest.raises(UpstreamUnreachable, match="TLS"):
                await transport.request("GET", URL(url), {})
        finally:
            await transport.aclose()


@contextlib.asynccontextmanager
async def served(answer: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that answers every request with these bytes."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        ("GET", b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        ("GET", b"Content-Length: 2, 2\r\n\r\nok", b"ok"),
        ("GET", b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
        ("HEAD", b"Content-Length: 2\r\n\r\nok", b""),
        ("HEAD", b"Content-Length: 2\r\n\r\n", b""),
        ("GET", b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", None),
        ("GET", b"Content-Length: +2\r\n\r\nok", None),
        ("GET", b"Content-Length: two\r\n\r\nok", None),
    ],
)
async def test_responses_are_framed_as_go_frames_them(method: str, answer: bytes, body: bytes | None) -> None:
    """What is said twice alike is said once, chunks count before a length, and a body after a HEAD is nobody's: the next request is answered as the first."""
    transport = Transport(Timeouts(2, 5, 1, 1), Connections(1, 1, 1))
    try:
        async with served(b"HTTP/1.1 200 OK\r\n" + answer) as url:
            for _ in range(3):
                try:
                    response = await transport.request(method, URL(url), {})
                except UpstreamInvalid:
                    assert body is None
                    continue
                got = bytearray()
                while data := await response.read(2):
                    got += data
                await response.aclose()
                assert bytes(got) == body
            await transport.aclose()
    finally:
        await transport.aclose()
