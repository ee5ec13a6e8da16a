"""Three mirrors with a network card each, a bucket and thirty clients: what may happen to one of them at a time, while they pull.

``python -m tests.fleet.faults faults|random|lists FOLDER SEED``, inside of `benchmarks.fleet.network.inside`. It prints each schedule before it is run, and fails
where a promise is broken. tests/fleet/test_cards.py runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fleet.network import free_urls, member, set_up
from mirror.names import Digest
from mirror.upstream.fleet import ranked
from tests.support.crowds import Crowd, Pull
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE, patiently
from tests.support.s3 import ENVIRONMENT, S3
from tests.support.scripted import Scripted

MB = 1_000_000
SIZE = 4 * MB
CARD = 20 * MB
"""Bytes per second that a mirror sends."""
FILLING = 2 * MB
"""Those that the registry and the bucket send, where something happens in the middle."""
CLIENTS = 30
SCHEDULES = 4
"""Of random faults."""
MIDDLE = 0.7
"""Share of their bytes that clients have in the middle: more than what two mirrors may fetch a second time is here then."""
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
HOW = {KILL: "killed", STOP: "stopped"}


@dataclass
class Hub:
    """The registry, a bucket, and the mirrors, by their URLs."""

    folder: Path
    upstream: Scripted
    bucket: S3
    stack: contextlib.ExitStack
    """What ends with it."""
    mirrors: dict[str, MirrorProcess] = field(default_factory=dict)
    crowd: Crowd = field(default_factory=Crowd)

    async def run(self, url: str, listed: Sequence[str]) -> None:
        """Starts a mirror with a list of its fleet, or starts it again, as in a rolling upgrade."""
        if (before := self.mirrors.get(url)) is not None:
            assert await asyncio.to_thread(before.terminate) == 0
        bucket = {"FLEET__BUCKET": "s3://images", "FLEET__BUCKET_ENDPOINT": self.bucket.url}
        mirror = member(self.folder, self.upstream.url, url, listed, **bucket)
        await asyncio.to_thread(self.stack.enter_context, mirror)
        self.mirrors[url] = mirror

    def add(self, size: int = SIZE, *, in_bucket: bool = False, home: str | None = None) -> Digest:
        """A blob that the registry has; `home` is its home, or whoever that is."""
        while True:
            digest = self.upstream.add_blob(data := os.urandom(size))
            if home in (None, self.home(digest)):
                break
        if in_bucket:
            path = self.bucket.blob(digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return digest

    def home(self, digest: Digest) -> str:
        return ranked(tuple(self.mirrors), str(digest))[0]

    def share(self, digest: Digest) -> float:
        """Of a blob's bytes, those that the registry has sent."""
        return self.upstream.sent.get(str(digest), 0) / len(self.upstream.blobs[str(digest)])

    def begin(self, digests: Sequence[Digest], count: int = CLIENTS) -> list[asyncio.Task[Pull]]:
        """Clients that pull these, each with an order of mirrors of its own."""
        urls = list(self.mirrors)
        orders = [urls[number % len(urls) :] + urls[: number % len(urls)] for number in range(count)]
        return [
            asyncio.create_task(self.crowd.pull(order, digests[number // len(urls) % len(digests)]))
            for number, order in enumerate(orders)
        ]

    async def until(self, least: float, share: Callable[[], float], pulls: Sequence[asyncio.Task[Pull]]) -> None:
        """Waits until clients have such a share, or all they want."""
        while share() < least and not all(pull.done() for pull in pulls):
            self.crowd.progress.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.crowd.progress.wait(), 0.2)

    async def strike(self, victim: str, how: signal.Signals) -> None:
        """Kills or stops a mirror, or the bucket ("bucket")."""
        if victim == "bucket":
            await asyncio.to_thread(self.bucket.stop) if how is KILL else self.bucket.signal(STOP)
        elif how is KILL:
            await asyncio.to_thread(self.mirrors[victim].kill)
        else:
            os.kill(self.mirrors[victim].pid, STOP)
            self.crowd.leave(victim)

    async def restore(self, victim: str, how: signal.Signals) -> None:
        """Brings it back."""
        if victim == "bucket":
            await asyncio.to_thread(self.bucket.start) if how is KILL else self.bucket.signal(signal.SIGCONT)
        elif how is KILL:
            await asyncio.to_thread(self.mirrors[victim].start)
        else:
            os.kill(self.mirrors[victim].pid, signal.SIGCONT)
            self.crowd.come_back(victim)
        await self.until_all_are_well()

    async def until_all_are_well(self) -> None:
        """Waits until each mirror knows that the others and the bucket live: it looks each second."""
        for url, mirror in self.mirrors.items():
            for _ in patiently():
                up = [await asyncio.to_thread(mirror.metric, name) for name in ("mirror_peer_up", "mirror_bucket_up")]
                if up == [len(self.mirrors) - 1, 1]:
                    break
                await asyncio.sleep(0.1)
            assert "Traceback" not in mirror.log, url

    async def check(self, pulls: Sequence[asyncio.Task[Pull]], victims: set[str]) -> None:
        """All clients have what they asked for, and only those whose mirror was hit have noticed something."""
        for pull in await asyncio.wait_for(asyncio.gather(*pulls), PATIENCE):
            assert pull.right, pull.failures
            assert not pull.failures or pull.order[0] in victims, pull.failures


@contextlib.asynccontextmanager
async def hub(folder: Path, urls: Sequence[str], lists: Sequence[Sequence[str]]) -> AsyncIterator[Hub]:
    """A bucket, and mirrors at the first of these URLs, each with a list of its own. All of them get a card."""
    os.environ.update(ENVIRONMENT)
    async with Scripted() as upstream:
        with contextlib.ExitStack() as stack:
            bucket = S3(folder / "s3")
            stack.callback(bucket.stop)
            set_up({**dict.fromkeys(urls, CARD), bucket.url: FILLING})
            this = Hub(folder, upstream, bucket, stack)
            await asyncio.gather(*(this.run(url, listed) for url, listed in zip(urls, lists, strict=False)))
            yield this


# ------------------------------------------------------------------ one fault

MOST = {
    ("home", "before"): 1.05,
    ("home", "in the middle"): 1.35,
    ("other", "in the middle"): 1.0,
    ("bucket", "before"): 1.05,
    ("bucket", "in the middle"): 0.35,
}
"""What is hit, and when, and what the registry may send then, as a multiple of the blob's bytes."""


async def each_fault(folder: Path, chance: random.Random) -> None:
    """The home, another mirror and the bucket are killed and stopped, before a pull and in the middle of one."""
    urls = free_urls(3)
    async with hub(folder, urls, [urls] * 3) as this:
        for in_bucket in (False, True):
            digest = this.add(in_bucket=in_bucket)
            await this.check(this.begin([digest]), set())
            assert this.upstream.count("GET", str(digest)) == (0 if in_bucket else 1)
        for (what, when), most in MOST.items():
            for how in (KILL, STOP):
                print(f"{what} {HOW[how]} {when}", flush=True)
                await one_fault(this, what, how, in_the_middle=when == "in the middle", most=most)


async def one_fault(this: Hub, what: str, how: signal.Signals, *, in_the_middle: bool, most: float) -> None:
    digest = this.add(in_bucket=what == "bucket")
    home, *others = ranked(tuple(this.mirrors), str(digest))
    victim = {"home": home, "other": others[0], "bucket": "bucket"}[what]
    if not in_the_middle:
        await this.strike(victim, how)
    else:
        # So slowly that the mirrors have little more than their clients.
        this.upstream.rate = FILLING
    before = this.crowd.received.copy()
    pulls = this.begin([digest])
    if in_the_middle:
        of_each = SIZE * CLIENTS / len(this.mirrors)
        safe = [url for url in this.mirrors if url != victim]
        await this.until(MIDDLE, lambda: min(this.crowd.received[url] - before[url] for url in safe) / of_each, pulls)
        await this.strike(victim, how)
    await this.check(pulls, {victim})
    this.upstream.rate = None
    assert this.share(digest) <= most, this.share(digest)
    await this.restore(victim, how)


# ------------------------------------------------------------------ several


async def random_faults(folder: Path, chance: random.Random) -> None:
    """Some schedules: one or two of mirrors and bucket, one after the other, are killed or stopped for some time at some time."""
    urls = free_urls(3)
    async with hub(folder, urls, [urls] * 3) as this:
        for number in range(SCHEDULES):
            print("schedule", number, flush=True)
            await one_schedule(this, chance)


async def one_schedule(this: Hub, chance: random.Random) -> None:
    digests = [
        this.add(chance.choice([1000, MB // 4, 2 * MB, SIZE]), in_bucket=chance.random() < 0.3)
        for _ in range(chance.choice([1, 3]))
    ]
    this.upstream.rate = chance.choice([None, FILLING])
    total = sum(len(this.upstream.blobs[str(digest)]) for digest in digests) * CLIENTS / len(digests)
    before = this.crowd.received.total()
    pulls: list[asyncio.Task[Pull]] = []
    victims = chance.sample([*this.mirrors, "bucket"], chance.choice([1, 2]))
    for victim in victims:
        how, at, seconds = chance.choice([KILL, STOP]), chance.choice([0.0, chance.random()]), 4 * chance.random()
        print(f"  {victim} {HOW[how]} at {at:.2f} for {seconds:.1f} s", flush=True)
        if at:
            pulls = pulls or this.begin(digests)
            await this.until(at, lambda: (this.crowd.received.total() - before) / total, pulls)
        await this.strike(victim, how)
        pulls = pulls or this.begin(digests)
        await asyncio.sleep(seconds)
        await this.restore(victim, how)
    await this.check(pulls, set(victims))
    # Each mirror may ask the registry where it takes the others for dead.
    most = 1 if victims == ["bucket"] else len(this.mirrors)
    assert all(this.share(digest) <= most for digest in digests), [this.share(digest) for digest in digests]


# ------------------------------------------------------------------ lists


async def lists(folder: Path, chance: random.Random) -> None:
    """Lists that disagree in a ring; then from two mirrors to five and back, one after the other, while clients pull."""
    urls = free_urls(5)
    rings = [(urls[number], urls[(number + 1) % 3].replace("127.0.0.1", "localhost")) for number in range(3)]
    async with hub(folder, urls, rings) as this:
        print("a ring", flush=True)
        while True:
            digest = this.add()
            if all(ranked(ring, str(digest))[0] == ring[1] for ring in rings):
                break
        await this.check(this.begin([digest]), set())
        assert this.share(digest) <= len(rings)
        for members in (urls[:2], urls, urls[:2]):
            print(f"{len(members)} mirrors", flush=True)
            resizing = asyncio.create_task(resize(this, members))
            while not resizing.done():
                digest = this.add(MB // 4)
                # Whose mirror is started again goes on to another one.
                await this.check(this.begin([digest], 10), set(urls))
                assert this.share(digest) <= len(urls)
            await resizing
            await this.until_all_are_well()
            digest = this.add()
            await this.check(this.begin([digest]), set())
            assert this.upstream.count("GET", str(digest)) == 1


async def resize(this: Hub, urls: Sequence[str]) -> None:
    for url in [url for url in this.mirrors if url not in urls]:
        assert await asyncio.to_thread(this.mirrors.pop(url).terminate) == 0
    for url in urls:
        await this.run(url, urls)


def main() -> None:
    what, folder, seed = sys.argv[1:]
    print("seed", seed, flush=True)
    scenario = {"each-fault": each_fault, "random": random_faults, "lists": lists}[what]
    asyncio.run(scenario(Path(folder), random.Random(int(seed))))


if __name__ == "__main__":
    main()
