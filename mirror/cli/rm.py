"""``mirror rm``: deletes images from the cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli import fleet
from mirror.cli.ask import images_of, on_store
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json
from mirror.errors import ManifestUnknown, Pinned
from mirror.fleet_documents import Change
from mirror.names import image_name
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.storage.store import Store


@click.command(short_help="Delete images from the cache.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@cache_options
@click.option("--force", is_flag=True, help="Also delete pinned images.")
@fleet.here_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rm(
    images: Sequence[str],
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    force: bool,
    here: bool,
    as_json: bool,
) -> None:
    """Deletes images and everything that no other image uses. A client that asks for one later has it downloaded again.

    A digest also deletes all tags of its repository that refer to it. Transfers in progress are completed. A running mirror notices within two seconds.
    In a fleet with a token, all mirrors delete them. The exit status is 1 if an image could not be deleted.
    """
    named = images_of(images)

    absent: set[str] = set()

    async def work(store: Store) -> list[dict[str, Any]]:
        done: list[dict[str, Any]] = []
        for repository, reference in named:
            outcome: dict[str, Any] = {"image": image_name(repository, reference)}
            try:
                deleted = await store.delete(repository, reference, force=force)
                outcome |= {"deleted": True, "digest": str(deleted.digest), "freed": deleted.freed, "kept": deleted.kept}
            except (ManifestUnknown, Pinned) as error:
                outcome |= {"deleted": False, "fault": error.message}
                if isinstance(error, ManifestUnknown):
                    absent.add(outcome["image"])
            done.append(outcome)
        return done

    settings = settings_or_exit(config, cache_dir, upstreams)
    report = on_store(settings, work)
    names = tuple(outcome["image"] for outcome in report if outcome["deleted"] or outcome["image"] in absent)
    told = fleet.tell(settings, here, Change("delete", names, force=force))
    for outcome in report:
        if outcome["image"] in absent and outcome["image"] in told.did:
            # Other mirrors had it.
            outcome |= {"deleted": True, "digest": None, "freed": 0, "kept": 0}
            del outcome["fault"]
    if as_json:
        print_json(report)
    for outcome in () if as_json else report:
        if outcome["deleted"] and outcome["digest"] is None:
            click.echo(f"{outcome['image']} deleted at {', '.join(told.did[outcome['image']])}; it was not cached here")
        elif outcome["deleted"]:
            kept = f", {format_size(outcome['kept'])} shared with other images kept" if outcome["kept"] else ""
            click.echo(f"{outcome['image']} deleted: {format_size(outcome['freed'])} freed{kept}")
        else:
            click.echo(f"mirror: {outcome['fault']}", err=True)
    sys.exit(0 if all(outcome["deleted"] for outcome in report) and not told.faults else 1)
