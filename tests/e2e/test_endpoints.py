"""Real clients, through a mirror with several endpoints: tables with a path, and ten of which nine are dead or lie."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.test_dockerd import Dockerd
from tests.e2e.test_podman import policy
from tests.support.endpoints import black_hole, fleet
from tests.support.images import digest_of, make_image, make_index, push
from tests.support.mirrors import MirrorProcess
from tests.support.programs import DockerRegistry, require, run


async def test_skopeo_pulls_the_right_image_through_a_fleet_of_dead_endpoints(tmp_path: Path) -> None:
    """Cold with nothing known of the endpoints, and another image with the ranking warm, which asks none of the bad ones."""
    require("skopeo")
    async with fleet() as found:
        images = {str(seed): make_image(seed, layers=4, size=2_000_000) for seed in (1, 2)}
        for tag, image in images.items():
            found.good.blobs |= image.blobs
            media_type, body = image.manifests[-1]
            found.good.add_manifest("library/app", tag, body, media_type)
            found.bad["stale"].add_image("library/app", tag)
        found.bad["wrong"].manifests |= found.good.manifests
        with MirrorProcess(tmp_path / "cache", {"docker.io": found.urls}) as mirror:
            asked: dict[str, int] = {}
            for tag, image in images.items():
                source = f"docker://{mirror.url.removeprefix('http://')}/library/app:{tag}"
                command = ["skopeo", "--policy", str(policy(tmp_path)), "copy", "--preserve-digests", "--src-tls-verify=false"]
                await asyncio.to_thread(run, *command, source, f"dir:{tmp_path / 'copy'}")
                for digest, data in image.blobs.items():
                    assert (tmp_path / "copy" / digest.removeprefix("sha256:")).read_bytes() == data
                shutil.rmtree(tmp_path / "copy")
                # The slow one is probed in the background; the one with an old tag answers like a registry, and may be asked for a part of a blob.
                now = {name: count for name, count in found.asked().items() if name not in ("slow", "stale")}
                assert asked in ({}, now)
                asked = now
            assert "Traceback" not in mirror.log


@pytest.mark.parametrize("tags", ["first", "newest"])
def test_dockerd_pulls_through_endpoint_tables_behind_dead_ones(tmp_path: Path, tags: str) -> None:
    """A project of a real registry, behind an endpoint that refuses connections and one that is silent; byte for byte, and each blob is fetched once.

    The second image is pulled after the registry that has the first project was stopped, from the project of another one.
    """
    require("dockerd", "docker")
    first, second = (DockerRegistry(tmp_path / name) for name in ("first", "second"))
    image, index = make_image(21, "docker"), make_index(22)
    push(first.url, "team/hub/library/app", "1", image)
    push(second.url, "hub/library/app", "2", index)
    with black_hole() as hole:
        config = tmp_path / "mirror.toml"
        tables = f'{{ url = "{first.url}", path = "team/hub" }}, {{ url = "{second.url}/", path = "/hub/" }}'
        config.write_text(
            f'[registries."docker.io"]\ntags = "{tags}"\nendpoints = ["http://127.0.0.1:1", {{ url = "{hole}" }}, {tables}]\n'
        )
        with MirrorProcess(tmp_path / "cache", {}, "--config", str(config)) as mirror:
            dockerd = Dockerd(mirror.url)
            try:
                dockerd.docker("pull", "app:1")
                first.stop()
                dockerd.docker("pull", "app:2")
                for tag, made in (("1", image), ("2", index)):
                    found = json.loads(dockerd.docker("image", "inspect", f"app:{tag}"))[0]
                    assert found["RepoDigests"] == [f"app@{digest_of(made.manifests[-1][1])}"]
                    assert found["Id"] in made.blobs
            finally:
                dockerd.stop()
            for registry, path, made in ((first, "team/hub", image), (second, "hub", make_image(22))):
                assert registry.asked("GET", "/library/app/") == registry.asked("GET", f"/v2/{path}/library/app/")
                for digest in made.blobs:
                    assert registry.asked("GET", f"/v2/{path}/library/app/blobs/{digest}") == 1
            assert "Traceback" not in mirror.log
    second.stop()
