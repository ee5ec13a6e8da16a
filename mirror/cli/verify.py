"""``mirror verify``: verifies all cached content."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.ask import on_cache, require_cache, run_when_idle
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.cache.cache import Cache
    from mirror.cache.verification import Verifying


@click.command(short_help="Verify all content, and repair what is damaged.")
@cache_options
@click.option("--no-repair", is_flag=True, help="Report damage, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], no_repair: bool, as_json: bool) -> None:
    """Reads all cached content and compares it with its digest. Damaged or missing content is removed and downloaded again.

    Runs only when the machine is idle, and does not fill the page cache. The exit status is 1 if something could not be repaired.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    require_cache(settings)
    run_when_idle()

    async def work(cache: Cache) -> Verifying:
        from mirror.cache.verification import Verifying
        from mirror.cli.bars import Bars

        this = Verifying()
        async with Bars([this]) if os.isatty(2) and not as_json else contextlib.nullcontext():
            await cache.verification.verify(this, repair=not no_repair)
        return this

    done = on_cache(settings, work)
    lost = [damage for damage in done.damaged if damage.fault]
    if as_json:
        damaged = [
            {
                "digest": str(damage.digest),
                "size": damage.size,
                "repository": str(damage.holder) if damage.holder else None,
                "repaired": not damage.fault,
                "fault": damage.fault or None,
            }
            for damage in done.damaged
        ]
        print_json({"checked": done.count, "bytes": done.total, "damaged": damaged})
    else:
        for damage in done.damaged:
            where = f" of {damage.holder}" if damage.holder else ""
            outcome = f"not repaired: {damage.fault}" if damage.fault else "downloaded again"
            click.echo(f"{damage.digest}{where} is damaged; {outcome}")
        click.echo(
            f"{done.count} files with {format_size(done.total)} verified: {len(done.damaged)} damaged, {len(done.damaged) - len(lost)} repaired"
        )
    sys.exit(1 if lost else 0)
