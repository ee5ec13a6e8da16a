"""Webhooks of what a real dockerd does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.e2e.test_dockerd import Dockerd
from tests.support.images import make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.programs import DockerRegistry
from tests.support.receiver import Receiver, is_signed

SECRET = b"a secret of many characters"


async def test_docker_pulls_and_pushes_and_each_image_is_told_once(tmp_path: Path) -> None:
    """The first pull of an image is one event, however many manifests and layers docker fetches for it; a push is one, with what docker calls the image."""
    registry = await asyncio.to_thread(DockerRegistry, tmp_path / "registry")
    (tmp_path / "secret").write_bytes(SECRET)
    try:
        await asyncio.to_thread(push, registry.url, "library/base", "1", make_image(77, "docker"))
        async with Receiver() as receiver:
            config = tmp_path / "mirror.toml"
            config.write_text(
                '[hosted]\nrepositories = ["team/**"]\n'
                f'[[webhook]]\nurl = "{receiver.url}"\nsecret_file = "{tmp_path / "secret"}"\n'
            )
            mirror = MirrorProcess(tmp_path / "cache", {"docker.io": registry.url}, "--config", str(config))
            await asyncio.to_thread(mirror.start)
            daemon = None
            try:
                daemon = await asyncio.to_thread(Dockerd, mirror.url)
                address = mirror.url.removeprefix("http://")
                for command in (
                    ("pull", "-q", "base:1"),
                    ("tag", "base:1", f"{address}/team/app:2"),
                    ("push", f"{address}/team/app:2"),
                    ("rmi", "-f", "base:1", f"{address}/team/app:2"),
                    ("pull", "-q", "base:1"),
                ):
                    await asyncio.to_thread(daemon.docker, *command)
                pulled, pushed = sorted(await receiver.until_taken(2), key=lambda one: str(one["action"]))
                assert [pulled["target"][name] for name in ("repository", "tag")] == ["library/base", "1"]
                assert [pushed["target"][name] for name in ("repository", "tag")] == ["team/app", "2"]
                assert pushed["request"]["useragent"].startswith("docker/")
                assert all(is_signed(post, SECRET) for post in receiver.posts)
            finally:
                if daemon is not None:
                    await asyncio.to_thread(daemon.stop)
                assert await asyncio.to_thread(mirror.terminate) == 0
            assert sorted(one["action"] for one in receiver.taken) == ["pull", "push"], json.dumps(receiver.taken)
    finally:
        await asyncio.to_thread(registry.stop)
