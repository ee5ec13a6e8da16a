"""``mirror doctor``: diagnoses this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli import importing
from mirror.cli.options import cache_options, settings_of
from mirror.cli.text import print_json
from mirror.clients import Address, in_order_for, machine_id
from mirror.config import ConfigError

if TYPE_CHECKING:
    from mirror.doctor import Finding

_COLOURS = {"ok": "green", "advice": "yellow", "problem": "red"}
"""By level."""


@click.command(short_help="Diagnose this machine.")
@cache_options
@click.option(
    "--mirror",
    "urls",
    metavar="URL",
    multiple=True,
    help="The mirror's address; again for each of several equal mirrors.  [from the settings]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], urls: tuple[str, ...], as_json: bool) -> None:
    """Checks settings, disk, clock, DNS, TLS, every upstream, Docker Hub's limit, the mirror, its fleet, parents and bucket, [[warm]] lists, the hosts of [[webhook]] tables, and the clients on this machine.

    Each finding says what to do. It takes about fifteen seconds at most, and three more for each endpoint of a registry that has several. The exit status is 1 if there is a problem.
    """
    # Only here, since `mirror --help` imports this module too.
    with importing():
        from mirror.doctor import Level, examine, ok, problem

    try:
        settings = settings_of(config, cache_dir, upstreams)
    except ConfigError as error:
        found = [problem("settings", fault, "correct it; docs/settings.md lists all settings") for fault in error.faults]
    else:
        try:
            addresses = in_order_for(machine_id(), [Address.parse(url) for url in urls or [settings.server.own_url]])
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--mirror") from None
        found = [ok("settings", f"valid, with {len(settings.registries)} registries")]
        found += asyncio.run(examine(settings, addresses))
    well = not any(finding.level is Level.PROBLEM for finding in found)
    if as_json:
        print_json({"well": well, "findings": [dataclasses.asdict(finding) for finding in found]})
    else:
        _print_findings(found, well)
    sys.exit(0 if well else 1)


def _print_findings(found: list[Finding], well: bool) -> None:
    wide = max(len(finding.check) for finding in found)
    for finding, following in zip(found, [*found[1:], None], strict=True):
        click.echo(f"{click.style(f'{finding.level:<8}', fg=_COLOURS[finding.level])} {finding.check:<{wide}}  {finding.message}")
        # Several findings in a row may have the same cure, which is printed after the last of them.
        if finding.cure and (following is None or following.cure != finding.cure):
            click.echo(f"{'':{wide + 9}}  → {finding.cure}")
    if well:
        click.echo("No problems found.")
