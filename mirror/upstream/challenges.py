"""Parses WWW-Authenticate (RFC 9110, section 11.6.1; distribution's "Token Authentication Specification")."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9_-]*)(?:\s+|$|(?=,))")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge. `scheme` is in lower case, such as ``bearer`` or ``basic``; only Bearer has the other parameters."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str | None = None


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Returns all challenges that can be parsed, in order. A header may hold several."""
    found = []
    for header in headers:
        position = 0
        while (match := _SCHEME.match(header, position)) is not None:
            scheme, position = match[1].lower(), match.end()
            parameters: dict[str, str] = {}
            if (token68 := _TOKEN68.match(header, position)) is not None:
                position = token68.end()
            while (parameter := _PARAMETER.match(header, position)) is not None:
                quoted, token = parameter[2], parameter[3]
                parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else token
                position = parameter.end()
            found.append(Challenge(scheme, parameters.get("realm", ""), parameters.get("service", ""), parameters.get("scope")))
            comma = re.compile(r"\s*,").match(header, position)
            if comma is None:
                break
            position = comma.end()
    return found


def choose(challenges: list[Challenge]) -> Challenge | None:
    """Returns the challenge to answer: Bearer rather than Basic; None if there is neither."""
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme and (scheme == "basic" or challenge.realm):
                return challenge
    return None


def pull_scope(challenged: str | None, path: str) -> str:
    """Returns the scope to request: what the challenge names, reduced to pull; ``repository:<path>:pull`` if it names none.

    A registry may use another name for a repository than its clients, or scopes of its own (public.ecr.aws: "aws"). See distribution's "Token Scope Documentation".
    """
    scopes = []
    for scope in (challenged or "").split():
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        if not rest:
            scopes.append(scope)
        elif kind.partition("(")[0] == "repository" and name and {"pull", "*"} & set(actions.split(",")):
            scopes.append(f"{kind}:{name}:pull")
    return " ".join(scopes) or f"repository:{path}:pull"
