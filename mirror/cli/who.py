"""``mirror who``: who pulled, pushed or was refused an image, from the audit log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.access.audit import read_audit_log
from mirror.access.pulls import wanted_entries
from mirror.cli.ask import fail, on_store
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import os_error_text, print_json, table
from mirror.config import ALIASES, DEFAULT_REGISTRY
from mirror.errors import Invalid
from mirror.names import Digest, parse_image
from mirror.regular_files import NoFile
from mirror.storage.cache_directory import holds_cache

if TYPE_CHECKING:
    from mirror.config import Settings
    from mirror.storage.store import Store


@click.command(short_help="Show who pulled or pushed an image, and when.")
@click.argument("image", metavar="IMAGE|DIGEST")
@click.option("-n", "count", default=50, show_default=True, metavar="COUNT", help="The newest so many entries.")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def who(image: str, count: int, config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], as_json: bool) -> None:
    """Reads the audit log, and the one before it. IMAGE without a tag is all of its repository.

    DIGEST may be that of a layer or a configuration: then it is about the images that name it, as far as they are cached. The exit status is 1 if nothing is found.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    file = settings.server.audit_log
    if file is None:
        fail('there is no audit log: set server.audit_log, such as "/var/log/mirror/audit.log"')
    try:
        wanted = _wanted(image)
        if list(wanted) == ["digest"]:
            wanted["digest"] |= _images_with(settings, Digest.parse(image))
        found = wanted_entries(read_audit_log(file), wanted)
    except Invalid as error:
        fail(error.message)
    except NoFile:
        found = []
    except OSError as error:
        fail(os_error_text(error))
    found = found[-count:]
    if as_json:
        print_json(found)
    elif found:
        click.echo(table(("TIME", "WHO", "ADDRESS", "ACTION", "REFERENCE", "VERDICT"), list(map(_row, found))), nl=False)
    else:
        click.echo(f"nobody is in {file} with {image}", err=True)
    sys.exit(0 if found else 1)


def _wanted(image: str) -> dict[str, set[str]]:
    """The values of fields of which an entry must have one each. Raises Invalid."""
    if image.startswith(("sha256:", "sha512:")):
        return {"digest": {str(Digest.parse(image))}}
    repository, reference = parse_image(image, DEFAULT_REGISTRY, ALIASES)
    if isinstance(reference, Digest):
        return {"repository": {str(repository)}, "digest": {str(reference)}}
    tagged = ":" in image.rpartition("/")[2]
    return {"repository": {str(repository)}, **({"reference": {str(reference)}} if tagged else {})}


def _images_with(settings: Settings, digest: Digest) -> set[str]:
    """The manifests that name a layer or a configuration: pulls are noted by the digests of manifests."""

    async def work(store: Store) -> set[str]:
        # An index that names a manifest was pulled by clients of other platforms too.
        return set() if await store.manifest(digest) is not None else {str(one) for one in await store.naming(digest, 0.0)}

    return on_store(settings, work) if holds_cache(settings.cache.dir) else set()


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    name = entry.get("user") or "-"
    token = f" (token {entry['token']})" if entry.get("token") else ""
    shown = (
        str(entry.get("time", ""))[:19],
        f"{name}{token}",
        str(entry.get("address", "")),
        str(entry.get("action", "")),
        str(entry.get("reference", ""))[:19],
        str(entry.get("verdict", "")),
    )
    # What clients send must not control a terminal.
    return tuple("".join(one if one.isprintable() else "?" for one in text) for text in shown)
