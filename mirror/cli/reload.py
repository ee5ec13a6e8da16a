"""SIGHUP to ``mirror serve``: reads the settings again, takes those that need no restart, and logs which do."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
from collections.abc import Callable

from mirror.cli import logs
from mirror.config import ConfigError, Settings
from mirror.config.in_force import changed

log = logging.getLogger(__name__)

_OF_UPSTREAM = ("max_rate", "offline", "rate")
_TAKEN = re.compile(
    rf'warm|guard|webhook|access|groups|oidc|log\.\w+|upstream\.({"|".join(_OF_UPSTREAM)})|registries\."[^"]+"\.max_rate'
)
"""The settings that need no restart."""


class Reload:
    """Called at SIGHUP. When the terminal that the mirror was started from is closed, stops the mirror instead."""

    def __init__(self, settings: Settings, load: Callable[[], Settings]) -> None:
        """`load` returns the current settings, or raises ConfigError."""
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
            return self._in_force
        taken = [self._told(name) for name in names if _TAKEN.fullmatch(name)]
        left = [name for name in names if not _TAKEN.fullmatch(name)]
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
    registries = {
        name: one.model_copy(update={"max_rate": found.registries[name].max_rate}) if name in found.registries else one
        for name, one in settings.registries.items()
    }
    return settings.model_copy(
        update={
            "log": found.log,
            "warm": found.warm,
            "access": found.access,
            "groups": found.groups,
            "oidc": found.oidc,
            "guard": found.guard,
            "webhook": found.webhook,
            "upstream": settings.upstream.model_copy(update=upstream),
            "registries": registries,
        }
    )
