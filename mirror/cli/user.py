"""``mirror user``: users and their passwords."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mirror.access.users import check_user_name, read_users, remove_user, set_password
from mirror.cli.ask import become_owner, fail
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import os_error_text, print_json
from mirror.wiring import users_file

_SHORTEST = 8


@click.command(short_help="Add, list and remove users.")
@click.argument("action", type=click.Choice(("add", "passwd", "rm", "list")))
@click.argument("name", required=False)
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
    as_json: bool,
) -> None:
    """Adds a user, changes a password, removes a user, or lists users.

    The users are in the file of server.users_file, which htpasswd -B can write too. A running mirror takes what changed within a second.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    file = users_file(settings)
    if settings.server.users_file is None:
        become_owner(settings.cache.dir)
    if (name is None) is not (action == "list"):
        fail("list takes no name" if action == "list" else f"mirror user {action} needs a name")
    try:
        if action == "list":
            names = sorted(read_users(file).hashes)
            if as_json:
                print_json([{"user": one} for one in names])
            else:
                click.echo("\n".join(names) or f"there are no users in {file}: mirror user add NAME adds one")
            return
        assert name is not None
        done = _change(file, action, name, password_stdin)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(os_error_text(error))
    if as_json:
        print_json({"user": name, "done": done})
    else:
        click.echo(f"{name} is {done}")


def _change(file: Path, action: str, name: str, password_stdin: bool) -> str:
    """Returns what was done. Raises OSError, ValueError."""
    if action == "rm":
        if not remove_user(file, name):
            raise ValueError(f"there is no user {name} in {file}")
        return "removed"
    check_user_name(name)
    known = name in read_users(file)
    if known is not (action == "passwd"):
        other = "mirror user passwd changes the password" if known else f"mirror user add {name} adds one"
        raise ValueError(f"there is {'already a' if known else 'no'} user {name} in {file}: {other}")
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt(f"Password for {name}", hide_input=True, confirmation_prompt=True, err=True)
    if len(password) < _SHORTEST:
        raise ValueError(f"the password is too easy to guess: at least {_SHORTEST} characters are expected")
    set_password(file, name, password)
    return "added" if action == "add" else "changed"
