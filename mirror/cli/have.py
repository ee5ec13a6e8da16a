"""``mirror have``: what this cache holds, for who brings the next bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from mirror.cli.ask import on_store, require_cache
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json
from mirror.names import Digest
from mirror.storage.store import Store


@click.command(short_help="List what is cached, for `mirror export --have`.")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def have(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], as_json: bool) -> None:
    """Prints the digest of everything that is cached, one in a line.

    Carry the list to where there is a network, such as on the stick that brought the last bundle: `mirror export --have` leaves out the layers that are in it.
    """
    from mirror.bundles.have import list_of

    settings = settings_or_exit(config, cache_dir, upstreams)
    require_cache(settings)

    async def work(store: Store) -> Mapping[Digest, int]:
        return await store.contents()

    contents = on_store(settings, work)
    if as_json:
        print_json([{"digest": str(digest), "size": contents[digest]} for digest in sorted(contents, key=str)])
    else:
        click.echo("".join(f"{line}\n" for line in list_of(contents)), nl=False)
