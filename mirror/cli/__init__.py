"""The command line.

A command's module is imported only when that command runs, because most commands need neither the server nor an HTTP client and should start fast.
"""

from __future__ import annotations

import contextlib
import difflib
import gc as python_gc  # `gc` is a command here
import importlib
import keyword
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mirror import __version__

COMMANDS = {
    "serve": "serve",
    "ls": "ls",
    "show": "show",
    "stats": "stats",
    "search": "search",
    "tags": "tags",
    "pull": "pull",
    "export": "export",
    "have": "have",
    "import": "import_",
    "pin": "pin",
    "unpin": "pin",
    "history": "history",
    "release": "guards",
    "block": "guards",
    "unblock": "guards",
    "rm": "rm",
    "gc": "gc",
    "verify": "verify",
    "user": "user",
    "token": "token",
    "who": "who",
    "reload": "reload",
    "configure": "configure",
    "doctor": "doctor",
    "man": "man",
}
"""Each command and its module, in the order of `mirror --help`."""
INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 plus the number of SIGINT, as in shells."""


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Turns the garbage collector off for imports: they leave next to no garbage, and looking for it takes an eighth of a start."""
    python_gc.disable()
    try:
        yield
    finally:
        python_gc.freeze()
        python_gc.enable()


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        with importing():
            command = getattr(importlib.import_module(f"mirror.cli.{COMMANDS[cmd_name]}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"Did you mean {near[0]!r}?" if near else "See mirror --help."
            ctx.fail(f"No such command {name!r}. {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("mirror: interrupted", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader closed the pipe, as in `mirror ls | head`. click exits silently.
            raise
        except OSError as error:
            # Commands report errors of the cache and of files themselves, so this is one of standard output.
            click.echo(f"mirror: the output cannot be written: {error.strerror}", err=True)
            sys.exit(1)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        commit = _commit()
        click.echo(f"mirror, version {__version__}" + (f" (commit {commit})" if commit else ""))
        ctx.exit()


def _commit() -> str:
    """Returns the commit that this program was built from (see setup.py), or that of the checkout it runs from; empty if neither is known."""
    source = Path(__file__).parents[2]
    with contextlib.suppress(OSError):
        return (Path(__file__).parents[1] / "COMMIT").read_text().strip()
    if not (source / ".git").exists():
        return ""
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


_EPILOG = """\b
Completion of commands and options, in bash (zsh and fish: zsh_source, fish_source):
  eval "$(_MIRROR_COMPLETE=bash_source mirror)"
"""


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version, and the commit.",
)
def main() -> None:
    """A pull-through caching mirror for container images."""
