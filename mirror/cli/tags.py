"""``mirror tags REPOSITORY``: lists upstream's tags."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.ask import on_cache, repository_of
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json
from mirror.names import natural

if TYPE_CHECKING:
    from mirror.cache.cache import Cache


@click.command(short_help="List upstream's tags of a repository.")
@click.argument("repository")
@cache_options
@click.option(
    "--filter", "pattern", metavar="PATTERN", help="Only tags that contain this; with *, ? or [ a shell pattern, such as '7.*'."
)
@click.option("--limit", type=click.IntRange(1, 10**9), metavar="N", help="Only the last N, which are the newest versions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tags(
    repository: str,
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    pattern: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Lists upstream's tags of REPOSITORY. Names come before versions, and versions are in numeric order: 7.2 before 7.10.

    If upstream cannot be reached, lists the tags that it last reported, or that have been pulled. The exit status is 1 if there are none.
    """
    asked = repository_of(repository)

    async def work(cache: Cache) -> tuple[list[str], bool]:
        found, outcome = await cache.lists.tags(asked)
        return found, outcome.detail == "upstream-unavailable"

    found, stale = on_cache(settings_or_exit(config, cache_dir, upstreams), work)
    found = sorted((tag for tag in found if pattern is None or _matches(tag, pattern)), key=natural)
    found = found if limit is None else found[-limit:]
    if stale:
        click.echo("mirror: upstream cannot be reached: these are the tags that it last reported, or that were pulled", err=True)
    if as_json:
        print_json({"repository": str(asked), "stale": stale, "tags": found})
    else:
        click.echo("".join(f"{tag}\n" for tag in found), nl=False)
    if not found:
        reason = f"no tag of {asked} matches {pattern!r}" if pattern else f"{asked} has no tags"
        click.echo(f"mirror: {reason}", err=True)
    sys.exit(0 if found else 1)


def _matches(tag: str, pattern: str) -> bool:
    return fnmatchcase(tag, pattern) if set("*?[") & set(pattern) else pattern in tag
