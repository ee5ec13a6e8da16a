"""Real programs, started on free ports with folders of their own, and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE
from tests.support.ports import free_port

_PACKAGES = {
    "docker-registry": "docker-registry",
    "tc": "iproute2",
    "unshare": "util-linux",
    "dockerd": "docker.io",
    "docker": "docker.io",
    "docker-compose": "docker-compose",
    "containerd": "containerd",
    "ctr": "containerd",
    "podman": "podman",
    "buildah": "buildah",
    "skopeo": "skopeo",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "nginx": "nginx-light",
    "microsocks": "microsocks",
    "tinyproxy": "tinyproxy",
    "wrk": "wrk",
    "systemd-analyze": "systemd",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "shellcheck": "shellcheck",
    "strace": "strace",
    "openssl": "openssl",
    "bindfs": "bindfs",
    "haproxy": "haproxy",
}

_SOURCES = dict.fromkeys(
    (
        "crane",
        "helm",
        "buildkitd",
        "buildctl",
        "wharfie",
        "cosign",
        "fulcio",
        "tesseract",
        "rekor-server",
        "timestamp-server",
        "oras",
        "versitygw",
        "osv-scanner",
        "oidc-provider",
        "oci-conformance",
        "dockerd-29",
    ),
    "built from its Go module: see .ci/run",
)
"""Programs that Debian does not have."""


def require(*names: str) -> None:
    """Skips the test, saying what to install, where a program is missing; fails it under MIRROR_REQUIRE_REAL=1."""
    for name in names:
        if shutil.which(name) is None:
            source = f"Debian's package {_PACKAGES[name]}" if name in _PACKAGES else _SOURCES[name]
            missing(f"{name} is not installed ({source})")


def require_root(what: str) -> None:
    if os.geteuid() != 0:
        missing(f"{what} runs as root only")


def missing(what: str) -> None:
    if os.environ.get("MIRROR_REQUIRE_REAL") == "1":
        pytest.fail(what)
    pytest.skip(what)


class Program:
    """A server in a process group of its own; what it prints is in `log`."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self._log = log
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], bool], seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self._process.poll() is None, f"{self._process.args!r} ended:\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"{self._process.args!r} is not ready after {seconds} s:\n{self.log[-3000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM to the whole group, SIGKILL where that is not enough."""
        for signum, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                return


def answers(url: str) -> bool:
    """True when something answers HTTP there, whatever it says but that it is not ready yet."""
    trusting_all = ssl.create_default_context()
    trusting_all.check_hostname, trusting_all.verify_mode = False, ssl.CERT_NONE
    try:
        urllib.request.urlopen(url, timeout=2, context=trusting_all).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code != 503
    except OSError:
        return False
    return True


class DockerRegistry:
    """Debian's docker-registry over a folder."""

    def __init__(
        self,
        folder: Path,
        token: dict[str, str] | None = None,
        level: str = "warn",
        *,
        htpasswd: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """`token`: its auth.token settings; `level` of its log; `htpasswd`: who may use it; `certificate` and key, with which it is https; `host`: its address."""
        require("docker-registry")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"{'https' if certificate else 'http'}://{host}:{self.port}"
        auth = {"token": token} if token else {"htpasswd": {"realm": "test", "path": str(htpasswd)}} if htpasswd else None
        tls = {"tls": {"certificate": str(certificate[0]), "key": str(certificate[1])}} if certificate else {}
        config = {
            "version": 0.1,
            "log": {"level": level, "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": f"{host}:{self.port}", **tls},
            **({"auth": auth} if auth else {}),
        }
        self._config = folder / "config.yml"
        self._config.write_text(json.dumps(config))  # JSON is YAML
        self._log = folder / "registry.log"
        self._program: Program | None = None
        self.start()

    def start(self) -> None:
        self._program = Program(["docker-registry", "serve", str(self._config)], self._log, {"OTEL_TRACES_EXPORTER": "none"})
        self._program.wait_until(lambda: answers(f"{self.url}/v2/"))

    def stop(self) -> None:
        if self._program is not None:
            self._program.stop()
            self._program = None

    def asked(self, method: str, fragment: str) -> int:
        """How many requests its access log has whose path contains `fragment` and that were not challenged (401)."""
        found = re.findall(rf'"{method} (\S*) HTTP/[\d.]+" (\d+)', self._log.read_text(errors="replace"))
        return sum(1 for path, status in found if fragment in path and status != "401")

    def sent(self, digest: str) -> int:
        """Bytes of a blob that it has sent, where its `level` is info."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if f"blobs/{digest}" in line]
        found = [
            re.search(r'"response completed".*http\.request\.method=GET.*http\.response\.written=(\d+)', line) for line in lines
        ]
        return sum(int(match[1]) for match in found if match)


def run(*command: str, environment: dict[str, str] | None = None, seconds: float = PATIENCE) -> str:
    """Runs a command to its end; what it printed is in the failure when it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
