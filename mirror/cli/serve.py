"""``mirror serve``."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import click

from mirror import app
from mirror.cli import logs
from mirror.cli.options import cache_options, settings_to_serve
from mirror.config import Settings
from mirror.units import format_size
from mirror.workers import parent
from mirror.workers.context import WorkerContext


@click.command(short_help="Run the mirror.")
@cache_options
@click.option("--listen", metavar="HOST:PORT", help="Address and port to listen on.  [127.0.0.1:5000]")
@click.option("--workers", "number", metavar="N|auto", help="Processes that serve together.  [1]")
@click.option("--max-size", metavar="SIZE", help="Size to keep the cache within.  [50GiB]")
def serve(
    config: Path | None,
    listen: str | None,
    number: str | None,
    cache_dir: str | None,
    max_size: str | None,
    upstreams: tuple[str, ...],
) -> None:
    """Runs the mirror until it is told to stop.

    Everything can be set in a file, most of it need not be; MIRROR_SERVER__LISTEN and the like in the environment win over the file, and flags over both.
    """
    settings = settings_to_serve(config, cache_dir, upstreams, listen, max_size, number)
    logs.set_up(settings.log.level, settings.log.format)
    with contextlib.suppress(OSError, ValueError):
        # A socket and a file for each client add up.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if settings.server.tls_certificate is not None:
        # "Look at the certificate": it may well come before there is somebody who listens for it, and must not end the start.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        token, made = app.admin_token(settings)
        if made:
            click.echo(
                f"admin token of the dashboard, shown this once and kept in {settings.cache.dir}/admin-token: {token}", err=True
            )
        folder = parent.prepare() if settings.server.workers > 1 else None
        if folder is None:
            status = _work(settings, lambda url: _tell(settings, url))
        else:
            status = parent.run(
                settings.server,
                folder,
                lambda worker: _work(settings, lambda _: worker.ready(), worker),
                lambda url: _tell(settings, url),
            )
    except OSError as error:
        status = _cannot_start(settings, error)
    sys.exit(status)


def _work(settings: Settings, started: Callable[[str], None], worker: WorkerContext | None = None) -> int:
    """Serves until it is told to stop; the exit status."""
    try:
        asyncio.run(app.serve(settings, started, worker))
    except OSError as error:
        return _cannot_start(settings, error)
    except sqlite3.Error as error:
        click.echo(f"mirror: cannot start: the catalog in {settings.cache.dir}/catalog: {error}", err=True)
        return 1
    return 0


def _cannot_start(settings: Settings, error: OSError) -> int:
    click.echo(
        f"mirror: cannot start: {error}; it was to listen on {settings.server.listen} and keep its cache in {settings.cache.dir}"
        " (--listen and --cache-dir say otherwise)",
        err=True,
    )
    return 1


def _tell(settings: Settings, url: str) -> None:
    shown = url.replace("0.0.0.0", "<this machine>").replace("[::]", "<this machine>")
    for line in (
        f"listening on {url}",
        f"cache in {settings.cache.dir}, up to {format_size(settings.cache.max_size)}",
        f"mirroring {', '.join(settings.registries)}",
        f"dashboard at {shown}/",
        f'for Docker, in /etc/docker/daemon.json:  {{"registry-mirrors": ["{shown}"]}}',
    ):
        # Whoever started it may have read enough of this: that is no reason not to serve.
        with contextlib.suppress(OSError):
            click.echo(line, err=True)
