"""Records how the running mirror was started, so that commands need not be given the same options: cache directory, settings file, address, upstreams.

``running.json`` is written to the cache directory and to a folder where commands look for it: ``/run/mirror`` for root and for the systemd unit, otherwise
``$XDG_RUNTIME_DIR/mirror``; MIRROR_RUN_FOLDER names another one. It holds no secrets: passwords come from the settings file only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mirror import durable
from mirror.config import DEFAULT_ENDPOINTS, ConfigError, Settings
from mirror.config.sources import default_cache_dir
from mirror.regular_files import read_file

_NAME = "running.json"
_LARGEST = 1024 * 1024
_SYSTEM = Path("/run/mirror")
_OVERRIDE = "MIRROR_RUN_FOLDER"
_FLEET = {"mirrors", "own", "token_file", "ca_file"}


@dataclass(frozen=True, slots=True)
class Running:
    """`tree` is laid over the settings file `config`. `offline` is whether the mirror asks no registry; `reloaded` is what came of the last SIGHUP."""

    config: Path | None
    tree: dict[str, Any]
    offline: bool
    pid: int
    reloaded: Mapping[str, Any]


@contextlib.contextmanager
def noted(settings: Settings, config: Path | None, url: str) -> Iterator[Callable[[bool, Mapping[str, Any]], None]]:
    """Keeps a record of the mirror at `url` while this is open; yields a function that records whether it is offline, and what came of the last SIGHUP. A folder
    that cannot be written is skipped."""
    record: dict[str, Any] = {
        "pid": os.getpid(),
        "cache_dir": str(settings.cache.dir),
        "config": None if config is None else str(config.absolute()),
        "listen": urlsplit(url).netloc,
        "fleet": {} if settings.fleet.own is None else settings.fleet.model_dump(mode="json", include=_FLEET, exclude_none=True),
        "endpoints": {
            name: [endpoint.model_dump(mode="json", exclude_defaults=True) for endpoint in registry.endpoints]
            for name, registry in settings.registries.items()
            if [str(endpoint) for endpoint in registry.endpoints] != [DEFAULT_ENDPOINTS.get(name)]
        },
    }
    places = [settings.cache.dir, *_run_folders(os.environ)[:1]]

    def write(offline: bool, reloaded: Mapping[str, Any]) -> None:
        for place in places:
            with contextlib.suppress(OSError):
                place.mkdir(mode=0o755, exist_ok=True)
                durable.replace(place / _NAME, json.dumps({**record, "offline": offline, "reloaded": reloaded}).encode())

    write(settings.upstream.offline, {})
    try:
        yield write
    finally:
        for place in places:
            with contextlib.suppress(OSError, ValueError):
                if json.loads(read_file(place / _NAME, _LARGEST)).get("pid") == os.getpid():
                    (place / _NAME).unlink()


def find(cache_dir: str | None, environ: Mapping[str, str]) -> Running | None:
    """Returns the mirror that runs on `cache_dir`, or, if neither a flag nor the environment gives one, on this machine."""
    named = cache_dir or environ.get("MIRROR_CACHE__DIR")
    if named is not None:
        places = [Path(named).expanduser()]
    else:
        places = _run_folders(environ)
        with contextlib.suppress(ConfigError):
            places.append(default_cache_dir())
    for place in places:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            return _read(place / _NAME)
    return None


def is_offline(cache_dir: Path) -> bool:
    """Returns whether a mirror runs on `cache_dir` that asks no registry."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return _read(cache_dir / _NAME).offline
    return False


def degraded(settings: Settings) -> list[str] | None:
    """Returns the problems that the mirror of these settings reports at /readyz; None if it does not answer within 2 s. Blocks."""
    # The certificate need not be for the address of this machine. Nothing secret is sent.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # No proxy is asked: urllib would take one from the environment.
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    try:
        with urllib.request.build_opener(*handlers).open(f"{settings.server.own_url}/readyz", timeout=2) as response:
            return [str(sentence) for sentence in json.load(response)["degraded"]]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None


def _read(file: Path) -> Running:
    """Raises OSError, ValueError, KeyError, TypeError or AttributeError if there is no record, or none to be trusted."""
    record = json.loads(read_file(file, _LARGEST))
    directory = Path(record["cache_dir"])
    if file.stat().st_uid not in (0, os.geteuid(), directory.stat().st_uid):
        raise PermissionError
    # Another user's process refuses the signal, but exists.
    with contextlib.suppress(PermissionError):
        os.kill(int(record["pid"]), 0)
    config = None if record["config"] is None else Path(record["config"])
    registries = {str(name): {"endpoints": list(endpoints)} for name, endpoints in record["endpoints"].items()}
    tree: dict[str, Any] = {
        "cache": {"dir": str(directory)},
        "server": {"listen": str(record["listen"])},
        "registries": registries,
    }
    if fleet := record.get("fleet"):
        # Where several mirrors share a settings file, each is told by its environment which one it is.
        files = {key: str(fleet[key]) for key in ("token_file", "ca_file") if os.access(fleet.get(key, ""), os.R_OK)}
        tree["fleet"] = {"mirrors": list(fleet["mirrors"]), "own": str(fleet["own"]), **files}
    readable = config is not None and os.access(config, os.R_OK)
    return Running(
        config if readable else None, tree, record.get("offline") is True, int(record["pid"]), record.get("reloaded", {})
    )


def _run_folders(environ: Mapping[str, str]) -> list[Path]:
    """Returns the folders to look in; the first is the one to write to."""
    if _OVERRIDE in environ:
        return [Path(environ[_OVERRIDE])] if environ[_OVERRIDE] else []
    own = [Path(environ["XDG_RUNTIME_DIR"]) / "mirror"] if "XDG_RUNTIME_DIR" in environ else []
    return [_SYSTEM, *own] if os.geteuid() == 0 or os.access(_SYSTEM, os.W_OK) else [*own, _SYSTEM]
