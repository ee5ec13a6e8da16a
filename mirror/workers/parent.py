"""The parent process: binds the address, forks the workers, and replaces each one that dies or hangs.

It serves no requests and has no threads or event loop, so forking is safe.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mirror import metrics
from mirror.backoff import doubled
from mirror.config import Server
from mirror.locks import try_exclusive, try_shared
from mirror.workers.acceptor import listen
from mirror.workers.context import WorkerContext

log = logging.getLogger(__name__)

_ABSENT = 2**62
"""The number of connections of a worker that does not run: no other worker waits for it to take one."""
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SHORT_LIVED = 10.0
"""Seconds; a worker that lived shorter is replaced after a pause, which doubles each time."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_MOST_STILLBORN = 10
"""Workers in a row that died before they served; after so many the parent gives up, unless another worker serves."""
_START_INTERVAL = 0.02
"""Seconds between checks while workers start."""
_WATCH = 10.0
"""Seconds between checks otherwise."""
_HUNG = 60.0
"""Seconds without a sign of life after which a worker is killed. Other workers wait for its downloads, and take them over when it is dead."""
_GRACE = 10.0
"""Seconds beyond the time for draining after which workers are killed."""


@dataclass(frozen=True, slots=True)
class _Worker:
    pid: int
    began: float


def prepare() -> Path:
    """Returns an empty folder for files that workers share. The first call makes it and executes the program again, in this process. Raises OSError.

    prometheus_client reads the folder's name from the environment when it is imported ("Multiprocess Mode"), which is before the settings are read.
    """
    prefix = f"{metrics.FOLDER}{os.getpid()}-"
    folder = Path(os.environ.get(metrics.VARIABLE, ""))
    if not folder.name.startswith(prefix):
        _clear_away()
        os.environ[metrics.VARIABLE] = tempfile.mkdtemp(prefix=prefix)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    return folder


def _clear_away() -> None:
    """Removes folders that killed parents left behind."""
    for left in Path(tempfile.gettempdir()).glob(f"{metrics.FOLDER}*-*"):
        pid = left.name.removeprefix(metrics.FOLDER).partition("-")[0]
        # A folder with this process's own number belongs to an earlier one: the first process of a container is always number 1.
        if pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists():
            # The owner may still live, in another container that shares this folder; and workers outlive their parent while they drain.
            with contextlib.suppress(OSError):
                os.close(_hold(left, try_exclusive))
                shutil.rmtree(left, ignore_errors=True)


def _hold(folder: Path, lock: Callable[[int], bool]) -> int:
    """Locks a folder for as long as the descriptor is open in any process. Raises OSError if others hold it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not lock(fd):
            raise BlockingIOError(f"{folder} is in use")
    except OSError:
        os.close(fd)
        raise
    return fd


def run(
    server: Server,
    folder: Path,
    work: Callable[[WorkerContext], int],
    started: Callable[[str], None],
    reload: Callable[[], object],
    shared: int,
    capped: Sequence[str],
) -> int:
    """Serves with workers until SIGTERM or SIGINT; returns the exit status. Raises OSError if it cannot listen.

    `work` runs in each worker and returns its exit status. `started` is called with the URL when all workers serve, and `reload` at SIGHUP, which is passed on to
    the workers. They share `shared` floats for the caps on downloads, those of `capped` registries.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, _hold(folder, try_shared))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        listeners = tuple(listener for address in server.addresses for listener in listen(*address))
        for listener in listeners:
            stack.callback(listener.close)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        # The collector skips frozen objects, so workers go on sharing their memory.
        gc.freeze()
        return _Parent(server, folder, work, listeners, reload, shared, capped).run(
            lambda: started(server.url(*listeners[0].getsockname()[:2]))
        )


