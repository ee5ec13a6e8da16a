"""``mirror serve``: runs the mirror."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli import importing, logs, running
from mirror.cli.options import cache_options, settings_to_serve
from mirror.cli.reload import Reload
from mirror.cli.shrinking import keep_from_emptying
from mirror.cli.text import os_error_text
from mirror.config import Settings
from mirror.errors import CatalogFailed
from mirror.file_systems import refusal
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.workers.context import WorkerContext

log = logging.getLogger(__name__)


@click.command(short_help="Run the mirror.")
@cache_options
@click.option("--listen", metavar="HOST:PORT", help="Address and port to listen on.  [127.0.0.1:5000]")
@click.option("--workers", "number", metavar="N|auto", help="Number of worker processes.  [1]")
@click.option("--max-size", metavar="SIZE", help="Size limit of the cache.  [a quarter of the disk]")
@click.option("--offline", is_flag=True, help="Ask no registry: serve what is cached, however old.")
@click.option("--yes", is_flag=True, help="Allow a smaller --max-size to remove more than half of the cache.")
def serve(
    config: Path | None,
    listen: str | None,
    number: str | None,
    cache_dir: str | None,
    max_size: str | None,
    offline: bool,
    yes: bool,
    upstreams: tuple[str, ...],
) -> None:
    """Runs the mirror until SIGTERM or Ctrl-C.

    All settings are optional. Flags override the environment (such as MIRROR_SERVER__LISTEN), which overrides the file.
    """
    # Only here, since `mirror --help` imports this module too; and before workers are forked, so that they share what is imported.
    with importing():
        from mirror import app, wiring
        from mirror.cli import reachability  # noqa: F401  for the workers
        from mirror.workers import parent

    settings, read = settings_to_serve(config, cache_dir, upstreams, listen, max_size, number, offline)
    reload = Reload(settings, read)
    logs.set_up(settings.log.level, settings.log.format)
    if message := refusal(settings.cache.dir):
        click.echo(f"mirror: cannot start: {message}; set cache.dir (--cache-dir) to a local disk", err=True)
        sys.exit(1)
    settings, kept_limit = (settings, "") if yes else keep_from_emptying(settings)
    notes = [kept_limit] if kept_limit else []
    with contextlib.suppress(OSError, ValueError):
        # Each client may take a socket and a file.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # One that arrives before the mirror can handle it waits, and does not end the start.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
    noting = contextlib.ExitStack()
    note: Callable[[bool, Mapping[str, Any]], None] | None = None

    def announce(url: str, check: bool = False) -> None:
        nonlocal note
        note = noting.enter_context(running.noted(settings, config, url))
        _print_start(settings, notes, url, check)

    def take() -> Settings:
        found = reload()
        if note is not None:
            note(found.upstream.offline, reload.outcome)
        return found

    try:
        token, made = app.admin_token(settings)
        if made:
            click.echo(
                f"admin token of the dashboard, shown this once and kept in {settings.cache.dir}/admin-token: {token}", err=True
            )
        folder = parent.prepare() if settings.server.workers > 1 else None
        if folder is None:
            status = _work(settings, notes, lambda url: announce(url, check=sys.stderr.isatty()), take)
        else:
            capped = wiring.capped_registries(settings)
            status = parent.run(
                settings.server,
                folder,
                lambda worker: _work(reload.applied_to(settings), notes, lambda _: None, reload.silently, worker),
                announce,
                take,
                wiring.floats_for_rates(settings.server.workers, capped),
                capped,
            )
    except OSError as error:
        status = _cannot_start(settings, error)
    finally:
        noting.close()
    sys.exit(status)


def _work(
    settings: Settings,
    notes: list[str],
    started: Callable[[str], None],
    reload: Callable[[], Settings],
    worker: WorkerContext | None = None,
) -> int:
    """Serves until stopped. Returns the exit status."""
    from mirror import app

    try:
        asyncio.run(app.serve(settings, started, reload, worker, notes))
    except OSError as error:
        return _cannot_start(settings, error)
    except CatalogFailed as error:
        click.echo(f"mirror: cannot start: {error.message}", err=True)
        return 1
    return 0


def _cannot_start(settings: Settings, error: OSError) -> int:
    click.echo(f"mirror: cannot start: {_reason(settings, error)}", err=True)
    return 1


def _reason(settings: Settings, error: OSError) -> str:
    listen = " and ".join(filter(None, (settings.server.listen, settings.server.login_listen)))
    if isinstance(error, socket.gaierror):
        return f"the host of server.listen cannot be resolved ({listen}): {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        return f"another program listens on {listen} (ss -ltnp shows which): stop it, or choose another address with --listen"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine does not have the address of server.listen ({listen}): 0.0.0.0 stands for all that it has"
    if error.errno == errno.EACCES and not error.filename:
        return f"this user may not listen on {listen}: choose a port of 1024 or above with --listen"
    return f"{os_error_text(error)}; the cache directory is {settings.cache.dir} (--cache-dir), the address {listen} (--listen)"


def _print_start(settings: Settings, notes: list[str], url: str, check: bool = False) -> None:
    """Prints where the mirror is and how to use it; with `check`, then also which upstreams cannot be reached."""
    shown = url.replace("0.0.0.0", "<this machine>").replace("[::]", "<this machine>")
    _print(
        f"listening on {url}",
        f"cache in {settings.cache.dir}, up to {format_size(settings.cache.max_size)}",
        "offline: no registry is asked, and what is cached is served however old it is"
        if settings.upstream.offline
        else f"mirroring {', '.join(settings.registries)}",
        f"dashboard at {shown}/",
        *([] if settings.server.login_listen is None else [f"docker login at {settings.server.login_listen}"]),
        f'for Docker, in /etc/docker/daemon.json:  {{"registry-mirrors": ["{shown}"]}}',
    )
    if settings.hosted.repositories:
        _print(f"hosted: {', '.join(settings.hosted.repositories)} live here, and can be pushed to")
    if shadowing := settings.hosted.shadowing:
        log.warning("what is pushed to %s replaces what everybody gets who pulls images of these names", ", ".join(shadowing))
    if in_clear := settings.fleet.in_clear:
        log.warning(
            "a token is sent unencrypted to %s: use https between mirrors unless that network is trusted", ", ".join(in_clear)
        )
    for note in notes:
        log.warning("%s", note)
    if check and not settings.upstream.offline:
        threading.Thread(target=_check_upstreams, args=(settings,), name="reachability", daemon=True).start()


def _check_upstreams(settings: Settings) -> None:
    from mirror.cli import reachability

    warning = reachability.warning(settings)
    if warning:
        _print(warning)


def _print(*lines: str) -> None:
    for line in lines:
        # The reader may have closed the pipe, which is no reason not to serve.
        with contextlib.suppress(OSError):
            click.echo(line, err=True)
