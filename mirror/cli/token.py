"""``mirror token``: long passwords for programs, with an end and limits."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mirror.access.access import TOKENS
from mirror.access.tokens import add_token, read_tokens, remove_token
from mirror.access.users import read_users
from mirror.cli.ask import become_owner, fail
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import ago, os_error_text, print_json, table
from mirror.config import Settings
from mirror.units import moment, parse_duration
from mirror.wiring import access_folder, users_file

_NEVER = "never"


@click.command(short_help="Add, list and remove tokens.")
@click.argument("action", type=click.Choice(("add", "rm", "list")))
@click.argument("name", required=False)
@click.option(
    "--user",
    "owner",
    metavar="USER",
    help="Whose token it is; without it, only [[access]] tables that name token:NAME are about it.",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="ACTIONS[:PATTERN]",
    help="What it is good for, of what the user may do, such as pull:class/**; repeat it for more.  [everything]",
)
@click.option(
    "--expires", metavar="DURATION|never", default="365d", show_default=True, help="How long it is good for, such as 30d."
)
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def token(
    action: str,
    name: str | None,
    owner: str | None,
    scopes: tuple[str, ...],
    expires: str,
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    as_json: bool,
) -> None:
    """Adds a token and prints it, lists tokens, or removes one.

    A token is used in place of a password, with any user name, or in a secret path: http://mirror.lan:5000/t/TOKEN. It is shown once: only its hash is kept.
    A running mirror takes what changed within a second.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    folder = access_folder(settings) / TOKENS
    become_owner(settings.cache.dir)
    if (name is None) is not (action == "list"):
        fail("list takes no name" if action == "list" else f"mirror token {action} needs a name")
    try:
        if name is None:
            _list(folder, as_json)
        elif action == "rm":
            if not remove_token(folder, name):
                raise ValueError(f"there is no token {name}: mirror token list shows those that there are")
            print_json({"token": name, "done": "removed"}) if as_json else click.echo(f"the token {name} is removed")
        else:
            secret = _add(settings, folder, name, owner, scopes, expires)
            if as_json:
                print_json({"token": name, "secret": secret})
            else:
                click.echo(f"the token {name}, shown this once; only its hash is kept:", err=True)
                click.echo(secret)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(os_error_text(error))


def _add(settings: Settings, folder: Path, name: str, owner: str | None, scopes: tuple[str, ...], expires: str) -> str:
    """Returns the token. Raises OSError, ValueError."""
    if owner is not None and owner not in read_users(users_file(settings)):
        raise ValueError(f"there is no user {owner}: mirror user add {owner} adds one")
    end = None if expires == _NEVER else time.time() + parse_duration(expires)
    return add_token(folder, name, owner, scopes, end)


def _list(folder: Path, as_json: bool) -> None:
    found = sorted(read_tokens(folder).by_digest.values(), key=lambda one: one.name)
    now = time.time()
    if as_json:
        print_json(
            [
                {
                    "token": one.name,
                    "user": one.user,
                    "scopes": one.scopes,
                    "created": moment(one.created),
                    "expires": moment(one.expires),
                    "over": one.is_over(now),
                }
                for one in found
            ]
        )
        return
    if not found:
        click.echo("there are no tokens: mirror token add NAME --user USER adds one")
        return
    rows = [
        (
            one.name,
            one.user or "-",
            " ".join(one.scopes) or "everything",
            ago(one.created),
            _NEVER if one.expires is None else "over" if one.is_over(now) else (moment(one.expires) or "")[:10],
        )
        for one in found
    ]
    click.echo(table(("TOKEN", "USER", "SCOPES", "CREATED", "EXPIRES"), rows), nl=False)
