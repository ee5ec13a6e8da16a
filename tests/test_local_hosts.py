"""Which hosts are this machine: passwords may go there by http, and what comes from there may push."""

from __future__ import annotations

import pytest

from mirror.local_hosts import is_loopback, is_private_name


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.255.0.9", "::1", "::1%lo", "::ffff:127.0.0.1"])
def test_a_loopback_host_is_known(host: str) -> None:
    """As it is in URLs and of sockets."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "127.1",
        "0177.0.0.1",
        "0.0.0.0",
        "::",
        "127.0.0.1%lo",
        "::ffff:10.0.0.1",
        "128.0.0.1",
    ],
)
def test_no_other_host_is_taken_for_one(host: str | None) -> None:
    """What resolvers may lead elsewhere, or read otherwise, is none."""
    assert not is_loopback(host)


def test_names_that_nobody_owns_are_private() -> None:
    """Addresses are not names."""
    assert all(map(is_private_name, ("laptop", "mirror.lan", "mirror.svc.cluster.local", "a.localhost")))
    assert not any(map(is_private_name, ("mirror.example.com", "lan.example.com", "8.8.8.8", "2600::1")))
