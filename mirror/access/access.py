"""What is known of users, tokens and rules, as it changes: files are read anew within a second, rules at SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from mirror.access.audit import AuditLog
from mirror.access.identities import Identities
from mirror.access.limits import Limits
from mirror.access.months import Months
from mirror.access.oidc import Issuer
from mirror.access.oidc_login import OidcLogins
from mirror.access.rules import Action, Identity, Rule, Verdict, decide, may_pull_everything
from mirror.access.signing import fleet_key
from mirror.access.tokens import read_tokens
from mirror.access.users import read_users
from mirror.durable import create_durably
from mirror.events import NOBODY, Events
from mirror.names import Repository
from mirror.regular_files import read_file
from mirror.tasks import BackgroundTask, close_all

log = logging.getLogger(__name__)

_KEY = "key"
_KEY_SIZE = 32
_INTERVAL = 0.5
"""Seconds between two looks at the files."""
_T = TypeVar("_T")
_Version = tuple[int, ...] | None
"""None where there is no file."""
_UNREAD: _Version = ()


class FleetToken(Protocol):
    """The settings of a fleet that are used here (mirror/config/fleet.py)."""

    @property
    def mirrors(self) -> Sequence[str]: ...
    @property
    def token_file(self) -> Path | None: ...
    def token(self) -> str | None: ...


class Access:
    """Decides. An async context manager: it follows its files while it is open."""

    def __init__(
        self,
        folder: Path,
        users_file: Path,
        audit: AuditLog | None = None,
        share: int = 1,
        events: Events = NOBODY,
        fleet: FleetToken | None = None,
    ) -> None:
        """`folder` is the mirror's own, for tokens and the key that signs bearer tokens; `share` is the number of processes that serve. With the token of a `fleet` its mirrors sign alike."""
        self._folder = folder
        self._users_file = users_file
        self._seen: dict[Path, _Version] = {}
        self._failed: dict[Path, _Version] = {}
        """What was logged that it cannot be read."""
        self._watch = BackgroundTask(self._follow)
        self.rules: Sequence[Rule] | None = None
        self.identities = Identities(lambda: signing_key(folder), events=events)
        self._fleet = fleet if fleet is not None and fleet.mirrors else None
        self.oidc_logins = OidcLogins(self.identities.issuers, lambda: self.identities.signer.key)
        self.months = Months(folder, events)
        self.limits = Limits(self.months, share)
        self.audit = audit
        self.version = 0
        """Another one whenever something changes that an earlier verdict may have come from."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `version` has changed."""

    async def __aenter__(self) -> Access:
        await self._read()
        await self.months.sync()
        self._watch.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        async def close_log() -> None:
            if self.audit is not None:
                await asyncio.to_thread(self.audit.close)

        await close_all(self._watch.aclose, self.months.aclose, self.identities.aclose, close_log)

    def take(self, rules: Sequence[Rule] | None, groups: Mapping[str, frozenset[str]], issuers: tuple[Issuer, ...] = ()) -> None:
        """Puts other rules in force at once. `groups` are those of each user."""
        self.rules, self.identities.groups = rules, groups
        self.identities.issuers.take(issuers)
        self.months.take(rules or ())
        self._changed()

    def decide(self, identity: Identity, action: Action, repository: Repository | None) -> Verdict:
        return decide(self.rules, identity, action, repository)

    def may_pull(self, identity: Identity, repository: Repository) -> bool:
        return decide(self.rules, identity, Action.PULL, repository).allowed

    def may_pull_everything(self, identity: Identity) -> bool:
        return may_pull_everything(self.rules, identity)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            await self._read()
            await self.months.sync()

    async def _read(self) -> None:
        """Reads what has changed. What cannot be read stays as it was."""
        if (users := await self._read_changed(self._users_file, read_users)) is not None:
            self.identities.users = users
            self._changed()
        if (tokens := await self._read_changed(self._folder / TOKENS, read_tokens)) is not None:
            self.identities.tokens = tokens
            self._changed()
        if (fleet := self._fleet) is None or fleet.token_file is None:
            return
        if (key := await self._read_changed(fleet.token_file, lambda _: _key_of(fleet))) is not None:
            self.identities.signer.shared = key
            self._changed()

    async def _read_changed(self, path: Path, read: Callable[[Path], _T]) -> _T | None:
        """Returns what `read` returns; None where nothing has changed since it was last read, or where it cannot be read: that is tried again."""
        version = _version(path)
        if self._seen.get(path, _UNREAD) == version:
            return None
        try:
            found = await asyncio.to_thread(read, path)
        except OSError as error:
            if self._failed.get(path, _UNREAD) != version:
                log.error(
                    "%s cannot be read, and what it said before stays in force: %s", path, error, extra={"cause": str(error)}
                )
            self._failed[path] = version
            return None
        self._failed.pop(path, None)
        self._seen[path] = version
        return found

    def digest(self) -> str:
        """Returns a digest of the users and tokens: the same at two mirrors that have the same ones."""
        found = self.identities
        users = sorted((name, hashed.decode()) for name, hashed in found.users.hashes.items())
        tokens = sorted(
            (one.name, one.digest, one.user or "", one.scopes, one.expires or 0.0) for one in found.tokens.by_digest.values()
        )
        return hashlib.sha256(json.dumps([users, tokens]).encode()).hexdigest()[:32]

    def _changed(self) -> None:
        self.version += 1
        self.on_change()


TOKENS = "tokens"
"""The folder of tokens, in that of the access part."""


def signing_key(folder: Path) -> bytes:
    """The key that bearer tokens are signed with, made if there is none; all processes on the folder have the same. Blocks. Raises OSError."""
    path = folder / _KEY
    with contextlib.suppress(FileNotFoundError):
        key = read_file(path, _KEY_SIZE)
        if len(key) == _KEY_SIZE:
            return key
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = secrets.token_bytes(_KEY_SIZE)
    return made if create_durably(path, made) else read_file(path, _KEY_SIZE)


def _key_of(fleet: FleetToken) -> bytes | None:
    """Raises OSError."""
    try:
        token = fleet.token()
    except ValueError as error:
        raise OSError(str(error)) from None
    return None if token is None else fleet_key(token)


def _version(path: Path) -> _Version:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
