"""The access log's own thread: whoever reads the lines holds up no request."""

from __future__ import annotations

import io
import json
import threading

import pytest

from mirror.api import access
from mirror.api.access import AccessLog
from tests.support.mirrors import until


class Slow(io.StringIO):
    """Takes nothing until `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.open = threading.Event()

    def write(self, text: str) -> int:
        self.asked.set()
        self.open.wait()
        return super().write(text)


class Broken(io.StringIO):
    """Nobody reads it any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def note(log: AccessLog, reference: str) -> None:
    log.note("::1", "GET", "docker.io/library/app", reference, "/v2/", 200, 1, 0.1, "mirror; hit", "test", True)


async def test_lines_beyond_a_bound_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that stands still costs memory up to a bound, and no request waits for it; how many lines are missing is in the log when it moves again."""
    monkeypatch.setattr(access, "_MOST_WAITING", 3)
    monkeypatch.setattr(access, "_PAUSE", 0.0)
    stream = Slow()
    log = AccessLog(stream)
    try:
        note(log, "first")
        assert stream.asked.wait(10)
        for number in range(10):
            note(log, str(number))
    finally:
        stream.open.set()
    await until(lambda: "dropped_lines" in stream.getvalue())
    log.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["reference"] for line in lines if "reference" in line] == ["first", "0", "1", "2"]
    assert [line["dropped_lines"] for line in lines if "dropped_lines" in line] == [7]


async def test_a_log_that_nobody_reads_any_more_keeps_nothing() -> None:
    """Its pipe is closed: requests go on, and their lines are not kept in memory for ever."""
    log = AccessLog(Broken())
    note(log, "first")
    await until(lambda: not log.running)
    for number in range(10):
        note(log, str(number))
    assert log.waiting == 0
    log.close()
