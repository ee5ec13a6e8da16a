"""The results of an examination."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    ADVICE = "advice"
    """It works, but could be better."""
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names what was examined; `cure` is what to do, empty if nothing."""

    level: Level
    check: str
    message: str
    cure: str = ""


def ok(check: str, message: str) -> Finding:
    return Finding(Level.OK, check, message)


def advice(check: str, message: str, cure: str) -> Finding:
    return Finding(Level.ADVICE, check, message, cure)


def problem(check: str, message: str, cure: str) -> Finding:
    return Finding(Level.PROBLEM, check, message, cure)
