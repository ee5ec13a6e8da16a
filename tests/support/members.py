"""Fleets of mirrors in the test's own event loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mirror.names import Digest, Repository, Tag
from mirror.upstream.fleet import ranked
from tests.support.mirrors import Mirror, StartMirror
from tests.support.ports import free_port


@dataclass
class Members:
    """The mirrors of one fleet, by their URLs."""

    mirrors: dict[str, Mirror]

    def in_order(self, digest: Digest) -> list[Mirror]:
        """Those for a digest, its home first."""
        return [self.mirrors[url] for url in ranked(tuple(self.mirrors), str(digest))]

    def in_order_of_tag(self, repository: str, tag: str) -> list[Mirror]:
        """The same for a tag of docker.io."""
        key = f"{Repository('docker.io', repository)}:{Tag(tag)}"
        return [self.mirrors[url] for url in ranked(tuple(self.mirrors), key)]


class StartMembers(Protocol):
    """The fixture `members`: starts a fleet in front of the test's upstream."""

    async def __call__(self, count: int = 3, settings: dict[str, Any] | None = None, **cache: Any) -> Members:
        """`settings` are tables of settings for all of them; the rest are settings of the table `cache`."""


def directory(tmp_path: Path, url: str) -> Path:
    """The cache's directory of a mirror."""
    return tmp_path / url.rpartition(":")[2]


async def start_mutual_parents(start: StartMirror, folder: Path) -> list[Mirror]:
    """Starts two mirrors that are each other's parents by mistake."""
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    return [
        await start(
            folder / str(number),
            settings={"server": {"listen": url.removeprefix("http://")}, "fleet": {"parents": [urls[1 - number]]}},
        )
        for number, url in enumerate(urls)
    ]
