"""``mirror history IMAGE``: shows what a tag has meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.ask import fail, images_of, on_store, require_cache
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json, table
from mirror.names import Digest, image_name
from mirror.units import moment

if TYPE_CHECKING:
    from mirror.storage.sightings import Sighting
    from mirror.storage.store import Store


@click.command(short_help="Show what a tag has meant, and when.")
@click.argument("image")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history(image: str, config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], as_json: bool) -> None:
    """Shows every digest that the tag of IMAGE was seen to mean, the oldest first: from when to when, which endpoint said so, and since when clients get it.

    The history stays when the image is evicted or deleted.
    """
    ((repository, reference),) = images_of([image])
    if isinstance(reference, Digest):
        raise click.UsageError("a tag is expected: a digest never means anything else")
    settings = settings_or_exit(config, cache_dir, upstreams)
    require_cache(settings)

    async def work(store: Store) -> list[Sighting]:
        return await store.history(repository, reference)

    found = on_store(settings, work)
    if not found and not as_json:
        fail(f"{image_name(repository, reference)} was never asked for here")
    rows = [_described(found, number) for number in range(len(found))]
    if as_json:
        print_json({"image": image_name(repository, reference), "history": rows})
        return
    lines = [(row["from"], row["to"], row["digest"], row["endpoint"] or "an archive", _note(row)) for row in rows]
    click.echo(table(("FROM", "TO", "DIGEST", "SAID BY", ""), lines), nl=False)


def _described(history: Sequence[Sighting], number: int) -> dict[str, Any]:
    this = history[number]
    released = this.released
    return {
        "digest": str(this.digest),
        "media_type": this.descriptor.media_type,
        "from": moment(this.first),
        "to": moment(this.last),
        "endpoint": this.descriptor.endpoint,
        "served": None if this.served is None else moment(this.served),
        "went_back": any(earlier.digest == this.digest for earlier in history[: max(0, number - 1)]),
        "gone": None if this.gone is None else moment(this.gone),
        "released": None if released is None else moment(released.when),
        "released_by": None if released is None else released.who,
        "released_why": None if released is None else released.why,
    }


def _note(row: dict[str, Any]) -> str:
    notes = []
    if row["went_back"]:
        notes.append("went back")
    if row["served"] is None:
        notes.append("never served")
    elif row["served"] != row["from"]:
        notes.append(f"served since {row['served']}")
    if row["released"] is not None:
        notes.append(f"released by {row['released_by']}: {row['released_why']}")
    if row["gone"] is not None:
        notes.append(f"then gone, {row['gone']}")
    return "; ".join(notes)
