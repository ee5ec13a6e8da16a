"""``mirror tags REPOSITORY``: which tags upstream has."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.ask import on_cache, repository_of
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import tell_json

if TYPE_CHECKING:
    from mirror.cache.cache import Cache

_NUMBER = re.compile(r"(\d+)")


@click.command(short_help="List the tags that upstream has.")
@click.argument("repository")
@cache_options
@click.option(
    "--filter", "pattern", metavar="PATTERN", help="Those that have this in them; with *, ? or [ those that fit it: '7.*'."
)
@click.option("--limit", type=click.IntRange(1, 10**9), metavar="N", help="The last N only: the newest versions.")
@click.option("--json", "as_json", is_flag=True, help="Tell it as JSON.")
def tags(
    repository: str,
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    pattern: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Lists all tags that upstream has of REPOSITORY, the newest versions last: 7.2 comes before 7.10, and names before versions.

    While upstream cannot be asked, those that it told last, or that have been pulled. The exit status is 1 where there are none.
    """
    asked = repository_of(repository)

    async def work(cache: Cache) -> tuple[list[str], bool]:
        found, outcome = await cache.lists.tags(asked)
        return found, outcome.detail == "upstream-unavailable"

    found, stale = on_cache(settings_or_exit(config, cache_dir, upstreams), work)
    found = sorted((tag for tag in found if pattern is None or _fits(tag, pattern)), key=natural)
    found = found if limit is None else found[-limit:]
    if stale:
        click.echo("mirror: upstream cannot be asked now: these are the tags that it told last, or that were pulled", err=True)
    if as_json:
        tell_json({"repository": str(asked), "stale": stale, "tags": found})
    else:
        click.echo("".join(f"{tag}\n" for tag in found), nl=False)
    if not found:
        told = f"no tag of {asked} fits {pattern!r}" if pattern else f"{asked} has no tags"
        click.echo(f"mirror: {told}", err=True)
    sys.exit(0 if found else 1)


def _fits(tag: str, pattern: str) -> bool:
    return fnmatchcase(tag, pattern) if set("*?[") & set(pattern) else pattern in tag


def natural(tag: str) -> tuple[bool, list[tuple[bool, int, str]], str]:
    """A key that puts numbers in their order, and what is no version first."""
    version = tag[1:] if tag[:1] == "v" else tag
    parts = [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in _NUMBER.split(version) if part]
    return version[:1].isdigit(), parts, tag
