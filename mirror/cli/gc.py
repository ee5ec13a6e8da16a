"""``mirror gc``: removes what is not needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.ask import on_store, require_cache, yield_to_others
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json, table
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.storage.store import Collected, Store

_REASONS = {
    "expired": "unused for longer than cache.expire",
    "orphans": "belongs to no image",
    "unfinished": "abandoned downloads, a week old",
    "evicted": "exceeds cache.max_size",
}


@click.command(short_help="Remove what has expired or exceeds the limit.")
@cache_options
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Removes at once what a running mirror removes over time: what has expired, what belongs to no image, and what exceeds cache.max_size.

    Pinned content and content that is being read stay. Of hosted repositories it removes the tags that [[hosted.keep]] does not keep, and what nothing names.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    require_cache(settings)
    yield_to_others()

    async def work(store: Store) -> Collected:
        return await store.collect(dry_run=dry_run)

    done = dataclasses.asdict(on_store(settings, work))
    if as_json:
        print_json({"dry_run": dry_run, **done})
        return
    hosted = done["hosted"]
    for tag in hosted["tags"]:
        click.echo(f"{tag}: not kept by [[hosted.keep]]")
    rows = [(what, str(done[name]["count"]), format_size(done[name]["size"])) for name, what in _REASONS.items()]
    if settings.hosted.repositories or hosted["size"]:
        count = hosted["manifests"] + hosted["blobs"] + hosted["uploads"]
        rows.append(("named by nothing in hosted repositories", str(count), format_size(hosted["size"])))
    click.echo(table(("WOULD BE REMOVED" if dry_run else "REMOVED", "COUNT", "SIZE"), rows, ("COUNT", "SIZE")), nl=False)
