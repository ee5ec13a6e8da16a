"""What runs on this machine: the mirror, and clients that should ask it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yarl import URL

from mirror.clients import CLIENTS, Address, Client, Conflict, client_here
from mirror.config import Settings
from mirror.doctor.findings import Finding, advice, ok, problem
from mirror.doctor.waiting import within
from mirror.errors import MirrorError
from mirror.upstream import Connections, Timeouts
from mirror.upstream.transport import Transport, read_bounded

_PROGRAMS = {"docker": "dockerd", "containerd": "containerd", "podman": "podman", "buildkit": "buildkitd", "k3s": "k3s"}
_PATIENCE = 10.0
_DOCKER_SOCKET = "/var/run/docker.sock"


async def examine_mirror(settings: Settings, address: Address) -> list[Finding]:
    """Whether a mirror answers there, and what it says of itself. Never raises but CancelledError."""
    try:
        transport = Transport(Timeouts(connect=2, header=4, stall=4, attempts=1), Connections(1, 1, 1))
    except OSError:
        # A proxy that cannot be used: a finding of `upstreams`, and no mirror starts with it.
        return []
    try:
        response = await transport.request("GET", URL(f"{address.url}/readyz"), {}, tls=_tls(settings, address))
        body = await read_bounded(response, 1024 * 1024, 4)
    except MirrorError as error:
        cure = (
            f"start it: mirror serve --listen {settings.server.listen}, or systemctl start mirror; --mirror names one elsewhere"
        )
        return [problem("mirror", f"none answers at {address.url}: {error.message}", cure)]
    finally:
        await transport.aclose()
    try:
        report: Any = json.loads(body)
        degraded = _summed_up([str(line) for line in report["degraded"]], list(report["registries"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return [
            problem(
                "mirror",
                f"another program answers at {address.url}",
                "give the mirror another address with server.listen (--listen), or stop that program",
            )
        ]
    if degraded:
        return [advice("mirror", line, "what is cached is served; the other findings may tell the cause") for line in degraded]
    return [ok("mirror", f"it answers at {address.url}, and nothing of it is degraded")]


def _summed_up(lines: list[str], registries: list[str]) -> list[str]:
    """The lines of /readyz; those about several registries as one, which the findings about upstreams explain."""
    named = {line: line.partition(": ")[0] for line in lines if line.partition(": ")[0] in registries}
    if len(named) < 2:
        return lines
    names = ", ".join(dict.fromkeys(named.values()))
    return [*(line for line in lines if line not in named), f"it has trouble with {len(named)} endpoints: {names}"]


def _tls(settings: Settings, address: Address) -> ssl.SSLContext | None:
    """The very certificate of the settings is trusted for the mirror of the settings, whose address here need not be a name that it is for."""
    own = settings.server.tls_certificate
    if own is None or address.url != settings.server.own_url:
        return None
    context = ssl.create_default_context(cafile=own)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


async def examine_clients(settings: Settings, address: Address, root: Path) -> list[Finding]:
    """Whether the clients that are installed ask the mirror; their files are looked for under `root`. Never raises but CancelledError."""
    try:
        return await within(_PATIENCE, _examine_clients, settings, address, root)
    except TimeoutError:
        return [problem("clients", f"their files could not be read within {_PATIENCE:g} s", "look at the disk that /etc is on")]


def _examine_clients(settings: Settings, address: Address, root: Path) -> list[Finding]:
    found: list[Finding] = []
    for name in CLIENTS:
        if shutil.which(_PROGRAMS[name]) is not None:
            found += _client(client_here(name, root), settings, address, root)
    return found


def _client(client: Client, settings: Settings, address: Address, root: Path) -> Iterator[Finding]:
    missing = []
    for file in client.plan(address, list(settings.registries)):
        path = root / file.path.lstrip("/")
        try:
            text = path.read_text() if path.exists() else ""
            if file.merge(text) != text:
                missing.append(str(path))
        except Conflict as conflict:
            yield problem(client.name, f"{path} {conflict}", f"change it by hand, then: mirror configure {client.name}")
            return
        except (OSError, UnicodeDecodeError) as error:
            yield advice(client.name, f"{path} cannot be read: {error}", "ask again as root")
            return
    if missing:
        cure = (
            f"mirror configure {client.name} --mirror {address.url} --write; not needed where it asks the mirror by another name"
        )
        yield advice(client.name, f"installed here, and not told of {address.url} in {missing[0]}", cure)
    elif client.name == "docker" and (mirrors := _docker_mirrors()) is not None and address.url not in mirrors:
        yield problem("docker", "dockerd has not read its settings since they name the mirror", client.then)
    else:
        yield ok(client.name, f"it asks {address.url}")


def _docker_mirrors() -> list[str] | None:
    """The mirrors that a running dockerd knows; None where none can be asked (Docker Engine API, GET /info)."""
    connection = http.client.HTTPConnection("localhost", timeout=3)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(3)
        connection.sock.connect(os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or _DOCKER_SOCKET)
        connection.request("GET", "/info")
        info = json.loads(connection.getresponse().read(4 * 1024 * 1024))
        return [str(mirror).rstrip("/") for mirror in info["RegistryConfig"]["Mirrors"] or ()]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()
