"""What is remembered of those who guess the admin token."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirror.access import guesses
from mirror.errors import AdminNeeded, TooManyGuesses
from mirror.web.admin import Admin
from mirror.web.sessions import EndedSessions


async def test_what_is_remembered_of_guesses_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many addresses at most; the one that has guessed least recently is forgotten first, and is slowed again when it goes on."""
    monkeypatch.setattr(guesses, "_MOST_REMEMBERED", 2)
    monkeypatch.setattr(guesses, "DELAY", 0)
    guarded = Admin("right", EndedSessions(tmp_path))

    async def guess(address: str) -> type[Exception]:
        request: Any = SimpleNamespace(remote=address)
        with pytest.raises((AdminNeeded, TooManyGuesses)) as raised:
            await guarded.begin(request, "wrong")
        return raised.type

    assert [await guess("192.0.2.1") for _ in range(6)] == [AdminNeeded] * 5 + [TooManyGuesses]
    assert await guess("192.0.2.2") is AdminNeeded
    assert await guess("192.0.2.1") is TooManyGuesses
    # A third one: the second is forgotten, the first is not.
    assert await guess("192.0.2.3") is AdminNeeded
    assert await guess("192.0.2.1") is TooManyGuesses
    assert await guess("192.0.2.4") is AdminNeeded
    assert await guess("192.0.2.5") is AdminNeeded
    assert [await guess("192.0.2.1") for _ in range(6)] == [AdminNeeded] * 5 + [TooManyGuesses]
