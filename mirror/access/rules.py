"""Who may do what: the rules, and the one function that decides. Without I/O.

A rule fits a question if it names who asks and the repository. Of several rules the first one that fits counts: what it does not allow is refused, whatever later
rules say. A question that no rule fits is refused. The answer does not depend on whether the repository exists, so it tells nothing about that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from mirror.client_login import ClientLogin
from mirror.names import Repository
from mirror.patterns import RepositoryPattern

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

USERS = "users"
"""The group that everybody who has logged in belongs to."""


class Action(Enum):
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token is good for, of what its user may do."""

    actions: frozenset[Action]
    repositories: tuple[RepositoryPattern, ...]

    def covers(self, action: Action, repository: Repository | None) -> bool:
        return action in self.actions and _covers(self.repositories, repository)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, as far as it was proved."""

    user: str | None = None
    groups: frozenset[str] = frozenset()
    token: str | None = None
    """The name of the token that was used, if one was."""
    certificate: str | None = None
    """The common name of the client's certificate, if it sent one."""
    issuers: frozenset[str] = frozenset()
    """The names of the ``[[oidc]]`` tables that the client's identity token fits."""
    subject: str | None = None
    """Whom an issuer says that the token is of."""
    address: Address | None = None
    is_local: bool = False
    """True if the connection came from this machine and no proxy passed it on."""
    scopes: tuple[Scope, ...] | None = None
    """What the token is limited to; None if there is no limit."""
    login: ClientLogin | None = None
    """What was sent for a registry that checks it itself. Here it proves nothing: for the rules, whoever sends it is anyone."""

    @property
    def is_anonymous(self) -> bool:
        """True if the client has not said who it is."""
        proved = self.user is not None or self.token is not None or self.certificate is not None or self.issuers
        return not proved and self.login is None


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a rule allows each user, or each address where nobody has logged in. None is no limit."""

    requests: int | None = None
    """A minute."""
    size: int | None = None
    """Bytes of content a minute."""
    downloads: int | None = None
    """Blobs that are being sent at the same time."""
    month: int | None = None
    """Bytes of content a calendar month."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``[[access]]`` table."""

    name: str
    may: frozenset[Action]
    repositories: tuple[RepositoryPattern, ...]
    anyone: bool = False
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()
    certificates: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    allowance: Allowance = field(default_factory=Allowance)
    place: str = ""
    """The repositories as the table names them."""

    def names(self, identity: Identity) -> bool:
        """True if it is about whoever asks."""
        return (
            self.anyone
            or identity.user in self.users
            or (identity.user is not None and USERS in self.groups)
            or not self.groups.isdisjoint(identity.groups)
            or identity.token in self.tokens
            or identity.certificate in self.certificates
            or not self.issuers.isdisjoint(identity.issuers)
            or (identity.address is not None and any(identity.address in network for network in self.networks))
        )

    def fits(self, identity: Identity, repository: Repository | None) -> bool:
        """True if it is about whoever asks, and about the repository; of None, about all of them."""
        return self.names(identity) and _covers(self.repositories, repository)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a question. `rule` is the one that counted, None where none fitted or there are none."""

    allowed: bool
    visible: bool
    """True if whoever asks may know of the repository, since pulling from it is allowed."""
    reason: str
    """Of a refusal: a clause for people, which also says what to do."""
    rule: Rule | None = None


_ALLOWED = Verdict(True, True, "")


def decide(rules: Sequence[Rule] | None, identity: Identity, action: Action, repository: Repository | None) -> Verdict:
    """Decides whether `identity` may do something with a repository, or with all of them where that is None. `rules` is None where there are no tables."""
    if rules is None:
        return _without_rules(identity, action, repository)
    rule = next((rule for rule in rules if rule.fits(identity, repository)), None)
    may = rule.may if rule is not None else frozenset()
    visible = Action.PULL in may and _in_scope(identity, Action.PULL, repository)
    if action in may and _in_scope(identity, action, repository):
        return Verdict(True, visible, "", rule)
    if action in may:
        reason = f"the token {identity.token!r} is not good for {action.value} here"
    elif rule is None:
        reason = f"no [[access]] table allows {action.value} here to {_described(identity)}"
    else:
        reason = f"[[access]] table {rule.name} does not allow {action.value} here to {_described(identity)}"
    return Verdict(False, visible, reason, rule)


def may_pull_everything(rules: Sequence[Rule] | None, identity: Identity) -> bool:
    """True if there is no repository that `identity` may not pull from."""
    if rules is None:
        return True
    if identity.scopes is not None and not _in_scope(identity, Action.PULL, None):
        return False
    for rule in rules:
        if rule.names(identity):
            if Action.PULL not in rule.may:
                return False
            if _covers(rule.repositories, None):
                return True
    return False


def _without_rules(identity: Identity, action: Action, repository: Repository | None) -> Verdict:
    """Pulling is open to all; changes are for users, and for this machine. What needs admin is decided elsewhere, by the admin token."""
    if action is Action.PULL:
        return _ALLOWED
    if action is Action.ADMIN or (not identity.is_local and identity.user is None):
        return Verdict(False, True, f"without an [[access]] table, {action.value} needs a user: mirror user add NAME makes one")
    if not _in_scope(identity, action, repository):
        return Verdict(False, True, f"the token {identity.token!r} is not good for {action.value} here")
    return _ALLOWED


def _covers(patterns: Sequence[RepositoryPattern], repository: Repository | None) -> bool:
    if repository is None:
        return any(pattern.is_everything for pattern in patterns)
    return any(pattern.matches(repository) for pattern in patterns)


def _in_scope(identity: Identity, action: Action, repository: Repository | None) -> bool:
    return identity.scopes is None or any(scope.covers(action, repository) for scope in identity.scopes)


def _described(identity: Identity) -> str:
    if identity.user is not None:
        return f"the user {identity.user!r}"
    if identity.token is not None:
        return f"the token {identity.token!r}"
    if identity.certificate is not None:
        return f"the certificate {identity.certificate!r}"
    if identity.issuers:
        return f"{identity.subject!r}"
    if identity.login is not None:
        return f"users of {identity.login.registry}"
    return "clients that have not logged in"
