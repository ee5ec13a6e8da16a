"""Tokens: long random passwords with a name, an end, and a limit to what they are good for. Only their hashes are kept, one file for each.

A token is 256 random bits, so SHA-256 is enough: nobody can try them all, as they can try words that people choose.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mirror.access.rules import Action, Scope
from mirror.durable import create_durably, sync_folder, write_durably
from mirror.patterns import RepositoryPattern
from mirror.regular_files import NoFile, read_file

log = logging.getLogger(__name__)

PREFIX = "mirror_"
"""How a token begins, so that programs that search for leaked secrets can know it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIX = ".json"
_LARGEST = 64 * 1024


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token. Times in seconds since the epoch."""

    name: str
    digest: str
    """SHA-256 of the token, in hexadecimal."""
    user: str | None
    scopes: tuple[str, ...]
    """As they were written; none is no limit."""
    created: float
    expires: float | None

    def is_over(self, now: float) -> bool:
        return self.expires is not None and self.expires <= now

    def document(self) -> dict[str, Any]:
        """What is kept of it, beside its name."""
        return {
            "sha256": self.digest,
            "user": self.user,
            "scopes": list(self.scopes),
            "created": self.created,
            "expires": self.expires,
        }

    def limits(self) -> tuple[Scope, ...] | None:
        """What the token is limited to; None if it is not."""
        return tuple(parse_scope(scope) for scope in self.scopes) or None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a folder, at one time."""

    by_digest: Mapping[str, Token] = field(default_factory=dict)

    def find(self, secret: str, now: float) -> Token | None:
        """Returns a token that is in force; None for one that is not known, or over."""
        token = self.by_digest.get(_digest(secret))
        return token if token is not None and not token.is_over(now) else None

    def named(self, name: str, now: float) -> Token | None:
        """Returns the token of that name that is in force."""
        return next((token for token in self.by_digest.values() if token.name == name and not token.is_over(now)), None)


def parse_scope(text: str) -> Scope:
    """Takes ``ACTION[,ACTION…][:PATTERN]``, such as ``pull`` or ``pull,push:class/**``. Raises ValueError."""
    actions, _, pattern = text.partition(":")
    try:
        found = frozenset(Action(one.strip()) for one in actions.split(","))
    except ValueError:
        raise ValueError(
            f"{text!r} is not a scope: such as pull, or pull,push:class/**; the actions are {', '.join(one.value for one in Action)}"
        ) from None
    return Scope(found, (RepositoryPattern.parse(pattern or "**"),))


def read_tokens(folder: Path) -> Tokens:
    """Reads a folder; there are no tokens where there is none. Blocks. Raises OSError."""
    found = {}
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return Tokens()
    for name in names:
        if name.endswith(_SUFFIX):
            try:
                token = _parsed(name.removesuffix(_SUFFIX), json.loads(read_file(folder / name, _LARGEST)))
            except NoFile:
                continue
            except (ValueError, KeyError, TypeError):
                log.warning("%s is not used: it is not a token as mirror token add writes it", folder / name)
                continue
            found[token.digest] = token
    return Tokens(found)


def add_token(folder: Path, name: str, user: str | None, scopes: tuple[str, ...], expires: float | None) -> str:
    """Makes a token, and returns it; it is not kept itself. Blocks. Raises OSError, and ValueError if the name is taken or something cannot be used."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name[:80]!r} cannot be a token's name: 1 to 64 letters, digits and . _ - are expected")
    for scope in scopes:
        parse_scope(scope)
    secret = PREFIX + secrets.token_urlsafe(32)
    token = Token(name, _digest(secret), user, scopes, time.time(), expires)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not create_durably(folder / f"{name}{_SUFFIX}", json.dumps(token.document()).encode()):
        raise ValueError(f"there is a token named {name} already: mirror token rm {name} removes it")
    return secret


def kept_token(folder: Path, name: str) -> str | None:
    """Returns what is kept of a token, as `parse_kept` takes it; None if there is no such token. Blocks. Raises OSError."""
    if _NAME.fullmatch(name) is None:
        return None
    try:
        return read_file(folder / f"{name}{_SUFFIX}", _LARGEST).decode(errors="replace")
    except NoFile:
        return None


def parse_kept(name: str, kept: str) -> Token:
    """Returns a token by what is kept of it. Raises ValueError."""
    if _NAME.fullmatch(name) is None or len(kept) > _LARGEST:
        raise ValueError(f"{name[:80]!r} cannot be a token's name, or what is kept of it is too long")
    try:
        return _parsed(name, json.loads(kept))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"this is not what is kept of a token: {name}") from None


def take_token(folder: Path, token: Token, *, replaces: bool) -> bool:
    """Keeps a token that another mirror has made. Returns False if there is another one of that name and this does not replace it. Blocks. Raises OSError."""
    path, content = folder / f"{token.name}{_SUFFIX}", json.dumps(token.document()).encode()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if create_durably(path, content):
        return True
    with contextlib.suppress(ValueError):
        if parse_kept(token.name, kept_token(folder, token.name) or "") == token:
            return True
    if replaces:
        write_durably(path, content)
    return replaces


def remove_token(folder: Path, name: str) -> bool:
    """Returns False if there is no such token. Blocks. Raises OSError."""
    if _NAME.fullmatch(name) is None:
        return False
    try:
        os.unlink(folder / f"{name}{_SUFFIX}")
    except FileNotFoundError:
        return False
    sync_folder(folder)
    return True


def _parsed(name: str, kept: dict[str, Any]) -> Token:
    """Raises ValueError, KeyError, TypeError."""
    user, expires = kept["user"], kept["expires"]
    if _SHA256.fullmatch(kept["sha256"]) is None or not (user is None or isinstance(user, str)):
        raise ValueError("a hash and a user are expected")
    scopes = tuple(map(str, kept["scopes"]))
    try:
        created, end = float(kept["created"]), None if expires is None else float(expires)
    except OverflowError:
        raise ValueError("times are expected") from None
    if not math.isfinite(created + (end or 0.0)):
        raise ValueError("times are expected")
    token = Token(name, kept["sha256"], user, scopes, created, end)
    token.limits()
    return token


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
