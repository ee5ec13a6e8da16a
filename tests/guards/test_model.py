"""Tags under a cooldown, compared with a model that was written independently: a made-up registry moves, removes and restores tags, on a clock that tests set."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule

from mirror.cache.negative import Negative
from mirror.cache.tags import Tags
from mirror.downloads.flight import Progress
from mirror.errors import ManifestUnknown, MirrorError, UpstreamUnreachable
from mirror.guards.gate import Gate
from mirror.guards.rules import Rule
from mirror.guards.sources import FromCache
from mirror.manifests import OCI_MANIFEST, Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.memory import MemoryStore
from mirror.storage.sightings import Released

APP = Repository("docker.io", "library/app")
HOUR = 3600.0
COOLDOWN = 72 * HOUR
START = 1_000_000.0


def manifest(number: int) -> Manifest:
    """The image of a number; the same number is the same image."""
    body = f'{{"schemaVersion": 2, "config": {{}}, "layers": [], "annotations": {{"number": "{number}"}}}}'.encode()
    return Manifest(OCI_MANIFEST, Digest.of(body), body)


MANIFESTS = [manifest(number) for number in range(8)]
NUMBERS = {one.digest: number for number, one in enumerate(MANIFESTS)}


@dataclass
class Registry:
    """What tags mean upstream, and how often it was asked."""

    tags: dict[str, int] = field(default_factory=dict)
    down: bool = False
    heads: int = 0
    fetched: list[int] = field(default_factory=list)
    compares_tags = False

    def asks_peer(self, repository: Repository, reference: object) -> bool:
        return False

    async def tag_answers(self, repository: Repository, tag: Tag, known: Digest | None, is_older: object) -> Answers:
        return Answers((await self.head_manifest(repository, tag),))

    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor:
        self.heads += 1
        return self._find(reference).descriptor

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest:
        found = self._find(reference)
        self.fetched.append(NUMBERS[found.digest])
        return found

    async def get_tag(self, repository: Repository, tag: Tag, known: Digest, is_older: object) -> Manifest:
        return await self.get_manifest(repository, tag)

    def _find(self, reference: Reference) -> Manifest:
        if self.down:
            raise UpstreamUnreachable("down")
        if isinstance(reference, Digest):
            return MANIFESTS[NUMBERS[reference]]
        if reference.value not in self.tags:
            raise ManifestUnknown("gone")
        return MANIFESTS[self.tags[reference.value]]


@dataclass
class Answers:
    descriptors: tuple[Descriptor, ...]
    decided: bool = True
    unanimous: bool = True


class World:
    """A cache with a cooldown, and its registry."""

    def __init__(self) -> None:
        self.now = START
        self.registry = Registry()
        self.store = MemoryStore()
        self.gate = Gate(self.store, FromCache(self.store), lambda: self.now)
        self.gate.take([Rule("cool", cooldown=COOLDOWN)])
        self.tags = Tags(
            self.store, lambda _: self.registry, Negative(0), 0.0, 60.0, lambda: False, self._no_fetch, lambda: self.now
        )
        self.tags.guard = self.gate

    async def _no_fetch(self, repository: Repository, digest: Digest) -> AsyncGenerator[Progress, None]:
        raise AssertionError
        yield

    async def pull(self, tag: str, how: str) -> int | None:
        """Which image a client got, a second later than what was before; None for an error."""
        self.now += 1
        try:
            if how == "HEAD":
                found, _ = await self.tags.resolve(APP, Tag(tag))
            elif how == "refresh":
                found = await self.tags.refresh(APP, Tag(tag))
            else:
                got, _ = await self.tags.get(APP, Tag(tag))
                found = got.descriptor
        except MirrorError:
            return None
        return NUMBERS[found.digest]

    async def release(self, tag: str) -> None:
        await self.store.release(APP, Tag(tag), Released(self.now, "ann", "why"))
        self.tags.forget()
        await self.gate.load()


def expected(log: list[tuple[float, str, int | None]]) -> int | None:
    """The model: what a client gets at the end of a log of what was seen of one tag.

    Entries are (time, "saw", image), image None for a tag that is gone, or (time, "release", None). It reads the log from its beginning each time.
    """
    given: int | None = None
    stretch: list[float] = []
    meant: int | None = None
    let_go = False
    answer: int | None = None
    for moment, event, image in log:
        if event == "release":
            let_go = meant is not None
            continue
        if image is None:
            meant, stretch, let_go, answer = None, [], False, None
            continue
        if image != meant:
            meant, stretch, let_go = image, [], False
        stretch.append(moment)
        old_enough = stretch[-1] - stretch[0] >= COOLDOWN
        if given is None or let_go or old_enough:
            given = image
        answer = given
    return answer


async def test_who_got_what_in_a_fortnight_of_a_thousand_tags() -> None:
    """Tags move, go back, vanish and return while clients pull, and every one of them gets what the model says. What nobody was to get was never fetched."""
    chance = random.Random(1)
    world = World()
    log: dict[str, list[tuple[float, str, int | None]]] = {f"t{number}": [] for number in range(1000)}
    allowed: set[tuple[str, int]] = set()
    held = 0
    for _ in range(30_000):
        world.now += 14 * 24 * HOUR / 30_000
        tag = f"t{chance.randrange(1000)}"
        event = chance.random()
        if event < 0.1:
            world.registry.tags[tag] = chance.randrange(3)
        elif event < 0.13:
            world.registry.tags.pop(tag, None)
        elif event < 0.14:
            log[tag].append((world.now, "release", None))
            await world.release(tag)
        else:
            upstream = world.registry.tags.get(tag)
            heads, fetched = world.registry.heads, len(world.registry.fetched)
            got = await world.pull(tag, chance.choice(["GET", "HEAD", "refresh"]))
            log[tag].append((world.now, "saw", upstream))
            assert got == expected(log[tag]), (tag, log[tag])
            assert world.registry.heads - heads == 1
            if got != upstream:
                held += 1
                assert len(world.registry.fetched) == fetched
            if got is not None:
                allowed.add((tag, got))
    assert held > 1000
    assert len(allowed) > 1000


class Cooldown(RuleBasedStateMachine):
    """The same, with what hypothesis thinks of, and a registry that goes down."""

    tags = Bundle("tags")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.world = World()
        self.log: dict[str, list[tuple[float, str, int | None]]] = {}

    def teardown(self) -> None:
        self.runner.close()

    @rule(target=tags, name=strategies.sampled_from(["a", "b"]), image=strategies.integers(0, 3))
    def push(self, name: str, image: int) -> str:
        self.world.registry.tags[name] = image
        self.log.setdefault(name, [])
        return name

    @rule(name=tags, image=strategies.integers(0, 3))
    def move(self, name: str, image: int) -> None:
        self.world.registry.tags[name] = image

    @rule(name=tags)
    def remove(self, name: str) -> None:
        self.world.registry.tags.pop(name, None)

    @rule(hours=strategies.sampled_from([1.0, 24.0, 71.0, 72.0, 100.0]))
    def wait(self, hours: float) -> None:
        self.world.now += hours * HOUR

    @rule(name=tags)
    def release(self, name: str) -> None:
        self.log[name].append((self.world.now, "release", None))
        self.runner.run(self.world.release(name))

    @rule(name=tags, how=strategies.sampled_from(["GET", "HEAD", "refresh"]))
    def pull(self, name: str, how: str) -> None:
        self.world.registry.down = False
        got = self.runner.run(self.world.pull(name, how))
        self.log[name].append((self.world.now, "saw", self.world.registry.tags.get(name)))
        assert got == expected(self.log[name])

    @rule(name=tags)
    def pull_while_it_is_down(self, name: str) -> None:
        """Whatever is served then, it is what was served before, or what has waited long enough."""
        self.world.registry.down = True
        got = self.runner.run(self.world.pull(name, "GET"))
        self.world.registry.down = False
        known = expected(self.log[name])
        if known is None:
            assert got is None
        else:
            seen = [entry for entry in self.log[name] if entry[1] == "saw"]
            waited = (self.world.now, "saw", seen[-1][2])
            later = expected([*self.log[name], waited])
            if got is None:
                # HEAD was answered, and the manifest never fetched.
                assert known not in self.world.registry.fetched
            else:
                assert got in (known, later)
            if later != known and got != known:
                # Its time is over: the tag has moved for clients, though the registry may not have delivered it, and a move back waits.
                self.log[name].append(waited)


TestCooldown = Cooldown.TestCase
TestCooldown.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("how", ["GET", "HEAD", "refresh"])
async def test_stale_works_when_the_time_is_over_and_the_registry_is_down(how: str) -> None:
    """The new image is not here and cannot be had: the old one is served, and the tag moves on once the new one is."""
    world = World()
    world.registry.tags["1"] = 0
    assert await world.pull("1", "GET") == 0
    world.registry.tags["1"] = 1
    assert await world.pull("1", how) == 0
    world.registry.down, world.now = True, world.now + COOLDOWN
    assert await world.pull("1", "GET") == 0
    world.registry.down = False
    assert await world.pull("1", how) == 1
