"""``mirror search TERM``: finds repositories at a registry's search and among what is cached."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.ask import fail, on_cache
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json, table
from mirror.errors import SearchUnknown
from mirror.names import short_name

if TYPE_CHECKING:
    from mirror.cache.cache import Cache
    from mirror.cache.search import Answer

_PATIENCE = 10.0
_LONGEST_DESCRIPTION = 60


@click.command(short_help="Find repositories on Docker Hub, and cached ones.")
@click.argument("term", nargs=-1, required=True)
@cache_options
@click.option("--limit", type=click.IntRange(1, 100), default=25, metavar="N", help="Show at most N repositories.  [25]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with whole descriptions.")
def search(
    term: tuple[str, ...],
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    limit: int,
    as_json: bool,
) -> None:
    """Finds repositories by TERM on Docker Hub. Those that are cached come first. A name in front of a slash, as in ghcr.io/TERM, is the registry to search.

    If the registry has no search or cannot be reached, finds only what is cached, and says so. The exit status is 1 if nothing is found.
    """

    async def work(cache: Cache) -> Answer:
        return await cache.search.find(" ".join(term), limit, _PATIENCE)

    answer = on_cache(settings_or_exit(config, cache_dir, upstreams), work)
    if answer.problem is not None:
        reason = answer.problem.message
        scope = "" if isinstance(answer.problem, SearchUnknown) else f"{answer.registry} was not searched: "
        if not answer.found:
            fail(f"{scope}{reason}; nothing cached matches {answer.term!r}")
        click.echo(f"mirror: only what is cached was searched: {reason}", err=True)
    if as_json:
        print_json(_described(answer))
    elif answer.found:
        rows = [
            (
                short_name(found.repository),
                str(found.stars) if found.stars else "-",
                "yes" if found.official else "-",
                ",".join(tag.removeprefix(":")[:20] for tag in found.tags[:3]) + ("…" if len(found.tags) > 3 else "") or "-",
                _cut(found.description),
            )
            for found in answer.found
        ]
        click.echo(table(("NAME", "STARS", "OFFICIAL", "CACHED", "DESCRIPTION"), rows, ("STARS",)), nl=False)
    if not answer.found:
        click.echo(f"mirror: {answer.registry} has nothing that matches {answer.term!r}", err=True)
    sys.exit(0 if answer.found else 1)


def _cut(description: str) -> str:
    whole = len(description) <= _LONGEST_DESCRIPTION
    return description if whole else description[: _LONGEST_DESCRIPTION - 1] + "…"


def _described(answer: Answer) -> dict[str, object]:
    return {
        "registry": answer.registry,
        "term": answer.term,
        "searched": answer.problem is None,
        "problem": answer.problem.message if answer.problem is not None else None,
        "results": [
            {
                "repository": str(found.repository),
                "description": found.description,
                "stars": found.stars,
                "official": found.official,
                "cached": [f"{found.repository}{tag}" for tag in found.tags],
            }
            for found in answer.found
        ],
    }
