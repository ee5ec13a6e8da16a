"""The files that `mirror export` writes: whole under their names, or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mirror.bundles.writing import Output, Sink, SplitOutput
from mirror.cli.ask import as_invoker
from mirror.durable import BESIDE, rename_durably
from mirror.regular_files import open_file


class Outputs:
    """Writes one file, or pieces ``lab.tar.000``, ``lab.tar.001``, …, beside their names. Those of a run that failed are removed."""

    def __init__(self, path: Path, limit: int | None) -> None:
        """`limit` is the most bytes of a piece, None for one file. Raises OSError if nothing can be written there."""
        self._path = path
        self._open: list[tuple[int, Path, Path]] = []
        self.sink: Sink
        if limit is None:
            self.sink = Output(self._begin(path))
        else:
            self.sink = SplitOutput(limit, lambda number: self._begin(path.with_name(f"{path.name}.{number:03}")))
            # So that a folder that cannot be written is told before anything is fetched.
            self._begin(path.with_name(f"{path.name}.000"))
            self._drop()

    def _begin(self, path: Path) -> int:
        beside = path.with_name(f"{BESIDE}{path.name}")
        with as_invoker():
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
                while self._open:
                    fd, beside, path = self._open[0]
                    rename_durably(fd, beside, path, ())
                    os.close(fd)
                    del self._open[0]
        finally:
            self._drop()


class StandardOutput:
    """Writes a bundle to a pipe, or to a file that the shell opened."""

    def __init__(self, fd: int) -> None:
        self.sink: Sink = Output(fd)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        yield
