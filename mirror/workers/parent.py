"""The process that binds the address, starts workers, and starts another one for each that dies.

It serves nobody and runs no event loop: that it is simple is why it can fork.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mirror import metrics
from mirror.config import Server
from mirror.locks import try_exclusive, try_shared
from mirror.workers.acceptor import listen
from mirror.workers.context import WorkerContext

log = logging.getLogger(__name__)

_NOBODY = 2**62
"""Connections of a worker that is not there: nobody shall hold back in its favour."""
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SHORT_LIVED = 10.0
"""Seconds below which a worker's life was too short for another to begin at once."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_MOST_STILLBORN = 10
"""Workers in a row that died before they were ready, after which, where no other one serves, there is no hope."""
_LOOK = 0.02
_WATCH = 10.0
"""Seconds between two looks at whether all are well."""
_HUNG = 60.0
"""Seconds without a sign of life after which a worker is killed: what it downloads others wait for, and take over when it is dead."""
_GRACE = 10.0
"""Seconds beyond the time for draining after which workers are killed."""


@dataclass(slots=True)
class _Worker:
    pid: int
    news: int
    """A descriptor from which a byte comes when it is ready."""
    began: float = field(default_factory=time.monotonic)
    ready: bool = False


def prepare() -> Path:
    """A fresh folder for what workers share. Where there is none yet it is made, and the program begins again, in this process.

    How metrics are counted is chosen when they are imported (prometheus_client, "Multiprocess Mode"), which is before any settings are read. Raises OSError.
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
    """Removes what parents left behind that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{metrics.FOLDER}*-*"):
        pid = left.name.removeprefix(metrics.FOLDER).partition("-")[0]
        # This process has none yet: in a container, whose first process always is number 1, that is the one before it.
        if pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists():
            # In another container that shares this folder it may live all the same; and workers outlive it while they drain.
            with contextlib.suppress(OSError):
                os.close(_hold(left, try_exclusive))
                shutil.rmtree(left, ignore_errors=True)


def _hold(folder: Path, take: Callable[[int], bool]) -> int:
    """Locks a folder as long as the descriptor is open in any process. Raises OSError where others hold it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not take(fd):
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
    reload: Callable[[], None],
) -> int:
    """Serves with workers until SIGTERM or SIGINT; the exit status.

    `work` is what a worker does, and gives its exit status; `started` is called with the URL when all are ready, `reload` at SIGHUP, which workers get too. Raises OSError where it cannot listen.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, _hold(folder, try_shared))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        listeners = listen(*server.address)
        for listener in listeners:
            stack.callback(listener.close)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        # What is there now is never garbage: not to be touched, so that workers share its memory.
        gc.freeze()
        return _Parent(server, folder, work, listeners, reload).run(lambda: started(server.url(*listeners[0].getsockname()[:2])))


