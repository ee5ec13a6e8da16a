"""``mirror show IMAGE``: shows a cached image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mirror.cache.image_documents import describe
from mirror.cli.ask import fail, images_of, inventory
from mirror.cli.ls import state
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import ago, print_json, table
from mirror.names import Digest, image_name, short_name
from mirror.storage.cache_directory import read_scan_results
from mirror.storage.inventory import Details, Variant
from mirror.storage.scans import SEVERITIES, ScanResult
from mirror.units import format_size, moment

_MOST_NEIGHBOURS = 20


@click.command(short_help="Show a cached image's platforms and layers.")
@click.argument("image")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(image: str, config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], as_json: bool) -> None:
    """Shows the platforms and layers of a cached IMAGE, the images that share them, what scanners found in it, and whether it is fresh and pinned."""
    ((repository, reference),) = images_of([image])
    settings = settings_or_exit(config, cache_dir, upstreams)
    with inventory(settings) as asked:
        found = asked.image(repository, reference)
        scans = read_scan_results(settings.cache.dir, [variant.digest for variant in found.variants] if found else [])
    if found is None:
        fail(f"{image_name(repository, reference)} is not cached: mirror ls lists cached images, mirror pull downloads this one")
    ttl = settings.cache.tag_ttl
    if as_json:
        _print_json(found, scans, ttl)
    else:
        _print_details(found, scans, ttl)


def _print_details(found: Details, scans: Mapping[Digest, Sequence[ScanResult]], ttl: float) -> None:
    image = found.image
    checked = "" if image.checked is None or image.pushed is not None else f", checked {ago(image.checked)}"
    lines = [
        ("image", str(image)),
        ("digest", str(image.digest)),
        ("type", found.media_type),
        ("size", f"{format_size(image.size)} cached, {format_size(image.shared)} of it shared with other images"),
        ("state", f"{state(image, ttl)}{checked}"),
        ("fetched", ago(image.fetched))
        if image.pushed is None
        else ("pushed", f"{ago(image.pushed)}{f' by {image.pushed_by}' if image.pushed_by else ''}"),
        ("pulled", f"{ago(image.pulled)}, {image.pulls} times in all" if image.pulls else "never"),
    ]
    if image.pushed is not None and image.repository.path.startswith("library/"):
        lines.append(("shadow", f"replaces what everybody gets who pulls {short_name(image.repository)}"))
    click.echo("".join(f"{name:<9}{value}\n" for name, value in lines), nl=False)
    for variant in found.variants:
        click.echo(f"\n{variant.platform or 'any platform'}  {variant.digest}  {_status(variant)}")
        for result in scans[variant.digest]:
            click.echo(f"  scan {result.scanner}: {_scanned(result)}")
        rows = [
            (
                str(layer.descriptor.digest),
                format_size(layer.descriptor.size),
                "cached" if layer.cached else "missing",
                f"in {layer.images} images" if layer.images > 1 else "",
            )
            for layer in variant.layers
        ]
        if rows:
            click.echo(table(("  LAYER", "SIZE", "", "SHARED"), [(f"  {row[0]}", *row[1:]) for row in rows], ("SIZE",)), nl=False)
    if found.neighbours:
        click.echo("\nshares layers with")
        others = [(f"  {other.image}", format_size(other.size)) for other in found.neighbours[:_MOST_NEIGHBOURS]]
        click.echo(table(("  IMAGE", "IN COMMON"), others, ("IN COMMON",)), nl=False)
        if len(found.neighbours) > _MOST_NEIGHBOURS:
            click.echo(f"  and {len(found.neighbours) - _MOST_NEIGHBOURS} more")


def _status(variant: Variant) -> str:
    if not variant.cached:
        return "not cached"
    lacks = "its configuration is missing" if variant.config is not None and not variant.config.cached else "incomplete"
    return f"{format_size(variant.size)}, {'complete' if variant.complete else lacks}"


def _scanned(result: ScanResult) -> str:
    """Describes what a scanner found last, the worst first, and why it has failed since."""
    told = []
    if result.worst is not None:
        counts = [f"{result.counts[severity]} {severity}" for severity in reversed(SEVERITIES) if result.counts.get(severity)]
        told.append(f"worst: {result.worst} ({', '.join(counts)})" if counts else "nothing found")
        told.append(ago(result.scanned))
    if result.fault:
        told.append(f"the last scan failed: {result.fault}")
    return "; ".join(told)


def _print_json(found: Details, scans: Mapping[Digest, Sequence[ScanResult]], ttl: float) -> None:
    variants = [
        {
            "digest": str(variant.digest),
            "platform": variant.platform,
            "cached": variant.cached,
            "complete": variant.complete,
            "size": variant.size,
            "scans": [
                {
                    "scanner": result.scanner,
                    "worst": result.worst,
                    "counts": {severity: result.counts.get(severity, 0) for severity in SEVERITIES},
                    "scanned": moment(result.scanned),
                    "fault": result.fault or None,
                }
                for result in scans[variant.digest]
            ],
            "layers": [
                {
                    "digest": str(layer.descriptor.digest),
                    "media_type": layer.descriptor.media_type,
                    "size": layer.descriptor.size,
                    "cached": layer.cached,
                    "images": layer.images,
                }
                for layer in variant.layers
            ],
        }
        for variant in found.variants
    ]
    shares = [{"image": other.image, "digest": str(other.digest), "size": other.size} for other in found.neighbours]
    print_json({**describe(found.image, ttl), "media_type": found.media_type, "variants": variants, "shares": shares})
