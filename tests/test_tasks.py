"""Work in tasks of the process."""

from __future__ import annotations

import asyncio

import pytest

from mirror.tasks import BackgroundTask


async def test_a_chore_that_fails_is_told_of_and_can_be_begun_again(caplog: pytest.LogCaptureFixture) -> None:
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


async def test_a_chore_is_begun_once_and_has_ended_when_it_is_closed() -> None:
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
