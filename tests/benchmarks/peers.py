"""The candidates: each a caching proxy in front of the same origin, with an empty cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.benchmarks.report import DOCKER_REGISTRY, NGINX, OWN
from tests.support.programs import Program, answers, free_port

_GO_REGISTRY = "github.com/distribution/distribution/v3/cmd/registry@latest"
_DISTRIBUTION3 = Path.home() / ".cache" / "mirror-bench" / "registry"


class Peer:
    """A running candidate."""

    def __init__(self, name: str, folder: Path, command: list[str], port: int, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._program = Program(command, folder / f"{name}.log", environment)
        self.pid = self._program.pid
        self._program.wait_until(lambda: answers(f"{self.url}/v2/"))

    def cpu_seconds(self) -> float:
        """Of the process and its children, so far."""
        ticks = 0
        for pid in self._family():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak_memory(self) -> int:
        """Bytes resident at most, so far, of the largest process."""
        peaks = []
        for pid in self._family():
            status = Path(f"/proc/{pid}/status").read_text()
            peaks.append(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")))
        return max(peaks)

    def forget_peak(self) -> None:
        """From now on, `peak_memory` is what comes from now on (proc(5), clear_refs)."""
        for pid in self._family():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def _family(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.stop()


def mirror(folder: Path, origin: str, **environment: str) -> Peer:
    port = free_port()
    command = [sys.executable, "-m", "mirror", "serve", "--listen", f"127.0.0.1:{port}", "--cache-dir", str(folder / "cache")]
    return Peer(OWN, folder, [*command, "--upstream", f"docker.io={origin}"], port, environment)


def registry(name: str, binary: str, folder: Path, origin: str) -> Peer:
    """Distribution in proxy mode: Debian's 2.8, or 3."""
    port = free_port()
    config = folder / "config.yml"
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "proxy": {"remoteurl": origin},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    return Peer(name, folder, [binary, "serve", str(config)], port, {"OTEL_TRACES_EXPORTER": "none"})


def nginx(folder: Path, origin: str) -> Peer:
    """proxy_cache as its users set it up: one worker, one fill at a time."""
    port = free_port()
    address = urlsplit(origin).netloc
    config = folder / "nginx.conf"
    config.write_text(
        f"""worker_processes 1; daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
        events {{ worker_connections 1024; }}
        http {{
          access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
          client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
          scgi_temp_path {folder}/s;
          proxy_cache_path {folder}/cache keys_zone=blobs:16m max_size=20g inactive=1d use_temp_path=off;
          server {{ listen 127.0.0.1:{port};
            location / {{ proxy_pass http://{address}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host {address};
              proxy_cache blobs; proxy_cache_valid 200 1d; proxy_cache_lock on; proxy_max_temp_file_size 4096m; }} }} }}"""
    )
    return Peer(NGINX, folder, ["nginx", "-c", str(config), "-p", str(folder)], port)


def install_distribution3() -> None:
    """Has Go put distribution 3 into the user's cache, where there is Go; once, and then never again."""
    if _DISTRIBUTION3.exists() or shutil.which("go") is None:
        return
    print("installing distribution 3 with go install …", file=sys.stderr)
    environment = {**os.environ, "GOBIN": str(_DISTRIBUTION3.parent)}
    subprocess.run(["go", "install", _GO_REGISTRY], env=environment, check=False, timeout=900)


@contextmanager
def side_by_side(folder: Path, origin: str) -> Iterator[list[Peer]]:
    """The mirror first, then every peer that is installed; all of them are stopped at the end."""
    with ExitStack() as running:
        peers = []
        for name, start in _installed().items():
            home = folder / name.replace(" ", "-")
            home.mkdir(parents=True)
            peers.append(running.enter_context(start(home, origin)))
        yield peers


def _installed() -> dict[str, Callable[[Path, str], Peer]]:
    found: dict[str, Callable[[Path, str], Peer]] = {OWN: mirror}
    if shutil.which("docker-registry"):
        found[DOCKER_REGISTRY] = partial(registry, DOCKER_REGISTRY, "docker-registry")
    if shutil.which("nginx"):
        found[NGINX] = nginx
    if _DISTRIBUTION3.exists():
        found["distribution 3"] = partial(registry, "distribution 3", str(_DISTRIBUTION3))
    return found
