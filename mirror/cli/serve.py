"""``mirror serve``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sqlite3
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from mirror import app
from mirror.cli import logs
from mirror.config import ConfigError, Settings, load


@click.command()
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings, as TOML.")
@click.option("--listen", metavar="HOST:PORT", help="Address and port to listen on.  [127.0.0.1:5000]")
@click.option("--cache-dir", metavar="DIR", help="Where everything is kept.  [/var/lib/mirror, or ~/.cache/mirror]")
@click.option("--max-size", metavar="SIZE", help="Size to keep the cache within.  [50GiB]")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="REGISTRY=URL",
    help="An endpoint of a registry; the same registry again adds one.",
)
def serve(
    config: Path | None, listen: str | None, cache_dir: str | None, max_size: str | None, upstreams: tuple[str, ...]
) -> None:
    """Runs the mirror until it is told to stop.

    Everything can be set in a file, most of it need not be; MIRROR_SERVER__LISTEN and the like in the environment win over the file, and flags over both.
    """
    try:
        flags = _flags(listen, cache_dir, max_size, upstreams)
    except ConfigError as error:
        _exit(error)
    settings = settings_or_exit(config, flags)
    logs.set_up(settings.log.level, settings.log.format)
    with contextlib.suppress(OSError, ValueError):
        # A socket and a file for each client add up.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        asyncio.run(app.serve(settings, lambda url: _tell(settings, url)))
    except OSError as error:
        click.echo(
            f"mirror: cannot start: {error}; it was to listen on {settings.server.listen} and keep its cache in {settings.cache.dir}",
            err=True,
        )
        sys.exit(1)
    except sqlite3.Error as error:
        click.echo(f"mirror: cannot start: the catalog in {settings.cache.dir}/catalog: {error}", err=True)
        sys.exit(1)


def settings_or_exit(config: Path | None, flags: dict[str, Any]) -> Settings:
    """The settings of file, environment and flags; ends the program with status 2, and every fault told, where they cannot be used."""
    try:
        return load(config, os.environ, flags)
    except ConfigError as error:
        _exit(error)


def _exit(error: ConfigError) -> NoReturn:
    click.echo("mirror: these settings cannot be used:", err=True)
    for fault in error.faults:
        click.echo(f"  {fault}", err=True)
    sys.exit(2)


def _flags(listen: str | None, cache_dir: str | None, max_size: str | None, upstreams: tuple[str, ...]) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    if listen is not None:
        flags["server"] = {"listen": listen}
    if cache_dir is not None:
        flags.setdefault("cache", {})["dir"] = cache_dir
    if max_size is not None:
        flags.setdefault("cache", {})["max_size"] = max_size
    for upstream in upstreams:
        registry, equals, url = upstream.partition("=")
        if not equals:
            raise ConfigError(
                [
                    f"--upstream: REGISTRY=URL is expected, such as docker.io=https://registry-1.docker.io; found {upstream[:100]!r}"
                ]
            )
        flags.setdefault("registries", {}).setdefault(registry, {}).setdefault("endpoints", []).append(url)
    return flags


def _tell(settings: Settings, url: str) -> None:
    shown = url.replace("0.0.0.0", "<this machine>").replace("[::]", "<this machine>")
    size = settings.cache.max_size / 1024**3
    for line in (
        f"listening on {url}",
        f"cache in {settings.cache.dir}, up to {size:.3g} GiB",
        f"mirroring {', '.join(settings.registries)}",
        f'for Docker, in /etc/docker/daemon.json:  {{"registry-mirrors": ["{shown}"]}}',
    ):
        click.echo(line, err=True)
