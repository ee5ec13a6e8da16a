"""Turns ``[[guard]]`` tables into the rules that mirror/guards decides by."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.config import Conditions as ConditionsTable
from mirror.config import Guard, Signed
from mirror.guards.keyless import Identities, Identity
from mirror.guards.keys import Keys
from mirror.guards.rules import Conditions, Pattern, Rule
from mirror.guards.signatures import Signers


def rules_of(guards: Sequence[Guard]) -> list[tuple[Rule, tuple[str, ...]]]:
    """Returns the rules of the tables, each with the sources of its block list."""
    return [
        (
            Rule(
                name=guard.name,
                images=tuple(Pattern.parse(pattern) for pattern in guard.images),
                enforced=guard.mode == "enforce",
                reason=guard.reason,
                cooldown=guard.cooldown,
                new_tags_wait=guard.new_tags == "hold",
                strict=guard.strict,
                deny=_conditions(guard.deny),
                allow=_conditions(guard.allow),
                immutable=guard.immutable,
                max_severity=guard.max_severity,
                refuse_older=guard.refuse_older,
                signed=None if guard.signed is None else _signers(guard.signed),
            ),
            guard.blocklist,
        )
        for guard in guards
    ]


def _conditions(given: bool | ConditionsTable) -> Conditions | None:
    if isinstance(given, bool):
        return Conditions() if given else None
    return Conditions(
        given.platforms, given.media_types, dict(given.labels), given.larger_than, given.older_than, given.younger_than
    )


def _signers(given: Signed) -> Signers:
    identities = [Identity(one.issuer, one.subject) for one in given.identities]
    return (
        *((Keys(given.pems),) if given.pems else ()),
        *((Identities(identities, given.root),) if identities else ()),
    )
