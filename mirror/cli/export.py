"""``mirror export``: images as one tar that docker, ctr, podman, skopeo, crane and ``mirror import`` load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.ask import fail, images_of, inventory, on_cache, on_guarded_store, require_cache
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.pull import bars
from mirror.cli.selection import image_options, names_of, platforms_of
from mirror.cli.text import os_error_text, print_json
from mirror.errors import MirrorError
from mirror.names import Digest, Reference, Repository, image_name
from mirror.units import format_size, parse_size

if TYPE_CHECKING:
    from mirror.bundles.contents import Gatherer
    from mirror.bundles.images import Contents
    from mirror.cache.cache import Cache
    from mirror.cache.guarding import Guard
    from mirror.storage.store import Store

_INTERVAL = 0.2
"""Seconds between two reports of progress."""
_SMALLEST_PIECE = 1_000_000


@click.command(short_help="Write images into one tar that every tool loads.")
@image_options
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="FILE",
    help="The tar to write; - is standard output, such as for a pipe to docker load.",
)
@click.option(
    "--all", "everything", is_flag=True, help="Every cached image, for the platforms that are cached whole. Fetches nothing."
)
@click.option(
    "--no-referrers", is_flag=True, help="Without signatures, attestations, SBOMs and whatever else refers to the images."
)
@click.option("--offline", is_flag=True, help="Ask no registry: fail if something is not cached.")
@click.option("--have", "haves", multiple=True, metavar="FILE", help="Leave out the layers in this list, made by `mirror have`.")
@click.option("--since", "bundles", multiple=True, metavar="FILE", help="Leave out the layers of this earlier bundle.")
@click.option("--split", metavar="SIZE", help="Write pieces FILE.000, FILE.001 and so on of this size, such as 3900MB for FAT32.")
@click.option(
    "--laptop",
    is_flag=True,
    help="Put the mirror itself beside FILE, with start.sh, start.bat and start.command: it serves the images from FILE wherever there is Python.",
)
@click.option(
    "--verify", is_flag=True, help="Hash every blob on the way, and fail if one is damaged on the cache's disk; half as fast."
)
@click.option("--sign", "key", type=click.Path(path_type=Path), metavar="KEY", help="Sign with this Ed25519 private key (PEM).")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    images: tuple[str, ...],
    output: str,
    lists: tuple[str, ...],
    composed: tuple[Path, ...],
    manifests: tuple[Path, ...],
    everything: bool,
    platforms: tuple[str, ...],
    all_platforms: bool,
    no_referrers: bool,
    offline: bool,
    haves: tuple[str, ...],
    bundles: tuple[str, ...],
    split: str | None,
    laptop: bool,
    verify: bool,
    key: Path | None,
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    as_json: bool,
) -> None:
    """Writes images into one tar, for where there is no network.

    Content that is not cached is fetched first, as `mirror pull` does. Every blob and index is as the registry has it, so digests are kept. Load the tar with
    `docker load -i`, `ctr images import`, `podman load -i`, `skopeo copy oci-archive:` or `mirror import`. The file appears under its name when it is whole. The
    exit status is 1 if an image is incomplete; nothing is written then.
    """
    from mirror.bundles.laptop import companions
    from mirror.cli.outputs import MOST_PIECES, Outputs, StandardOutput

    names = names_of(images, lists, composed, manifests)
    if bool(names) == everything:
        raise click.UsageError("give image names, a file of them with --file, --compose or --kubernetes, or --all")
    piped = output == "-"
    if piped and split is not None:
        raise click.UsageError("--split makes files: give a file with --output")
    if piped and laptop:
        raise click.UsageError("--laptop puts files beside the tar: give a file with --output, such as lab/lab.tar")
    if laptop and not output.endswith(".tar"):
        raise click.UsageError("--laptop serves files that end in .tar: give one with --output, such as lab/lab.tar")
    if piped and as_json:
        raise click.UsageError("--json prints to standard output: give a file with --output")
    if piped and sys.stdout is None:
        # Another file has its number by now.
        raise click.UsageError("standard output is closed: send it to a program or a file")
    if piped and os.isatty(1):
        raise click.UsageError(
            "standard output is a terminal: send it to a program or a file, such as `mirror export … -o - | docker load`"
        )
    limit = _limit(split)
    named = list(dict.fromkeys(images_of(names)))
    chosen = platforms_of(platforms, all_platforms)
    wanted = None if everything and not platforms else chosen
    have = _read_have(haves, bundles)
    sign = _signer(key)
    settings = settings_or_exit(config, cache_dir, upstreams)
    if everything or offline:
        require_cache(settings)
    try:
        outputs = StandardOutput(1) if piped else Outputs(Path(output), limit, companions() if laptop else ())
    except OSError as error:
        fail(f"{output} cannot be written: {os_error_text(error)}")
    if everything:
        with inventory(settings) as asked:
            named = [(image.repository, image.reference) for image in asked.images().entries]

    async def work(store: Store, guard: Guard | None, cache: Cache | None = None) -> dict[str, Any]:
        from mirror.bundles.layout import Layout
        from mirror.bundles.writing import write

        failed = {} if cache is None else await _fetch(cache, named, wanted, referrers=not no_referrers)
        gathered, faults = await _gather(
            store, named, wanted, failed, cached=everything and not platforms, referrers=not no_referrers, guard=guard
        )
        for fault in faults:
            click.echo(f"mirror: {fault}", err=True)
        contents = await gathered.contents(have)
        if not contents.images or (faults and not everything):
            fail("nothing was written, because images are not cached whole" if faults else "no image is cached")
        layout = Layout(contents, sign)
        if limit is not None and layout.size > MOST_PIECES * limit:
            fail(f"{format_size(layout.size)} would be more than {MOST_PIECES} pieces: give --split a larger size")
        try:
            await write(layout, store, outputs.sink, _progress(layout.size), verify=verify)
        except BrokenPipeError:
            fail("the reader of the bundle has closed the pipe")
        except OSError as error:
            fail(f"{'standard output' if piped else output} cannot be written: {os_error_text(error)}")
        return _report(contents, layout.size, faults)

    async def work_on_cache(cache: Cache) -> dict[str, Any]:
        return await work(cache.store, cache.guard, cache)

    try:
        with outputs.finishing():
            report = on_guarded_store(settings, work) if everything or offline else on_cache(settings, work_on_cache)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{output} cannot be written: {os_error_text(error)}")
    if as_json:
        print_json(report)
    else:
        count = len(report["images"])
        left_out = f", without {format_size(report['omitted'])} that the receiver has" if report["omitted"] else ""
        where = "" if piped else f", in {output}"
        click.echo(f"{'1 image' if count == 1 else f'{count} images'}, {format_size(report['size'])}{left_out}{where}", err=True)
        if laptop:
            click.echo(f"to serve them: sh {shlex.quote(str(Path(output).with_name('start.sh')))}", err=True)


def _report(contents: Contents, size: int, faults: list[str]) -> dict[str, Any]:
    from mirror.bundles.layout import moment

    images = [
        {
            "image": image_name(image.repository, image.reference),
            "digest": str(image.root.digest),
            "platforms": list(image.platforms),
            "seen": moment(image.seen),
        }
        for image in contents.images
    ]
    return {
        "images": images,
        "referrers": len(contents.referrers),
        "blobs": len(contents.blobs),
        "size": size,
        "omitted": sum(contents.omitted.values()),
        "faults": faults,
    }


async def _fetch(
    cache: Cache, named: list[tuple[Repository, Reference]], wanted: list[str] | None, *, referrers: bool
) -> dict[tuple[Repository, Reference], str]:
    """Fetches what is missing. Returns why an image could not be fetched, which is no fault yet: it may be cached."""
    from mirror.cache.attached import fetch_attached
    from mirror.cache.pull import Pull

    pulls = [Pull(repository, reference, wanted) for repository, reference in named]
    failed: dict[tuple[Repository, Reference], str] = {}

    async def one(this: Pull) -> None:
        try:
            await cache.pulls.pull(this)
        except MirrorError as error:
            failed[this.repository, this.reference] = error.message
        else:
            if this.unchecked:
                click.echo(
                    f"mirror: {this}: taken as it is cached, since upstream could not be asked: {this.unchecked}", err=True
                )

    async with bars(pulls) if os.isatty(2) else contextlib.nullcontext():
        await asyncio.gather(*(one(this) for this in pulls))
        if referrers:
            attached = await fetch_attached(cache.pulls, cache.lists, pulls)
            for fault in list(attached.faults)[:3]:
                click.echo(f"mirror: signatures and attestations may be missing: {fault}", err=True)
    for this in pulls:
        if why := await cache.pulls.why_missing(this):
            failed.setdefault((this.repository, this.reference), why)
    return failed


async def _gather(
    store: Store,
    named: list[tuple[Repository, Reference]],
    wanted: list[str] | None,
    failed: dict[tuple[Repository, Reference], str],
    *,
    cached: bool,
    referrers: bool,
    guard: Guard | None,
) -> tuple[Gatherer, list[str]]:
    """Returns what is cached of the images, and for each that is not cached whole what it lacks, and why that could not be fetched if it is in `failed`."""
    from mirror.bundles.contents import Gatherer, Incomplete

    gathered = Gatherer(store, wanted, cached=cached, referrers=referrers, guard=guard)
    faults, lacking = [], set()
    for repository, reference, error in await gathered.add_all(named):
        name, why = image_name(repository, reference), failed.get((repository, reference))
        lacking.add((repository, reference))
        message = f"{error.fact}, and could not be fetched: {why}" if why and isinstance(error, Incomplete) else error.message
        faults.append(message if name in message else f"{name}: {message}")
    for image, why in failed.items():
        if image not in lacking:
            click.echo(f"mirror: {image_name(*image)}: taken as it is cached, since it could not be fetched: {why}", err=True)
    return gathered, faults


def _limit(split: str | None) -> int | None:
    if split is None:
        return None
    try:
        limit = parse_size(split)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--split") from None
    if limit < _SMALLEST_PIECE:
        raise click.BadParameter(f"at least 1MB is expected; found {split}", param_hint="--split")
    return limit


def _read_have(haves: tuple[str, ...], bundles: tuple[str, ...]) -> set[Digest]:
    from mirror.bundles.have import HaveUnreadable, read_bundle, read_list

    found: set[Digest] = set()
    for option, files, read in (("--have", haves, read_list), ("--since", bundles, read_bundle)):
        for file in files:
            try:
                found |= read(Path(file))
            except HaveUnreadable as error:
                raise click.UsageError(f"{option}: {error}") from None
            except OSError as error:
                raise click.UsageError(f"{option} {file}: cannot be read: {os_error_text(error)}") from None
    return found


def _signer(key: Path | None) -> Callable[[bytes], bytes] | None:
    if key is None:
        return None
    from mirror.bundles.signing import KeyUnusable, signer

    try:
        return signer(key.read_bytes())
    except KeyUnusable as error:
        raise click.UsageError(f"--sign {key}: {error}") from None
    except OSError as error:
        raise click.UsageError(f"--sign {key}: cannot be read: {os_error_text(error)}") from None


def _progress(size: int) -> Callable[[int], None]:
    """Shows on a terminal how much has been written."""
    if not os.isatty(2):
        return lambda _: None
    shown = 0.0

    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= _INTERVAL or done == size:
            shown = now
            sys.stderr.write(f"\r\033[Kwriting {format_size(done)} of {format_size(size)}" + ("\n" if done == size else ""))
            sys.stderr.flush()

    return show
