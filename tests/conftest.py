"""Fixtures for tests that run the mirror inside the test's own event loop, in front of a scripted upstream."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import coverage
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from mirror import app
from mirror.config import load
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.s3 import ENVIRONMENT, S3
from tests.support.scripted import Scripted

os.environ["MIRROR_RUN_FOLDER"] = ""
"""Mirrors and commands of one test do not find each other by the machine they share."""

_BY_FILE = ("tests/e2e/", "tests/deploy/")
"""Where the tests of one file share a container runtime, a browser or a service, and come one after the other."""
_PODMAN = ("tests/e2e/test_podman.py", "tests/e2e/test_partial_pulls.py")
"""Their podmans share what lies in /var/lib and /run of the machine."""


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out each test by itself, and what comes one after the other to one process."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "podman" if path in _PODMAN else path if path.startswith(_BY_FILE) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """pytest-xdist's groups would do, but 3.8 does not see them with pytest 9.2."""
    return _Scheduling(config, log)


_MEMORY = "/dev/shm"
_ROOM = 4 * 1024**3
"""Bytes that must be free there: a run of all tests has less than a tenth of it at any moment, and a real dockerd may have more."""


def pytest_configure(config: pytest.Config) -> None:
    """Puts the tests' folders into memory, where programs can be executed and there is room: waiting for a disk to sync is most of what tests do."""
    with contextlib.suppress(OSError):
        memory = os.statvfs(_MEMORY)
        if not memory.f_flag & (os.ST_NOEXEC | os.ST_RDONLY) and memory.f_bavail * memory.f_frsize >= _ROOM:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", _MEMORY)


def pytest_xdist_auto_num_workers() -> int:
    """Tests wait as long as they compute, for timers and other processes: two more of them at once than there are cores."""
    return (os.cpu_count() or 1) + 2


_MEASURED = 3
"""Cases of a parametrized test of which coverage counts the lines: the others go the same way, and counting takes as long as they do."""
_IS_MEASURED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chooses the tests whose lines are counted."""
    cases: Counter[str] = Counter()
    for item in items:
        function = item.nodeid.partition("[")[0]
        cases[function] += 1
        item.stash[_IS_MEASURED] = cases[function] <= _MEASURED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Pauses coverage, where it runs, for tests that it does not count."""
    measuring = None if item.stash[_IS_MEASURED] else coverage.Coverage.current()
    if measuring is None:
        return (yield)
    measuring.stop()
    try:
        return (yield)
    finally:
        measuring.start()


@pytest.fixture
async def upstream() -> AsyncIterator[Scripted]:
    """A scripted registry, docker.io as far as the mirror knows."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def start(upstream: Scripted, tmp_path: Path) -> AsyncIterator[StartMirror]:
    """Starts mirrors: ``mirror = await start(tag_ttl="1s")``. Those still running at the end are stopped."""
    async with contextlib.AsyncExitStack() as running:

        async def start_one(
            directory: Path | None = None,
            endpoints: list[str] | None = None,
            settings: dict[str, Any] | None = None,
            **cache: Any,
        ) -> Mirror:
            tree: dict[str, Any] = {
                "server": {"listen": "127.0.0.1:0", "access_log": False, "drain_timeout": 2},
                "cache": {
                    "dir": str(directory or tmp_path / "cache"),
                    "negative_ttl": 0,
                    "prefetch": False,
                    "revalidate_timeout": PATIENCE,
                    **cache,
                },
                "upstream": {"connect_timeout": 1, "header_timeout": 3, "stall_timeout": 1, "attempts": 2},
                "registries": {
                    "docker.io": {
                        "endpoints": endpoints or [upstream.url],
                        "search": f"{upstream.url}/v1/search",
                        "tag_details": f"{upstream.url}/v2/repositories",
                    }
                },
            }
            for table, values in (settings or {}).items():
                if isinstance(values, list):
                    tree[table] = values
                else:
                    tree.setdefault(table, {}).update(values)
            stack = contextlib.AsyncExitStack()
            url = await stack.enter_async_context(app.running(load(None, {}, tree)))
            session = await stack.enter_async_context(aiohttp.ClientSession(url, auto_decompress=False))
            mirror = Mirror(url, session, Path(tree["cache"]["dir"]), stack)
            running.push_async_callback(mirror.stop)
            return mirror

        yield start_one


@pytest.fixture
async def mirror(start: StartMirror) -> Mirror:
    """A mirror with the tests' usual settings."""
    return await start()


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A real S3 server with an empty bucket; its credentials are in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    server = S3(tmp_path / "s3")
    yield server
    server.stop()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
