"""How commands open the cache: the read-only inventory, the store, or the whole cache.

An error ends the command with exit status 1 and a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

from mirror.cli import INTERRUPTED, importing, logs
from mirror.cli.text import os_error_text, print_json
from mirror.config import ALIASES, DEFAULT_REGISTRY, Settings
from mirror.errors import Invalid, MirrorError
from mirror.names import Reference, Repository, parse_image, parse_repository
from mirror.storage.cache_directory import Inventory, holds_cache, read_inventory

if TYPE_CHECKING:
    from mirror.cache.cache import Cache
    from mirror.cache.guarding import Guard
    from mirror.storage.store import Store

_T = TypeVar("_T")
_O = TypeVar("_O")


def images_of(names: Iterable[str]) -> list[tuple[Repository, Reference]]:
    """Parses image names as people write them. Raises click.UsageError (exit status 2)."""
    try:
        return [parse_image(name, DEFAULT_REGISTRY, ALIASES) for name in names]
    except Invalid as error:
        raise click.UsageError(error.message) from None


def repository_of(name: str) -> Repository:
    """Parses a repository name as people write it. Raises click.UsageError (exit status 2)."""
    try:
        return parse_repository(name, DEFAULT_REGISTRY, ALIASES)
    except Invalid as error:
        raise click.UsageError(error.message) from None


@contextlib.contextmanager
def inventory(settings: Settings) -> Iterator[Inventory]:
    """Opens the inventory of an existing cache; exits if there is none."""
    require_cache(settings)
    become_owner(settings.cache.dir)
    with _reporting(settings.cache.dir), read_inventory(settings.cache.dir) as opened:
        yield opened


def require_cache(settings: Settings) -> None:
    """Exits where the directory holds no cache, so that a mistyped name does not create one."""
    folder = settings.cache.dir
    with _reporting(folder):
        if not holds_cache(folder):
            fail(f"there is no cache in {folder}: give its directory with --cache-dir, or the mirror's settings with --config")


def on_cache(settings: Settings, work: Callable[[Cache], Awaitable[_T]]) -> _T:
    """Opens the cache, creating it if necessary, and returns what `work` returns."""
    # Commands that only read do without it.
    with importing():
        from mirror import wiring

    return _on(settings, wiring.opened, work)


def on_store(settings: Settings, work: Callable[[Store], Awaitable[_T]]) -> _T:
    """Like `on_cache`, for work that needs no upstream."""
    with importing():
        from mirror import wiring

    return _on(settings, wiring.store, work)


def on_guarded_store(settings: Settings, work: Callable[[Store, Guard | None], Awaitable[_T]]) -> _T:
    """Like `on_store`; `work` gets what decides what may be pulled too, None if there is nothing to decide by."""
    with importing():
        from mirror import wiring

    async def work_on_both(opened: tuple[Store, Guard | None]) -> _T:
        return await work(*opened)

    return _on(settings, wiring.guarded_store, work_on_both)


def _on(
    settings: Settings, opened: Callable[[Settings], AbstractAsyncContextManager[_O]], work: Callable[[_O], Awaitable[_T]]
) -> _T:
    logs.set_up("warning", settings.log.format)
    become_owner(settings.cache.dir)

    async def run() -> _T:
        async with opened(settings) as one:
            return await work(one)

    with _reporting(settings.cache.dir):
        return asyncio.run(run())


def yield_to_others() -> None:
    """Runs at the lowest CPU priority, so that pulls are not slowed down."""
    with contextlib.suppress(OSError):
        os.nice(19)


def run_when_idle() -> None:
    """Runs only on idle CPUs (sched(7), SCHED_IDLE). For long work that holds no lock others wait for."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def become_owner(folder: Path) -> None:
    """If run by root on another user's directory, switches to that user: files created by root could not be written by the mirror."""
    with contextlib.suppress(OSError):
        found = folder.stat()
        if os.geteuid() != 0 or found.st_uid == 0:
            return
        with contextlib.suppress(KeyError):
            os.initgroups(pwd.getpwuid(found.st_uid).pw_name, found.st_gid)
        os.setegid(found.st_gid)
        os.seteuid(found.st_uid)


@contextlib.contextmanager
def as_invoker() -> Iterator[None]:
    """Is the user who ran the command while it is open, whatever `become_owner` did: for files that are not the mirror's."""
    user, group = os.geteuid(), os.getegid()
    if os.getuid() == user:
        yield
        return
    os.seteuid(os.getuid())
    os.setegid(os.getgid())
    try:
        yield
    finally:
        os.setegid(group)
        os.seteuid(user)


def fail(message: str, status: int = 1) -> NoReturn:
    """Prints an error and exits. With ``--json``, also prints ``{"error": message}`` on standard output."""
    context = click.get_current_context(silent=True)
    if context is not None and context.params.get("as_json"):
        print_json({"error": message})
    click.echo(f"mirror: {message}", err=True)
    sys.exit(status)


@contextlib.contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    try:
        yield
    except MirrorError as error:
        fail(error.message)
    except BrokenPipeError:
        # The reader of the output is gone; this is no error of the cache.
        raise
    except OSError as error:
        fail(f"the cache in {folder} cannot be used: {os_error_text(error)}; run this as the user that the mirror runs as")
    except KeyboardInterrupt:
        fail("interrupted; run it again to go on", INTERRUPTED)
