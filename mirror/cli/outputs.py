"""The files that `mirror export` writes: whole under their names, or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from mirror.bundles.laptop import MARK, Companion
from mirror.bundles.writing import Output, Sink, SplitOutput
from mirror.cli.ask import as_invoker
from mirror.durable import BESIDE, rename_durably, write_durably
from mirror.regular_files import NoFile, open_file, read_file

MOST_PIECES = 1000
"""Numbers with three digits, in whose order a shell lists them."""
_MUCH = 1024 * 1024
"""Bytes that another version's companion may be longer."""


class Outputs:
    """Writes one file, or pieces ``lab.tar.000``, ``lab.tar.001``, …, beside their names. Those of a run that failed are removed.

    Pieces of an earlier, larger bundle of that name are removed at the end: ``cat lab.tar.*`` would append them.
    """

    def __init__(self, path: Path, limit: int | None, companions: Iterable[Companion] = ()) -> None:
        """`limit` is the most bytes of a piece, None for one file. `companions` are written beside it; for them its folder is made. Raises OSError if nothing can be written there."""
        self._path = path
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
            self.sink = SplitOutput(limit, lambda number: self._begin(self._piece(number)))
            # So that a folder that cannot be written is reported before anything is fetched.
            self._begin(self._piece(0))
            self._drop()

    def _piece(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number:03}")

    def _begin(self, path: Path) -> int:
        beside = path.with_name(f"{BESIDE}{path.name}")
        with as_invoker():
            if path.exists() and not path.is_file():
                # A rename would replace a device.
                raise OSError("it is not a regular file; - is standard output")
            fd = open_file(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o644)
        self._open.append((fd, beside, path))
        return fd

    def _drop(self) -> None:
        with as_invoker():
            for fd, beside, _ in self._open:
                os.close(fd)
                with contextlib.suppress(OSError):
                    beside.unlink()
        self._open.clear()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Gives the files their names at the end of the block; removes them if it raises. Raises OSError."""
        try:
            yield
            with as_invoker():
                for number in range(len(self._open), MOST_PIECES if self._split else 0):
                    self._piece(number).unlink(missing_ok=True)
                while self._open:
                    fd, beside, path = self._open[0]
                    rename_durably(fd, beside, path, ())
                    os.close(fd)
                    del self._open[0]
                for path, companion in self._companions:
                    write_durably(path, companion.content, partial(_set_mode, companion.mode))
        finally:
            self._drop()


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
