"""``mirror verify``: reads everything again."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.ask import cache_there, on_cache, run_when_idle
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import tell_json
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.cache.cache import Cache
    from mirror.cache.verification import Verifying


@click.command(short_help="Read everything again, repair what is damaged.")
@cache_options
@click.option("--no-repair", is_flag=True, help="Only look: leave what is damaged as it is.")
@click.option("--json", "as_json", is_flag=True, help="Tell it as JSON.")
def verify(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], no_repair: bool, as_json: bool) -> None:
    """Reads everything that is cached, and compares it with its digest. What is damaged or missing is removed, and fetched again from upstream.

    It yields to whatever else the machine does, and leaves the page cache alone. The exit status is 1 where something could not be repaired.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    cache_there(settings)
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
        tell_json({"checked": done.count, "bytes": done.total, "damaged": damaged})
    else:
        for damage in done.damaged:
            where = f" of {damage.holder}" if damage.holder else ""
            told = f"not repaired: {damage.fault}" if damage.fault else "fetched again"
            click.echo(f"{damage.digest}{where} is damaged; {told}")
        click.echo(
            f"{done.count} files with {format_size(done.total)} verified: {len(done.damaged)} damaged, {len(done.damaged) - len(lost)} repaired"
        )
    sys.exit(1 if lost else 0)
