"""Values: a client, and a file that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mirror.clients.address import Address


class Conflict(Exception):
    """What a file holds cannot be merged with; the message says what is to be done by hand."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that a client reads."""

    path: str
    """Where the client looks for it."""
    merge: Callable[[str], str] = field(repr=False)
    """From the file's text to one that names the mirror too; a text that does already comes back as it is. Raises Conflict."""

    @property
    def text(self) -> str:
        """What is to be in it where there was nothing."""
        return self.merge("")


@dataclass(frozen=True, slots=True)
class Client:
    """A program that pulls images."""

    name: str
    title: str
    """All programs that read these files."""
    registries: str
    """Whose images it asks a mirror for."""
    then: str
    """The command that makes it read its files again; empty where it always does."""
    plan: Callable[[Address, Sequence[str]], tuple[File, ...]] = field(repr=False)
    """The files for a mirror at an address that serves these registries."""
    without_systemd: str = ""
    """The command in place of `then` on a machine without systemd; empty where there is no common one."""
    note: str = ""
    """A sentence to know after `then`."""
    then_undone: str = ""
    """The command that makes it forget the mirror once its files no longer name it; empty for `then`."""
    note_undone: str = ""
    """A sentence to know after `then_undone`."""

    def next_step(self, undone: bool = False) -> str:
        """What to do once the files are written, or restored (`undone`)."""
        command, note = (self.then_undone or self.then, self.note_undone) if undone else (self.then, self.note)
        other = f" (without systemd: {self.without_systemd})" if self.without_systemd and not undone else ""
        return " ".join(part for part in (f"Now: {command}{other}." if command else "", note) if part)
