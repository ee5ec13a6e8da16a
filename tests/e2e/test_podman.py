"""Real podman and skopeo, with ``registries.conf``: one path of the mirror for each registry."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Stage, make_of_platform
from tests.support.images import digest_of
from tests.support.programs import require, require_root, run


def registries_conf(folder: Path, stage: Stage) -> Path:
    """docker.io and ghcr.io by way of the mirror, and only of it."""
    path = folder / "registries.conf"
    path.write_text(
        "".join(
            f'[[registry]]\nlocation = "{registry}"\n[[registry.mirror]]\nlocation = "{stage.address}/{registry}"\ninsecure = true\n'
            for registry in ("docker.io", "ghcr.io")
        )
    )
    return path


def policy(folder: Path) -> Path:
    path = folder / "policy.json"
    path.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    return path


def test_podman_pulls_cold_and_then_warm_with_upstream_stopped(stage: Stage, tmp_path: Path) -> None:
    """podman gets every kind of image by a mirror's path, upstream sees each blob once, and afterwards is not needed."""
    require("podman")
    require_root("podman, as it is run here,")
    conf = registries_conf(tmp_path, stage)
    environment = {"CONTAINERS_REGISTRIES_CONF": str(conf), "HOME": str(tmp_path)}
    run_root = tempfile.mkdtemp(prefix="podman-")  # podman takes 50 characters at most
    storage = f"--root {tmp_path}/storage --runroot {run_root} --storage-driver vfs --cgroup-manager cgroupfs".split()

    def podman(*arguments: str) -> str:
        return run("podman", *storage, *arguments, environment=environment)

    def pull_and_check(registry: str) -> None:
        for tag in stage.images:
            name = f"{registry}/{REPOSITORY}:{tag}"
            podman("pull", "-q", "--signature-policy", str(policy(tmp_path)), name)
            inspected = json.loads(podman("image", "inspect", name))[0]
            image = make_of_platform(tag) if tag.endswith("index") else stage.images[tag]
            assert f"sha256:{inspected['Id']}" in image.blobs
            assert stage.images[tag].digest in {digest.partition("@")[2] for digest in inspected["RepoDigests"]}
            config = json.loads(image.blobs[f"sha256:{inspected['Id']}"])
            assert inspected["RootFS"]["Layers"] == config["rootfs"]["diff_ids"]
            stage.check_upstream_was_asked_once(tag)

    pull_and_check("docker.io")
    stage.registry.stop()
    podman("image", "rm", "-a", "-f")
    pull_and_check("docker.io")
    shutil.rmtree(run_root)


def test_skopeo_copies_every_byte_cold_and_then_warm_with_upstream_stopped(stage: Stage, tmp_path: Path) -> None:
    """All platforms, by registries.conf and by the mirror's own name: the copy's files are what the registry was given."""
    require("skopeo")
    conf, trust = registries_conf(tmp_path, stage), policy(tmp_path)

    def copy(source: str, tag: str) -> None:
        target = tmp_path / "copy"
        arguments = [
            "copy",
            "--all",
            "--preserve-digests",
            "--src-tls-verify=false",
            f"docker://{source}/{REPOSITORY}:{tag}",
            f"dir:{target}",
        ]
        run("skopeo", "--policy", str(trust), "--registries-conf", str(conf), *arguments)
        image = stage.images[tag]
        # ":all" of a single-platform copy and of an index alike: names are the hex of digests.
        for digest, data in image.blobs.items():
            assert (target / digest.removeprefix("sha256:")).read_bytes() == data
        assert (target / "manifest.json").read_bytes() == image.manifests[-1][1]
        for _, body in image.manifests[:-1]:
            assert (target / f"{digest_of(body).removeprefix('sha256:')}.manifest.json").read_bytes() == body
        shutil.rmtree(target)

    sources = ("docker.io", "ghcr.io", f"{stage.address}/ghcr.io", stage.address)
    for tag in stage.images:
        copy(sources[0], tag)
        for digest in stage.images[tag].blobs:
            assert stage.registry.asked("GET", f"/blobs/{digest}") == 1
    # Not under this name yet: only the tag's meaning is asked for, the bytes are here.
    copy(sources[1], "oci")
    stage.registry.stop()
    for source in sources:
        copy(source, "oci")
    for tag in stage.images:
        copy(sources[0], tag)


def test_skopeo_pulls_from_a_mirror_that_is_offline(stage: Stage, tmp_path: Path) -> None:
    """Cached images as before, without a request to upstream though it is there; the error for another one names what there is."""
    require("skopeo")
    conf = registries_conf(tmp_path, stage)
    environment = {"CONTAINERS_REGISTRIES_CONF": str(conf), "HOME": str(tmp_path)}
    copy = ["skopeo", "--policy", str(policy(tmp_path)), "copy", "-q", "--src-tls-verify=false"]

    def pull(tag: str, place: str) -> None:
        run(*copy, f"docker://{stage.address}/docker.io/{REPOSITORY}:{tag}", f"dir:{tmp_path}/{place}", environment=environment)

    pull("oci", "online")
    with open(tmp_path / "mirror.toml", "a") as file:
        file.write("[cache]\ntag_ttl = 0\n[upstream]\noffline = true\n")
    # A restart, so that the tag's age counts too.
    assert stage.mirror.terminate() == 0
    stage.mirror.start()
    asked = stage.registry.asked("GET", "/") + stage.registry.asked("HEAD", "/")
    assert asked
    pull("oci", "offline")
    assert (tmp_path / "offline/manifest.json").read_bytes() == (tmp_path / "online/manifest.json").read_bytes()
    with pytest.raises(
        AssertionError, match=rf"offline .*not in the cache: docker.io/{REPOSITORY}:docker; cached of docker.io/{REPOSITORY}: oci"
    ):
        pull("docker", "missing")
    assert stage.registry.asked("GET", "/") + stage.registry.asked("HEAD", "/") == asked
    stage.registry.stop()
    pull("oci", "gone")
