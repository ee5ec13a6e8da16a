"""Proxies, as people who know Go's clients expect them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from yarl import URL

from mirror.errors import UpstreamUnreachable
from mirror.upstream.proxies import Fixed, Proxies, Proxy, way
from mirror.upstream.transport import Connections, Timeouts, Transport

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
        ("foo.com", "http://FOO.com/", True),
        ("FOO.com", "http://a.b.foo.com/", True),
        ("foo.com", "http://foo.com./", False),
        ("foo.com.", "http://foo.com./", True),
        ("foo.com.", "http://foo.com/", False),
        ("foo.com:80", "http://foo.com/", True),
        ("foo.com:80", "https://foo.com/", False),
        ("foo.com:", "https://foo.com/", True),
        (".foo.com:80", "http://x.foo.com/", True),
        ("*.foo.com:81", "http://x.foo.com/", False),
        ("[foo.com]:80", "http://foo.com/", True),
        ("foo.com:80:90", "http://foo.com/", False),
        ("*foo.com", "http://xfoo.com/", False),
        ("*:80", "http://foo.com/", False),
        (":80,.:81,/8,[]:80", "http://foo.com/", False),
        ("a, * ,b", "http://foo.com/", True),
        ("bücher.example", "http://bücher.example/", True),
        ("*.bücher.example", "http://x.bücher.example/", True),
        ("xn--bcher-kva.example", "http://bücher.example/", True),
        ("0.1", "http://10.0.0.1/", False),
        ("10.0.0.5/8", "http://10.9.9.9/", True),
        ("10.0.0.0/255.0.0.0", "http://10.0.0.1/", False),
        ("10.0.0.1:", "https://10.0.0.1/", True),
        ("[10.0.0.1]:80", "http://10.0.0.1/", True),
        ("::ffff:10.0.0.0/104", "http://10.1.1.1/", True),
        ("::/0", "http://10.1.1.1/", False),
        ("fd00::5", "http://[fd00::5]:81/", True),
        ("[fd00::5]", "http://[fd00::5]/", False),
        ("[::1", "http://[fd00::5]/", False),
        ("foo.com", "http://xfoo.com/", False),
        (" foo.com , bar ", "https://bar/", True),
        ("10.0.0.0/99,nonsense:,", "http://10.0.0.1/", False),
        ("", "http://127.0.0.1:5000/", True),
        ("", "http://127.8.9.1/", True),
        ("", "http://[::1]/", True),
        ("", "http://[::ffff:127.0.0.1]/", True),
        ("10.0.0.0/8", "http://[::ffff:10.0.0.1]/", True),
        ("", "https://localhost/", True),
        ("", "https://LocalHost./", True),
        ("", "http://registry/", False),
        ("", "https://registry/", False),
    ],
)
def test_no_proxy_means_what_it_means_to_go(exceptions: str, url: str, direct: bool) -> None:
    """Networks, ports, subdomains; and the machine itself is never reached through a proxy.

    All but ``localhost`` was compared with golang.org/x/net/http/httpproxy 0.59, which takes its spellings for other names.
    """
    found = Proxies({**PROXY, "NO_PROXY": exceptions}).of(URL(url))
    assert (found is None) == direct
    if found is not None:
        assert str(found.url) == ("http://proxy:3128" if url.startswith("http:") else "http://proxy:3129")


def test_the_upper_case_variable_counts_first() -> None:
    """As Go has it; the lower case one counts where the other is not set."""
    assert str(Proxies({**PROXY, "http_proxy": "http://other:1"}).of(URL("http://x/")).url) == "http://proxy:3128"  # type: ignore[union-attr]
    assert str(Proxies({"http_proxy": "http://other:1"}).of(URL("http://x/")).url) == "http://other:1"  # type: ignore[union-attr]
    assert Proxies({"http_proxy": "http://other:1"}).of(URL("https://x/")) is None


def test_all_proxy_counts_where_no_other_does() -> None:
    """As curl has it, whose users set it; NO_PROXY and loopback are exceptions from it too."""
    found = Proxies({"all_proxy": "socks5h://p", "HTTPS_PROXY": "http://q:1", "NO_PROXY": "lan"})
    assert str(found.of(URL("http://x/")).url) == "socks5h://p:1080"  # type: ignore[union-attr]
    assert str(found.of(URL("https://x/")).url) == "http://q:1"  # type: ignore[union-attr]
    assert found.of(URL("http://lan/")) is None
    assert found.of(URL("http://127.0.0.1/")) is None


@pytest.mark.parametrize(
    ("value", "url", "resolves"),
    [
        ("proxy", "http://proxy/", True),
        ("http://proxy:3128", "http://proxy:3128/", True),
        ("https://proxy", "https://proxy/", True),
        ("socks5://proxy", "socks5://proxy:1080", False),
        ("socks5h://u:p@proxy:1", "socks5h://proxy:1", True),
    ],
)
def test_every_kind_of_proxy_has_its_port_and_says_who_resolves(value: str, url: str, resolves: bool) -> None:
    """The usual port where none is given; user and password are not in the URL, which gets into errors."""
    found = Proxies({"HTTPS_PROXY": value}).of(URL("https://x/"))
    assert found is not None
    assert (str(found.url).rstrip("/"), found.resolves) == (url.rstrip("/"), resolves)
    assert found.credentials() == (("u", "p") if "@" in value else None)


def test_a_setting_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry's own proxy, else what holds for all; `none` is none, and a loopback host goes through a proxy that a setting names."""
    monkeypatch.setenv("HTTP_PROXY", "http://env:1")
    monkeypatch.setenv("NO_PROXY", "")
    url, everywhere = URL("http://x/"), Fixed(None)
    assert way(None, None, everywhere, "o") is everywhere
    assert way("none", None, everywhere, "o").of(url) is None
    assert str(way("environment", None, everywhere, "o").of(url).url) == "http://env:1"  # type: ignore[union-attr]
    file = tmp_path / "credentials"
    file.write_text("robot:hunter2:x\n")
    chosen = way("socks5h://proxy", file, everywhere, "upstream.proxy").of(URL("http://127.0.0.1/"))
    assert chosen is not None
    assert chosen.credentials() == ("robot", "hunter2:x")
    file.write_text("robot:changed\n")
    assert chosen.credentials() == ("robot", "changed"), "read at each use"
    assert "hunter2" not in repr(chosen)


