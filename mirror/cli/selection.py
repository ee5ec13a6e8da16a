"""Which images a command is for: names, lists, Compose files, Kubernetes manifests; and for which platforms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mirror.config.compose import images_in
from mirror.config.image_names import names_in_list
from mirror.config.kubernetes import images_in_manifests
from mirror.manifests import platform_named, this_platform

_Command = TypeVar("_Command", bound=Callable[..., Any])


def image_options(command: _Command) -> _Command:
    """``IMAGE…``, ``--file``, ``--compose``, ``--kubernetes``, ``--platform`` and ``--all-platforms``."""
    for option in (
        click.option("--all-platforms", is_flag=True, help="Everything that an index lists, including attestations."),
        click.option(
            "--platform",
            "platforms",
            multiple=True,
            metavar="PLATFORM",
            help="A platform such as linux/arm64; repeatable.  [this machine's]",
        ),
        click.option(
            "--kubernetes",
            "manifests",
            multiple=True,
            type=click.Path(path_type=Path),
            metavar="FILE|FOLDER",
            help="The images of the containers in Kubernetes manifests.",
        ),
        click.option(
            "--compose",
            "composed",
            multiple=True,
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The images of a Compose file's services.",
        ),
        click.option(
            "--file",
            "-f",
            "lists",
            multiple=True,
            metavar="FILE",
            help="Read image names from a file, one per line, with # comments; - is standard input.",
        ),
        click.argument("images", nargs=-1, metavar="[IMAGE...]"),
    ):
        command = option(command)
    return command


def names_of(
    images: tuple[str, ...], lists: tuple[str, ...], composed: tuple[Path, ...], manifests: tuple[Path, ...]
) -> list[str]:
    """Returns the names that these options give. Raises click.UsageError."""
    names = [*images, *(name for file in lists for name in listed(file))]
    for option, files, read in (("--compose", composed, images_in), ("--kubernetes", manifests, images_in_manifests)):
        for file in files:
            try:
                names += read(file)
            except ValueError as error:
                raise click.UsageError(f"{option} {error}") from None
    return names


def platforms_of(platforms: tuple[str, ...], all_platforms: bool) -> list[str] | None:
    """Returns the platforms, this machine's if none is given; None for all. Raises click.UsageError."""
    if platforms and all_platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    return None if all_platforms else [parse_platform(one) for one in platforms] or [this_platform()]


def parse_platform(text: str) -> str:
    """Returns a platform as images name it; without an operating system, Linux is meant. Raises click.BadParameter."""
    try:
        return platform_named(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--platform") from None


def listed(file: str) -> list[str]:
    """Returns the image names in a file; - is standard input. Raises click.UsageError with the line number of a wrong one."""
    try:
        # Opening fails if standard input is closed. Editors on Windows begin a file with a byte order mark.
        with open(0 if file == "-" else file, encoding="utf-8-sig", closefd=file != "-") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--file {file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        return names_in_list(text)
    except ValueError as error:
        raise click.UsageError(f"{file}, {error}") from None
