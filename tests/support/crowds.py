"""Many clients of several mirrors, which pull one blob each and go on to the next mirror where one fails, as containerd does with several hosts."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from mirror.names import Digest

_CHUNK = 256 * 1024


class _Failed(Exception):
    """A mirror has answered an error, or too little."""


@dataclass
class Pull:
    """What became of a client's pull."""

    order: Sequence[str]
    """Its mirrors' URLs."""
    digest: Digest
    failures: list[str] = field(default_factory=list)
    """What it has met at one mirror after the other."""
    right: bool = False
    """True once it has the whole blob, and it is what the digest says."""


class Crowd:
    """Clients in this event loop."""

    def __init__(self) -> None:
        self.received: Counter[str] = Counter()
        """Bytes of all clients, by the mirror that sent them."""
        self.progress = asyncio.Event()
        """Set whenever there are more of them."""
        self._stopped: set[str] = set()
        self._asking: dict[asyncio.Task[None], str] = {}

    def leave(self, url: str) -> None:
        """Makes clients leave a mirror that has stopped: how long they wait for one that answers nothing is their affair."""
        self._stopped.add(url)
        for task, asked in self._asking.items():
            if asked == url:
                task.cancel()

    def come_back(self, url: str) -> None:
        """Makes clients ask it again."""
        self._stopped.discard(url)

    async def pull(self, order: Sequence[str], digest: Digest) -> Pull:
        """Pulls a blob. What is cut off is resumed at the next mirror."""
        pull, hasher, got = Pull(order, digest), hashlib.sha256(), [0]
        for url in (*order, *order):
            if url in self._stopped:
                pull.failures.append(f"{url} has stopped")
                continue
            task = asyncio.create_task(self._ask(url, digest, hasher, got))
            self._asking[task] = url
            try:
                await asyncio.wait([task])
            finally:
                del self._asking[task]
                task.cancel()
            if task.cancelled():
                pull.failures.append(f"{url} stopped after {got[0]} bytes")
                continue
            if (error := task.exception()) is None:
                pull.right = hasher.hexdigest() == digest.hex
                break
            if not isinstance(error, OSError | EOFError | _Failed):
                raise error
            pull.failures.append(f"{url} failed after {got[0]} bytes: {error!r}")
        return pull

    async def _ask(self, url: str, digest: Digest, hasher: hashlib._Hash, got: list[int]) -> None:
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=_CHUNK)
        try:
            first = f"Range: bytes={got[0]}-\r\n" if got[0] else ""
            writer.write(f"GET /v2/library/app/blobs/{digest} HTTP/1.1\r\nHost: {where.netloc}\r\n{first}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.splitlines()
            if status.split()[1] != ("206" if got[0] else "200"):
                raise _Failed(head)
            left = next(int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:"))
            while left:
                if not (data := await reader.read(_CHUNK)):
                    raise _Failed(f"{left} bytes are missing")
                hasher.update(data)
                left -= len(data)
                got[0] += len(data)
                self.received[url] += len(data)
                self.progress.set()
        finally:
            writer.close()
