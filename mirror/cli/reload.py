"""SIGHUP to ``mirror serve``: reads the settings again, takes those that need no restart, and logs which do. ``mirror reload`` sends it, and prints the same."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mirror.cli import logs, running
from mirror.cli.ask import fail
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json
from mirror.config import ConfigError, Settings
from mirror.config.in_force import changed

log = logging.getLogger(__name__)

_OF_UPSTREAM = ("max_rate", "offline", "rate", "registries")
_WHOLE = ("log", "warm", "access", "groups", "oidc", "guard", "webhook", "scan", "hosted", "registries")
_TAKEN = re.compile(rf"({'|'.join(_WHOLE)})(\..+)?|upstream\.({'|'.join(_OF_UPSTREAM)})")
"""The settings that need no restart."""
_PATIENCE = 10.0
"""Seconds that ``mirror reload`` waits for the mirror."""


class Reload:
    """Called at SIGHUP. When the terminal that the mirror was started from is closed, stops the mirror instead."""

    def __init__(self, settings: Settings, load: Callable[[], Settings]) -> None:
        """`load` returns the current settings, or raises ConfigError."""
        self.outcome: dict[str, Any] = {"number": 0}
        """What came of the last SIGHUP: its `number`; the keys that were `taken`, and those that need a `restart`; or why the settings cannot be used (`faults`)."""
        self._in_force = settings
        self._load = load
        self._on_terminal = os.isatty(0)

    def applied_to(self, settings: Settings) -> Settings:
        """Returns `settings` as they are in force now: for a worker that starts after a SIGHUP."""
        return _with_taken(settings, self._in_force)

    def __call__(self) -> Settings:
        """Takes the settings, and logs what was taken and what was not. Returns the settings in force."""
        if self._on_terminal and not os.isatty(0):
            # It was hung up (tty_ioctl(4)): SIGHUP means what it means to most programs.
            os.kill(os.getpid(), signal.SIGTERM)
            return self._in_force
        try:
            names = self._take()
        except ConfigError as error:
            log.error(
                "SIGHUP: the settings cannot be used, and those before stay in force: %s",
                "; ".join(error.faults),
                extra={"each": True},
            )
            self.outcome = {"number": self.outcome["number"] + 1, "faults": error.faults}
            return self._in_force
        taken = [self._told(name) for name in names if _TAKEN.fullmatch(name)]
        left = [name for name in names if not _TAKEN.fullmatch(name)]
        self.outcome = {"number": self.outcome["number"] + 1, "taken": taken, "restart": left}
        log.info(
            "SIGHUP: %s; files of passwords and certificates are read anew",
            f"taken: {', '.join(taken)}" if taken else "no other setting has changed" if left else "no setting has changed",
            extra={"each": True},
        )
        if left:
            log.warning("SIGHUP: a restart is needed for what has changed of %s", ", ".join(left), extra={"each": True})
        return self._in_force

    def _told(self, name: str) -> str:
        # The one that is switched to and fro.
        return f"{name} = {str(self._in_force.upstream.offline).lower()}" if name == "upstream.offline" else name

    def silently(self) -> Settings:
        """Takes the settings, in a worker: its parent logs. Returns the settings in force."""
        with contextlib.suppress(ConfigError):
            self._take()
        return self._in_force

    def _take(self) -> list[str]:
        """The keys of the settings that have changed since they were taken. Raises ConfigError."""
        found = self._load()
        names = changed(self._in_force, found)
        if found.log != self._in_force.log:
            logs.set_up(found.log.level, found.log.format)
        self._in_force = _with_taken(self._in_force, found)
        return names


def _with_taken(settings: Settings, found: Settings) -> Settings:
    """Returns `settings` with those of `found` that are taken without a restart."""
    upstream = {name: getattr(found.upstream, name) for name in _OF_UPSTREAM}
    taken = {name: getattr(found, name) for name in _WHOLE}
    return settings.model_copy(update={**taken, "upstream": settings.upstream.model_copy(update=upstream)})


@click.command(short_help="Have the mirror read its settings again.")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reload(config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], as_json: bool) -> None:
    """Has the mirror that runs on this machine read its settings again, as SIGHUP does, and prints what it has taken.

    Settings that need a restart are named. Where the settings cannot be used, those before stay in force, and the exit status is 1.
    """
    place = cache_dir if config is None else str(settings_or_exit(config, cache_dir, upstreams).cache.dir)
    found = running.find(place, os.environ)
    if found is None:
        fail("no mirror runs on this machine, or none that this user may see: --cache-dir names its cache directory")
    try:
        os.kill(found.pid, signal.SIGHUP)
    except OSError as error:
        fail(f"process {found.pid}, the mirror, cannot be sent SIGHUP: {error.strerror}")
    deadline = time.monotonic() + _PATIENCE
    while (now := running.find(place, os.environ)) is None or now.reloaded == found.reloaded:
        if time.monotonic() > deadline:
            fail(f"the mirror (process {found.pid}) does not answer: its log says why")
        time.sleep(0.05)
    if faults := now.reloaded.get("faults"):
        fail("the settings cannot be used, and those before stay in force:\n  " + "\n  ".join(faults))
    taken, restart = now.reloaded.get("taken", []), now.reloaded.get("restart", [])
    if as_json:
        print_json({"taken": taken, "restart": restart})
        return
    click.echo(f"taken: {', '.join(taken)}" if taken else "nothing that is taken without a restart has changed")
    if restart:
        click.echo(f"a restart is needed for {', '.join(restart)}")
