"""The log: what repeats is written once, with a count (mirror/cli/logs.py)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from mirror.cli.logs import CountRepeats
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE


class _Lines(logging.Handler):
    """Keeps what it is given, and says when there is something new."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.news = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self.news:
            self.lines.append(
                f"{record.levelname} {record.name} {record.getMessage()}" + (" +traceback" if record.exc_info else "")
            )
            self.news.notify_all()

    def until(self, count: int) -> list[str]:
        with self.news:
            assert self.news.wait_for(lambda: len(self.lines) >= count, PATIENCE), self.lines
            return self.lines


@pytest.fixture
def lines() -> _Lines:
    return _Lines()


@pytest.fixture
def log() -> Iterator[Callable[[CountRepeats], logging.Logger]]:
    """A logger with the handler as its only one."""
    logger = logging.Logger("test.repeats")
    handlers = []

    def with_handler(handler: CountRepeats) -> logging.Logger:
        handlers.append(handler)
        logger.addHandler(handler)
        return logger

    yield with_handler
    for handler in handlers:
        handler.close()


def _fail(text: str) -> None:
    raise OSError(text)


def test_what_repeats_is_written_once_and_counted_at_the_end_of_the_interval(
    lines: _Lines, log: Callable[[CountRepeats], logging.Logger]
) -> None:
    """Without another message to cause it, and the next one after that is written at once again."""
    logger = log(CountRepeats(lines, interval=1.0))
    for _ in range(1_000):
        logger.warning("no room in %s", "/cache")
    assert lines.until(2)[:2] == [
        "WARNING test.repeats no room in /cache",
        "WARNING test.repeats no room in /cache (999 more like this in 1 s)",
    ]
    assert len(lines.lines) == 2
    logger.warning("no room in %s", "/cache")
    assert lines.lines[2:] == ["WARNING test.repeats no room in /cache"]


def test_counts_are_written_when_the_program_ends(lines: _Lines, log: Callable[[CountRepeats], logging.Logger]) -> None:
    """Closing does not wait for the interval, and writes no count of what came once."""
    handler = CountRepeats(lines, interval=3600)
    logger = log(handler)
    for text in ("a", "b", "a", "c", "c", "c"):
        logger.error(text)
    handler.close()
    assert [line.removeprefix("ERROR test.repeats ") for line in lines.lines] == [
        "a",
        "b",
        "c",
        "a (1 more like this in 1 s)",
        "c (2 more like this in 1 s)",
    ]


def test_what_answers_somebody_is_written_each_time(lines: _Lines, log: Callable[[CountRepeats], logging.Logger]) -> None:
    """However often it is the same, and what repeats beside it is counted as ever."""
    handler = CountRepeats(lines, interval=3600)
    logger = log(handler)
    for _ in range(3):
        logger.info("taken", extra={"each": True})
        logger.warning("no room")
    handler.close()
    assert lines.lines == [
        "INFO test.repeats taken",
        "WARNING test.repeats no room",
        "INFO test.repeats taken",
        "INFO test.repeats taken",
        "WARNING test.repeats no room (2 more like this in 1 s)",
    ]


def test_different_messages_are_never_left_out(lines: _Lines, log: Callable[[CountRepeats], logging.Logger]) -> None:
    """Different arguments, levels, and exceptions of another text or from another place are other messages."""
    logger = log(CountRepeats(lines, interval=3600))
    for number in range(3):
        logger.warning("%s is gone", number)
    logger.error("2 is gone")
    for text in ("one", "two", "two"):
        try:
            _fail(text)
        except OSError:
            logger.exception("failed")
    try:
        raise OSError("two")
    except OSError:
        logger.exception("failed")
    assert [line.removeprefix("WARNING test.repeats ") for line in lines.lines] == [
        "0 is gone",
        "1 is gone",
        "2 is gone",
        "ERROR test.repeats 2 is gone",
        *["ERROR test.repeats failed +traceback"] * 3,
    ]


def test_one_cause_under_many_names_is_one_message(lines: _Lines, log: Callable[[CountRepeats], logging.Logger]) -> None:
    """The names may differ where the caller says what the cause is, and seconds that count down in it; another cause is another message. The last name is told with the count."""
    handler = CountRepeats(lines, interval=3600)
    logger = log(handler)
    for number in range(100):
        logger.warning("cannot keep %d: %s", number, "disk full", extra={"cause": "disk full"})
    logger.warning("cannot keep %d: %s", 7, "read-only", extra={"cause": "read-only"})
    for seconds in (3, 2):
        logger.warning("cannot keep %d: %s", 7, f"wait {seconds} s", extra={"cause": f"wait {seconds} s"})
    handler.close()
    assert [line.removeprefix("WARNING test.repeats cannot keep ") for line in lines.lines] == [
        "0: disk full",
        "7: read-only",
        "7: wait 3 s",
        "99: disk full (99 more like this in 1 s)",
        "7: wait 2 s (1 more like this in 1 s)",
    ]


def test_what_is_remembered_is_bounded(lines: _Lines, log: Callable[[CountRepeats], logging.Logger]) -> None:
    """Messages that never repeat push out the oldest, whose count is written then: nothing is lost."""
    handler = CountRepeats(lines, interval=3600)
    logger = log(handler)
    logger.warning("first")
    logger.warning("first")
    for number in range(2000):
        logger.warning("other %d", number)
    assert "WARNING test.repeats first (1 more like this in 1 s)" in lines.lines
    assert len(lines.lines) == 2002
    assert len(handler._messages) <= 256


def test_a_forked_process_counts_for_itself(tmp_path: Path) -> None:
    """Workers are forked: what the parent has counted is the parent's to tell, and a child's first line is written."""
    program = """
import logging, os
from mirror.cli import logs
logs.set_up("info", "json")
for _ in range(3): logging.warning("no room")
if not os.fork():
    for _ in range(5): logging.warning("no room")
    logging.shutdown()
    os._exit(0)
os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True, env={**os.environ}
    )
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == [
        "no room",
        "no room",
        "no room (4 more like this in 1 s)",
        "no room (2 more like this in 1 s)",
    ]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_flood_of_one_fault_is_a_few_lines(tmp_path: Path, workers: int) -> None:
    """2,000 pulls of 500 images while upstream refuses connections: a line and a count for each thing that went wrong, and nothing is uncounted."""
    running = MirrorProcess(
        tmp_path / "cache",
        {"docker.io": "http://127.0.0.1:1"},
        "--workers",
        str(workers),
        SERVER__ACCESS_LOG="false",
        LOG__FORMAT="json",
    )
    with running as mirror:
        limit = asyncio.Semaphore(50)

        async def pull(session: aiohttp.ClientSession, number: int) -> int:
            async with limit, session.get(f"{mirror.url}/v2/library/app-{number % 500}/manifests/1") as response:
                return response.status

        async with aiohttp.ClientSession() as session:
            statuses = await asyncio.gather(*(pull(session, number) for number in range(2000)))
        assert set(statuses) == {503}
        assert mirror.terminate() == 0
        entries = [json.loads(line) for line in mirror.log.splitlines() if line.startswith("{")]
    failures = [entry["message"] for entry in entries if "GET /v2/library/app-" in entry["message"]]
    counts = [int(found[1]) for message in failures if (found := re.search(r"\((\d+) more like this in \d+ s\)", message))]
    assert len(failures) - len(counts) + sum(counts) == 2000
    assert len(entries) < 30 * workers, entries
