"""A real containerd, with ``hosts.toml``: every request carries ``?ns=``."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Stage, make_of_platform
from tests.support.images import digest_of
from tests.support.programs import Program, require, require_root, run


class Containerd:
    """A containerd with folders of its own."""

    def __init__(self, folder: Path, mirror: str) -> None:
        require("containerd", "ctr")
        require_root("containerd")
        folder.mkdir()
        self._folder = folder
        # The path of a socket has at most 104 characters.
        self._sockets = tempfile.TemporaryDirectory(prefix="ctr-")
        self._address = f"{self._sockets.name}/containerd.sock"
        for registry in ("docker.io", "ghcr.io"):
            hosts = folder / "certs.d" / registry
            hosts.mkdir(parents=True)
            # Without a `server` that could be reached: what is pulled comes through the mirror.
            hosts.joinpath("hosts.toml").write_text(
                f'server = "http://127.0.0.1:1"\n[host."{mirror}"]\ncapabilities = ["pull", "resolve"]\n'
            )
        config = folder / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self._address}"\n[ttrpc]\naddress = "{self._sockets.name}/ttrpc.sock"\n'
        )
        self._program = Program(["containerd", "--config", str(config)], folder / "containerd.log")
        self._program.wait_until(lambda: "containerd successfully booted" in self._program.log)

    def ctr(self, *arguments: str) -> str:
        return run("ctr", "--address", self._address, *arguments)

    def pull(self, reference: str, hosts: Path | None = None) -> None:
        """With the hosts.toml files of its own, or those of another folder."""
        self.ctr(
            "images",
            "pull",
            "--hosts-dir",
            str(hosts or self._folder / "certs.d"),
            "--platform",
            "linux/amd64",
            "--snapshotter",
            "native",
            reference,
        )

    def content(self, digest: str) -> bytes:
        """A blob as containerd stored it."""
        command = ["ctr", "--address", self._address, "content", "get", digest]
        return subprocess.run(command, capture_output=True, check=True).stdout

    def wipe(self) -> None:
        for name in self.ctr("images", "ls", "-q").split():
            self.ctr("images", "rm", "--sync", name)
        assert self.ctr("content", "ls", "-q") == ""

    def stop(self) -> None:
        self._program.stop()
        self._sockets.cleanup()


@pytest.fixture
def containerd(stage: Stage, tmp_path: Path) -> Iterator[Containerd]:
    daemon = Containerd(tmp_path / "containerd", stage.mirror.url)
    yield daemon
    daemon.stop()


def check(containerd: Containerd, stage: Stage, tag: str) -> None:
    for _, body in stage.images[tag].manifests[-1:]:
        assert containerd.content(digest_of(body)) == body
    image = make_of_platform(tag) if tag.endswith("index") else stage.images[tag]
    for digest, data in image.blobs.items():
        assert containerd.content(digest) == data


def test_containerd_pulls_from_two_registries_cold_and_then_warm_with_upstream_stopped(
    containerd: Containerd, stage: Stage
) -> None:
    """``?ns=`` tells which registry is meant; every byte is right, each blob is fetched once for both, and upstream is not needed twice."""
    for tag in stage.images:
        for registry in ("docker.io", "ghcr.io"):
            containerd.pull(f"{registry}/{REPOSITORY}:{tag}")
        check(containerd, stage, tag)
        stage.check_upstream_was_asked_once(tag)
    stage.registry.stop()
    containerd.wipe()
    for tag in stage.images:
        for registry in ("docker.io", "ghcr.io"):
            containerd.pull(f"{registry}/{REPOSITORY}:{tag}")
        check(containerd, stage, tag)
    assert '"repository":"ghcr.io/library/app"' in stage.mirror.log
