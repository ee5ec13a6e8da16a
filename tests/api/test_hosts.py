"""Under which names the mirror answers: a page of somebody else's must not read it by DNS rebinding."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from mirror.api.hosts import KnownHosts, machine_names
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


KNOWN = [
    "", "127.0.0.1", "127.0.0.1.", "127.0.0.1:5000", "192.0.2.7:80", "[::1]", "[::1]:5000", "[fe80::1%25eth0]:5000", "localhost", "LOCALHOST.:5000", "mirror", "mirror:5000",
    "mirror.lan", "mirror.home.arpa:1", "mirror.kube.svc.cluster.local", "2130706433", "cache.example.com", "CACHE.example.com.:443", " cache.example.com ",
]  # fmt: skip
FOREIGN = [
    "evil.example", "EVIL.example.:5000", "[evil.example]", "[::1].evil.example", "[::1", "127.0.0.1@evil.example", "user:1@evil.example:80",
    "127.0.0.1:evil.example", "evil.example:127.0.0.1", "127.0.0.1, evil.example", "localhost..", "127.0.0.1.evil.example", "cache.example.com.evil.example",
    "evil.example/", "evil.example\\localhost", "evilcache.example.com", "::1",
]  # fmt: skip


@pytest.mark.parametrize(("host", "known"), [*((host, True) for host in KNOWN), *((host, False) for host in FOREIGN)])
@pytest.mark.parametrize("form", ["Host", "target"])
def test_the_forms_of_names(host: str, known: bool, form: str) -> None:
    """With ports, brackets, a trailing dot, in any case, in the Host header or the target's authority: both must be known."""
    request = Mock(headers={"Host": host if form == "Host" else "localhost"})
    request.raw_path = "/" if form == "Host" else f"http://{host}/"
    request.transport.get_extra_info = {"sockname": ("127.0.0.1", 5000)}.get
    hosts = KnownHosts(("cache.example.com",))
    if known:
        hosts.check(request, everywhere=True)
    else:
        with pytest.raises(HostUnknown):
            hosts.check(request, everywhere=True)


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
    request = Mock(headers={"Host": "evil.example"}, raw_path="/")
    request.transport.get_extra_info = {"sockname": (address, 5000), "sslcontext": tls}.get
    hosts = KnownHosts(())
    if refused:
        with pytest.raises(HostUnknown):
            hosts.check(request, everywhere=everywhere)
    else:
        hosts.check(request, everywhere=everywhere)


@pytest.mark.parametrize(
    ("file", "names", "asked"),
    [
        ("127.0.0.1 localhost\n127.0.1.1 Lab.example.com lab\n", {"lab", "lab.example.com"}, 0),
        ("127.0.1.1\tlab  lab.example.com other.example # lab.example.net\n", {"lab", "lab.example.com", "other.example"}, 0),
        ("127.0.0.1 localhost laboratory\n# 127.0.0.1 lab.example.net lab\n\n127.0.0.1\n", {"lab"}, 1),
        (None, {"lab"}, 1),
    ],
)
@pytest.mark.parametrize("ask_dns", [True, False])
def test_the_machines_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None, names: set[str], asked: int, ask_dns: bool
) -> None:
    """Those of /etc/hosts. Only where it has none with a domain is DNS asked, never offline, and nothing waits for that: it may take as long as it likes."""
    if file is not None:
        (tmp_path / "hosts").write_text(file)
    monkeypatch.setattr("mirror.api.hosts._HOSTS_FILE", str(tmp_path / "hosts"))
    monkeypatch.setattr(socket, "gethostname", lambda: "LAB")
    answer, begun = threading.Event(), []

    def getfqdn() -> str:
        begun.append(1)
        assert answer.wait(30)
        return "lab.dns.example"

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    assert machine_names() == names
    before = set(threading.enumerate())
    hosts = KnownHosts((), ask_dns=ask_dns)
    asking = set(threading.enumerate()) - before

    def known(host: str) -> bool:
        request = Mock(headers={"Host": host}, raw_path="/")
        request.transport.get_extra_info = {"sockname": ("127.0.0.1", 5000)}.get
        try:
            hosts.check(request, everywhere=True)
        except HostUnknown:
            return False
        return True

    assert all(known(name) for name in names)
    assert not known("lab.dns.example")
    answer.set()
    for thread in asking:
        thread.join()
    assert len(begun) == (asked if ask_dns else 0)
    assert known("lab.dns.example") == bool(begun)
