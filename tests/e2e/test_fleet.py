"""Real clients in front of a fleet of three mirrors, one of which is killed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mirror.upstream.fleet import ranked
from tests.e2e.conftest import REPOSITORY
from tests.e2e.test_containerd import Containerd
from tests.e2e.test_dockerd import Dockerd
from tests.promises.test_fleet import processes
from tests.support.images import make_image, push
from tests.support.programs import DockerRegistry


def test_containerd_and_dockerd_pull_through_a_fleet_of_which_one_is_killed(tmp_path: Path) -> None:
    """All mirrors are in the clients' lists, the dead one first: pulls succeed, and the registry gives each blob once for both, before and after."""
    registry = DockerRegistry(tmp_path / "registry")
    images = {tag: make_image(seed, tag) for tag, seed in (("docker", 1), ("oci", 2))}
    for tag, image in images.items():
        push(registry.url, REPOSITORY, tag, image, None)
    with processes(tmp_path, {"docker.io": registry.url}) as fleet:
        # The home of a layer that is pulled after its death.
        dead = ranked(tuple(fleet), next(reversed(images["oci"].blobs)))[0]
        order = [dead, *(url for url in fleet if url != dead)]
        hosts = tmp_path / "hosts" / "docker.io"
        hosts.mkdir(parents=True)
        hosts.joinpath("hosts.toml").write_text(
            'server = "http://127.0.0.1:1"\n' + "".join(f'[host."{url}"]\ncapabilities = ["pull", "resolve"]\n' for url in order)
        )
        config = tmp_path / "daemon.json"
        config.write_text(json.dumps({"registry-mirrors": [dead, *reversed(order[1:])]}))
        containerd, dockerd = Containerd(tmp_path / "containerd", order[0]), Dockerd(order[0], config)
        try:
            for tag, image in images.items():
                if tag == "oci":
                    fleet[dead].kill()
                containerd.pull(f"docker.io/{REPOSITORY}:{tag}", hosts.parent)
                dockerd.docker("pull", f"app:{tag}")
                found = json.loads(dockerd.docker("image", "inspect", f"app:{tag}"))[0]
                assert found["RepoDigests"] == [f"app@{image.digest}"]
                for digest, data in image.blobs.items():
                    assert containerd.content(digest) == data
                    assert registry.asked("GET", f"/blobs/{digest}") == 1
        finally:
            containerd.stop()
            dockerd.stop()
    registry.stop()


def test_containerd_pulls_while_one_mirror_after_the_other_is_restarted(tmp_path: Path) -> None:
    """As in a rolling upgrade, by SIGTERM. Each pull succeeds, and no blob is asked of the registry more often than there are mirrors."""
    registry = DockerRegistry(tmp_path / "registry")
    images = {f"v{seed}": make_image(10 + seed, "oci") for seed in range(6)}
    for tag, image in images.items():
        push(registry.url, REPOSITORY, tag, image, None)
    with processes(tmp_path, {"docker.io": registry.url}) as fleet:
        hosts = tmp_path / "hosts" / "docker.io"
        hosts.mkdir(parents=True)
        hosts.joinpath("hosts.toml").write_text(
            'server = "http://127.0.0.1:1"\n' + "".join(f'[host."{url}"]\ncapabilities = ["pull", "resolve"]\n' for url in fleet)
        )
        containerd = Containerd(tmp_path / "containerd", next(iter(fleet)))
        try:
            with ThreadPoolExecutor(1) as pool:
                waiting = iter(images.items())
                for process in fleet.values():
                    for restart in (process.terminate, process.start):
                        under_way = pool.submit(restart)
                        tag, image = next(waiting)
                        containerd.pull(f"docker.io/{REPOSITORY}:{tag}", hosts.parent)
                        under_way.result()
                        for digest, data in image.blobs.items():
                            assert containerd.content(digest) == data
                            assert 1 <= registry.asked("GET", f"/blobs/{digest}") <= 3
        finally:
            containerd.stop()
    registry.stop()
