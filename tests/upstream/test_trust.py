"""Certificates of upstreams: what an operator trusts, beside what the system trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from mirror.errors import UpstreamUnreachable
from mirror.upstream.trust import trusting
from tests.support.certificates import Authority
from tests.support.raw import Raw, serving, transport

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def answers(context: ssl.SSLContext, server: Raw) -> bool:
    """True where a server is trusted."""
    async with transport() as way:
        try:
            response = await way.request("GET", server.url, {}, tls=context)
        except UpstreamUnreachable as error:
            return "TLS" not in error.message
        response.release()
        return True


@pytest.mark.parametrize(
    ("trusted", "chain", "accepted"),
    [
        ("root", "leaf and intermediate", True),
        ("root", "leaf", False),
        ("intermediate", "leaf and intermediate", True),
        ("intermediate", "leaf", True),
        ("leaf", "leaf and intermediate", True),
        ("leaf", "leaf", True),
        ("other", "leaf and intermediate", False),
        ("other leaf", "leaf", False),
    ],
)
async def test_a_ca_file_may_hold_any_certificate_of_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: str, chain: str, accepted: bool
) -> None:
    """A root, an intermediate or the server's own, as Go has it; and no stranger's. The system's certificates stay trusted beside it, read the same way."""
    root = Authority(tmp_path / "root")
    intermediate = Authority(tmp_path / "intermediate", root)
    other, system = Authority(tmp_path / "other"), Authority(tmp_path / "system", Authority(tmp_path / "above"))
    files = {
        "root": root.ca,
        "intermediate": intermediate.ca,
        "leaf": intermediate.certificate,
        "other": other.ca,
        "other leaf": other.certificate,
    }
    monkeypatch.setenv("SSL_CERT_FILE", str(system.ca))
    context = trusting(files[trusted])
    sent = tmp_path / "chain.pem"
    sent.write_bytes(intermediate.certificate.read_bytes() + (intermediate.ca.read_bytes() if "and" in chain else b""))
    ours, systems = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(sent, intermediate.key)
    systems.load_cert_chain(system.certificate, system.key)
    async with serving(ANSWER, ours) as server, serving(ANSWER, systems) as known:
        assert await answers(context, server) == accepted
        assert await answers(context, known)
        assert await answers(trusting(None), known)
        assert not await answers(trusting(None), server)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_file_that_holds_none_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    """At the start, not by trusting nobody later."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OSError):
        trusting(file)
