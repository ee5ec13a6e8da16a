"""``mirror token``: long passwords for programs, with an end and limits."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from mirror.access.accounts import Accounts
from mirror.access.tokens import add_token, read_tokens, remove_token
from mirror.cli import fleet
from mirror.cli.ask import become_owner, fail
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import ago, os_error_text, print_json, table
from mirror.config import Settings
from mirror.fleet_documents import Change
from mirror.fleet_tables import accounts
from mirror.units import moment, parse_duration

_NEVER = "never"


@click.command(short_help="Add, list and remove tokens.")
@click.argument("action", type=click.Choice(("add", "rm", "list", "send")))
@click.argument("name", required=False)
@fleet.here_option
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
    here: bool,
    as_json: bool,
) -> None:
    """Adds a token and prints it, lists tokens, or removes one.

    A token is used in place of a password, with any user name, or in a secret path: http://mirror.lan:5000/t/TOKEN. It is shown once: only its hash is kept.
    A running mirror takes what changed within a second. In a fleet with a token, all mirrors change: they are told the hash. send tells the others of a token, or of all, as they are
    here: a mirror that did not answer before, or is new.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    known = accounts(settings)
    become_owner(settings.cache.dir)
    if name is None and action not in ("list", "send"):
        fail(f"mirror token {action} needs a name")
    if name is not None and action == "list":
        fail("list takes no name")
    try:
        if action == "list":
            _list(known.tokens, as_json)
            return
        if action == "send":
            well = _send(settings, known, name, as_json)
        elif action == "rm":
            assert name is not None
            well = _remove(settings, known, name, here, as_json)
        else:
            assert name is not None
            well = _add(settings, known, name, owner, scopes, expires, here, as_json)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(os_error_text(error))
    sys.exit(0 if well else 1)


# Each returns whether all mirrors have done it. Raises OSError, ValueError.


def _add(
    settings: Settings,
    known: Accounts,
    name: str,
    owner: str | None,
    scopes: tuple[str, ...],
    expires: str,
    here: bool,
    as_json: bool,
) -> bool:
    if owner is not None and owner not in known.users():
        raise ValueError(f"there is no user {owner}: mirror user add {owner} adds one")
    end = None if expires == _NEVER else time.time() + parse_duration(expires)
    secret = add_token(known.tokens, name, owner, scopes, end)
    # First: it is shown this once.
    if as_json:
        print_json({"token": name, "secret": secret})
    else:
        click.echo(f"the token {name}, shown this once; only its hash is kept:", err=True)
        click.echo(secret)
    kept = known.kept_of_token(name) or ""
    told = fleet.tell(settings, here, Change("set-token", (name,), fleet.invoker(), kept=kept), f"mirror token send {name}")
    return not told.faults


def _remove(settings: Settings, known: Accounts, name: str, here: bool, as_json: bool) -> bool:
    was_here = remove_token(known.tokens, name)
    told = fleet.tell(settings, here, Change("remove-token", (name,), fleet.invoker()))
    if not was_here and name not in told.did:
        raise ValueError(f"there is no token {name}: mirror token list shows those that there are")
    print_json({"token": name, "done": "removed"}) if as_json else click.echo(f"the token {name} is removed")
    return not told.faults


def _send(settings: Settings, known: Accounts, name: str | None, as_json: bool) -> bool:
    names = known.token_names() if name is None else [name]
    kept = {one: found for one in names if (found := known.kept_of_token(one)) is not None}
    if name is not None and name not in kept:
        raise ValueError(f"there is no token {name}: mirror token list shows those that there are")
    return fleet.send(settings, "token", kept, as_json)


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
