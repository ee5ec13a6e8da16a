"""A mirror that is offline, and one that is switched, while real containerd, podman and skopeo pull through it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import REPOSITORY, make_of_platform
from tests.e2e.test_containerd import Containerd
from tests.e2e.test_dashboard_lab import add
from tests.e2e.test_podman import policy
from tests.support.images import Image, make_image, make_index, push
from tests.support.mirrors import MirrorProcess, until
from tests.support.programs import DockerRegistry, require, require_root, run
from tests.support.scripted import Cut, Hold, Scripted
from tests.support.tracing import Trace

IMAGES = {"oci": make_image(2, "oci"), "oci-index": make_index(4, "oci")}
NAMES = [f"{registry}/{REPOSITORY}" for registry in ("docker.io", "ghcr.io")]


class Clients:
    """podman and skopeo, whose only way to docker.io and ghcr.io is a mirror."""

    def __init__(self, folder: Path, mirror: str) -> None:
        require("podman", "skopeo")
        require_root("podman, as it is run here,")
        self._folder = folder
        conf = folder / "registries.conf"
        conf.write_text(
            "".join(
                f'[[registry]]\nlocation = "{registry}"\nblocked = false\n[[registry.mirror]]\n'
                f'location = "{mirror.removeprefix("http://")}/{registry}"\ninsecure = true\n'
                for registry in ("docker.io", "ghcr.io")
            )
        )
        self._conf = str(conf)
        self._policy = str(policy(folder))
        self._environment = {"CONTAINERS_REGISTRIES_CONF": str(conf), "HOME": str(folder)}
        self._run_root = tempfile.mkdtemp(prefix="podman-")  # podman takes 50 characters at most
        self.host = mirror.removeprefix("http://")

    def podman(self, *arguments: str) -> str:
        storage = (
            f"--root {self._folder}/storage --runroot {self._run_root} --storage-driver vfs --cgroup-manager cgroupfs".split()
        )
        return run("podman", *storage, *arguments, environment=self._environment, seconds=120)

    def podman_pull(self, name: str, image: Image, platform: Image) -> None:
        """Pulls into an empty storage, and compares the digests."""
        self.podman("pull", "-q", "--signature-policy", self._policy, name)
        found = json.loads(self.podman("image", "inspect", name))[0]
        assert f"sha256:{found['Id']}" in platform.blobs
        assert image.digest in {digest.partition("@")[2] for digest in found["RepoDigests"]}
        self.podman("image", "rm", "-a", "-f")

    def skopeo(self, *arguments: str) -> str:
        return run(
            "skopeo",
            "--policy",
            self._policy,
            "--registries-conf",
            self._conf,
            *arguments,
            environment=self._environment,
            seconds=120,
        )

    def skopeo_copy(self, name: str, image: Image) -> None:
        """Copies all platforms, and compares every byte."""
        target = self._folder / "copy"
        self.skopeo("copy", "--all", "--preserve-digests", "-q", "--src-tls-verify=false", f"docker://{name}", f"dir:{target}")
        assert (target / "manifest.json").read_bytes() == image.manifests[-1][1]
        for digest, data in image.blobs.items():
            assert (target / digest.removeprefix("sha256:")).read_bytes() == data
        shutil.rmtree(target)

    def stop(self) -> None:
        shutil.rmtree(self._run_root, ignore_errors=True)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    made = DockerRegistry(tmp_path / "registry")
    for tag, image in IMAGES.items():
        push(made.url, REPOSITORY, tag, image)
    yield made
    made.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_nothing_goes_out_while_real_clients_pull(registry: DockerRegistry, tmp_path: Path, workers: str) -> None:
    """Online, the kernel sees the mirror look up upstream's name and connect to it. Offline it sees neither: no connection and no datagram but to loopback, nothing to
    upstream though that is on loopback and there, no name looked up; while containerd, podman and skopeo get every byte, and misses are errors that say why."""
    named = f"http://localhost:{registry.port}"
    config = tmp_path / "mirror.toml"
    # Tags expire at once, so that each pull would ask upstream.
    config.write_text("[cache]\ntag_ttl = 0\nnegative_ttl = 0\n")
    arguments = ("--config", str(config), "--workers", workers)
    upstreams: dict[str, str | list[str]] = {"docker.io": named, "ghcr.io": named}
    online, offline = Trace(tmp_path / "online.trace"), Trace(tmp_path / "offline.trace")

    def asked() -> int:
        return sum(registry.asked(method, "/v2/library") for method in ("GET", "HEAD"))

    with MirrorProcess(tmp_path / "cache", upstreams, *arguments).run_under(*online.command) as mirror:
        clients = Clients(tmp_path, mirror.url)
        for name in NAMES:
            for tag, image in IMAGES.items():
                clients.skopeo_copy(f"{name}:{tag}", image)
        assert mirror.terminate() == 0
    clients.stop()
    assert registry.port in {port for _, port in online.peers()}
    assert online.lookups(), "the trace shows how a name is looked up"
    before = asked()
    assert before

    traced = MirrorProcess(tmp_path / "cache", upstreams, *arguments, "--offline").run_under(*offline.command)
    with traced as mirror:
        clients = Clients(tmp_path, mirror.url)
        containerd = Containerd(tmp_path / "containerd", mirror.url)
        try:
            for name in NAMES:
                for tag, image in IMAGES.items():
                    platform = make_of_platform(tag) if tag.endswith("index") else image
                    clients.skopeo_copy(f"{name}:{tag}", image)
                    clients.podman_pull(f"{name}:{tag}", image, platform)
                    containerd.pull(f"{name}:{tag}")
                    for digest, data in platform.blobs.items():
                        assert containerd.content(digest) == data
                assert json.loads(clients.skopeo("list-tags", "--tls-verify=false", f"docker://{clients.host}/{name}"))[
                    "Tags"
                ] == [
                    "oci",
                    "oci-index",
                ]
                missing = rf"offline \(upstream.offline\), and not in the cache: {name}:absent; cached of {name}: oci"
                with pytest.raises(AssertionError, match=missing):
                    clients.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{clients.host}/{name}:absent")
                with pytest.raises(AssertionError):
                    containerd.pull(f"{name}:absent")
            with urllib.request.urlopen(f"{mirror.url}/v1/search?q=app") as answer:
                assert {found["name"] for found in json.load(answer)["results"]} == {"app", "ghcr.io/library/app"}
        finally:
            containerd.stop()
            clients.stop()
        assert mirror.terminate() == 0
        assert "Traceback" not in mirror.log
    assert asked() == before
    assert offline.peers_elsewhere() == []
    assert registry.port not in {port for _, port in offline.peers()}
    assert offline.lookups() == []


class Puller:
    """A real client that pulls one image after the other, and compares every byte that it got."""

    def __init__(self, client: str, folder: Path, mirror: str) -> None:
        folder.mkdir()
        self._client = client
        self._clients = Clients(folder, mirror)
        self._folder = folder
        self._containerd = Containerd(folder / "containerd", mirror) if client == "containerd" else None

    def pull(self, name: str, image: Image) -> None:
        if self._containerd is not None:
            self._containerd.pull(name)
            for digest, data in image.blobs.items():
                assert self._containerd.content(digest) == data
        elif self._client == "podman":
            self._clients.podman_pull(name, image, image)
        else:
            shutil.rmtree(self._folder / "copy", ignore_errors=True)
            self._clients.skopeo_copy(name, image)

    def stop(self) -> None:
        self._clients.stop()
        if self._containerd is not None:
            self._containerd.stop()


@pytest.mark.parametrize("client", ["skopeo", "podman", "containerd"])
async def test_real_clients_pull_while_the_mirror_goes_off_line(tmp_path: Path, upstream: Scripted, client: str) -> None:
    """A pull whose last blob is coming ends with every byte. One whose layer upstream breaks off then fails, that layer is not in the cache, and nothing is asked. Once the
    mirror is online again, the same pull works, and fetches the rest only."""
    images = {"steady": make_image(91, size=3_000_000), "broken": make_image(92, size=3_000_000)}
    half = {name: Hold(after=1_500_000) for name in images}
    largest = {}
    for name, image in images.items():
        add(upstream, f"library/{name}", image)
        largest[name] = max((len(data), digest) for digest, data in image.blobs.items())[1]
    upstream.fail(largest["steady"], half["steady"])
    upstream.fail(largest["broken"], half["broken"] & Cut(after=1_500_001))
    config = tmp_path / "mirror.toml"
    settings = "[cache]\nnegative_ttl = 0\n[upstream]\nheader_timeout = 60\nstall_timeout = 60\noffline = {}\n"
    config.write_text(settings.format("false"))
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(config)) as mirror:
        pullers: dict[str, Puller] = {}

        async def pull(name: str) -> None:
            await asyncio.to_thread(pullers[name].pull, f"docker.io/library/{name}:1", images[name])

        async def switch(offline: bool) -> None:
            config.write_text(settings.format(str(offline).lower()))
            os.kill(mirror.pid, signal.SIGHUP)
            # Not by the log, where a line that is repeated within a minute is shown after it.
            async with aiohttp.ClientSession(mirror.url) as session:
                ready: object = None
                while ready is not offline:
                    async with session.get("/readyz") as answer:
                        ready = (await answer.json())["offline"]

        try:
            for name in images:
                pullers[name] = Puller(client, tmp_path / name, mirror.url)
            pulls = {name: asyncio.create_task(pull(name)) for name in images}
            await asyncio.gather(*(hold.reached.wait() for hold in half.values()))
            # Clients want the configuration last; prefetching brings it, and the other layers.
            blobs = tmp_path / "cache" / "blobs" / "sha256"
            others = [digest for image in images.values() for digest in image.blobs if digest not in largest.values()]
            await until(lambda: all((blobs / digest.removeprefix("sha256:")).exists() for digest in others))
            await switch(True)
            asked = len(upstream.asked)
            for hold in half.values():
                hold.release.set()
            await pulls["steady"]
            with pytest.raises(AssertionError, match=r"unexpected EOF|404|not found"):
                await pulls["broken"]
            assert len(upstream.asked) == asked
            assert not (blobs / largest["broken"].removeprefix("sha256:")).exists()
            await switch(False)
            await pull("broken")
        finally:
            for puller in pullers.values():
                puller.stop()
        assert upstream.sent[largest["broken"]] < len(images["broken"].blobs[largest["broken"]]) * 1.05
        assert mirror.terminate() == 0
        assert "Traceback" not in mirror.log