class _Parent:
    def __init__(
        self,
        server: Server,
        folder: Path,
        work: Callable[[WorkerContext], int],
        listeners: tuple[socket.socket, ...],
        reload: Callable[[], None],
    ) -> None:
        self._reload = reload
        self._server = server
        self._folder = folder
        self._work = work
        self._listeners = listeners
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = {0: 0.0}
        """By number, when a worker is to be started."""
        self._pauses: dict[int, float] = {}
        self._stillborn = 0
        self._counts = memoryview(mmap.mmap(-1, 8 * server.workers)).cast("q")
        for number in range(server.workers):
            self._counts[number] = _NOBODY
        self._signs = memoryview(mmap.mmap(-1, 8 * server.workers)).cast("d")
        """When each has last given a sign of life, in memory that they share."""
        self._looked = self._since = time.monotonic()
        # Workers have its other end: it is closed when this process ends, however that comes.
        self._orphaned, self._alive = os.pipe()

    def run(self, started: Callable[[], None]) -> int:
        complete = False
        while True:
            self._start_due()
            pending = self._due or not all(worker.ready for worker in self._workers.values())
            signalled = signal.sigtimedwait(_SIGNALS, _LOOK if pending else _WATCH)
            if signalled is not None and signalled.si_signo in (signal.SIGTERM, signal.SIGINT):
                log.info("stopping: current requests have %g s to end", self._server.drain_timeout)
                self._drain()
                return 0
            if signalled is not None and signalled.si_signo == signal.SIGHUP:
                self._reload()
                self._signal(signal.SIGHUP)
            self._hear()
            self._end_hung()
            died = self._reap()
            if died and not complete:
                # It has told why.
                self._drain()
                return 1
            if self._stillborn >= _MOST_STILLBORN and not any(worker.ready for worker in self._workers.values()):
                log.error("giving up: %d workers in a row died before they were ready", self._stillborn)
                self._drain()
                return 1
            if not complete and self._workers[0].ready:
                # The first one has made what was missing of the cache directory.
                self._due |= {number: 0.0 for number in range(1, self._server.workers) if number not in self._workers}
                if len(self._workers) == self._server.workers and all(worker.ready for worker in self._workers.values()):
                    complete = True
                    started()

    def _start_due(self) -> None:
        now = time.monotonic()
        for number in [number for number, when in self._due.items() if when <= now]:
            del self._due[number]
            self._workers[number] = self._fork(number)

    def _fork(self, number: int) -> _Worker:
        news, tell = os.pipe()
        os.set_blocking(news, False)
        pid = os.fork()
        if pid:
            os.close(tell)
            return _Worker(pid, news)
        status = 1
        try:
            for fd in (news, self._alive, *(worker.news for worker in self._workers.values())):
                os.close(fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            metrics.count_for(number)
            self._counts[number] = 0
            self._sign(number)
            worker = WorkerContext(
                number,
                self._folder,
                self._listeners,
                self._counts,
                self._orphaned,
                lambda: _announce(tell),
                lambda: self._sign(number),
            )
            status = self._work(worker)
        except BaseException:
            log.exception("a worker cannot go on")
        finally:
            with contextlib.suppress(OSError, ValueError):
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
            # Not by an exception: what is above in the stack is the parent's affair.
            os._exit(status)

    def _hear(self) -> None:
        for worker in self._workers.values():
            if not worker.ready:
                with contextlib.suppress(BlockingIOError):
                    worker.ready = os.read(worker.news, 1) == b"!"
                if worker.ready:
                    self._stillborn = 0

    def _sign(self, number: int) -> None:
        self._signs[number] = time.monotonic()

    def _end_hung(self) -> None:
        """Kills those whose event loop stands still."""
        now = time.monotonic()
        if now - self._looked > 2 * _WATCH:
            # This process stood still as well: a container was paused, or the machine. All have their time once more.
            self._since = now
        self._looked = now
        for number, worker in self._workers.items():
            if worker.ready and now - max(self._signs[number], self._since) > _HUNG:
                log.error("worker %d (process %d) has given no sign of life for %g s, and is killed", number, worker.pid, _HUNG)
                os.kill(worker.pid, signal.SIGKILL)

    def _reap(self) -> bool:
        """Buries the dead, and sees to their successors. True when there were any."""
        died = False
        while (ended := _ended()) is not None:
            number = next((number for number, worker in self._workers.items() if worker.pid == ended[0]), None)
            if number is None:
                # As process 1 of a container one gets the orphans of others.
                continue
            died = True
            worker = self._workers.pop(number)
            os.close(worker.news)
            metrics.forget(number)
            self._counts[number] = _NOBODY
            lived = time.monotonic() - worker.began
            self._stillborn += not worker.ready
            pause = 0.0 if lived >= _SHORT_LIVED else min(max(2 * self._pauses.get(number, 0.0), _FIRST_PAUSE), _LONGEST_PAUSE)
            self._pauses[number] = pause
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


def _announce(tell: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(tell, b"!")
    os.close(tell)


def _ended() -> tuple[int, str] | None:
    """A child that has ended, and how."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    if not pid:
        return None
    code = os.waitstatus_to_exitcode(status)
    return pid, f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
