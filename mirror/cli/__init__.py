"""The command line. A command's module is imported when it is asked for: most need neither the server nor an HTTP client, and should answer at once."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from mirror import __version__

COMMANDS = {
    "serve": "serve",
    "ls": "ls",
    "show": "show",
    "stats": "stats",
    "tags": "tags",
    "pull": "pull",
    "pin": "pin",
    "unpin": "pin",
    "rm": "rm",
    "gc": "gc",
    "verify": "verify",
    "configure": "configure",
    "doctor": "doctor",
}
"""Names of commands to their modules, in the order in which people are to see them."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"mirror.cli.{COMMANDS[cmd_name]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Nobody reads on, as with `mirror ls | head`: click ends it without a word.
            raise
        except OSError as error:
            # Commands tell themselves what is wrong with a cache or a file. What is left is standard output.
            click.echo(f"mirror: what it has to tell cannot be written: {error.strerror}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mirror")
def main() -> None:
    """A pull-through caching mirror for container images."""
