"""The files that `mirror export` writes: whole under their names, or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from mirror.bundles.laptop import MARK, Companion
from mirror.bundles.writing import Output, Sink, SplitOutput
from mirror.cli.ask import as_invoker
from mirror.durable import BESIDE, rename_durably, sync_file, write_durably
from mirror.locks import try_exclusive
from mirror.regular_files import NoFile, open_file, read_file

MOST_PIECES = 1000
"""Numbers with three digits, in whose order a shell lists them."""
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_MUCH = 1024 * 1024
"""Bytes that another version's companion may be longer."""


class Outputs:
    """Writes one file, or pieces ``lab.tar.000``, ``lab.tar.001``, …, under temporary names beside their own.

    Those of a run that failed, or was ended by SIGTERM or SIGHUP, are removed. SIGKILL leaves them; the next run to the same file writes over them. Pieces of an
    earlier, larger bundle of that name are removed at the end: ``cat lab.tar.*`` would append them.
    """

    def __init__(self, path: Path, limit: int | None, companions: Iterable[Companion] = ()) -> None:
        """`limit` is the most bytes of a piece, None for one file. `companions` are written beside it; for them its folder is made. Raises OSError if nothing can be written there."""
        # A link stays a link; what it points to is replaced.
        self._path = path = Path(os.path.realpath(path)) if path.is_symlink() else path
        self._split = limit is not None
        self._open: list[tuple[int, Path, Path]] = []
        self._companions = [(path.with_name(one.name), one) for one in companions]
        if self._companions:
            with as_invoker():
                path.parent.mkdir(exist_ok=True)
                _check_replaceable(self._companions)
        self.sink: Sink
        if limit is None:
            self.sink = Output(self._begin(path))
        else:
            # So that a folder that cannot be written is reported before anything is fetched.
            first = self._begin(self._piece(0))
            self.sink = SplitOutput(limit, lambda number: self._begin(self._piece(number)) if number else first)

    def _piece(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number:03}")

    def _begin(self, path: Path) -> int:
        beside = path.with_name(f"{BESIDE}{path.name}")
        with as_invoker():
            if path.exists() and not path.is_file():
                # A rename would replace a device.
                raise OSError("it is not a regular file; - is standard output")
            try:
                fd = _open_alone(beside)
            except OSError as error:
                # Nobody knows the temporary name. An error without one would get the name "None".
                if error.filename is not None:
                    error.filename = None
                raise
        self._open.append((fd, beside, path))
        return fd

    def _drop(self) -> None:
        with as_invoker():
            for fd, beside, _ in self._open:
                with contextlib.suppress(OSError):
                    beside.unlink()
                os.close(fd)
        self._open.clear()

    @contextlib.contextmanager
    def _removed_by_signals(self) -> Iterator[None]:
        """Has SIGTERM and SIGHUP remove the files before they end the process. SIGINT is KeyboardInterrupt."""

        def end(signum: int, _: object) -> None:
            with as_invoker():
                for _fd, beside, _path in self._open:
                    with contextlib.suppress(OSError):
                        beside.unlink()
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

        # One that is ignored, such as SIGHUP under nohup, stays ignored.
        before = {one: signal.getsignal(one) for one in _ENDING if signal.getsignal(one) is signal.SIG_DFL}
        for one in before:
            signal.signal(one, end)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Gives the files their names at the end of the block; removes them if it raises. Raises OSError."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._drop)
            stack.enter_context(self._removed_by_signals())
            yield
            with as_invoker():
                # A slow disk may take minutes, and may fail: nothing has its name until all is on it.
                for fd, _, _ in self._open:
                    sync_file(fd)
                for number in range(len(self._open), MOST_PIECES if self._split else 0):
                    self._piece(number).unlink(missing_ok=True)
                # The first piece comes last: without it, the others are no bundle.
                while self._open:
                    fd, beside, path = self._open[-1]
                    rename_durably(fd, beside, path, ())
                    del self._open[-1]
                    os.close(fd)
                for path, companion in self._companions:
                    write_durably(path, companion.content, partial(_set_mode, companion.mode))


def _open_alone(path: Path) -> int:
    """Opens an empty file for writing that no other process is writing. Raises OSError."""
    while True:
        fd = open_file(path, os.O_WRONLY | os.O_CREAT, mode=0o644)
        try:
            alone = True
            # Some file systems have no locks.
            with contextlib.suppress(OSError):
                alone = try_exclusive(fd)
            if not alone:
                raise OSError("another `mirror export` is writing it")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(fd)):
                    os.ftruncate(fd, 0)
                    return fd
        except BaseException:
            os.close(fd)
            raise
        # The other one has just given it its name.
        os.close(fd)


def _check_replaceable(companions: Iterable[tuple[Path, Companion]]) -> None:
    """Raises OSError where something else has the name of a companion."""
    for path, companion in companions:
        try:
            ours = MARK in read_file(path, len(companion.content) + _MUCH)
        except NoFile:
            ours = not os.path.lexists(path)
        if not ours:
            raise FileExistsError(f"{path.name} beside it was not written by `mirror export --laptop`: give another folder")


def _set_mode(mode: int, fd: int) -> None:
    # FAT knows no modes: what is there has those that it was mounted with.
    with contextlib.suppress(OSError):
        os.fchmod(fd, mode)


class StandardOutput:
    """Writes a bundle to a pipe, or to a file that the shell opened."""

    def __init__(self, fd: int) -> None:
        self.sink: Sink = Output(fd)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        yield
