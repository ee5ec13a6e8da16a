"""Work in tasks of the process."""

from __future__ import annotations

import asyncio

import pytest

from mirror.tasks import BackgroundTask, close_all


async def test_a_background_task_that_fails_is_logged_and_can_be_started_again(caplog: pytest.LogCaptureFixture) -> None:
    """Its failure is in the log at once, and neither closing nor beginning again raises it."""
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        raise OSError("no more space")

    background_task = BackgroundTask(work)
    for times in (1, 2):
        background_task.start()
        await asyncio.sleep(0)
        assert begun == times
        assert caplog.text.count("OSError: no more space") == times
    await background_task.aclose()


async def test_a_background_task_runs_once_and_has_ended_when_it_is_closed() -> None:
    """However often it is started; what it does at its end is waited for."""
    told = []

    async def work() -> None:
        told.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            told.append("ended")

    background_task = BackgroundTask(work)
    await background_task.aclose()
    background_task.start()
    background_task.start()
    await asyncio.sleep(0)
    await background_task.aclose()
    assert told == ["begun", "ended"]


async def test_all_are_closed_whatever_one_of_them_raises() -> None:
    """In order; the exception is raised in the end."""
    closed = []

    async def fail() -> None:
        closed.append("first")
        raise OSError("cannot close")

    async def close() -> None:
        closed.append("second")

    with pytest.raises(OSError, match="cannot close"):
        await close_all(fail, close)
    assert closed == ["first", "second"]
