"""The flags that commands share, and how they become settings."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from mirror.cli import running
from mirror.config import ConfigError, Settings, load
from mirror.config.errors import shown
from mirror.storage.cache_directory import noted_limit

_Command = TypeVar("_Command", bound=Callable[..., Any])


def cache_options(command: _Command) -> _Command:
    """``--config``, ``--cache-dir`` and ``--upstream``."""
    for option in (
        click.option(
            "--upstream",
            "upstreams",
            multiple=True,
            metavar="REGISTRY=URL",
            help="An endpoint of a registry; repeat it to add endpoints.",
        ),
        click.option("--cache-dir", metavar="DIR", help="The cache directory.  [/var/lib/mirror, or ~/.cache/mirror]"),
        click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="A settings file (TOML)."),
    ):
        command = option(command)
    return command


def settings_of(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...]) -> Settings:
    """Returns the settings from file, environment and flags; without a file, on top of the running mirror's.

    They are offline if the mirror that runs on the cache directory is. The cache's size is the running mirror's, or, if nothing sets it, the last mirror's. Raises ConfigError.
    """
    found = running.find(cache_dir, os.environ) if config is None else None
    if found is None:
        settings = load(config, os.environ, _flags(cache_dir, upstreams))
    else:
        settings = load(found.config, os.environ, _flags(cache_dir, upstreams), found.tree)
    if (found is not None and found.offline) or running.is_offline(settings.cache.dir):
        settings = settings.model_copy(update={"upstream": settings.upstream.model_copy(update={"offline": True})})
    size = None if found is None and "max_size" in settings.cache.model_fields_set else noted_limit(settings.cache.dir)
    if size is None:
        return settings
    return settings.model_copy(update={"cache": settings.cache.model_copy(update={"max_size": size})})


def settings_or_exit(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...]) -> Settings:
    """Like `settings_of`, but prints every fault and exits with status 2."""
    with _listed():
        return settings_of(config, cache_dir, upstreams)


def settings_to_serve(
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    listen: str | None,
    max_size: str | None,
    workers: str | None,
    offline: bool,
) -> tuple[Settings, Callable[[], Settings]]:
    """Returns the settings of the mirror itself, and a function that reads them again, which raises ConfigError. Prints faults and exits with status 2."""

    def read() -> Settings:
        return load(config, os.environ, _flags(cache_dir, upstreams, listen, max_size, workers, offline))

    with _listed():
        return read(), read


@contextlib.contextmanager
def _listed() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        click.echo("mirror: these settings cannot be used:", err=True)
        for fault in error.faults:
            click.echo(f"  {fault}", err=True)
        sys.exit(2)


def _flags(
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    listen: str | None = None,
    max_size: str | None = None,
    workers: str | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    if listen is not None:
        flags["server"] = {"listen": listen}
    if workers is not None:
        flags.setdefault("server", {})["workers"] = workers
    if offline:
        flags["upstream"] = {"offline": True}
    if cache_dir is not None:
        flags.setdefault("cache", {})["dir"] = cache_dir
    if max_size is not None:
        flags.setdefault("cache", {})["max_size"] = max_size
    for upstream in upstreams:
        registry, equals, url = upstream.partition("=")
        if not equals:
            raise ConfigError(
                [f"--upstream: REGISTRY=URL is expected, such as docker.io=https://registry-1.docker.io; found {shown(upstream)}"]
            )
        flags.setdefault("registries", {}).setdefault(registry, {}).setdefault("endpoints", []).append(url)
    return flags
