"""What `mirror doctor` says of webhooks."""

from __future__ import annotations

import socket

import pytest

from mirror.config import load
from mirror.doctor import Level, webhooks
from tests.support.receiver import Receiver


async def test_a_name_without_an_address_is_found_and_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the host alone: the rest of the URL, which may be a secret, is not shown."""
    real = socket.getaddrinfo

    def resolve(host: str, *rest: object, **more: object) -> object:
        if host == "hooks.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with Receiver() as receiver:
        tables = [{"url": receiver.url}, {"name": "gone", "url": "https://hooks.invalid/s3cr3t"}]
        well, gone = await webhooks.examine(load(None, {}, {"webhook": tables}))
        assert not receiver.posts
    assert (well.level, well.check, well.message) == (
        Level.OK,
        "webhook 1",
        "127.0.0.1 has the address 127.0.0.1; nothing was sent to it",
    )
    assert (gone.level, gone.check) == (Level.PROBLEM, "webhook gone")
    assert gone.message == "hooks.invalid has no address: Name or service not known"
