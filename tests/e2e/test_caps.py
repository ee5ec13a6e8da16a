"""Real clients behind a low `upstream.max_rate`, through an nginx that has little patience."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.test_dockerd import Dockerd
from tests.e2e.test_podman import policy
from tests.support.images import Image, make_image
from tests.support.mirrors import MirrorProcess
from tests.support.ports import free_port
from tests.support.programs import Program, answers, require, run
from tests.support.scripted import Scripted

PATIENCE = 3
"""Seconds without a byte after which nginx gives a response up."""


@dataclass
class Capped:
    """A capped mirror with two images of 500 kB, and the nginx in front of it."""

    mirror: MirrorProcess
    images: dict[str, Image]
    nginx: Program
    url: str


@pytest.fixture(params=[1, 2])
async def capped(request: pytest.FixtureRequest, tmp_path: Path, upstream: Scripted) -> AsyncIterator[Capped]:
    """With one worker and with two, which share the cap."""
    require("nginx")
    images = {str(seed): make_image(seed, "docker", size=500_000) for seed in (31, 32)}
    for tag, image in images.items():
        upstream.blobs |= image.blobs
        media_type, body = image.manifests[-1]
        upstream.add_manifest("library/app", tag, body, media_type)
    config = tmp_path / "mirror.toml"
    # A wait for a turn that counted as a stall would have upstream asked again.
    config.write_text(f'[server]\nworkers = {request.param}\n[upstream]\nmax_rate = "100KB"\nstall_timeout = "1s"\n')
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(config)) as mirror:
        nginx, url = await asyncio.to_thread(start_nginx, mirror.url, tmp_path)
        yield Capped(mirror, images, nginx, url)
        await asyncio.to_thread(nginx.stop)
        assert "Traceback" not in mirror.log


def start_nginx(mirror: str, folder: Path) -> tuple[Program, str]:
    """An nginx that passes bytes on as they come, and closes a connection on which none come for `PATIENCE` seconds."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; error_log stderr info; pid {folder}/nginx.pid; events {{}}\n"
        "http { access_log off; server {\n"
        f"listen 127.0.0.1:{port};\n"
        f"location / {{ proxy_pass {mirror}; proxy_set_header Host $http_host; proxy_http_version 1.1; proxy_buffering off;\n"
        f"proxy_read_timeout {PATIENCE}s; proxy_next_upstream off; }}\n"
        "} }\n"
    )
    nginx = Program(["nginx", "-c", str(config), "-e", "stderr"], folder / "nginx.log")
    url = f"http://127.0.0.1:{port}"
    nginx.wait_until(lambda: answers(f"{url}/v2/"))
    return nginx, url


async def test_dockerd_and_skopeo_pull_at_once_behind_a_cap(capped: Capped, tmp_path: Path, upstream: Scripted) -> None:
    """Each another image, for three times as long as they are patient for the next byte: no response is given up, what comes is right, and upstream is asked
    for each blob once. Headers come at once: for them nginx waits no longer."""
    require("skopeo")
    dockerd = await asyncio.to_thread(Dockerd, capped.url)
    source = f"docker://{capped.url.removeprefix('http://')}/library/app:32"
    skopeo = ["skopeo", "--policy", str(policy(tmp_path)), "copy", "--preserve-digests", "--src-tls-verify=false"]
    try:
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(
            asyncio.to_thread(dockerd.docker, "pull", "app:31"),
            asyncio.to_thread(run, *skopeo, source, f"dir:{tmp_path / 'copy'}"),
        )
        # At the rate of the cap it cannot have been quicker.
        assert asyncio.get_running_loop().time() - begun > 3 * PATIENCE
        (found,) = json.loads(await asyncio.to_thread(dockerd.docker, "image", "inspect", "app:31"))
    finally:
        await asyncio.to_thread(dockerd.stop)
    assert found["RepoDigests"] == [f"app@{capped.images['31'].digest}"]
    for digest, data in capped.images["32"].blobs.items():
        assert (tmp_path / "copy" / digest.removeprefix("sha256:")).read_bytes() == data
    for image in capped.images.values():
        assert [upstream.count("GET", digest) for digest in image.blobs] == [1] * len(image.blobs)
    assert "timed out" not in capped.nginx.log
