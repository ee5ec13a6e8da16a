"""Under which names the mirror answers: a page of somebody else's must not read it by DNS rebinding."""

from __future__ import annotations

import json
import socket
from unittest.mock import Mock

import pytest

from mirror.api.hosts import KnownHosts
from mirror.errors import HostUnknown
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted

PATHS = ("/", "/v2/", "/v2/_catalog", "/v2/app/manifests/latest", "/metrics", "/healthz")


async def test_a_foreign_name_is_refused_on_loopback(mirror: Mirror, upstream: Scripted) -> None:
    """Catalog, content and dashboard alike, hot or not; the error says what to set. Addresses and the machine's own names are answered."""
    upstream.add_image("library/app", "latest")
    for host in ("127.0.0.1:5000", "[::1]:5000", "localhost", "mirror", socket.gethostname(), "mirror.lan:5000"):
        assert [(await mirror.get(path, Host=host)).status for path in PATHS] == [200] * len(PATHS), host
    for host in ("evil.example", "127.0.0.1.evil.example:5000", "localhost.evil.example"):
        for path in PATHS:
            got = await mirror.get(path, Host=host)
            assert got.status == 421
            assert "server.public_url" in json.loads(got.body)["errors"][0]["message"]


async def test_names_that_are_set_are_answered(start: StartMirror, upstream: Scripted) -> None:
    """The host of public_url, and further ones."""
    mirror: Mirror = await start(
        settings={"server": {"public_url": "https://mirror.example.com", "hosts": ["cache.example.com"]}}
    )
    upstream.add_image("library/app", "latest")
    for host in ("mirror.example.com", "MIRROR.example.com:443", "cache.example.com."):
        assert [(await mirror.get(path, Host=host)).status for path in PATHS] == [200] * len(PATHS)
    assert (await mirror.get("/", Host="other.example.com")).status == 421


@pytest.mark.parametrize(("everywhere", "address", "tls", "refused"), [
    (True, "192.0.2.1", None, True),
    (False, "192.0.2.1", None, False),
    (False, "127.0.0.1", None, True),
    (False, "::1", None, True),
    (False, "::ffff:127.0.0.1", None, True),
    (True, "127.0.0.1", object(), False),
])  # fmt: skip
def test_where_a_foreign_name_is_refused(everywhere: bool, address: str, tls: object, refused: bool) -> None:
    """The registry's API on the network is open under any name, the dashboard is not; over TLS the browser checks the name."""
    request = Mock(headers={"Host": "evil.example"})
    request.transport.get_extra_info = {"sockname": (address, 5000), "sslcontext": tls}.get
    hosts = KnownHosts(())
    if refused:
        with pytest.raises(HostUnknown):
            hosts.check(request, everywhere=everywhere)
    else:
        hosts.check(request, everywhere=everywhere)
