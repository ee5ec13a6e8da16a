"""Real clients in front of a mirror that holds back, blocks and releases."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_containerd import Containerd
from tests.e2e.test_dockerd import Dockerd
from tests.support.commands import mirror as command
from tests.support.images import Image, make_image, make_index, push
from tests.support.mirrors import MirrorProcess
from tests.support.patience import patiently
from tests.support.programs import DockerRegistry, require

REPOSITORY = "library/app"


class Stage:
    """A registry whose tag has moved to a poisoned image, and a mirror that has seen the good one."""

    def __init__(self, registry: DockerRegistry, mirror: MirrorProcess) -> None:
        self.registry = registry
        self.mirror = mirror
        self.good, self.poisoned = make_image(11, "docker"), make_image(12, "docker")

    def push(self, image: Image) -> None:
        push(self.registry.url, REPOSITORY, "1", image, None)

    def run(self, *arguments: str) -> None:
        done = command(*arguments, "--cache-dir", str(self.mirror.directory))
        assert done.returncode == 0, done.stderr


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    registry = DockerRegistry(tmp_path / "registry")
    config = tmp_path / "mirror.toml"
    config.write_text('[cache]\ntag_ttl = "0s"\n[[guard]]\nname = "wait"\ncooldown = "3d"\n')
    with MirrorProcess(tmp_path / "cache", {"docker.io": registry.url}, "--config", str(config)) as mirror:
        yield Stage(registry, mirror)
        assert "Traceback" not in mirror.log
    registry.stop()


@pytest.fixture(params=["dockerd", "containerd"])
def pull(request: pytest.FixtureRequest, stage: Stage, tmp_path: Path) -> Iterator[object]:
    """Pulls the tag, and returns the digest that the client has then."""
    if request.param == "dockerd":
        daemon = Dockerd(stage.mirror.url)

        def by_docker() -> str:
            daemon.docker("pull", "app:1")
            digests = json.loads(daemon.docker("image", "inspect", "app:1"))[0]["RepoDigests"]
            return str(digests[0]).partition("@")[2]

        yield by_docker
        daemon.stop()
        return
    containerd = Containerd(tmp_path / "containerd", stage.mirror.url)

    def by_containerd() -> str:
        containerd.pull(f"docker.io/{REPOSITORY}:1")
        lines = [line.split() for line in containerd.ctr("images", "list").splitlines()[1:]]
        return next(line[2] for line in lines if line[0] == f"docker.io/{REPOSITORY}:1")

    yield by_containerd
    containerd.stop()


def test_a_poisoned_image_reaches_no_real_client(stage: Stage, pull: object) -> None:
    """The tag moved: pulls go on with the good image, whose layers come from the cache. Released, the new one is pulled; blocked, the good one again."""
    assert callable(pull)
    stage.push(stage.good)
    assert pull() == stage.good.digest
    stage.push(stage.poisoned)
    assert pull() == stage.good.digest
    for digest in stage.poisoned.blobs:
        assert stage.registry.asked("GET", f"/blobs/{digest}") == 0
    assert stage.registry.asked("GET", f"/manifests/{stage.poisoned.digest}") == 0
    stage.run("release", "app:1", "--why", "it seemed well")
    for _ in patiently():
        if pull() == stage.poisoned.digest:
            break
    layer = next(iter(stage.poisoned.blobs))
    stage.run("block", layer, "--reason", "a miner")
    for _ in patiently():
        if pull() == stage.good.digest:
            break


def cosign(*arguments: str) -> str:
    """Runs cosign. tests/promises/test_signed.py makes the same signatures without it."""
    require("cosign")
    done = subprocess.run(
        ["cosign", *arguments],
        env={**os.environ, "COSIGN_PASSWORD": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_real_clients_pull_what_real_cosign_has_signed_and_nothing_else(tmp_path: Path) -> None:
    """By key, in both forms: a bundle among the referrers, and a tag; also an index for two platforms, of which only the index itself is signed. dockerd and
    containerd get the images that are signed, each blob once from the registry, and none of another platform; of what is not, they get the reason, and nobody
    fetches a layer."""
    cosign("generate-key-pair", f"--output-key-prefix={tmp_path}/key")
    registry = DockerRegistry(tmp_path / "registry")
    images = {"bundle": make_image(21), "tag": make_image(22), "index": make_index(24), "none": make_image(23)}
    arm = images["index"].blobs.keys() - make_image(24).blobs.keys()
    for name, image in images.items():
        push(registry.url, f"library/{name}", "1", image, None)
    key = ["--yes", "--tlog-upload=false", "--allow-http-registry", "--use-signing-config=false", f"--key={tmp_path}/key.key"]
    for name, form in (("bundle", "true"), ("tag", "false"), ("index", "true")):
        at = f"{registry.url.removeprefix('http://')}/library/{name}@{images[name].digest}"
        cosign("sign", *key, f"--new-bundle-format={form}", at)
    with urllib.request.urlopen(f"{registry.url}/v2/library/tag/tags/list") as answer:
        assert sorted(json.load(answer)["tags"]) == ["1", f"{images['tag'].digest.replace(':', '-')}.sig"]
    config = tmp_path / "mirror.toml"
    config.write_text(f'[[guard]]\nname = "signed"\nsigned = {{ keys = ["{tmp_path}/key.pub"] }}\n')
    with contextlib.ExitStack() as stack:
        stack.callback(registry.stop)
        mirror = stack.enter_context(MirrorProcess(tmp_path / "cache", {"docker.io": registry.url}, "--config", str(config)))
        daemon = Dockerd(mirror.url)
        stack.callback(daemon.stop)
        containerd = Containerd(tmp_path / "containerd", mirror.url)
        stack.callback(containerd.stop)
        for name in ("bundle", "tag", "index"):
            daemon.docker("pull", f"{name}:1")
            digests = json.loads(daemon.docker("image", "inspect", f"{name}:1"))[0]["RepoDigests"]
            assert digests == [f"{name}@{images[name].digest}"]
            containerd.pull(f"docker.io/library/{name}:1")
            for digest, data in images[name].blobs.items():
                if digest in arm:
                    assert registry.asked("GET", f"/blobs/{digest}") == 0
                    continue
                assert containerd.content(digest) == data
                assert registry.asked("GET", f"/library/{name}/blobs/{digest}") == 1
        reason = "is refused by the guard 'signed': it has no signature by the keys or identities that are required"
        # By the mirror's address: of a mirror's answer for docker.io, dockerd tells nobody, but asks Docker Hub.
        with pytest.raises(AssertionError, match=reason):
            daemon.docker("pull", f"{mirror.url.removeprefix('http://')}/none:1")
        with pytest.raises(AssertionError, match="403 Forbidden"):
            containerd.pull("docker.io/library/none:1")
        assert not daemon.succeeds("pull", "none:1")
        assert not any(registry.asked("GET", f"/library/none/blobs/{digest}") for digest in images["none"].blobs)
        assert "Traceback" not in mirror.log
