"""``mirror stats``: prints the cache's size and traffic."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from mirror.access import FOLDER
from mirror.access.month_file import Used, read_used
from mirror.cli import running
from mirror.cli.ask import fail, inventory
from mirror.cli.fleet import fleet_option, states
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import os_error_text, print_json, table
from mirror.config import Settings
from mirror.disk_room import measure
from mirror.fleet_documents import FIGURES, Member, State, differing, printable
from mirror.units import format_size

_MOST_SHOWN = 20
"""Users and addresses whose bytes of this month are printed."""


@click.command(short_help="Print size, hits, and traffic saved.")
@fleet_option
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], fleet: bool, as_json: bool) -> None:
    """Prints how much is cached, how much of the limit that is, what is wrong, and the traffic saved since the cache was created.

    With --fleet, each mirror of the fleet has a line. The exit status is 1 if one does not answer, or if their lists, [[access]] or [[guard]] tables, or users differ.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    if fleet:
        _print_fleet(states(settings), settings, as_json)
        return
    with inventory(settings) as asked:
        totals = asked.totals()
    try:
        month = read_used(settings.cache.dir / FOLDER, time.time())
    except OSError as error:
        fail(os_error_text(error))
    traffic = totals.traffic
    room, most = measure(settings.cache.dir, settings.cache.min_free), settings.cache.max_size
    running_here = running.find(cache_dir, os.environ) if config is None else None
    sentences = running.degraded(settings) if running_here is not None else None
    if sentences is None:
        shortage = room.shortage(settings.cache.dir)
        sentences = [shortage] if shortage else []
    if as_json:
        figures = dataclasses.asdict(totals)
        figures["traffic"]["saved"] = traffic.saved
        print_json(
            {
                "directory": str(settings.cache.dir),
                "max_size": most,
                "disk_size": room.total,
                "disk_free": room.free,
                "degraded": sentences,
                "month": [{"who": one.key, "repositories": one.place, "sent": one.size, "most": one.most} for one in month],
                **figures,
            }
        )
        return
    ratio = f", {traffic.hits / traffic.requests:.1%} of {traffic.requests} requests" if traffic.requests else ""
    lines = [
        ("cache", str(settings.cache.dir)),
        ("images", f"{totals.images} in {totals.repositories} repositories, {totals.pinned} pinned"),
        ("content", f"{totals.blobs} blobs and {totals.manifests} manifests"),
        ("size", f"{format_size(totals.size)} of {format_size(most)}, {totals.size / most:.1%}"),
        *([("hosted", f"{format_size(totals.hosted)} that was pushed, beside that")] if totals.hosted else []),
        ("unfinished", f"{format_size(totals.unfinished)} of downloads in progress or interrupted"),
        ("disk", f"{format_size(room.free)} free of {format_size(room.total)}"),
        ("hits", f"{traffic.hits}{ratio}"),
        ("sent", f"{format_size(traffic.sent)} to clients"),
        ("fetched", f"{format_size(traffic.fetched)} from upstream"),
        ("saved", format_size(traffic.saved)),
    ]
    lines += [("this month", _used(one)) for one in month[:_MOST_SHOWN]]
    if len(month) > _MOST_SHOWN:
        lines.append(("", f"and {len(month) - _MOST_SHOWN} more, in --json"))
    lines += [("degraded", sentence) for sentence in sentences]
    click.echo("".join(f"{name:<12}{value}\n" for name, value in lines), nl=False)


def _print_fleet(members: Sequence[Member], settings: Settings, as_json: bool) -> NoReturn:
    mirrors, differs = settings.fleet.mirrors, differing(members, settings.fleet.own)
    well = all(one.has_list(mirrors) and not one.is_another for one in members) and not differs
    if as_json:
        print_json(
            {
                "mirrors": [
                    {
                        "mirror": one.url,
                        "fault": one.fault or None,
                        "same_list": one.has_list(mirrors),
                        "differs": differs.get(one.url, []),
                        **(dict.fromkeys(("version", "degraded", *FIGURES)) if one.state is None else _figures(one.state)),
                    }
                    for one in members
                ]
            }
        )
        sys.exit(0 if well else 1)
    rows = []
    for one in members:
        if one.state is None:
            rows.append((one.url, "says nothing" if one.alive else "no answer", *["-"] * 6))
            continue
        figures = one.state.figures
        state = (
            f"answers as {one.state.mirror}"
            if one.is_another
            else "another list"
            if not one.has_list(mirrors)
            else f"other {', '.join(differs[one.url])}"
            if one.url in differs
            else "degraded"
            if one.state.degraded
            else "well"
        )
        hits = f"{figures['hits'] / figures['requests']:.1%}" if figures["requests"] else "-"
        sizes = [format_size(figures[name]) for name in ("size", "sent", "fetched")]
        rows.append((one.url, state, one.state.version, str(figures["images"]), sizes[0], hits, *sizes[1:]))
    right = ("IMAGES", "SIZE", "HITS", "SENT", "FETCHED")
    click.echo(table(("MIRROR", "STATE", "VERSION", *right), rows, right), nl=False)
    for one in members:
        if one.fault:
            click.echo(f"mirror: {one.url}: {one.fault}", err=True)
    if not well:
        click.echo("mirror: mirror doctor says what to do", err=True)
    sys.exit(0 if well else 1)


def _figures(state: State) -> dict[str, Any]:
    return {"version": state.version, "degraded": list(state.degraded), **state.figures}


def _used(used: Used) -> str:
    limit = f" of {format_size(used.most)}" if used.most else ""
    text = f"{used.key} was sent {format_size(used.size)}{limit}, of {used.place}"
    # An issuer may call somebody anything.
    return printable(text)
