"""``mirror configure CLIENT``: configures a client on this machine to pull through the mirror."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from mirror.cli import changes
from mirror.cli.changes import Change
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import os_error_text, print_json
from mirror.clients import CLIENTS, Address, Client, Conflict, client_here, in_order_for, machine_id, runs_systemd
from mirror.regular_files import LARGEST_SECRET, read_file

TOKEN_VARIABLE = "MIRROR_TOKEN"  # noqa: S105  a name
"""The environment variable that a token can be in: unlike arguments, other users of the machine cannot read it."""
_BY_PATH = ("docker", "containerd", "k3s")
"""Clients whose URL of a mirror may have a path."""


@click.command(short_help="Point a client of this machine at the mirror.")
@click.argument("client", type=click.Choice(list(CLIENTS)))
@click.option("--write", is_flag=True, help="Write the changes, keeping a backup. Without it they are only shown.")
@click.option("--undo", is_flag=True, help="Restore the files as they were before --write.")
@click.option(
    "--mirror",
    "urls",
    metavar="URL",
    multiple=True,
    help="The mirror's address as this client reaches it. Give it again for each of several equal mirrors: every machine asks them in another order."
    "  [from the settings, or http://127.0.0.1:5000]",
)
@click.option(
    "--token",
    envvar=TOKEN_VARIABLE,
    metavar="TOKEN",
    help="A token for private images, which is written as a secret path. For docker (24.0.8 and newer), containerd and k3s. Others see it in the list of"
    f" processes: better --token-file, --token-stdin or the variable {TOKEN_VARIABLE}.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Read the token from a file.",
)
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Look for the client's files under this folder, such as a machine image's root.",
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="The client's file, if it is not in its usual place.",
)
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def configure(
    client: str,
    write: bool,
    undo: bool,
    urls: tuple[str, ...],
    token: str | None,
    token_file: Path | None,
    token_stdin: bool,
    root: Path | None,
    file: Path | None,
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    as_json: bool,
) -> None:
    """Shows the changes that make CLIENT pull through the mirror. --write makes them, --undo reverts them.

    The mirror's address and registries come from the settings. Other content of the files stays. The exit status is 0 on success, 1 on failure, and 2 on wrong
    usage.
    """
    if write and undo:
        raise click.UsageError("--write and --undo exclude each other")
    if file is not None and root is not None:
        raise click.UsageError("--file and --root exclude each other")
    settings = settings_or_exit(config, cache_dir, upstreams)
    try:
        parsed = [Address.parse(url) for url in urls or [settings.server.own_url]]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--mirror") from None
    addresses = in_order_for(machine_id(root or Path("/")), parsed)
    token = _token(token, token_file, token_stdin)
    if token is not None:
        if client not in _BY_PATH:
            raise click.UsageError(
                f"{client} takes no secret path: log in at the address of server.login_listen instead (docs/access.md)"
            )
        try:
            addresses = [address.with_token(token) for address in addresses]
        except ValueError as error:
            raise click.UsageError(f"the token cannot be used: {error}") from None
    here = root is None and file is None
    chosen = client_here(client) if here else CLIENTS[client]
    systemd = runs_systemd() if here else None
    if file is not None and len(chosen.plan(addresses, ["*"])) > 1:
        raise click.UsageError(f"{client} has several files: use --root instead")
    report = (
        _undo(chosen, addresses, root, file) if undo else _change(chosen, addresses, list(settings.registries), root, file, write)
    )
    report["then"] = chosen.command(undo, systemd is not False)
    if as_json:
        print_json(report)
    else:
        _print_report(report, chosen, write, undo, systemd)
    sys.exit(0 if report["done"] else 1)


def _token(token: str | None, file: Path | None, stdin: bool) -> str | None:
    """Returns the token that was given, by whichever way; None if none was. Raises click.UsageError."""
    source = click.get_current_context().get_parameter_source("token")
    if (source is click.core.ParameterSource.COMMANDLINE) + (file is not None) + stdin > 1:
        raise click.UsageError("--token, --token-file and --token-stdin exclude each other")
    if stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if file is None:
        return token
    try:
        return read_file(file, LARGEST_SECRET, follow=True).decode(errors="replace").rstrip("\r\n")
    except OSError as error:
        raise click.UsageError(f"the token cannot be read: {os_error_text(error)}") from None


def _place(path: str, root: Path | None, file: Path | None) -> Path:
    if file is not None:
        return Path(os.path.abspath(file))
    return Path(os.path.abspath(root)) / path.lstrip("/") if root is not None else Path(path)


def _change(
    client: Client, addresses: list[Address], registries: list[str], root: Path | None, file: Path | None, write: bool
) -> dict[str, Any]:
    found: list[Change] = []
    faults: list[str] = []
    for wanted in client.plan(addresses, registries):
        path = _place(wanted.path, root, file)
        try:
            found.append(changes.prepare(wanted, path))
        except Conflict as conflict:
            faults.append(f"{path} {conflict}")
        except OSError as error:
            faults.append(f"{path} cannot be read: {error.strerror}")
    needed = [change for change in found if change.needed]
    for change in needed if write and not faults else ():
        try:
            change.write()
        except OSError as error:
            faults.append(f"{change.path} cannot be written: {error.strerror}; --undo reverts what was written before")
            break
    files = [{"path": str(change.path), "changed": change.needed, "diff": change.diff()} for change in found]
    return _report(client, addresses, files, faults)


def _undo(client: Client, addresses: list[Address], root: Path | None, file: Path | None) -> dict[str, Any]:
    # "*" also covers registries that are no longer in the settings.
    paths = [path for wanted in client.plan(addresses, ["*"]) for path in changes.changed(_place(wanted.path, root, file))]
    faults = []
    try:
        changes.undo(paths)
    except Conflict as conflict:
        faults.append(str(conflict))
    except OSError as error:
        faults.append(f"{error.filename} cannot be restored: {error.strerror}")
    if not paths:
        faults.append(f"no file of {client.title} was changed by this program: there is nothing to undo")
    files = [{"path": str(path), "changed": True, "exists": path.exists()} for path in paths]
    return _report(client, addresses, files, faults)


def _report(client: Client, addresses: list[Address], files: list[dict[str, Any]], faults: list[str]) -> dict[str, Any]:
    return {
        "client": client.name,
        "mirrors": [address.url for address in addresses],
        "done": not faults,
        "files": files,
        "faults": faults,
    }


def _print_report(report: dict[str, Any], client: Client, write: bool, undo: bool, systemd: bool | None) -> None:
    touched = [file for file in report["files"] if file["changed"]]
    if not undo:
        click.echo("".join(file["diff"] for file in touched), nl=False)
    for fault in report["faults"]:
        click.echo(f"mirror: {fault}", err=True)
    if not report["done"]:
        return
    if undo:
        for each in touched:
            click.echo(f"{'restored' if each['exists'] else 'deleted'} {each['path']}")
    mirrors = ", then ".join(report["mirrors"])
    if not touched:
        click.echo(f"{client.title} already uses {mirrors} for {client.registries}")
    elif write or undo:
        click.echo(f"Done. {client.next_step(undo, systemd)}")
    else:
        click.echo(
            f"With these changes {client.title} uses {mirrors} for {client.registries}. Nothing was written: run it again with --write."
        )