@pytest.mark.parametrize("value", ["ftp://p", "socks4://p", "http://p:99999", "http://", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_refused_in_words(value: str) -> None:
    """At the start, by the variable's name: not by speaking HTTP to what speaks something else."""
    with pytest.raises(OSError, match="HTTPS_PROXY"):
        Proxies({"HTTPS_PROXY": value})


@pytest.mark.parametrize(
    ("user", "password", "reply", "host", "expected"),
    [
        ("jane", "pässw0rd", b"", "registry.lan", "its user and password must be ASCII"),
        ("jané", "hunter2", b"", "registry.lan", "its user and password must be ASCII"),
        ("jane", "p" * 256, b"", "registry.lan", "its user and password must be ASCII, of 255 characters at most"),
        ("jane", "pw", b"\5\0\0\3\1\xff\0\1", "registry.lan", "it sent a malformed reply"),
        ("jane", "pw", b"", f"{'a' * 64}.lan", "cannot be sent the name of the host"),
        ("jane", "pw", b"", ".".join(["a" * 60] * 5), "cannot be sent the name of the host"),
    ],
)
async def test_what_socks_cannot_carry_is_the_proxys_failure_and_shows_no_secret(
    user: str, password: str, reply: bytes, host: str, expected: str
) -> None:
    """It is not an answer of upstream, and no error quotes a character of the user or password."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            for answer in (b"\5\2", b"\1\0", reply):
                if not await reader.read(1024):
                    break
                writer.write(answer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = URL(f"socks5h://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        proxy = Proxy(url, lambda: (user, password), "upstream.proxy")
        transport = Transport(Timeouts(5, 5, 5, 1), Connections(1, 1, 1), Fixed(proxy))
        try:
            with pytest.raises(UpstreamUnreachable) as raised:
                await transport.request("GET", URL(f"http://{host}/"), {})
        finally:
            await transport.aclose()
    message = raised.value.message
    assert f"the proxy {url} (upstream.proxy): " in message
    assert expected in message
    assert "codec" not in message
    assert password not in message
