"""What the mirrors of a fleet tell each other beside content: changes by hand, and how each of them is. ``/fleet/…`` of the API takes and answers it (mirror/api/fleet.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mirror.errors import MirrorError, RequestInvalid

ACCOUNT_ACTIONS = ("set-user", "remove-user", "set-token", "remove-token")
"""Changes of users and tokens."""
END_SESSION = "end-session"
ACTIONS = ("pin", "unpin", "refresh", "delete", "release", "block", "unblock", END_SESSION, *ACCOUNT_ACTIONS)
_LONGEST = 1000
_LARGEST_KEPT = 64 * 1024
_MOST = 2**63
"""Seconds, bytes or counts that anything is said to be, at most."""
TABLES = ("access", "guards", "users")
"""What the mirrors of a fleet are to have the same of: ``[[access]]`` tables with groups and issuers, ``[[guard]]`` tables, users and tokens."""
MOST_LATE = 5.0
"""Seconds by which the clocks of two mirrors may differ: an answer of one is as old as it says for the other one."""


class FleetIncomplete(MirrorError):
    """A change was made here, but not at all mirrors of the fleet."""

    status = 502
    code = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Change:
    """A change by hand. `names` are of images, such as ``docker.io/library/app:1``; for ``block`` and ``unblock``, digests; for `ACCOUNT_ACTIONS`, users or tokens; for `END_SESSION`,
    sessions of the dashboard by their names."""

    action: str
    names: tuple[str, ...]
    who: str = ""
    """Who makes it, for logs."""
    why: str = ""
    force: bool = False
    """Whether ``delete`` deletes pinned images too, and whether another user or token of the same name is replaced."""
    digest: str = ""
    """What is released: only where the tag means just this."""
    kept: str = field(default="", repr=False)
    """What is kept of a user or a token that is set: the hash of a password, or what mirror/access/tokens.py keeps as JSON."""

    def document(self) -> dict[str, Any]:
        return {
            "action": self.action,
            "names": list(self.names),
            "who": self.who,
            "why": self.why,
            "force": self.force,
            "digest": self.digest,
            "kept": self.kept,
        }

    @classmethod
    def parse(cls, document: Any) -> Change:
        """Raises RequestInvalid."""
        if not isinstance(document, dict) or document.get("action") not in ACTIONS:
            raise RequestInvalid(f"an object with an action is expected, which is one of {', '.join(ACTIONS)}")
        names = document.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RequestInvalid("names: a list of texts is expected")
        who, why, digest = (printable(str(document.get(key, "")))[:_LONGEST] for key in ("who", "why", "digest"))
        kept = document.get("kept", "")
        if not isinstance(kept, str) or len(kept) > _LARGEST_KEPT:
            raise RequestInvalid("kept: a text is expected")
        return cls(document["action"], tuple(names), who, why, document.get("force") is True, digest, kept)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a change of one image or digest at one mirror."""

    name: str
    fault: str = ""
    """Why it was not made; empty if it was."""
    absent: bool = False
    """True if there was nothing to change: it is not cached there, not pinned, not blocked."""

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "fault": self.fault, "absent": self.absent}


@dataclass(slots=True)
class Told:
    """What the other mirrors of a fleet have made of a change."""

    did: dict[str, list[str]] = field(default_factory=dict)
    """By name, the mirrors that made it."""
    faults: dict[str, str] = field(default_factory=dict)
    """By mirror, why it did not take all of it."""

    def add(self, mirror: str, names: Sequence[str], document: Any) -> None:
        """Adds a mirror's answer to a change of `names`."""
        outcomes = document.get("outcomes") if isinstance(document, dict) else None
        faults, untold = [], dict.fromkeys(names)
        for one in outcomes if isinstance(outcomes, list) else ():
            if not isinstance(one, dict):
                continue
            untold.pop(str(one.get("name", "")), None)
            if not one.get("fault"):
                self.did.setdefault(str(one.get("name", "")), []).append(mirror)
            elif one.get("absent") is not True:
                faults.append(printable(str(one["fault"]))[:_LONGEST])
        if untold:
            faults.append(printable(f"it does not say what came of {', '.join(untold)}")[:_LONGEST])
        if faults:
            self.faults[mirror] = "; ".join(faults)

    def sentence(self, again: str = "do it again") -> str:
        """What was not done, and what to do, `again` by default; empty if all was."""
        if not self.faults:
            return ""
        return (
            f"not at {' nor at '.join(f'{mirror} ({why})' for mirror, why in self.faults.items())}: {again} once that is mended"
        )


