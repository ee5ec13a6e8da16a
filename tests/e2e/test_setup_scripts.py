"""The scripts that "Set up a client" serves, run by the plain shell; what they write is read by the real clients, and taken back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from pathlib import Path

import pytest

from mirror.clients import CLIENTS, Address
from mirror.config import DEFAULT_ENDPOINTS
from mirror.web.setup import plan
from mirror.web.templating import Templates
from tests.e2e.conftest import REPOSITORY, Stage
from tests.e2e.test_containerd import Containerd
from tests.e2e.test_dockerd import Dockerd
from tests.e2e.test_podman import policy
from tests.support.programs import require, require_root, run

MIRROR = Address.parse("http://mirror.lan:5000")
REGISTRIES = tuple(DEFAULT_ENDPOINTS)
DEBIANS_CONTAINERD = """version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
"""
DEFAULT_CONTAINERD = """version = 3

[plugins.'io.containerd.cri.v1.images']
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = ''

    [plugins.'io.containerd.cri.v1.images'.registry.headers]

[plugins.'io.containerd.transfer.v1.local']
  config_path = ''
"""


def written(client: str, folder: Path, address: Address = MIRROR) -> Path:
    """The script of a client, as a file."""
    file = folder / f"{client}.sh"
    file.write_text(Templates("test").script("setup.sh", plan=plan(CLIENTS[client], address, REGISTRIES)))
    return file


def served(stage: Stage, client: str, folder: Path) -> Path:
    """The same, from a running mirror."""
    file = folder / f"{client}.sh"
    with urllib.request.urlopen(f"{stage.mirror.url}/setup/{client}.sh") as response:
        assert response.headers.get_content_type() == "text/x-shellscript"
        file.write_bytes(response.read())
    return file


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def configure(client: str, *arguments: str) -> None:
    run(sys.executable, "-m", "mirror", "configure", client, "--mirror", MIRROR.url, *arguments)


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize(
    "url", ["http://mirror.lan:5000", "https://mirror.example", "http://127.0.0.1:5000", "http://[fd00::1]:5000"]
)
def test_the_scripts_are_clean(client: str, url: str, tmp_path: Path) -> None:
    """shellcheck has nothing to say of them, as POSIX shell."""
    require("shellcheck")
    run("shellcheck", "--shell=sh", str(written(client, tmp_path, Address.parse(url))))


@pytest.mark.parametrize("client", list(CLIENTS))
def test_they_write_what_configure_writes_and_take_it_back(client: str, tmp_path: Path) -> None:
    """Where nothing is, byte for byte, more than once; afterwards not even a folder is left; either undoes the other's work."""
    root = tmp_path / "root"
    root.mkdir()
    script = written(client, tmp_path)
    run("sh", str(script), "--root", str(root))
    found = files(root)
    for file in CLIENTS[client].plan([MIRROR], REGISTRIES):
        assert found[file.path.lstrip("/")].decode() == file.text
    run("sh", str(script), "--root", str(root))
    assert files(root) == found
    configure(client, "--root", str(root), "--undo")
    assert list(root.iterdir()) == []
    configure(client, "--root", str(root), "--write")
    run("sh", str(script), "--root", str(root), "--undo")
    assert list(root.iterdir()) == []
    assert subprocess.run(["sh", str(script), "--root", str(root), "--undo"], capture_output=True, check=False).returncode == 1
    assert subprocess.run(["sh", str(script), "--nonsense"], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(
    ("client", "path", "before"),
    [
        ("docker", "etc/docker/daemon.json", '{"labels": ["of=owner"],\t"registry-mirrors": ["http://127.0.0.1:1"]}'),
        ("containerd", "etc/containerd/config.toml", DEBIANS_CONTAINERD),
        ("containerd", "etc/containerd/config.toml", DEFAULT_CONTAINERD),
        (
            "containerd",
            "etc/containerd/config.toml",
            f'{DEBIANS_CONTAINERD}# registry\nsandbox_image = "registry.k8s.io/pause:3.6"\n',
        ),
        ("containerd", "etc/containerd/config.toml", 'disabled_plugins = ["cri"]\n'),
        ("buildkit", "etc/buildkit/buildkitd.toml", "debug = true\n[worker.oci]\n  gc = false\n"),
    ],
)
def test_what_is_there_stays_and_comes_back(client: str, path: str, before: str, tmp_path: Path) -> None:
    """Files of their owner say the same as mirror configure would have them say, and are given back byte for byte, mode and all."""
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root, other):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(before)
        (folder / path).chmod(0o640)
    start = files(root)
    script = written(client, tmp_path)
    run("sh", str(script), "--root", str(root))
    configure(client, "--root", str(other), "--write")
    parse = json.loads if path.endswith(".json") else tomllib.loads
    assert parse((root / path).read_text()) == parse((other / path).read_text())
    assert (root / path).stat().st_mode & 0o777 == 0o640
    run("sh", str(script), "--root", str(root), "--undo")
    assert files(root) == start
    assert (root / path).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("client", "path", "before"),
    [
        ("docker", "etc/docker/daemon.json", "{not json"),
        ("containerd", "etc/containerd/certs.d/ghcr.io/hosts.toml", '[host."http://other"]\n'),
        ("containerd", "etc/containerd/config.toml", "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry.mirrors]\n"),
        (
            "containerd",
            "etc/containerd/config.toml",
            f"{DEFAULT_CONTAINERD}[plugins.'io.containerd.cri.v1.images'.registry.mirrors.x]\n",
        ),
        ("containerd", "etc/containerd/config.toml", DEFAULT_CONTAINERD.replace("headers]", "headers]\n X = ['x']")),
        ("containerd", "etc/containerd/config.toml", "version = 2\nplugins = {x = {registry = {config_path = '/x'}}}\n"),
        ("podman", "etc/containers/registries.conf.d/mirror.conf", "[[registry]]\n"),
        ("buildkit", "etc/buildkit/buildkitd.toml", '[registry."docker.io"]\n'),
        ("k3s", "etc/rancher/k3s/registries.yaml", "mirrors:\n"),
    ],
)
def test_a_file_that_cannot_be_merged_stays_as_it_is(client: str, path: str, before: str, tmp_path: Path) -> None:
    """It says what to add by hand, ends with 1, and has written nothing at all."""
    root = tmp_path / "root"
    (root / path).parent.mkdir(parents=True)
    (root / path).write_text(before)
    start = files(root)
    done = subprocess.run(
        ["sh", str(written(client, tmp_path)), "--root", str(root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{root}/{path} exists, and a script cannot merge it safely" in done.stderr
    assert files(root) == start


def test_what_was_changed_since_is_not_taken_back(tmp_path: Path) -> None:
    """Somebody's change is worth more than an undo."""
    root = tmp_path / "root"
    root.mkdir()
    script = written("docker", tmp_path)
    run("sh", str(script), "--root", str(root))
    (root / "etc/docker/daemon.json").write_text("{}")
    done = subprocess.run(["sh", str(script), "--root", str(root), "--undo"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has been changed since" in done.stderr
    assert (root / "etc/docker/daemon.json").read_text() == "{}"


def test_dockerd_pulls_through_the_mirror_after_the_script(stage: Stage, tmp_path: Path) -> None:
    """As served by the mirror, with its own address in it."""
    root = tmp_path / "root"
    (root / "etc/docker").mkdir(parents=True)
    (root / "etc/docker/daemon.json").write_text('{"labels": ["of=owner"]}')
    script = served(stage, "docker", tmp_path)
    run("sh", str(script), "--root", str(root))
    daemon = Dockerd(stage.mirror.url, root / "etc/docker/daemon.json")
    try:
        info = json.loads(daemon.docker("info", "--format", "{{json .}}"))
        assert info["RegistryConfig"]["Mirrors"] == [f"{stage.mirror.url}/"]
        assert info["Labels"] == ["of=owner"]
        daemon.docker("pull", "app:oci")
        stage.check_upstream_was_asked_once("oci")
    finally:
        daemon.stop()
    run("sh", str(script), "--root", str(root), "--undo")
    assert files(root) == {"etc/docker/daemon.json": b'{"labels": ["of=owner"]}'}


def test_containerd_pulls_through_the_mirror_after_the_script(stage: Stage, tmp_path: Path) -> None:
    """From two registries; config.toml is understood by containerd itself."""
    root = tmp_path / "root"
    (root / "etc/containerd").mkdir(parents=True)
    (root / "etc/containerd/config.toml").write_text(DEBIANS_CONTAINERD)
    run("sh", str(served(stage, "containerd", tmp_path)), "--root", str(root))
    daemon = Containerd(tmp_path / "containerd", "http://127.0.0.1:1")
    try:
        for registry in ("docker.io", "ghcr.io"):
            daemon.pull(f"{registry}/{REPOSITORY}:oci", root / "etc/containerd/certs.d")
        stage.check_upstream_was_asked_once("oci")
    finally:
        daemon.stop()
    understood = tomllib.loads(run("containerd", "--config", str(root / "etc/containerd/config.toml"), "config", "dump"))
    cri = understood["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["registry"]["config_path"] == "/etc/containerd/certs.d"
    assert cri["cni"]["bin_dir"] == "/usr/lib/cni"


def test_containerds_own_default_settings_get_the_folder(tmp_path: Path) -> None:
    """Those that many have in config.toml, by ``containerd config default``: that one word is all that changes."""
    require("containerd")
    file = tmp_path / "root/etc/containerd/config.toml"
    file.parent.mkdir(parents=True)
    before = run("containerd", "config", "default")
    file.write_text(before)
    run("sh", str(written("containerd", tmp_path)), "--root", str(tmp_path / "root"))
    lines = zip(before.splitlines(), file.read_text().splitlines(), strict=True)
    assert [new.strip() for old, new in lines if old != new] == ['config_path = "/etc/containerd/certs.d"']


def test_podman_pulls_through_the_mirror_after_the_script(stage: Stage, tmp_path: Path) -> None:
    """From two registries, by a drop-in in a user's own folder."""
    require("podman")
    require_root("podman, as it is run here,")
    root = tmp_path / "root"
    root.mkdir()
    run("sh", str(served(stage, "podman", tmp_path)), "--root", str(root))
    (root / "etc").rename(tmp_path / ".config")
    run_root = tempfile.mkdtemp(prefix="podman-")  # podman takes 50 characters at most
    storage = f"--root {tmp_path}/storage --runroot {run_root} --storage-driver vfs --cgroup-manager cgroupfs".split()
    for registry in ("docker.io", "ghcr.io"):
        name = f"{registry}/{REPOSITORY}:oci"
        arguments = [*storage, "pull", "-q", "--signature-policy", str(policy(tmp_path)), name]
        run("podman", *arguments, environment={"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config")})
    stage.check_upstream_was_asked_once("oci")
    shutil.rmtree(run_root)
