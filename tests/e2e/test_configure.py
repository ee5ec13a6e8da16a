"""What ``mirror configure`` writes for three mirrors, read by the real clients: a pull goes through the one that is up, and afterwards every byte is as it was."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import pytest

from mirror.clients import CLIENTS, Address, in_order_for, machine_id
from mirror.web.setup import plan
from mirror.web.templating import Templates
from tests.e2e.conftest import REPOSITORY, Stage
from tests.e2e.test_containerd import Containerd
from tests.e2e.test_dockerd import Dockerd
from tests.e2e.test_podman import policy
from tests.support.programs import Program, require, require_root, run


def three(mirror: str) -> list[str]:
    """The mirror between two at which nobody listens, in this machine's order: the first of them is asked in vain."""

    def first(*urls: str) -> str:
        return in_order_for(machine_id(), map(Address.parse, urls))[0].url

    dead = [f"http://127.1.{number >> 8}.{number & 255}:1" for number in range(2**16)]
    return [
        next(url for url in dead if first(url, mirror) == url),
        mirror,
        next(url for url in dead if first(url, mirror) == mirror),
    ]


def configure(client: str, mirror: str, *arguments: str) -> None:
    mirrors = [word for url in three(mirror) for word in ("--mirror", url)]
    run(sys.executable, "-m", "mirror", "configure", client, *mirrors, *arguments)


def test_dockerd_reads_what_was_written_and_what_was_there(stage: Stage, tmp_path: Path) -> None:
    """A daemon.json of its owner gets the mirror, and is given back."""
    file = tmp_path / "daemon.json"
    before = b'{"labels": ["of=owner"],\t"registry-mirrors": ["http://own.lan"]}'
    file.write_bytes(before)
    configure("docker", stage.mirror.url, "--file", str(file), "--write")
    daemon = Dockerd(stage.mirror.url, file)
    try:
        info = json.loads(daemon.docker("info", "--format", "{{json .}}"))
        assert info["RegistryConfig"]["Mirrors"] == [*(f"{url}/" for url in three(stage.mirror.url)), "http://own.lan/"]
        assert info["Labels"] == ["of=owner"]
        daemon.docker("pull", "app:oci")
        stage.check_upstream_was_asked_once("oci")
    finally:
        daemon.stop()
    configure("docker", stage.mirror.url, "--file", str(file), "--undo")
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("daemon.json*")) == ["daemon.json"]


@pytest.mark.parametrize("script", [False, True], ids=["command", "script"])
def test_a_running_dockerd_forgets_the_mirror_by_what_undoing_says(script: bool, tmp_path: Path) -> None:
    """A reload alone leaves the mirror in it, which is why both say: restart, or an empty list and a reload. Each of the two is tried."""
    root = tmp_path / "root"
    file = root / "etc/docker/daemon.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    address = "http://127.0.0.1:1"
    shell = tmp_path / "docker.sh"
    shell.write_text(Templates("test").script("setup.sh", plan=plan(CLIENTS["docker"], Address.parse(address), ["docker.io"])))
    ours = ["sh", str(shell)] if script else [sys.executable, "-m", "mirror", "configure", "docker", "--mirror", address]
    write, undo = ([], ["--undo"]) if script else (["--write"], ["--undo"])
    run(*ours, "--root", str(root), *write)

    def mirrors(daemon: Dockerd) -> list[str]:
        found: list[str] = json.loads(daemon.docker("info", "--format", "{{json .RegistryConfig.Mirrors}}"))
        return found

    daemon = Dockerd("", file)
    try:
        assert mirrors(daemon) == [f"{address}/"]
        told = run(*ours, "--root", str(root), *undo)
        assert file.read_text() == "{}"
        assert "Now: systemctl restart docker." in told
        assert 'write "registry-mirrors": []' in told
        daemon.reload()
        assert mirrors(daemon) == [f"{address}/"], "then a reload is enough: say so instead"
        file.write_text('{"registry-mirrors": []}')
        daemon.reload()
        assert mirrors(daemon) == []
        file.write_text("{}")
    finally:
        daemon.stop()
    daemon = Dockerd("", file)
    try:
        assert mirrors(daemon) == []
    finally:
        daemon.stop()


