"""``mirror release``, ``mirror block`` and ``mirror unblock``: decisions on images by hand. A mirror that runs on the cache directory knows them within a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli import fleet
from mirror.cli.ask import fail, images_of, on_store
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json
from mirror.errors import DigestInvalid
from mirror.fleet_documents import Change
from mirror.names import Digest, Tag, image_name
from mirror.storage.sightings import Block, Released

if TYPE_CHECKING:
    from mirror.config import Settings
    from mirror.storage.store import Store


@click.command(short_help="Serve what a moved tag means, before its time.")
@click.argument("image", metavar="IMAGE[@DIGEST]")
@click.option("--why", required=True, metavar="TEXT", help="The reason, for the log and the history.")
@fleet.here_option
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def release(
    image: str, why: str, config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], here: bool, as_json: bool
) -> None:
    """Serves what the tag of IMAGE means at its registry, though a [[guard]] table holds it back. What is blocked or denied stays so. IMAGE@DIGEST are all tags of the repository that mean just that.

    Only the digest that the mirror has seen is released: if the tag moves once more, it is held back again. Who, when and why are in the history and in the log. In a fleet with a token, all mirrors for which the tag means that release it.
    """
    ((repository, reference),) = images_of([image])
    name = image_name(repository, reference)

    async def work(store: Store) -> tuple[list[Tag], Digest | None]:
        released, only = Released(time.time(), fleet.invoker(), why), None
        tags = [reference] if isinstance(reference, Tag) else []
        if isinstance(reference, Digest):
            only = reference
            tags = [Tag(tag) for tag in sorted(await store.tags_of(repository, reference))]
        found = {tag: await store.release(repository, tag, released, only) for tag in tags}
        meant = [tag for tag, digest in found.items() if digest is not None]
        return meant, found[meant[0]] if meant else None

    settings = settings_or_exit(config, cache_dir, upstreams)
    tags, digest = on_store(settings, work)
    if digest is None and isinstance(reference, Digest):
        fail(f"no tag of {repository} was seen to mean {reference} now; the image of one platform is released with its index")
    if digest is None:
        fail(f"{name} was never asked for here, or is gone at its registry")
    names = tuple(image_name(repository, tag) for tag in tags)
    _audit(settings, "release", [(one, str(digest)) for one in names], why)
    if as_json:
        said = {"image": name, "tags": [tag.value for tag in tags], "digest": str(digest), "by": fleet.invoker(), "why": why}
        print_json(said)
    else:
        click.echo(f"{', '.join(names)} may mean {digest} from now on")
    told = fleet.tell(settings, here, Change("release", names, fleet.invoker(), why, digest=str(digest)))
    sys.exit(1 if told.faults else 0)


@click.command(short_help="Refuse content by its digest.")
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@click.option("--reason", default="", metavar="TEXT", help="What clients are told.")
@fleet.here_option
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def block(
    digests: Sequence[str],
    reason: str,
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    here: bool,
    as_json: bool,
) -> None:
    """Refuses an index, a manifest, a configuration or a layer, and every image that names it, from all repositories.

    Downloads of it are cut, and a tag that means it goes back to its last good image. What clients have already is not taken from them. In a fleet with a token, all mirrors refuse it.
    """
    named = _digests(digests)

    async def work(store: Store) -> None:
        for digest in named:
            await store.block(Block(digest, reason, fleet.invoker(), time.time()))

    settings = settings_or_exit(config, cache_dir, upstreams)
    on_store(settings, work)
    _audit(settings, "block", [("", str(digest)) for digest in named], reason)
    _print(named, "blocked", as_json)
    told = fleet.tell(settings, here, Change("block", tuple(map(str, named)), fleet.invoker(), reason))
    sys.exit(1 if told.faults else 0)


@click.command(short_help="Serve blocked content again.")
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@fleet.here_option
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def unblock(
    digests: Sequence[str], config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], here: bool, as_json: bool
) -> None:
    """Ends what mirror block has begun, at all mirrors of a fleet with a token. Block lists of [[guard]] tables are files: edit them. The exit status is 1 if a digest was not blocked by hand."""
    named = _digests(digests)

    async def work(store: Store) -> list[Digest]:
        return [digest for digest in named if not await store.unblock(digest)]

    settings = settings_or_exit(config, cache_dir, upstreams)
    unknown = on_store(settings, work)
    _audit(settings, "unblock", [("", str(digest)) for digest in named if digest not in unknown], "")
    told = fleet.tell(settings, here, Change("unblock", tuple(map(str, named)), fleet.invoker()))
    unknown = [digest for digest in unknown if str(digest) not in told.did]
    _print([digest for digest in named if digest not in unknown], "unblocked", as_json)
    if unknown:
        fail(f"not blocked by hand: {', '.join(map(str, unknown))}")
    sys.exit(1 if told.faults else 0)


def _digests(texts: Sequence[str]) -> list[Digest]:
    try:
        return [Digest.parse(text.rpartition("@")[2]) for text in texts]
    except DigestInvalid as error:
        raise click.UsageError(error.message) from None


def _print(digests: list[Digest], what: str, as_json: bool) -> None:
    if as_json:
        print_json([{"digest": str(digest), "state": what} for digest in digests])
        return
    for digest in digests:
        click.echo(f"{digest} is {what}")


def _audit(settings: Settings, action: str, decided: Sequence[tuple[str, str]], why: str) -> None:
    """Adds what was decided to the audit log, if there is one: images, or nothing, with digests."""
    if settings.server.audit_log is None or not decided:
        return
    from mirror.access.audit import AuditLog

    try:
        audit = AuditLog(settings.server.audit_log)
    except OSError as error:
        fail(f"it is done, but the audit log {settings.server.audit_log} cannot be written: {error.strerror}")
    for image, digest in decided:
        audit.note_by_hand(action, fleet.invoker(), image, digest, why)
    audit.close()
