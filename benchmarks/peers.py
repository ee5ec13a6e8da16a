"""The contenders: each a caching proxy in front of the same upstream, with an empty cache; and nothing at all, a direct pull."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from mirror.access import FOLDER
from mirror.access.tokens import add_token
from mirror.config import Upstream
from tests.support.ports import free_port
from tests.support.programs import Program, answers

OWN = "mirror"
SINGLE = "mirror, one connection"
DOCKER_REGISTRY = "docker-registry 2.8"
NGINX = "nginx"
DISTRIBUTION3 = "distribution 3"
DIRECT = "direct"
GC = "mirror, beside gc"
VERIFY = "mirror, beside verify"
SCRUB = "mirror, scrubbing"
UPKEEP = {GC: ("gc",), VERIFY: ("verify",), SCRUB: ()}
"""The mirror at work on its cache: the command that is run at each pull, from its start on."""

GUARDED = "mirror, 100,000 blocked"
_BLOCKED = 100_000
"""Digests in its block list."""

TOKEN = "mirror, with a token"
"""The mirror where only a token may pull, which is sent with each request."""

_GO_REGISTRY = "github.com/distribution/distribution/v3/cmd/registry@latest"
_BINARY3 = Path.home() / ".cache" / "mirror-bench" / "registry"
_CONNECTIONS = "connections_per_blob"


class Peer:
    """A contender that runs; without a program it is the upstream itself."""

    def __init__(
        self, url: str, program: Program | None = None, beside: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        """`headers` are what each request has to have."""
        self.url = url
        self.headers = headers or {}
        self._program = program
        self._beside = beside
        if program is not None:
            program.wait_until(lambda: answers(f"{url}/v2/"))

    def cpu_seconds(self) -> float | None:
        """Of the process and its children, so far."""
        if self._program is None:
            return None
        # User and system time, its own and that of children that ended (proc(5), fields 14 to 17).
        ticks = sum(sum(map(int, stat.rpartition(")")[2].split()[11:15])) for stat in self._each("stat"))
        return ticks / os.sysconf("SC_CLK_TCK")

    def cpu_nanoseconds(self) -> int | None:
        """Of the threads that there are now, so far: finer than `cpu_seconds` (Documentation/scheduler/sched-stats.rst)."""
        if self._program is None:
            return None
        total = 0
        for task in [task for pid in self._family() for task in Path(f"/proc/{pid}/task").glob("*/schedstat")]:
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0])
        return total

    def peak_memory(self) -> int | None:
        """Bytes resident at most, so far, of the process and its children together."""
        if self._program is None:
            return None
        found = [re.search(r"VmHWM:\s*(\d+)", status) for status in self._each("status")]
        return sum(int(match[1]) * 1024 for match in found if match is not None)

    def forget_peak(self) -> None:
        """From now on, `peak_memory` is what comes from now on (proc(5), clear_refs)."""
        for pid in self._family():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Has it do meanwhile what it is to do beside; to its end, which may be later."""
        if not self._beside:
            yield
            return
        with subprocess.Popen(self._beside, stdout=subprocess.DEVNULL, start_new_session=True) as command:
            yield
            if command.wait(120) != 0:
                raise RuntimeError(f"{' '.join(self._beside)} ended with {command.returncode}")

    def _each(self, file: str) -> Iterator[str]:
        """That file of /proc, of each process that is still there."""
        for pid in self._family():
            with contextlib.suppress(OSError):
                yield Path(f"/proc/{pid}/{file}").read_text()

    def _family(self) -> list[int]:
        found = [] if self._program is None else [self._program.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._program is not None:
            self._program.stop()


def start(
    name: str,
    folder: Path,
    upstream: str | None,
    workers: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Peer:
    """Returns the contender of that name, with its `folder` and additional `environment`; `workers` is its number of processes, if it can be set.

    Without `upstream` it is no proxy, but takes pushes to repositories below ``bench/``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name == DIRECT:
        assert upstream is not None
        return Peer(upstream)
    port = free_port()
    environment = {"OTEL_TRACES_EXPORTER": "none", **(environment or {})}
    beside: list[str] = []
    headers = {}
    if name in (OWN, SINGLE, GUARDED, TOKEN, *UPKEEP):
        own, place = [sys.executable, "-m", "mirror"], ["--cache-dir", f"{folder}/cache"]
        if upstream is None:
            environment["MIRROR_HOSTED__REPOSITORIES"] = '["bench/**"]'
        else:
            place += ["--upstream", f"docker.io={upstream}"]
        command = [*own, "serve", "--listen", f"127.0.0.1:{port}", *place, *(["--workers", str(workers)] if workers else [])]
        if UPKEEP.get(name):
            beside = [*own, *UPKEEP[name], *place]
        # Scrubbing is for when it is due, which it always is then: or never, where it is not what is measured.
        environment["MIRROR_CACHE__SCRUB_INTERVAL"] = "1s" if name == SCRUB else "30d"
        if name == GUARDED:
            command += ["--config", str(_blocklist(folder))]
        if name == TOKEN:
            secret = add_token(folder / "cache" / FOLDER / "tokens", "bench", None, ("pull",), None)
            headers["Authorization"] = f"Bearer {secret}"
            environment["MIRROR_ACCESS"] = '[{"who": ["token:bench"]}, {"who": ["anyone"], "may": []}]'
        if name == SINGLE:
            environment[f"MIRROR_UPSTREAM__{_CONNECTIONS.upper()}"] = "1"
    elif name == NGINX:
        assert upstream is not None
        command = ["nginx", "-c", str(_nginx(folder, port, upstream, workers or 1)), "-p", str(folder)]
    else:
        binary = "docker-registry" if name == DOCKER_REGISTRY else str(_BINARY3)
        command = [binary, "serve", str(_registry(folder, port, upstream))]
    return Peer(f"http://127.0.0.1:{port}", Program(command, folder / "log", environment), beside, headers)


def _blocklist(folder: Path) -> Path:
    """Settings with a list of digests that nothing has."""
    blocked = folder / "blocked.txt"
    blocked.write_text(
        "".join(f"sha256:{hashlib.sha256(b'%d' % number).hexdigest()} no. {number}\n" for number in range(_BLOCKED))
    )
    config = folder / "mirror.toml"
    config.write_text(f'[[guard]]\nblocklist = ["{blocked}"]\n')
    return config


def _registry(folder: Path, port: int, upstream: str | None) -> Path:
    """Distribution, Debian's 2.8 or 3, in proxy mode where there is an upstream: its settings."""
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        **({} if upstream is None else {"proxy": {"remoteurl": upstream}}),
    }
    config = folder / "config.yml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    return config


def _nginx(folder: Path, port: int, upstream: str, workers: int) -> Path:
    """proxy_cache as its users set it up, one fill at a time: its settings."""
    scheme, address, *_ = urlsplit(upstream)
    user = "user root; " if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"""{user}worker_processes {workers}; daemon off; pid {folder}/pid; error_log {folder}/error.log;
        events {{ worker_connections 1024; }}
        http {{
          access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
          client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
          scgi_temp_path {folder}/s;
          proxy_cache_path {folder}/cache keys_zone=blobs:16m max_size=20g inactive=1d use_temp_path=off;
          server {{ listen 127.0.0.1:{port};
            location / {{ proxy_pass {scheme}://{address}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host {address};
              proxy_cache blobs; proxy_cache_valid 200 1d; proxy_cache_lock on; proxy_max_temp_file_size 4096m; }} }} }}"""
    )
    return config


def absent() -> dict[str, str]:
    """The contenders that cannot be had here, and why."""
    found = {}
    if shutil.which("docker-registry") is None:
        found[DOCKER_REGISTRY] = "it is not installed (Debian's package docker-registry)"
    if shutil.which("nginx") is None:
        found[NGINX] = "it is not installed (Debian's package nginx-light)"
    if not _BINARY3.exists():
        found[DISTRIBUTION3] = "it is not installed, and there is no Go to install it with"
    if _CONNECTIONS not in Upstream.model_fields:
        found[SINGLE] = f"this mirror has no setting upstream.{_CONNECTIONS}"
    return found


def install_distribution3() -> None:
    """Has Go put distribution 3 into the user's cache, where there is Go; once, and then never again."""
    if _BINARY3.exists() or shutil.which("go") is None:
        return
    print("installing distribution 3 with go install …", file=sys.stderr)
    environment = {**os.environ, "GOBIN": str(_BINARY3.parent)}
    subprocess.run(["go", "install", _GO_REGISTRY], env=environment, check=False, timeout=900)
