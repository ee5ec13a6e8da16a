"""A client, and a file that it reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mirror.clients.address import Address


class Conflict(Exception):
    """A file's content cannot be changed safely. The message says what to do by hand."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that a client reads."""

    path: str
    """Where the client reads it."""
    merge: Callable[[str], str] = field(repr=False)
    """Adds the mirrors to the file's text; returns a text that has them already unchanged. Raises Conflict."""

    @property
    def text(self) -> str:
        """The content of a new file."""
        return self.merge("")


@dataclass(frozen=True, slots=True)
class Client:
    """A program that pulls images."""

    name: str
    title: str
    """All programs that read these files."""
    registries: str
    """The registries for which it uses a mirror."""
    then: str
    """The command that makes it read its files again; empty if it always does."""
    plan: Callable[[Sequence[Address], Sequence[str]], tuple[File, ...]] = field(repr=False)
    """The files for mirrors at these addresses, the first of which is asked first, that serve these registries."""
    without_systemd: str = ""
    """The command that replaces `then` on a machine without systemd; empty if there is no common one."""
    note: str = ""
    """What else to know after `then`."""
    then_undone: str = ""
    """The command that makes it forget the mirror once its files no longer name it; empty if that is `then`."""
    note_undone: str = ""
    """What else to know after `then_undone`."""

    def command(self, undone: bool = False, systemd: bool = True) -> str:
        """The command that makes the client read its files again, or, if they were restored (`undone`), forget the mirror; empty if none is needed."""
        command = (self.then_undone or self.then) if undone else self.then
        if systemd or not command.startswith("systemctl "):
            return command
        if self.without_systemd and not undone:
            return self.without_systemd
        return f"{command.removeprefix('systemctl ')} (by hand: systemd does not run here)"

    def next_step(self, undone: bool = False, systemd: bool | None = None) -> str:
        """What to do once the files are written, or restored. `systemd` is None where it is not known whether the machine runs it."""
        command, note = self.command(undone, systemd is not False), self.note_undone if undone else self.note
        other = f" (without systemd: {self.without_systemd})" if self.without_systemd and not undone and systemd is None else ""
        return " ".join(part for part in (f"Now: {command}{other}." if command else "", note) if part)


def runs_systemd() -> bool:
    """Whether this machine runs systemd (sd_booted(3)); its programs may be installed without."""
    return os.path.isdir("/run/systemd/system")
