"""``mirror history IMAGE``: shows what a tag has meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.ask import fail, images_of, on_cache, on_store, require_cache
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json, table
from mirror.names import Digest, image_name
from mirror.units import format_size, moment

if TYPE_CHECKING:
    from mirror.cache.cache import Cache
    from mirror.cache.comparing import Change
    from mirror.cache.timeline import Entry
    from mirror.storage.sightings import Sighting
    from mirror.storage.store import Store

_MOST_COMPARED = 50
"""Sightings that are compared, the latest."""


@click.command(short_help="Show what a tag has meant, and when.")
@click.argument("image")
@click.option(
    "--changes",
    "compare",
    is_flag=True,
    help="Show what changed: layers, size, date, settings. Of what is held back, the registry is asked for the manifest and configuration.",
)
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history(
    image: str, compare: bool, config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], as_json: bool
) -> None:
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

    async def compared(cache: Cache) -> list[Entry]:
        return await cache.timelines.of_tag(repository, reference, _MOST_COMPARED, ask=True)

    found = on_store(settings, work)
    if not found and not as_json:
        fail(f"{image_name(repository, reference)} was never asked for here")
    rows = [_described(found, number) for number in range(len(found))]
    if compare and found:
        entries = {(entry.sighting.digest, entry.sighting.first): entry for entry in on_cache(settings, compared)}
        for row, sighting in zip(rows, found, strict=True):
            entry = entries.get((sighting.digest, sighting.first))
            row["changes"] = None if entry is None or entry.changes is None else list(map(_change, entry.changes))
            row["fault"] = None if entry is None or entry.fault is None else entry.fault.message
    if as_json:
        print_json({"image": image_name(repository, reference), "history": rows})
        return
    lines = [(row["from"], row["to"], row["digest"], row["endpoint"] or "an archive", _note(row)) for row in rows]
    shown = table(("FROM", "TO", "DIGEST", "SAID BY", ""), lines).splitlines()
    click.echo(shown[0])
    for line, row in zip(shown[1:], rows, strict=True):
        click.echo(line)
        for told in _told(row):
            click.echo(f"  {told}")


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


def _change(change: Change) -> dict[str, Any]:
    before, after = change.before, change.after
    if change.what == "created":
        before, after = (moment(one) if isinstance(one, float) else None for one in (before, after))
    return {"platform": change.platform, "what": change.what, "before": before, "after": after, "names": list(change.names)}


def _told(row: dict[str, Any]) -> Iterator[str]:
    """Says what changed, for people."""
    if row.get("fault"):
        yield f"what changed cannot be said: {row['fault']}"
    if row.get("changes") == []:
        yield "nothing changed: the same layers and settings"
    for change in row.get("changes") or ():
        what, before, after = change["what"], change["before"], change["after"]
        if what == "layers":
            text = f"{len(change['names'])} of {after} layers are new"
        elif what in ("environment", "labels"):
            text = f"{what}: {', '.join(change['names'])}"
        else:
            shown = [format_size(one) if what == "size" else one or "-" for one in (before, after)]
            text = f"{what}: {shown[1]}, before: {shown[0]}"
        # What an image says of itself must not control a terminal.
        text = "".join(one if one.isprintable() else "?" for one in text)
        yield f"{change['platform']}: {text}" if change["platform"] else text


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