def test_containerd_reads_what_was_written(stage: Stage, tmp_path: Path) -> None:
    """The hosts.toml files name the mirror, and config.toml tells CRI where they are, as containerd itself understands it."""
    root = tmp_path / "root"
    root.mkdir()
    configure("containerd", stage.mirror.url, "--root", str(root), "--write")
    daemon = Containerd(tmp_path / "containerd", "http://127.0.0.1:1")
    try:
        for registry in ("docker.io", "ghcr.io"):
            daemon.pull(f"{registry}/{REPOSITORY}:oci", root / "etc/containerd/certs.d")
        stage.check_upstream_was_asked_once("oci")
    finally:
        daemon.stop()
    understood = tomllib.loads(run("containerd", "--config", str(root / "etc/containerd/config.toml"), "config", "dump"))
    assert understood["plugins"]["io.containerd.grpc.v1.cri"]["registry"]["config_path"] == "/etc/containerd/certs.d"
    configure("containerd", stage.mirror.url, "--root", str(root), "--undo")
    assert list(root.iterdir()) == []


def test_podman_reads_what_was_written(stage: Stage, tmp_path: Path) -> None:
    """As a drop-in, in the folder of a user's own."""
    require("podman")
    require_root("podman, as it is run here,")
    file = tmp_path / ".config/containers/registries.conf.d/mirror.conf"
    configure("podman", stage.mirror.url, "--file", str(file), "--write")
    run_root = tempfile.mkdtemp(prefix="podman-")  # podman takes 50 characters at most
    storage = f"--root {tmp_path}/storage --runroot {run_root} --storage-driver vfs --cgroup-manager cgroupfs".split()
    for registry in ("docker.io", "ghcr.io"):
        name = f"{registry}/{REPOSITORY}:oci"
        arguments = [*storage, "pull", "-q", "--signature-policy", str(policy(tmp_path)), name]
        run("podman", *arguments, environment={"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config")})
    stage.check_upstream_was_asked_once("oci")
    shutil.rmtree(run_root)
    configure("podman", stage.mirror.url, "--file", str(file), "--undo")
    assert not (tmp_path / ".config").exists()


def test_buildkit_reads_what_was_written(stage: Stage, tmp_path: Path) -> None:
    """A build on images of two registries; its worker's settings stay."""
    require("buildkitd", "buildctl")
    require_root("buildkitd, as it is run here,")
    file = tmp_path / "buildkitd.toml"
    before = b"[worker.oci] # mine\n  enabled = true\n  snapshotter = 'native'\n[worker.containerd]\n  enabled = false\n"
    file.write_bytes(before)
    configure("buildkit", stage.mirror.url, "--file", str(file), "--write")
    folder = Path(tempfile.mkdtemp(prefix="buildkit-"))  # the path of a socket has 108 bytes at most
    address = f"unix://{folder}/socket"
    daemon = Program(
        ["buildkitd", "--config", str(file), "--root", f"{folder}/root", "--addr", address], tmp_path / "buildkitd.log"
    )
    try:
        daemon.wait_until(lambda: "running server on" in daemon.log)
        (tmp_path / "build").mkdir()
        for registry in ("docker.io", "ghcr.io"):
            (tmp_path / "build/Dockerfile").write_text(f"FROM {registry}/{REPOSITORY}:oci\nCOPY Dockerfile /\n")
            source = f"--local context={tmp_path}/build --local dockerfile={tmp_path}/build"
            run(
                "buildctl",
                "--addr",
                address,
                "build",
                "--frontend",
                "dockerfile.v0",
                *source.split(),
                "--output",
                f"type=tar,dest={tmp_path}/out.tar",
                seconds=120,
            )
            with tarfile.open(tmp_path / "out.tar") as built:
                assert {"Dockerfile", "etc/layer-0"} <= set(built.getnames())
        stage.check_upstream_was_asked_once("oci")
    finally:
        daemon.stop()
        shutil.rmtree(folder, ignore_errors=True)
    configure("buildkit", stage.mirror.url, "--file", str(file), "--undo")
    assert file.read_bytes() == before


def test_k3s_reads_what_was_written(stage: Stage, tmp_path: Path) -> None:
    """By wharfie, Rancher's own reader of registries.yaml, with which RKE2 pulls its first image; the credentials that were there stay.

    k3s itself gives containerd the same as hosts.toml files: those are above.
    """
    require("wharfie")
    file = tmp_path / "registries.yaml"
    before = (
        b'mirrors:\n  docker.io: {endpoint: ["http://127.0.0.1:1"]} # old\nconfigs:\n  lan: {auth: {username: u, password: p}}\n'
    )
    file.write_bytes(before)
    configure("k3s", stage.mirror.url, "--file", str(file), "--write")
    assert b"password: p" in file.read_bytes()
    for registry in ("docker.io", "ghcr.io"):
        target = tmp_path / registry
        run("wharfie", "--private-registry", str(file), "--arch", "amd64", f"{registry}/{REPOSITORY}:oci", str(target))
        assert (target / "etc/layer-0").is_file()
    stage.check_upstream_was_asked_once("oci")
    configure("k3s", stage.mirror.url, "--file", str(file), "--undo")
    assert file.read_bytes() == before
