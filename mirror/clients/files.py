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
