"""What is known of users and tokens as their files change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.access.access import Access
from mirror.access.tokens import add_token
from mirror.access.users import Users, read_users

HASH = "$2b$04$" + "a" * 53


async def test_a_file_that_could_not_be_read_is_read_once_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing in it need change for that: a disk may have failed, or its owner be another one now. It is logged once, and does not keep tokens from being read."""
    file = tmp_path / "users"
    file.write_text(f"alice:{HASH}\n")
    add_token(tmp_path / "access" / "tokens", "ci", None, (), None)

    def refused(path: Path) -> Users:
        raise PermissionError(13, "Permission denied", str(path))

    def with_reader(reader: Callable[[Path], Users]) -> None:
        monkeypatch.setattr("mirror.access.access.read_users", reader)

    found = Access(tmp_path / "access", file)
    with_reader(refused)
    with caplog.at_level(logging.ERROR):
        await found._read()
        await found._read()
    assert len(caplog.records) == 1
    assert not found.identities.users.hashes
    assert len(found.identities.tokens.by_digest) == 1
    with_reader(read_users)
    version = found.version
    await found._read()
    assert list(found.identities.users.hashes) == ["alice"]
    assert found.version > version
    version = found.version
    await found._read()
    assert found.version == version
    await found.identities.aclose()
