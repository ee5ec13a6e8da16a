"""The file ``spool/….sources``, by which processes that share a download exchange which repositories have the blob, and which bytes readers wait for.

Processes append lines, each by one write(2) with O_APPEND, so that lines are never torn:

- ``lead REGISTRY PATH``: this repository's download begins here. The lines before it no longer count.
- ``told REGISTRY PATH SIZE``: the repository has the blob, of so many bytes (``-`` if unknown): its registry has told this process so.
- ``has REGISTRY PATH SIZE``: the same, by the word of another mirror. Whoever may only have what a repository has must not rely on it.
- ``wants START STOP``: a reader waits for these bytes, far from those that are received next.

A follower with readers holds a shared ``flock`` on the file, which shows the leader that bytes are needed. If the file cannot be opened, read or written, the
download goes on without the exchange.
"""

from __future__ import annotations

import contextlib
import os

from mirror.errors import NameInvalid
from mirror.locks import try_exclusive, try_shared, unlock
from mirror.names import Repository, is_registry_name
from mirror.regular_files import open_file

_LARGEST = 1024 * 1024
"""Bytes of the file that are read."""


class Sources:
    """One process's view of the file."""

    def __init__(self) -> None:
        self.leader: Repository | None = None
        """The repository that the leader downloads from first; None if unknown."""
        self._fd = -1
        self._read_to = 0
        self._known: dict[Repository, bool] = {}
        """True where its registry has told that it has the blob."""
        self._new: list[tuple[Repository, int | None, bool]] = []
        self._wanted: list[tuple[int, int]] = []
        self._sent: list[tuple[int, int]] = []
        self._attends = False

    def open(self, path: str, create: int) -> None:
        """Opens the file, which is empty to its reader until then. `create` is O_CREAT or 0."""
        with contextlib.suppress(OSError):
            self._fd = open_file(path, os.O_RDWR | os.O_APPEND | create)

    def announce(self, leader: Repository) -> None:
        """Records the leader's repository, and voids the lines before. For the leader."""
        # A line of a writer whose disk was full may have no end.
        self._append(f"\nlead {leader.registry} {leader.path}\n")
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                # After the line just written: what others append meanwhile is still to be read.
                self._read_to = os.lseek(self._fd, 0, os.SEEK_CUR)
        self._take_in(["lead", leader.registry, leader.path])

    def add(self, repository: Repository, size: int | None, told: bool) -> None:
        """Records that a repository has the blob, as its registry has `told`, unless the file says so already, or no leader is known yet."""
        if self.leader is not None and (repository not in self._known or told > self._known[repository]):
            self._append(f"{'told' if told else 'has'} {repository.registry} {repository.path} {'-' if size is None else size}\n")

    def take(self) -> list[tuple[Repository, int | None, bool]]:
        """Returns the repositories that any process added since the last call, with the sizes that they claim, and whether their registries have told."""
        self._read()
        new, self._new = self._new, []
        return new

    def want(self, start: int, stop: int) -> None:
        """Records that a reader waits for the bytes ``[start, stop)``, unless this process sent the same leader a range with the first of them."""
        # The rest of the file is for sources.
        if self._read_to < _LARGEST // 2 and not any(first <= start < last for first, last in self._sent):
            self._sent.append((start, stop))
            self._append(f"wants {start} {stop}\n")

    def take_wanted(self) -> list[tuple[int, int]]:
        """Returns the ranges that any process recorded since the last call, as of the last `take`."""
        wanted, self._wanted = self._wanted, []
        return wanted

    def attend(self, reading: bool) -> None:
        """Shows the leader whether this process has readers. For a follower."""
        if reading == self._attends or self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if reading:
                # Fails while the leader checks the lock; the next call tries again.
                self._attends = try_shared(self._fd)
            else:
                unlock(self._fd)
                self._attends = False

    @property
    def attended(self) -> bool:
        """True where a follower has readers. For the leader."""
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                if not try_exclusive(self._fd):
                    return True
                unlock(self._fd)
                self._attends = False
        return False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: str) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._fd, line.encode())

    def _read(self) -> None:
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            text = os.pread(self._fd, max(_LARGEST - self._read_to, 0), self._read_to)
            whole = text[: text.rfind(b"\n") + 1]
            self._read_to += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                self._take_in(line.split(" "))

    def _take_in(self, words: list[str]) -> None:
        match words:
            case ["lead", registry, path] if (repository := _repository(registry, path)) is not None:
                self.leader = repository
                self._known.clear()
                self._new.clear()
                self._wanted.clear()
                self._sent.clear()
            case ["wants", start, stop] if _is_number(start) and _is_number(stop):
                self._wanted.append((int(start), int(stop)))
            case ["has" | "told" as word, registry, path, size] if (
                self.leader is not None and (repository := _repository(registry, path)) is not None
            ):
                if size == "-" or _is_number(size):
                    told = word == "told"
                    self._known[repository] = told or self._known.get(repository, False)
                    self._new.append((repository, None if size == "-" else int(size), told))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _repository(registry: str, path: str) -> Repository | None:
    if not is_registry_name(registry):
        return None
    try:
        return Repository.parse(registry, path)
    except NameInvalid:
        return None
