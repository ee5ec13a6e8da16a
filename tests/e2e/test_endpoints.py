"""Real skopeo, through a mirror with ten endpoints of which nine are dead or lie."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from tests.e2e.test_podman import policy
from tests.support.fleet import fleet
from tests.support.images import make_image
from tests.support.mirrors import MirrorProcess
from tests.support.programs import require, run


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
