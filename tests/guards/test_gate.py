"""The gate (mirror/guards/gate.py): which facts it gathers, and how long what it decided counts."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirror.downloads.flight import Progress
from mirror.errors import BlobUnknown
from mirror.guards import facts
from mirror.guards.gate import Gate
from mirror.guards.images import describe
from mirror.guards.keys import Keys
from mirror.guards.rules import Conditions, Image, Pattern, Rule
from mirror.guards.signatures import Signers
from mirror.guards.sources import Documents, FromCache, FromUpstream
from mirror.manifests import MAX_SIZE, OCI_INDEX, OCI_MANIFEST, Manifest
from mirror.names import Digest, Repository, Tag
from mirror.storage.memory import MemoryStore
from mirror.storage.store import TagRecord

APP, ONE = Repository("docker.io", "library/app"), Tag("1")
DAY = 86400.0


def image(created: float = 0.0, name: str = "") -> Manifest:
    return image_of(datetime.fromtimestamp(created, UTC).isoformat(), name)


def image_of(created: str, name: str = "") -> Manifest:
    document = {"schemaVersion": 2, "annotations": {"org.opencontainers.image.created": created, "name": name}, "layers": []}
    body = json.dumps(document).encode()
    return Manifest(OCI_MANIFEST, Digest.of(body), body)


def index_of(*images: Manifest) -> Manifest:
    listed = [{"mediaType": one.media_type, "digest": str(one.digest), "size": len(one.body)} for one in images]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
    return Manifest(OCI_INDEX, Digest.of(body), body)


def labelled(**labels: str) -> Manifest:
    """An image whose configuration is in its manifest."""
    configuration = json.dumps({"config": {"Labels": labels}}).encode()
    described = {
        "digest": str(Digest.of(configuration)),
        "size": len(configuration),
        "data": base64.b64encode(configuration).decode(),
    }
    body = json.dumps({"schemaVersion": 2, "config": described, "layers": []}).encode()
    return Manifest(OCI_MANIFEST, Digest.of(body), body)


BLOCKS = Rule("list", blocked={"0" * 64: "a miner"})


class World:
    """A gate with a clock that tests set."""

    def __init__(self, *rules: Rule) -> None:
        self.now = 1_000 * DAY
        self.store = MemoryStore()
        self.gate = Gate(self.store, FromCache(self.store), lambda: self.now)
        self.gate.take(rules)

    async def serve(self, manifest: Manifest) -> None:
        """Has the tag mean an image, which clients get."""
        await self.store.put_manifest(APP, manifest)
        await self.store.set_tag(APP, ONE, TagRecord(manifest.descriptor, self.now))

    async def by_digest(self, manifest: Manifest) -> bool:
        """Returns whether an image is served by its digest."""
        return (await self.gate.rule_digest(APP, manifest.digest, manifest)).error is None

    async def by_tag(self, manifest: Manifest) -> bool:
        return (await self.gate.rule_tag(APP, ONE, manifest.descriptor)).error is None


@pytest.mark.parametrize(
    ("age", "deny", "before", "after"),
    [(9.5, Conditions(older_than=10 * DAY), True, False), (9.5, Conditions(younger_than=10 * DAY), False, True)],
    ids=["too old", "too young"],
)
async def test_an_image_grows_older_while_the_mirror_runs(age: float, deny: Conditions, before: bool, after: bool) -> None:
    """What was decided by its age counts no longer than a minute, by tag and by digest, and it does not pass for good."""
    world = World(Rule("age", deny=deny))
    manifest = image(created=world.now - age * DAY)
    await world.serve(manifest)
    assert (await world.by_tag(manifest), await world.by_digest(manifest)) == (before, before)
    assert not world.gate.passes(APP, ONE, manifest.digest)
    assert not world.gate.passes(APP, manifest.digest, manifest.digest)
    world.now += DAY
    assert (await world.by_tag(manifest), await world.by_digest(manifest)) == (after, after)


async def test_a_digest_is_refused_once_a_tag_of_the_pattern_is_seen_to_mean_it() -> None:
    """Also where another process has seen that, and though it was served by its digest before."""
    world = World(Rule("no", (Pattern.parse("app:1"),), deny=Conditions()))
    manifest = image()
    await world.store.put_manifest(APP, manifest)
    assert await world.by_digest(manifest)
    assert not world.gate.passes(APP, manifest.digest, manifest.digest)
    await world.serve(manifest)
    world.now += 1.0
    assert not await world.by_digest(manifest)


async def test_what_is_refused_by_its_digest_is_remembered() -> None:
    """A client that asks again and again has nothing forgotten that was decided on other images."""
    bad, good = image(name="bad"), image(name="good")
    world = World(Rule("list", blocked={bad.digest.hex: "poisoned"}))
    await world.store.put_manifest(APP, bad)
    await world.store.put_manifest(APP, good)
    assert not await world.by_digest(bad)
    assert await world.by_digest(good)
    epoch = world.gate.epoch
    for _ in range(3):
        assert not await world.by_digest(bad)
    assert world.gate.epoch == epoch
    assert world.gate.passes(APP, good.digest, good.digest)


@pytest.mark.parametrize(("signed", "asked"), [("dcba", "d"), ("cba", "dc"), ("a", "dcba"), ("", "dcba")])
async def test_signatures_are_asked_for_only_as_far_back_as_needed(
    monkeypatch: pytest.MonkeyPatch, signed: str, asked: str
) -> None:
    """Each costs requests upstream: of a tag that has moved often, what it meant long ago is not looked at while something later is signed."""
    images = {image(name=name).digest: name for name in "abcd"}
    looked = ""

    async def is_signed(signers: Signers, documents: Documents, repository: Repository, digest: Digest) -> bool:
        nonlocal looked
        looked += images[digest]
        return images[digest] in signed

    monkeypatch.setattr("mirror.guards.facts.is_signed", is_signed)
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    world = World(Rule("signed", signed=(Keys([public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)]),)))
    for name in "abcd":
        world.now += DAY
        await world.serve(image(name=name))
    ruling = await world.gate.rule_tag(APP, ONE, image(name="d").descriptor)
    assert (ruling.serve and images[ruling.serve.digest]) == (signed[0] if signed else None)
    assert looked == asked


async def test_a_signature_is_no_way_to_have_the_mirror_fetch_gigabytes() -> None:
    """The download of what claims to be one ends when it is larger than any."""
    ended = False

    async def fetch(repository: Repository, digest: Digest) -> AsyncGenerator[Progress, None]:
        nonlocal ended
        try:
            yield Progress(None, MAX_SIZE, 1, True)
            yield Progress(1 << 40, MAX_SIZE, 1, True)
            raise AssertionError
        finally:
            ended = True

    documents = FromUpstream(MemoryStore(), fetch, lambda *_: None, lambda *_: None)
    with pytest.raises(BlobUnknown, match="larger than any signature"):
        await documents.blob(APP, Digest.of(b"blob"))
    assert ended


@pytest.mark.parametrize("created", ["9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59.9999999Z", "0001-01-01T00:00:00+12:00"])
async def test_a_date_that_no_calendar_has_is_none(created: str) -> None:
    """It is the word of whoever built the image: each pull of the tag failed with 500 once a later image was compared with it."""
    world = World(Rule("older", refuse_older=True))
    for then, now in ((created, "2026-11-29T10:00:00Z"), ("2026-11-29T10:00:00Z", created)):
        before, after = image_of(then, "before"), image_of(now, "after")
        await world.serve(before)
        await world.store.put_manifest(APP, after)
        await world.store.note_tag(APP, ONE, after.descriptor, world.now)
        world.gate.forget_tag(APP, ONE)
        ruling = await world.gate.rule_tag(APP, ONE, after.descriptor)
        assert ruling.serve is not None and ruling.serve.digest == after.digest
        world.now += DAY


class CountingDocuments(FromCache):
    """Documents that count how often one is read."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.read = 0

    async def cached(self, digest: Digest) -> Manifest | None:
        self.read += 1
        return await super().cached(digest)


