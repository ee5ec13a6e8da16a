"""A real registry as upstream, open or behind token authentication, and the mirror as a process in front of it; a real browser in front of a mirror."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Browser
from tests.support.dashboard import token
from tests.support.images import Image, make_image, make_index, push
from tests.support.mirrors import Mirror, MirrorProcess
from tests.support.programs import DockerRegistry
from tests.support.tokens import TokenService

REPOSITORY = "library/app"


@pytest.fixture(autouse=True)
def short_folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test makes by `tempfile`, since podman takes 50 characters of a path and a socket 108 bytes, is gone after it."""
    with tempfile.TemporaryDirectory(prefix="e2e-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


@dataclass
class Stage:
    """What a client's test needs."""

    registry: DockerRegistry
    mirror: MirrorProcess
    images: dict[str, Image]
    """By tag: ``docker`` and ``oci`` are single, ``docker-index`` and ``oci-index`` for two platforms."""
    tokens: TokenService | None

    @property
    def address(self) -> str:
        """The mirror's host and port."""
        return self.mirror.url.removeprefix("http://")

    def blobs_for(self, tag: str) -> list[str]:
        """Digests of the blobs that a client on linux/amd64 pulls."""
        image = self.images[tag]
        return list(make_of_platform(tag).blobs) if tag.endswith("index") else list(image.blobs)

    def check_upstream_was_asked_once(self, tag: str) -> None:
        """Each blob once, the manifests by digest at most once; nothing was asked that nobody wants."""
        for digest in self.blobs_for(tag):
            assert self.registry.asked("GET", f"/blobs/{digest}") == 1, digest


_SEEDS = {"docker": 1, "oci": 2, "docker-index": 3, "oci-index": 4}


def make_of_platform(tag: str) -> Image:
    """The linux/amd64 image of an index."""
    return make_image(_SEEDS[tag], tag.removesuffix("-index"))


@pytest.fixture(params=["open", "token"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """A registry with four images, and a mirror with an empty cache in front of it. The clients never have credentials."""
    tokens = None
    options: dict[str, dict[str, str]] = {}
    if request.param == "token":
        tokens = TokenService(tmp_path / "tokens", {"robot": "s3cret pass"})
        options["token"] = tokens.settings
    registry = DockerRegistry(tmp_path / "registry", **options)  # type: ignore[arg-type]
    images = {
        tag: make_index(seed, tag.removesuffix("-index")) if tag.endswith("index") else make_image(seed, tag)
        for tag, seed in _SEEDS.items()
    }
    authorization = f"Bearer {tokens.token(f'repository:{REPOSITORY}:pull,push')}" if tokens else None
    for tag, image in images.items():
        push(registry.url, REPOSITORY, tag, image, authorization)
    config = tmp_path / "mirror.toml"
    password = tmp_path / "password"
    password.write_text("s3cret pass\n")
    credentials = f'[registries."docker.io"]\nusername = "robot"\npassword_file = "{password}"\n' if tokens else ""
    config.write_text(
        credentials.replace("docker.io", "docker.io") + (credentials.replace("docker.io", "ghcr.io") if tokens else "")
    )
    upstreams: dict[str, str | list[str]] = {"docker.io": registry.url, "ghcr.io": registry.url}
    with MirrorProcess(tmp_path / "cache", upstreams, "--config", str(config)) as mirror:
        yield Stage(registry, mirror, images, tokens)
        assert "s3cret" not in mirror.log
        assert "Traceback" not in mirror.log
        assert mirror.terminate() == 0
    registry.stop()
    if tokens is not None:
        tokens.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A window that at its end has nothing to complain of."""
    with Browser(tmp_path / "browser") as window:
        yield window
        assert window.complaints() == []


class Watched:
    """The window and the mirror, which run beside each other: the window in a thread."""

    def __init__(self, mirror: Mirror, window: Browser) -> None:
        self.mirror = mirror
        self.window = window
        self.token = token(mirror)

    async def do(self, work: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(work)

    def log_in(self, to: str = "/") -> None:
        """Logs in with the admin token, and waits for the page that it leads to."""
        self.window.go(f"{self.mirror.url}/login?to={to}")
        self.window.type("#token", self.token)
        self.window.click(".login button")
        self.window.until(lambda: "/login" not in self.window.url, "the page after logging in")


@pytest.fixture
async def watched(mirror: Mirror, browser: Browser) -> AsyncIterator[Watched]:
    yield Watched(mirror, browser)
    # Nothing but the mirror was asked for anything.
    assert browser.hosts_asked() <= {mirror.url.removeprefix("http://")}