class _Parent:
    def __init__(
        self,
        server: Server,
        folder: Path,
        work: Callable[[WorkerContext], int],
        listeners: tuple[socket.socket, ...],
        reload: Callable[[], object],
        shared: int,
        capped: Sequence[str],
    ) -> None:
        self._reload = reload
        self._capped = capped
        self._server = server
        self._folder = folder
        self._work = work
        self._listeners = listeners
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = {0: 0.0}
        """When to start each worker that does not run, by number."""
        self._early_deaths: dict[int, int] = {}
        """How often in a row each worker lived shorter than _SHORT_LIVED."""
        self._stillborn = 0
        # Memory that all processes share: the parent's maps are inherited by fork.
        self._counts = memoryview(mmap.mmap(-1, 8 * server.workers)).cast("q")
        """Connections of each worker."""
        self._alive = memoryview(mmap.mmap(-1, 8 * server.workers)).cast("d")
        """When each worker last gave a sign of life; 0 until it serves."""
        self._rates = memoryview(mmap.mmap(-1, 8 * shared)).cast("d")
        for number in range(server.workers):
            self._counts[number] = _ABSENT
        self._checked = self._awake_since = time.monotonic()
        # A worker's end becomes readable when this process ends, however that comes about.
        self._orphaned, self._lifeline = os.pipe()

    def run(self, started: Callable[[], None]) -> int:
        complete = False
        while True:
            self._start_due()
            starting = self._due or not all(map(self._serves, self._workers))
            signalled = signal.sigtimedwait(_SIGNALS, _START_INTERVAL if starting else _WATCH)
            if signalled is not None and signalled.si_signo in (signal.SIGTERM, signal.SIGINT):
                log.info("stopping: current requests have %g s to end", self._server.drain_timeout)
                self._drain()
                return 0
            if signalled is not None and signalled.si_signo == signal.SIGHUP:
                self._reload()
                self._signal(signal.SIGHUP)
            serving = any(map(self._serves, self._workers))
            if serving:
                self._stillborn = 0
            self._kill_hung()
            if self._replace_dead() and not complete:
                # The worker has said why it cannot start.
                self._drain()
                return 1
            if self._stillborn >= _MOST_STILLBORN and not serving:
                log.error("giving up: %d workers in a row died before they served", self._stillborn)
                self._drain()
                return 1
            if not complete and self._serves(0):
                # The first one has made what was missing in the cache directory.
                self._due |= {number: 0.0 for number in range(1, self._server.workers) if number not in self._workers}
                complete = all(map(self._serves, range(self._server.workers)))
                if complete:
                    started()

    def _serves(self, number: int) -> bool:
        return self._alive[number] > 0

    def _start_due(self) -> None:
        now = time.monotonic()
        for number in [number for number, when in self._due.items() if when <= now]:
            del self._due[number]
            self._alive[number] = 0.0
            self._workers[number] = _Worker(self._fork(number), now)

    def _fork(self, number: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            os.close(self._lifeline)
            # SIGHUP waits until the worker can handle it: it may mean settings that are newer than the fork.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, set(_SIGNALS) - {signal.SIGHUP})
            metrics.count_for(number)
            self._counts[number] = 0
            worker = WorkerContext(
                number,
                self._folder,
                self._listeners,
                self._counts,
                self._rates,
                self._capped,
                self._orphaned,
                lambda: self._give_sign(number),
            )
            status = self._work(worker)
        except BaseException:
            log.exception("a worker cannot go on")
        finally:
            with contextlib.suppress(OSError, ValueError):
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
            # Not by an exception: the callers up the stack belong to the parent.
            os._exit(status)

    def _give_sign(self, number: int) -> None:
        self._alive[number] = time.monotonic()

    def _kill_hung(self) -> None:
        """Kills workers whose event loop stands still."""
        now = time.monotonic()
        if now - self._checked > 2 * _WATCH:
            # This process was paused, and the workers probably with it: a container, or the machine.
            self._awake_since = now
        self._checked = now
        for number, worker in self._workers.items():
            if self._serves(number) and now - max(self._alive[number], self._awake_since) > _HUNG:
                log.error("worker %d (process %d) has given no sign of life for %g s, and is killed", number, worker.pid, _HUNG)
                os.kill(worker.pid, signal.SIGKILL)

    def _replace_dead(self) -> bool:
        """Schedules a replacement for each worker that has died; True if there was one."""
        died = False
        while (ended := _ended()) is not None:
            number = next((number for number, worker in self._workers.items() if worker.pid == ended[0]), None)
            if number is None:
                # Process 1 of a container inherits the orphans of others.
                continue
            died = True
            worker = self._workers.pop(number)
            metrics.forget(number)
            self._stillborn += not self._serves(number)
            self._counts[number], self._alive[number] = _ABSENT, 0.0
            lived = time.monotonic() - worker.began
            early = self._early_deaths.get(number, 0)
            pause = 0.0 if lived >= _SHORT_LIVED else doubled(_FIRST_PAUSE, early, _LONGEST_PAUSE)
            self._early_deaths[number] = 0 if lived >= _SHORT_LIVED else early + 1
            self._due[number] = time.monotonic() + pause
            log.warning("worker %d (process %d) %s after %.1f s", number, worker.pid, ended[1], lived)
        return died

    def _signal(self, signum: signal.Signals) -> None:
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signum)

    def _drain(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + self._server.drain_timeout + _GRACE
        killed = False
        while self._workers:
            while (ended := _ended()) is not None:
                self._workers = {number: worker for number, worker in self._workers.items() if worker.pid != ended[0]}
            if self._workers:
                signal.sigtimedwait(_SIGNALS, 0.1)
            if time.monotonic() > deadline and not killed:
                log.warning("%d workers do not end, and are killed", len(self._workers))
                self._signal(signal.SIGKILL)
                killed = True


def _ended() -> tuple[int, str] | None:
    """A child that has ended, as its process ID and how it ended; None if there is none."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    if not pid:
        return None
    code = os.waitstatus_to_exitcode(status)
    return pid, f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
