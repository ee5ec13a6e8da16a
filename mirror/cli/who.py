"""``mirror who``: who pulled, pushed or was refused an image, from the audit log."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.access.audit import read_audit_log
from mirror.access.pulls import wanted_entries
from mirror.cli.ask import fail, on_store
from mirror.cli.fleet import fleet_option, lists
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
@fleet_option
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def who(
    image: str,
    count: int,
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    fleet: bool,
    as_json: bool,
) -> None:
    """Reads the audit log, and the one before it. IMAGE without a tag is all of its repository.

    DIGEST may be that of a layer or a configuration: then it is about the images that name it, as far as they are cached. The exit status is 1 if nothing is found.
    With --fleet, the logs of all its mirrors are read, and the exit status is 1 too if one does not answer, or keeps no log.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    file = settings.server.audit_log
    if file is None and not fleet:
        fail('there is no audit log: set server.audit_log, such as "/var/log/mirror/audit.log"')
    found, complete = list[dict[str, Any]](), True
    try:
        wanted = _wanted(image)
        if list(wanted) == ["digest"]:
            wanted["digest"] |= _images_with(settings, Digest.parse(image))
        if fleet:
            found, complete = _of_fleet(settings, wanted, count)
        elif file is not None:
            found = wanted_entries(read_audit_log(file), wanted)
    except Invalid as error:
        fail(error.message)
    except NoFile:
        pass
    except OSError as error:
        fail(os_error_text(error))
    found = found[-count:]
    if as_json:
        print_json(found)
    elif found:
        header = ("TIME", "WHO", "ADDRESS", "ACTION", "REFERENCE", "VERDICT", *(["MIRROR"] if fleet else []))
        click.echo(table(header, list(map(_row, found))), nl=False)
    else:
        other = "; --fleet reads the logs of the other mirrors" if settings.fleet.mirrors else ""
        click.echo(f"nobody is in {'these logs' if fleet else file} with {image}{'' if fleet else other}", err=True)
    sys.exit(0 if found and complete else 1)


def _of_fleet(settings: Settings, wanted: dict[str, set[str]], count: int) -> tuple[list[dict[str, Any]], bool]:
    """Returns the newest entries of all mirrors, oldest first, each with its `mirror`; and whether all mirrors have answered."""
    query = {"count": str(count), "wanted": json.dumps({key: sorted(values) for key, values in wanted.items()})}
    answers, complete = lists(settings, "pulls", query)
    entries = [
        {**entry, "mirror": url}
        for url, found in answers.items()
        for entry in found
        # What mirrors ask each other for is in the log of the one that a client has asked, too.
        if not str(entry.get("token", "")).startswith("fleet:")
    ]
    return sorted(entries, key=lambda entry: str(entry.get("time", "")))[-count:], complete


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
        *([str(entry["mirror"])] if "mirror" in entry else []),
    )
    # What clients send must not control a terminal.
    return tuple("".join(one if one.isprintable() else "?" for one in text) for text in shown)
