"""Checks what runs on this machine: the mirror, and the clients that should use it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from yarl import URL

from mirror.clients import CLIENTS, Address, Client, Conflict, client_here, runs_systemd
from mirror.config import Settings
from mirror.doctor.findings import Finding, advice, ok, problem
from mirror.doctor.waiting import within
from mirror.errors import CatalogFailed, MirrorError
from mirror.storage.cache_directory import blocked_by_hand, holds_cache
from mirror.upstream import Connections, Timeouts
from mirror.upstream.transport import Transport, read_bounded

_PROGRAMS = {"docker": "dockerd", "containerd": "containerd", "podman": "podman", "buildkit": "buildkitd", "k3s": "k3s"}
_GO_AROUND = {
    "docker": "close the way to Docker Hub in the firewall, or name images through the mirror; dockerd asks Docker Hub whenever a mirror answers 403 or 404",
    "containerd": "close the way to the registries in the firewall; containerd asks them whenever a mirror answers 403 or 404",
    "podman": "close the way to the registries in the firewall; podman, buildah and skopeo ask them whenever a mirror answers 403 or 404",
    "buildkit": "close the way to the registries in the firewall; buildkitd asks them whenever a mirror answers 403 or 404",
    "k3s": "start it with --disable-default-registry-endpoint, or close the way to the registries in the firewall; it asks them whenever a mirror answers 403 or 404",
}
"""What to do about clients that ask the registry when a mirror refuses."""
_PATIENCE = 10.0
_DOCKER_SOCKET = "/var/run/docker.sock"


async def examine_mirror(settings: Settings, address: Address) -> list[Finding]:
    """Checks whether a mirror answers at the address, and what it reports as degraded. Raises only CancelledError."""
    try:
        body = await ask_mirror(settings, address, "/readyz")
    except OSError:
        # The proxy variables are invalid, which upstreams.py reports.
        return []
    except MirrorError as error:
        cure = f"start it: mirror serve --listen {settings.server.listen}{', or systemctl start mirror' if runs_systemd() else ''}; for another machine's, give --mirror"
        return [problem("mirror", f"no mirror answers at {address.url}: {error.message}", cure)]
    try:
        report: Any = json.loads(body)
        degraded = _summed_up([str(line) for line in report["degraded"]], list(report["registries"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return [
            problem(
                "mirror",
                f"another program answers at {address.url}",
                "choose another address with server.listen (--listen), or stop that program",
            )
        ]
    if degraded:
        return [
            advice("mirror", line, "cached content is still served; the other findings may explain this") for line in degraded
        ]
    return [ok("mirror", f"it answers at {address.url}, and is not degraded")]


async def ask_mirror(settings: Settings, address: Address, path: str) -> bytes:
    """Returns what the mirror answers. Raises UpstreamError; OSError if the environment names a proxy that cannot be used."""
    transport = Transport(Timeouts(connect=2, header=4, stall=4, attempts=1), Connections(1, 1, 1))
    try:
        response = await transport.request("GET", URL(f"{address.url}{path}"), {}, tls=_tls(settings, address))
        return await read_bounded(response, 1024 * 1024, 4)
    finally:
        await transport.aclose()


def _summed_up(lines: list[str], registries: list[str]) -> list[str]:
    """Returns the lines of /readyz, those about several registries summed up as one; the findings about upstreams have the details."""
    named = {line: line.partition(": ")[0] for line in lines if line.partition(": ")[0] in registries}
    if len(named) < 2:
        return lines
    names = ", ".join(dict.fromkeys(named.values()))
    return [*(line for line in lines if line not in named), f"it has trouble with {len(named)} endpoints: {names}"]


def _tls(settings: Settings, address: Address) -> ssl.SSLContext | None:
    """Returns a context that trusts exactly the mirror's own certificate, without checking its host name; None for another mirror."""
    own = settings.server.tls_certificate
    if own is None or address.url != settings.server.own_url:
        return None
    context = ssl.create_default_context(cafile=own)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


async def examine_clients(settings: Settings, addresses: Sequence[Address], root: Path) -> list[Finding]:
    """Checks whether installed clients use the mirrors, in that order; their files are read under `root`. Raises only CancelledError."""
    try:
        return await within(_PATIENCE, _examine_clients, settings, addresses, root)
    except TimeoutError:
        return [problem("clients", f"their files could not be read within {_PATIENCE:g} s", "check the disk that /etc is on")]


