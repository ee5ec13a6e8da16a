"""Real podman and skopeo, which ask for no more than a part: the mirror sends them no more than a registry would."""

from __future__ import annotations

import asyncio
import io
import json
import random
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirror.manifests import OCI_MANIFEST
from tests.support.mirrors import MirrorProcess, until
from tests.support.programs import DockerRegistry, missing, require, require_root, run

REPOSITORY = "library/app"
FILES, CHANGED_EACH, FILE = 200, 20, 50_000


@dataclass
class Podman:
    """podman with a storage of its own, which pulls zstd:chunked layers in parts."""

    folder: Path
    run_root: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="podman-"))  # podman takes 50 characters at most

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.policy = self.folder / "policy.json"
        self.policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.configuration = self.folder / "storage.conf"
        self.configuration.write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "{self.run_root}"\ngraphroot = "{self.folder}/storage"\n'
            '[storage.options]\npull_options = {enable_partial_images = "true"}\n'
        )

    def __call__(self, *arguments: str) -> str:
        environment = {"CONTAINERS_STORAGE_CONF": str(self.configuration), "HOME": str(self.folder)}
        return run("podman", "--cgroup-manager", "cgroupfs", *arguments, environment=environment)

    def pull(self, address: str, tag: str) -> None:
        self("pull", "-q", "--tls-verify=false", "--signature-policy", str(self.policy), f"{address}/{REPOSITORY}:{tag}")


def write_tar(path: Path, changed: bool) -> None:
    """A file system of random files; in a changed one, every twentieth is another."""
    with tarfile.open(path, "w") as tar:
        for folder in ("usr", "usr/lib"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for number in range(FILES):
            seed = FILES + number if changed and number % CHANGED_EACH == 0 else number
            entry = tarfile.TarInfo(f"usr/lib/{number}.so")
            entry.size, entry.mode = FILE, 0o644
            tar.addfile(entry, io.BytesIO(random.Random(seed).randbytes(FILE)))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    """It holds the tags ``old`` and ``new``, one zstd:chunked layer each."""
    require("podman")
    require_root("podman, as it is run here,")
    running = DockerRegistry(tmp_path / "registry", level="info")
    podman = Podman(tmp_path / "pushes")
    for tag in ("old", "new"):
        write_tar(tmp_path / f"{tag}.tar", changed=tag == "new")
        try:
            podman("import", "-q", str(tmp_path / f"{tag}.tar"), f"localhost/{tag}")
        except AssertionError as error:
            if "overlay" in str(error):
                pytest.skip("podman pulls in parts with the overlay driver only, which does not work on this file system")
            raise
        target = f"{running.url.removeprefix('http://')}/{REPOSITORY}:{tag}"
        podman("push", "-q", "--tls-verify=false", "--compression-format", "zstd:chunked", f"localhost/{tag}", target)
    podman("rmi", "-a", "-f")
    yield running
    running.stop()


def layer_of(registry: DockerRegistry, tag: str) -> tuple[str, int]:
    """The digest and the size of a tag's only layer."""
    request = urllib.request.Request(f"{registry.url}/v2/{REPOSITORY}/manifests/{tag}", headers={"Accept": OCI_MANIFEST})
    with urllib.request.urlopen(request) as answer:
        [layer] = json.load(answer)["layers"]
    return layer["digest"], layer["size"]


def sent_to_clients(mirror: MirrorProcess, digest: str) -> int:
    """Bytes of a blob that the mirror has sent."""
    lines = (json.loads(line) for line in mirror.log.splitlines() if line.startswith("{"))
    return sum(line["bytes"] for line in lines if line["reference"] == digest)


def test_podman_gets_the_changed_chunks_of_a_layer_and_no_more(registry: DockerRegistry, tmp_path: Path) -> None:
    """A new version of an image, most of whose files podman has: as many bytes as from the registry itself, cold and warm.

    The registry sends the layer once, because the mirror keeps it whole for those who have nothing of it yet: they need no registry afterwards.
    """
    podman = Podman(tmp_path / "pulls")
    direct = registry.url.removeprefix("http://")
    podman.pull(direct, "old")
    podman.pull(direct, "new")
    layer, size = layer_of(registry, "new")
    expected = registry.sent(layer)
    if expected > size / 2:
        missing("this podman does not pull zstd:chunked layers in parts")
    podman("rmi", f"{direct}/{REPOSITORY}:new")
    with MirrorProcess(tmp_path / "cache", {"docker.io": registry.url}) as mirror:
        address = mirror.url.removeprefix("http://")
        podman.pull(address, "new")
        assert sent_to_clients(mirror, layer) <= expected * 1.01
        cached = mirror.directory / "blobs" / "sha256" / layer.removeprefix("sha256:")
        asyncio.run(until(cached.exists))
        assert registry.sent(layer) - expected <= size + 2 * expected
        registry.stop()
        podman("rmi", f"{address}/{REPOSITORY}:new")
        podman.pull(address, "new")
        assert sent_to_clients(mirror, layer) <= 2 * expected * 1.01
        run(
            "skopeo",
            "--policy",
            str(podman.policy),
            "copy",
            "--src-tls-verify=false",
            f"docker://{address}/{REPOSITORY}:new",
            f"dir:{tmp_path}/copy",
        )
    podman("rmi", "-a", "-f")


def test_skopeo_inspect_fetches_no_layer(registry: DockerRegistry, tmp_path: Path) -> None:
    """It reads the manifest and the configuration; nothing else is asked of the registry, then or later."""
    require("skopeo")
    layer, _ = layer_of(registry, "new")
    before = [registry.asked(method, layer) for method in ("GET", "HEAD")]
    with MirrorProcess(tmp_path / "cache", {"docker.io": registry.url}) as mirror:
        name = f"docker://{mirror.url.removeprefix('http://')}/{REPOSITORY}:new"
        assert layer in run("skopeo", "inspect", "--tls-verify=false", name)
        run("skopeo", "inspect", "--config", "--tls-verify=false", name)
        assert mirror.terminate() == 0
    assert [registry.asked(method, layer) for method in ("GET", "HEAD")] == before
