"""How commands change, and read, all mirrors of a fleet: those of fleet.mirrors, with the token of fleet.token_file."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from mirror.cli import importing
from mirror.cli.ask import as_invoker, fail
from mirror.cli.text import print_json
from mirror.fleet_documents import Change, Member, Told

if TYPE_CHECKING:
    from mirror.config import Settings
    from mirror.upstream.members import Members

_Command = TypeVar("_Command", bound=Callable[..., Any])


def here_option(command: _Command) -> _Command:
    """``--here``."""
    return click.option("--here", is_flag=True, help="Only at this mirror, where it is one of a fleet.")(command)


def fleet_option(command: _Command) -> _Command:
    """``--fleet``."""
    return click.option("--fleet", is_flag=True, help="Of all mirrors of the fleet that this one belongs to.")(command)


def tell(settings: Settings, here: bool, change: Change, again: str = "do it again") -> Told:
    """Tells the other mirrors of the fleet, if there is one, and unless only this one is meant. What was not taken is printed, with what does it `again`."""
    told = Told()
    if here or not change.names or not settings.fleet.mirrors:
        return told
    members = _members(settings)
    if not members.can_tell:
        if members.others:
            click.echo(
                "mirror: only this mirror is changed: the others of its fleet can be told once each has the same fleet.token_file",
                err=True,
            )
        return told
    # Whoever can start the mirror can read the token, and the owner of the cache perhaps not.
    with as_invoker():
        told = asyncio.run(members.tell(change))
    if told.faults:
        click.echo(f"mirror: {change.action}: {told.sentence(again)}", err=True)
    return told


def send(settings: Settings, kind: str, kept: Mapping[str, str], as_json: bool) -> bool:
    """Tells the others what is kept of each ``user`` or ``token``, and prints which were taken. Returns whether all were. Exits where nobody else can be told."""
    if not _fleet_or_exit(settings).can_tell:
        fail("the other mirrors of the fleet can be told once each has the same fleet.token_file (docs/scale.md)")
    changes = [Change(f"set-{kind}", (name,), invoker(), force=True, kept=found) for name, found in kept.items()]
    faults = [(change.names[0], bool(tell(settings, False, change, f"mirror {kind} send").faults)) for change in changes]
    if as_json:
        print_json([{kind: name, "sent": not fault} for name, fault in faults])
    else:
        click.echo("".join(f"{name} is sent\n" for name, fault in faults if not fault), nl=False)
    return not any(fault for _, fault in faults)


def states(settings: Settings) -> list[Member]:
    """Returns how the mirrors of the fleet are. Exits where there is none."""
    with as_invoker():
        return asyncio.run(_fleet_or_exit(settings).states())


def lists(settings: Settings, what: str, query: Mapping[str, str]) -> tuple[dict[str, list[dict[str, Any]]], bool]:
    """Returns what each mirror of the fleet has to say (see `Members.lists`), and whether all did; prints which did not. Exits where there is no fleet."""
    from mirror.errors import UpstreamError

    with as_invoker():
        answers = asyncio.run(_fleet_or_exit(settings).lists(what, query))
    found = {}
    for url, answer in answers.items():
        if isinstance(answer, UpstreamError):
            click.echo(f"mirror: nothing of {url}: {answer.message}", err=True)
        else:
            found[url] = answer
    return found, len(found) == len(answers)


def invoker() -> str:
    """Returns who ran the command, also through sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _fleet_or_exit(settings: Settings) -> Members:
    if not settings.fleet.mirrors:
        _no_fleet()
    return _members(settings)


def _no_fleet() -> NoReturn:
    fail("this mirror belongs to no fleet: fleet.mirrors and fleet.own in its settings are empty (docs/scale.md)")


def _members(settings: Settings) -> Members:
    with importing():
        from mirror.upstream.members import Members

    return Members(settings.fleet)
