"""``mirror user``: users and their passwords."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mirror.access.accounts import Accounts
from mirror.access.users import check_user_name, remove_user, set_password
from mirror.cli import fleet
from mirror.cli.ask import become_owner, fail
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import os_error_text, print_json
from mirror.config import Settings
from mirror.fleet_documents import Change
from mirror.fleet_tables import accounts

_SHORTEST = 8


@click.command(short_help="Add, list and remove users.")
@click.argument("action", type=click.Choice(("add", "passwd", "rm", "list", "send")))
@click.argument("name", required=False)
@fleet.here_option
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def user(
    action: str,
    name: str | None,
    password_stdin: bool,
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    here: bool,
    as_json: bool,
) -> None:
    """Adds a user, changes a password, removes a user, or lists users.

    The users are in the file of server.users_file, which htpasswd -B can write too. A running mirror takes what changed within a second. In a fleet with a token, all mirrors change: they are told the hash of the password.
    send tells the others of a user, or of all, as they are here: a mirror that did not answer before, or is new.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    known = accounts(settings)
    file = known.users_file
    if settings.server.users_file is None:
        become_owner(settings.cache.dir)
    if name is None and action not in ("list", "send"):
        fail(f"mirror user {action} needs a name")
    if name is not None and action == "list":
        fail("list takes no name")
    try:
        if action == "list":
            names = sorted(known.users())
            if as_json:
                print_json([{"user": one} for one in names])
            else:
                click.echo("\n".join(names) or f"there are no users in {file}: mirror user add NAME adds one")
            return
        if action == "send":
            well = _send(settings, known, name, as_json)
        else:
            assert name is not None
            well = _change(settings, known, action, name, password_stdin, here, as_json)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(os_error_text(error))
    sys.exit(0 if well else 1)


def _change(settings: Settings, known: Accounts, action: str, name: str, password_stdin: bool, here: bool, as_json: bool) -> bool:
    """Changes a user here and at the others, and prints what was done. Returns whether all have done it. Raises OSError, ValueError."""
    file = known.users_file
    if action == "rm":
        was_here = remove_user(file, name)
        told = fleet.tell(settings, here, Change("remove-user", (name,), fleet.invoker()))
        if not was_here and name not in told.did:
            raise ValueError(f"there is no user {name} in {file}")
        done = "removed"
    else:
        _set(known, action, name, password_stdin)
        change = Change("set-user", (name,), fleet.invoker(), force=action == "passwd", kept=known.users()[name])
        told = fleet.tell(settings, here, change, f"mirror user send {name}")
        done = "added" if action == "add" else "changed"
    if as_json:
        print_json({"user": name, "done": done})
    else:
        click.echo(f"{name} is {done}")
    return not told.faults


def _send(settings: Settings, known: Accounts, name: str | None, as_json: bool) -> bool:
    """Returns whether all others have taken it. Raises OSError, ValueError."""
    users = known.users()
    if name is not None and name not in users:
        raise ValueError(f"there is no user {name} in {known.users_file}")
    sent = [name] if name is not None else sorted(users)
    return fleet.send(settings, "user", {one: users[one] for one in sent}, as_json)


def _set(known: Accounts, action: str, name: str, password_stdin: bool) -> None:
    """Raises OSError, ValueError."""
    check_user_name(name)
    file = known.users_file
    is_known = name in known.users()
    if is_known is not (action == "passwd"):
        other = "mirror user passwd changes the password" if is_known else f"mirror user add {name} adds one"
        raise ValueError(f"there is {'already a' if is_known else 'no'} user {name} in {file}: {other}")
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt(f"Password for {name}", hide_input=True, confirmation_prompt=True, err=True)
    if len(password) < _SHORTEST:
        raise ValueError(f"the password is too easy to guess: at least {_SHORTEST} characters are expected")
    set_password(file, name, password)
