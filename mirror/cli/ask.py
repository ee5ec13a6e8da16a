"""How commands reach the cache: its inventory, which only reads, or the cache itself. What goes wrong ends them with status 1, and says why."""

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

from mirror.cli import INTERRUPTED, logs
from mirror.cli.text import os_error_text, tell_json
from mirror.config import ALIASES, DEFAULT_REGISTRY, Settings
from mirror.errors import Invalid, MirrorError
from mirror.names import Reference, Repository, parse_image, parse_repository
from mirror.storage.offline import Inventory, read_inventory

if TYPE_CHECKING:
    from mirror.cache.cache import Cache
    from mirror.storage.store import Store

_T = TypeVar("_T")
_O = TypeVar("_O")


def images_of(names: Iterable[str]) -> list[tuple[Repository, Reference]]:
    """Images as people write them. A name that is none is wrong use: status 2."""
    try:
        return [parse_image(name, DEFAULT_REGISTRY, ALIASES) for name in names]
    except Invalid as error:
        raise click.UsageError(error.message) from None


def repository_of(name: str) -> Repository:
    """A repository as people write it; otherwise wrong use."""
    try:
        return parse_repository(name, DEFAULT_REGISTRY, ALIASES)
    except Invalid as error:
        raise click.UsageError(error.message) from None


@contextlib.contextmanager
def inventory(settings: Settings) -> Iterator[Inventory]:
    """The inventory of a cache that is there."""
    cache_there(settings)
    become_owner(settings.cache.dir)
    with _told(settings.cache.dir), read_inventory(settings.cache.dir) as opened:
        yield opened


def cache_there(settings: Settings) -> None:
    """For commands that have nothing to do where there is no cache: a mistyped directory is not to become one."""
    folder = settings.cache.dir
    with _told(folder):
        if not (folder / "catalog" / "content.sqlite").exists():
            fail(
                f"there is no cache in {folder}: name another directory with --cache-dir, or by the mirror's settings with --config"
            )


def on_cache(settings: Settings, work: Callable[[Cache], Awaitable[_T]]) -> _T:
    """What `work` makes of the cache, which is made where there is none."""
    # A third of a second that those who only look need not wait for.
    from mirror import wiring

    return _on(settings, wiring.opened, work)


def on_store(settings: Settings, work: Callable[[Store], Awaitable[_T]]) -> _T:
    """As `on_cache`, for work that asks no upstream."""
    from mirror import wiring

    return _on(settings, wiring.store, work)


def _on(
    settings: Settings, opened: Callable[[Settings], AbstractAsyncContextManager[_O]], work: Callable[[_O], Awaitable[_T]]
) -> _T:
    logs.set_up("warning", settings.log.format)
    become_owner(settings.cache.dir)

    async def run() -> _T:
        async with opened(settings) as one:
            return await work(one)

    with _told(settings.cache.dir):
        return asyncio.run(run())


def yield_to_others() -> None:
    """The lowest priority, for commands that have time: those who pull have not."""
    with contextlib.suppress(OSError):
        os.nice(19)


def run_when_idle() -> None:
    """Even less than that (sched(7), SCHED_IDLE): for what works long, and holds next to nothing that others wait for."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def become_owner(folder: Path) -> None:
    """As root in a directory of another user, goes on as that user: what root leaves there, a mirror that is not root could not write."""
    with contextlib.suppress(OSError):
        found = folder.stat()
        if os.geteuid() != 0 or found.st_uid == 0:
            return
        with contextlib.suppress(KeyError):
            os.initgroups(pwd.getpwuid(found.st_uid).pw_name, found.st_gid)
        os.setgid(found.st_gid)
        os.setuid(found.st_uid)


def fail(message: str, status: int = 1) -> NoReturn:
    """Reports a failure and exits. Under ``--json`` standard output gets ``{"error": message}`` as well."""
    context = click.get_current_context(silent=True)
    if context is not None and context.params.get("as_json"):
        tell_json({"error": message})
    click.echo(f"mirror: {message}", err=True)
    sys.exit(status)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except MirrorError as error:
        fail(error.message)
    except BrokenPipeError:
        # Who read what this command prints has left: no fault of the cache's. It ends as others do then.
        raise
    except OSError as error:
        fail(f"the cache in {folder} cannot be used: {os_error_text(error)}; run this as the user that the mirror runs as")
    except KeyboardInterrupt:
        fail("interrupted; run it again to go on", INTERRUPTED)