def _examine_clients(settings: Settings, addresses: Sequence[Address], root: Path) -> list[Finding]:
    found: list[Finding] = []
    installed = [name for name in CLIENTS if shutil.which(_PROGRAMS[name]) is not None]
    refused = None
    try:
        refused = _refused(settings) if installed else None
    except (OSError, CatalogFailed) as error:
        found.append(
            advice("clients", f"whether something is blocked by hand cannot be read: {error}", "run mirror doctor as root")
        )
    for name in installed:
        found += _client(client_here(name, root), settings, addresses, root, refused)
    return found


def _client(
    client: Client, settings: Settings, addresses: Sequence[Address], root: Path, refused: str | None
) -> Iterator[Finding]:
    """`refused` says what is refused here, None if nothing is."""
    missing = []
    urls = ", then ".join(address.url for address in addresses)
    command = " ".join([f"mirror configure {client.name}", *(f"--mirror {address.url}" for address in addresses), "--write"])
    for file in client.plan(addresses, list(settings.registries)):
        path = root / file.path.lstrip("/")
        try:
            text = path.read_text() if path.exists() else ""
            if client.name == "docker" and (challenged := _challenged(settings, addresses, text)) is not None:
                yield problem(
                    "docker",
                    f"{path} names {challenged} as a mirror, where clients are asked to log in: dockerd would send it Docker Hub's password",
                    f"name {urls} in its place: {command}",
                )
                return
            # Its own token is right, whichever it is.
            own = [_with_its_token(address, text) for address in addresses]
            merge = next(one.merge for one in client.plan(own, list(settings.registries)) if one.path == file.path)
            if merge(text) != text:
                missing.append(str(path))
        except Conflict as conflict:
            yield problem(client.name, f"{path} {conflict}", f"change it by hand, then run mirror configure {client.name}")
            return
        except (OSError, UnicodeDecodeError) as error:
            yield advice(client.name, f"{path} cannot be read: {error}", "run mirror doctor as root")
            return
    if missing:
        cure = f"{command}; ignore this if it uses the mirror under another name"
        yield advice(client.name, f"installed here, but {missing[0]} does not name {urls}", cure)
    elif (
        client.name == "docker"
        and (mirrors := _docker_mirrors()) is not None
        and not all(
            any(mirror == address.url or mirror.startswith(f"{address.url}/t/") for mirror in mirrors) for address in addresses
        )
    ):
        yield problem(
            "docker", "dockerd has not read its settings since the mirror was added", client.command(systemd=runs_systemd())
        )
    else:
        yield ok(client.name, f"it uses {urls}")
        if refused is not None:
            yield advice(client.name, f"what {refused} is pulled from the registry itself", _GO_AROUND[client.name])


def _refused(settings: Settings) -> str | None:
    """Says what is refused here; None if nothing is. Raises CatalogFailed, OSError."""
    if any(guard.mode == "enforce" for guard in settings.guard):
        return "a [[guard]] table refuses"
    count = blocked_by_hand(settings.cache.dir) if holds_cache(settings.cache.dir) else 0
    return f"is blocked by hand ({count} digest{'s' if count > 1 else ''})" if count else None


def _with_its_token(address: Address, text: str) -> Address:
    token = re.search(rf"{re.escape(address.url)}/t/([A-Za-z0-9_-]{{16,}})", text)
    return address if token is None else address.with_token(token[1])


def _challenged(settings: Settings, addresses: Sequence[Address], text: str) -> str | None:
    """Returns the first mirror in a daemon.json that is an address, or has a host name, for logging in."""
    ports = {port for _, port in settings.server.login_addresses}
    try:
        mirrors = json.loads(text or "{}")["registry-mirrors"]
        for mirror in mirrors:
            parts = urlsplit(mirror)
            if parts.hostname in settings.server.login_hosts:
                return str(mirror)
            if parts.port in ports and parts.hostname in [urlsplit(address.url).hostname for address in addresses]:
                return str(mirror)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def _docker_mirrors() -> list[str] | None:
    """Returns the mirrors that the running dockerd knows (Docker Engine API, GET /info); None if it cannot be asked."""
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
