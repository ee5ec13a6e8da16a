"""A real dockerd with ``registry-mirrors``."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Stage, make_of_platform
from tests.support.images import digest_of
from tests.support.ports import free_port
from tests.support.programs import Program, require, require_root, run


class Dockerd:
    """A daemon of its own, on a socket of its own."""

    def __init__(self, mirror: str, config: Path | None = None, program: str = "dockerd") -> None:
        """With `config` for its daemon.json, or one that names the mirror. `program` is Debian's, or ``dockerd-29``, which keeps images in containerd."""
        require(program, "docker")
        require_root("dockerd")
        # Not in pytest's folder: the path of a socket has 108 bytes at most.
        self._folder = folder = Path(tempfile.mkdtemp(prefix="docker-"))
        if config is None:
            config = folder / "daemon.json"
            config.write_text(json.dumps({"registry-mirrors": [mirror]}))
        self.host = f"unix://{folder}/docker.sock"
        self._environment = {"DOCKER_HOST": self.host, "DOCKER_CONFIG": str(folder)}
        address, metrics = self.host, f"127.0.0.1:{free_port()}"
        command = f"{program} --iptables=false --ip6tables=false --bridge=none --data-root {folder}/data"
        command += " --storage-driver=vfs" if program == "dockerd" else ""
        command += f" --exec-root {folder}/exec -H {address} -p {folder}/pid --config-file {config} --metrics-addr {metrics}"
        # Debian's docker may speak an older version of the API than Docker 29 would.
        older = ["env", "DOCKER_MIN_API_VERSION=1.24"]
        self._program = Program([*older, *command.split()], folder / "dockerd.log")
        self._program.wait_until(lambda: (folder / "docker.sock").exists() and "API listen on" in self._program.log)

    def docker(self, *arguments: str, seconds: float = 120) -> str:
        return run("docker", *arguments, environment=self._environment, seconds=seconds)

    def succeeds(self, *arguments: str) -> bool:
        """Whether a command of ``docker`` does."""
        done = subprocess.run(
            ["docker", *arguments],
            check=False,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        print(arguments[0], done.returncode, done.stdout, done.stderr)
        return done.returncode == 0

    def log_in_by_file(self, auths: dict[str, dict[str, str]]) -> None:
        """As ``docker login`` leaves it."""
        (self._folder / "config.json").write_text(json.dumps({"auths": auths}))

    def reload(self) -> None:
        """Sends SIGHUP, and waits until the settings have been read again."""
        before = self._program.log.count("Reloaded configuration")
        os.kill(int((self._folder / "pid").read_text()), signal.SIGHUP)
        self._program.wait_until(lambda: self._program.log.count("Reloaded configuration") > before)

    def save(self, name: str, to: Path) -> dict[str, bytes]:
        """The files of ``docker save``."""
        self.docker("save", "-o", str(to), name)
        with tarfile.open(to) as tar:
            return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]

    def stop(self) -> None:
        self._program.stop()
        # dockerd leaves the network of containers mounted.
        subprocess.run(["umount", f"{self._folder}/exec/netns/default"], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture
def dockerd(stage: Stage) -> Iterator[Dockerd]:
    daemon = Dockerd(stage.mirror.url)
    yield daemon
    daemon.stop()


def check(dockerd: Dockerd, stage: Stage, tag: str, folder: Path) -> None:
    """What dockerd has is, byte for byte, what the registry was given."""
    name = f"{REPOSITORY.removeprefix('library/')}:{tag}"
    config = json.loads(dockerd.docker("image", "inspect", name))[0]
    assert config["RepoDigests"] == [f"app@{stage.images[tag].digest}"]
    image = make_of_platform(tag) if tag.endswith("index") else stage.images[tag]
    assert config["Id"] in image.blobs
    files = dockerd.save(name, folder / f"{tag}.tar")
    manifest = json.loads(files["manifest.json"])[0]
    assert files[manifest["Config"]] == image.blobs[config["Id"]]
    layers = [digest_of(files[layer]) for layer in manifest["Layers"]]
    assert layers == json.loads(image.blobs[config["Id"]])["rootfs"]["diff_ids"]
    for data in (files[layer] for layer in manifest["Layers"]):
        tarfile.open(fileobj=io.BytesIO(data)).close()


def test_dockerd_pulls_cold_and_then_warm_with_upstream_stopped(dockerd: Dockerd, stage: Stage, tmp_path: Path) -> None:
    """dockerd gets every kind of image through the mirror, upstream sees each blob once, and afterwards is not needed."""
    for tag in stage.images:
        dockerd.docker("pull", f"app:{tag}")
        check(dockerd, stage, tag, tmp_path)
        stage.check_upstream_was_asked_once(tag)
    if stage.tokens is not None:
        assert set(stage.tokens.asked) == {f"repository:{REPOSITORY}:pull"}
        assert len(stage.tokens.asked) == 1
        assert stage.tokens.refused == 0
    stage.registry.stop()
    dockerd.docker("image", "prune", "-a", "-f")
    assert dockerd.docker("image", "ls", "-q") == ""
    for tag in stage.images:
        dockerd.docker("pull", f"app:{tag}")
        check(dockerd, stage, tag, tmp_path)
        stage.check_upstream_was_asked_once(tag)


def test_docker_pulls_from_the_mirror_by_name(dockerd: Dockerd, stage: Stage, tmp_path: Path) -> None:
    """``docker pull mirror:5000/ghcr.io/owner/image`` needs no configuration of the daemon at all."""
    name = f"{stage.address}/ghcr.io/{REPOSITORY}"
    dockerd.docker("pull", f"{name}:oci")
    stage.registry.stop()
    dockerd.docker("rmi", f"{name}:oci")
    dockerd.docker("pull", f"{name}:oci")
    assert json.loads(dockerd.docker("image", "inspect", f"{name}:oci"))[0]["RepoDigests"] == [
        f"{name}@{stage.images['oci'].digest}"
    ]


def test_an_image_that_is_not_there_is_no_error_of_the_mirror(dockerd: Dockerd, stage: Stage) -> None:
    """dockerd goes on to Docker Hub itself, and the mirror serves the next pull."""
    with pytest.raises(AssertionError):
        dockerd.docker("pull", "absent:1")
    dockerd.docker("pull", "app:docker")
