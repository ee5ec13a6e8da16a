"""``mirror man``: prints the manual page."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from mirror import __version__


@click.command(short_help="Print the manual page.")
def man() -> None:
    """Prints the manual page mirror(1), made of the help texts of all commands.

    To install it: mirror man > /usr/local/share/man/man1/mirror.1
    """
    root = click.get_current_context().find_root()
    click.echo("\n".join(_page(root)))


def _page(root: click.Context) -> Iterator[str]:
    group = root.command
    assert isinstance(group, click.Group)
    yield f'.TH MIRROR 1 "" "mirror {__version__}" "User Commands"'
    yield f".SH NAME\nmirror \\- {_escaped(_sentence(group.help))}"
    yield ".SH SYNOPSIS\n.B mirror\n.I COMMAND\n[\\fIOPTION\\fR...] [\\fIARGUMENT\\fR...]"
    yield ".SH DESCRIPTION\nImages are named as for Docker. Commands work beside a running mirror or without one."
    yield ".SH OPTIONS"
    yield from _options(root)
    yield ".SH COMMANDS"
    for name in group.list_commands(root):
        command = group.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root)
        yield f".SS {_escaped(' '.join(('mirror', name, *command.collect_usage_pieces(context))))}"
        for paragraph in (command.help or "").split("\n\n"):
            yield f".PP\n{_escaped(' '.join(paragraph.split()))}"
        yield from _options(context)
    yield ".SH EXIT STATUS\n0 on success, 1 on failure, 2 on wrong usage, 130 after an interrupt."
    yield ".SH ENVIRONMENT\nEach setting can be given as MIRROR_TABLE__NAME, such as MIRROR_SERVER__LISTEN."


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            flags, text = record
            yield f".TP\n\\fB{_escaped(flags)}\\fR\n{_escaped(text)}"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).removesuffix(".")


def _escaped(text: str) -> str:
    """Text as groff takes it (groff_char(7)); a line must not begin with a control character."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text)