@pytest.mark.parametrize("rule", [BLOCKS, Rule("label", deny=Conditions(labels={"status": "bad"}))])
async def test_what_is_listed_a_thousand_times_is_read_once(rule: Rule) -> None:
    """An index of some MiB may list one index so often, and that an image: to read each for each time took minutes, in which the process answered nobody."""
    store = MemoryStore()
    documents = CountingDocuments(store)
    gate = Gate(store, documents)
    gate.take([rule])
    named = image()
    for _ in range(2):
        await store.put_manifest(APP, named)
        named = index_of(*[named] * 1000)
    ruling = await gate.rule_digest(APP, named.digest, named)
    assert ruling.error is None
    assert documents.read < 50


async def test_large_configurations_of_an_index_do_not_hide_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """To parse eight of 4 MiB took ten seconds, in which the process answered nobody: some MiB are parsed for an index, the small ones first."""
    monkeypatch.setattr(facts, "_MOST_PARSED", 3000)
    parsed: list[int] = []

    def counted(manifest: Manifest, configuration: bytes, platform: str | None = None) -> Image:
        parsed.append(len(configuration))
        return describe(manifest, configuration, platform)

    monkeypatch.setattr(facts, "describe", counted)
    world = World(Rule("label", deny=Conditions(labels={"status": "bad"})))
    padded = [labelled(status="good", pad="x" * 2000, number=str(number)) for number in range(3)]
    for bad in (False, True):
        images = [*padded, labelled(status="bad")] if bad else padded
        for one in images:
            await world.store.put_manifest(APP, one)
        parsed.clear()
        assert await world.by_digest(index_of(*images)) is not bad
        assert 2000 < sum(parsed) <= 3000
