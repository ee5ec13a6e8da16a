"""Users and their passwords: a file as Apache's htpasswd writes it, with bcrypt (``htpasswd -B``). Groups come from the settings."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mirror.durable import write_durably
from mirror.locks import Lock, wait_for_folder
from mirror.regular_files import LARGEST_SECRET, NoFile, read_file

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_RESERVED = ("anyone", "users")
"""Words that mean something else in a rule."""
_HASH = re.compile(r"\$2[aby]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}")
_ROUNDS = 11
"""2^11 rounds: about an eighth of a second on a machine of 2025."""
_LONGEST = 72
"""Bytes of a password that bcrypt takes."""


def check_user_name(name: str) -> None:
    """Raises ValueError."""
    if _NAME.fullmatch(name) is None or name in _RESERVED or name.replace(".", "").isdigit():
        raise ValueError(
            f"{name[:80]!r} cannot be a user's name: 1 to 64 letters, digits and . _ @ + - are expected, no address, and not {' or '.join(_RESERVED)}"
        )


@dataclass(frozen=True, slots=True)
class Users:
    """The users of a file, at one time."""

    hashes: Mapping[str, bytes] = field(default_factory=dict)
    """By user: the bcrypt hash of the password."""

    def __contains__(self, name: object) -> bool:
        return name in self.hashes


def read_users(file: Path) -> Users:
    """Reads a file; there are no users where there is none. Blocks. Raises OSError. Lines that cannot be used are logged, without their hashes."""
    hashes: dict[str, bytes] = {}
    for number, line in enumerate(_lines(file), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, found = line.strip().partition(":")
        if _HASH.fullmatch(found) and _NAME.fullmatch(name):
            hashes[name] = found.encode()
        else:
            log.warning(
                "%s, line %d is not used: a user's name and a bcrypt hash are expected, as mirror user add and htpasswd -B write them",
                file,
                number,
            )
    return Users(hashes)


def set_password(file: Path, name: str, password: str) -> None:
    """Adds a user, or gives one another password. Blocks. Raises OSError, and ValueError if the name or the password cannot be used."""
    import bcrypt

    if not password or len(password.encode()) > _LONGEST:
        raise ValueError(f"a password of 1 to {_LONGEST} bytes is expected")
    set_hash(file, name, bcrypt.hashpw(password.encode(), bcrypt.gensalt(_ROUNDS)).decode())


def set_hash(file: Path, name: str, hashed: str, *, replaces: bool = True) -> bool:
    """The same by the hash of the password. Returns False if the user has another one and this does not replace it. Blocks. Raises OSError, ValueError."""
    check_user_name(name)
    if _HASH.fullmatch(hashed) is None:
        raise ValueError(f"a bcrypt hash is expected for {name}")
    with _changing(file) as lines:
        entry, own = f"{name}:{hashed}", [number for number, line in enumerate(lines) if _is_of(line, name)]
        # The last one counts.
        if own and lines[own[-1]].strip() == entry:
            return True
        if own and not replaces:
            return False
        place = own[0] if own else len(lines)
        _write(file, [*lines[:place], entry, *(line for line in lines[place:] if not _is_of(line, name))])
    return True


def remove_user(file: Path, name: str) -> bool:
    """Returns False if there is no such user. Blocks. Raises OSError."""
    with _changing(file) as lines:
        kept = [line for line in lines if not _is_of(line, name)]
        if kept == lines:
            return False
        _write(file, kept)
    return True


def is_right(password: str, hashed: bytes) -> bool:
    """Blocks for as long as bcrypt takes."""
    import bcrypt

    given = password.encode(errors="replace")
    return len(given) <= _LONGEST and b"\0" not in given and bcrypt.checkpw(given, hashed)


@contextlib.contextmanager
def _changing(file: Path) -> Iterator[list[str]]:
    """Gives the lines of a file while nobody else changes it by this. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with wait_for_folder(file.resolve().parent, Lock.USERS):
        yield _lines(file)


def _write(file: Path, lines: list[str]) -> None:
    """Replaces the file: comments and others' lines stay as they are in `lines`. Raises OSError."""
    file = file.resolve()
    content = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
    write_durably(file, content, lambda fd: _give_as(file, fd))


def _give_as(file: Path, fd: int) -> None:
    """Gives a new file the owner and the mode of the one that it replaces: the mirror must still be able to read it."""
    with contextlib.suppress(FileNotFoundError):
        old = os.stat(file)
        os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, old.st_mode & 0o777)


def _is_of(line: str, name: str) -> bool:
    """Returns whether a line is about a user, as `read_users` reads it."""
    return not line.startswith("#") and line.strip().partition(":")[0] == name


def _lines(file: Path) -> list[str]:
    """Returns the lines as htpasswd ends them, whatever encoding their comments have."""
    try:
        content = read_file(file, LARGEST_SECRET, follow=True)
    except NoFile:
        return []
    return content.decode(errors="surrogateescape").removesuffix("\n").split("\n") if content else []
