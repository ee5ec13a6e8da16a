"""``mirror rm``: deletes images from the cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.ask import images_of, on_store
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import tell_json
from mirror.errors import ManifestUnknown, Pinned
from mirror.names import image_name
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.storage.store import Store


@click.command(short_help="Delete images from the cache.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@cache_options
@click.option("--force", is_flag=True, help="Delete pinned images as well.")
@click.option("--json", "as_json", is_flag=True, help="Tell it as JSON.")
def rm(
    images: Sequence[str], config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], force: bool, as_json: bool
) -> None:
    """Deletes images, with everything that no other image has; upstream is asked for them again when a client wants them.

    By digest, all tags of the repository that mean it are deleted. What is being read can be read to its end; a running mirror notices within a second
    or two. The exit status is 1 where one could not be deleted.
    """
    named = images_of(images)

    async def work(store: Store) -> list[dict[str, Any]]:
        done: list[dict[str, Any]] = []
        for repository, reference in named:
            told: dict[str, Any] = {"image": image_name(repository, reference)}
            try:
                deleted = await store.delete(repository, reference, force=force)
                told |= {"deleted": True, "digest": str(deleted.digest), "freed": deleted.freed, "kept": deleted.kept}
            except (ManifestUnknown, Pinned) as error:
                told |= {"deleted": False, "fault": error.message}
            done.append(told)
        return done

    report = on_store(settings_or_exit(config, cache_dir, upstreams), work)
    if as_json:
        tell_json(report)
    for told in () if as_json else report:
        if told["deleted"]:
            kept = f", {format_size(told['kept'])} stay that other images have too" if told["kept"] else ""
            click.echo(f"{told['image']} is deleted: {format_size(told['freed'])} freed{kept}")
        else:
            click.echo(f"mirror: {told['fault']}", err=True)
    sys.exit(0 if all(told["deleted"] for told in report) else 1)