@dataclass(frozen=True, slots=True)
class State:
    """How a mirror of a fleet is, as it says. Sizes in bytes."""

    mirror: str
    """What it is called in the list; None of them if it says nothing."""
    version: str
    time: float
    """Its clock, in seconds since the epoch."""
    mirrors: tuple[str, ...]
    """Its list."""
    parents: tuple[str, ...]
    degraded: tuple[str, ...]
    figures: Mapping[str, int]
    """Of `FIGURES`."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Of `TABLES`, a digest that is the same where they are; none of a version that knows none."""

    def document(self) -> dict[str, Any]:
        return {
            "mirror": self.mirror,
            "version": self.version,
            "time": self.time,
            "mirrors": list(self.mirrors),
            "parents": list(self.parents),
            "degraded": list(self.degraded),
            "tables": dict(self.tables),
            **self.figures,
        }

    @classmethod
    def parse(cls, document: Any) -> State:
        """Raises ValueError."""
        try:
            mirrors, parents, degraded = (_texts(document[key]) for key in ("mirrors", "parents", "degraded"))
            figures = {name: int(document[name]) for name in FIGURES}
            clock = float(document["time"])
            if not all(0 <= figure <= _MOST for figure in (clock, *figures.values())):
                raise ValueError("what it says of its clock or its figures cannot be")
            tables = document.get("tables", {})
            return cls(
                printable(str(document["mirror"]))[:_LONGEST],
                printable(str(document["version"]))[:100],
                clock,
                mirrors,
                parents,
                degraded,
                figures,
                {name: str(tables[name]) for name in TABLES if name in tables},
            )
        except (TypeError, KeyError, AttributeError, OverflowError):
            raise ValueError("it does not say how it is") from None


FIGURES = ("size", "max_size", "images", "requests", "hits", "sent", "fetched")


@dataclass(frozen=True, slots=True)
class Member:
    """A mirror of the list, and what was heard of it."""

    url: str
    state: State | None
    fault: str = ""
    """Why nothing was heard."""
    alive: bool = True
    """Whether anything answers there."""
    late: float = 0.0
    """By how many seconds its clock is ahead of this one, at least; negative if it is behind."""

    def has_list(self, mirrors: Sequence[str]) -> bool:
        """Whether its list has the same mirrors, in whatever order: that does not matter."""
        return self.state is not None and set(self.state.mirrors) == set(mirrors)

    @property
    def is_another(self) -> bool:
        """Whether the one that answers is not the one that is listed."""
        return self.state is not None and self.state.mirror != self.url


def differing(members: Sequence[Member], own: str | None) -> dict[str, list[str]]:
    """Returns, by mirror, of which `TABLES` it has others than this one, called `own`; than the first that says how it is, if this one does not."""
    told = {member.url: member.state.tables for member in members if member.state is not None and not member.is_another}
    known = told.get(own or "", next(iter(told.values()), {}))
    return {
        url: found
        for url, tables in told.items()
        if (found := [name for name in TABLES if name in tables and name in known and tables[name] != known[name]])
    }


def printable(text: str) -> str:
    """What others send must not control a terminal, or begin a line of a log."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _LONGEST:
        raise ValueError("a list of texts is expected")
    return tuple(printable(str(one))[:_LONGEST] for one in value)
