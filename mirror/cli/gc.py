"""``mirror gc``: makes room."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.ask import cache_there, on_store, yield_to_others
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import table, tell_json
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.storage.store import Collected, Store

_REASONS = {
    "expired": "unused for longer than cache.expire says",
    "orphans": "of no image",
    "unfinished": "downloads given up a week ago",
    "evicted": "too much for cache.max_size",
}


@click.command(short_help="Remove what has expired or is too much.")
@cache_options
@click.option("--dry-run", is_flag=True, help="Tell what would be removed, and leave it.")
@click.option("--json", "as_json", is_flag=True, help="Tell it as JSON.")
def gc(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Removes at once what a running mirror removes by and by: what has expired, what belongs to no image, and what is too much.

    What is pinned stays, and what is being read.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    cache_there(settings)
    yield_to_others()

    async def work(store: Store) -> Collected:
        return await store.collect(dry_run=dry_run)

    done = dataclasses.asdict(on_store(settings, work))
    if as_json:
        tell_json({"dry_run": dry_run, **done})
        return
    rows = [(what, str(done[name]["count"]), format_size(done[name]["size"])) for name, what in _REASONS.items()]
    click.echo(table(("WOULD GO" if dry_run else "GONE", "COUNT", "SIZE"), rows, ("COUNT", "SIZE")), nl=False)
