"""What every store promises (mirror/storage/store.py), on each of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from mirror.errors import ManifestUnknown, MirrorError, Pinned, StorageFull
from mirror.manifests import DOCKER_SCHEMA1_SIGNED, OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.disk import store as disk_store
from mirror.storage.disk.store import DiskStore
from mirror.storage.hosted import HostedStore, Upload
from mirror.storage.memory import MemoryStore
from mirror.storage.partial import Partial
from mirror.storage.possessions import Possessions
from mirror.storage.settings import Upkeep
from mirror.storage.sightings import MOST_RULINGS, Block, HeldTag, Move, Released, Sighting
from mirror.storage.slices import FileSlice, Part, Reader
from mirror.storage.store import Change, Gone, Question, State, Store, TagRecord
from tests.support.mirrors import until
from tests.support.patience import PATIENCE
from tests.support.schema1 import PAYLOAD, sign

LIMIT = 1_000_000
APP, OTHER = Repository("docker.io", "library/app"), Repository("ghcr.io", "other/app")
ONE, TWO = Tag("1"), Tag("2")

Damage = Callable[[Digest], None]


@pytest.fixture(params=["disk", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = DiskStore(tmp_path, Upkeep(LIMIT)) if request.param == "disk" else MemoryStore(LIMIT)
    async with made:
        yield made


@pytest.fixture
def damage(store: Store, tmp_path: Path) -> Damage:
    """Turns a bit of what is kept."""

    def turn(digest: Digest) -> None:
        if isinstance(store, MemoryStore):
            content = store.content[digest]
            store.content[digest] = bytes([content[0] ^ 1]) + content[1:]
        else:
            path = tmp_path / "blobs" / digest.algorithm / digest.hex
            content = path.read_bytes()
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])

    return turn


async def joined(reader: Reader, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([read(part) async for part in reader.parts(start, stop)])


def read(part: Part) -> bytes:
    return os.pread(part.fd, part.length, part.offset) if isinstance(part, FileSlice) else part


async def put(store: Store, data: bytes) -> Digest:
    """Keeps a blob."""
    digest = Digest.of(data)
    partial = store.partial(digest)
    assert partial.lead()
    await partial.set_size(len(data))
    await partial.write(0, data)
    await partial.commit()
    partial.close()
    return digest


async def put_image(store: Store, repository: Repository, tag: Tag, *layers: bytes, config: bytes = b"{}") -> Manifest:
    """Keeps an image with a tag."""
    named = [{"digest": str(await put(store, layer)), "size": len(layer), "mediaType": "layer"} for layer in layers]
    own = {"digest": str(await put(store, config)), "size": len(config), "mediaType": "config"}
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": own, "layers": named}).encode()
    manifest = Manifest(OCI_MANIFEST, Digest.of(body), body)
    await store.put_manifest(repository, manifest)
    await store.set_tag(repository, tag, TagRecord(manifest.descriptor, 5.0))
    return manifest


# ---------------------------------------------------------------------- blobs


async def test_what_is_not_there_is_absent(store: Store) -> None:
    """Each question has an answer for it, and none raises."""
    digest = Digest.of(b"nothing")
    assert await store.open(digest) is None
    assert store.size(digest) is None
    assert store.hot_manifest(digest) is None
    assert await store.manifest(digest) is None
    assert await store.tag(APP, ONE) is None
    assert await store.holder(digest) is None
    assert await store.holders(digest) == frozenset()
    assert await store.document("x") is None
    assert (await store.tags(APP), await store.repositories()) == ([], [])
    assert not await store.unpin(APP, ONE)
    assert await store.naming(digest, 0) == []
    assert await store.contents() == {}
    with pytest.raises(ManifestUnknown):
        await store.delete(APP, ONE)


@pytest.mark.parametrize("size", [0, 1, 100_000])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_what_is_committed_can_be_read(store: Store, size: int, algorithm: str) -> None:
    """Whole and in ranges, and it counts once."""
    data = os.urandom(size)
    digest = Digest.of(data, algorithm)
    for _ in range(2):
        partial = store.partial(digest)
        assert partial.lead()
        if not partial.finished():
            assert (partial.verified, partial.inherited, partial.size) == (False, False, None)
            await partial.set_size(size)
            await partial.write(0, data)
            assert store.size(digest) is None
            assert await store.open(digest) is None
            await partial.commit()
        assert (partial.verified, partial.current, partial.size) == (True, False, size)
        assert read(partial.slice(0, size)) == data
        partial.close()
    reader = await store.open(digest)
    assert reader is not None
    assert (store.size(digest), reader.size) == (size, size)
    assert await joined(reader) == data
    assert await joined(reader, size // 3, size // 2) == data[size // 3 : size // 2]
    await reader.aclose()
    found = await store.statistics()
    assert (found.size, found.entries, found.limit) == (size, 1, LIMIT)
    assert await store.contents() == {digest: size}


async def test_bytes_come_in_any_order_and_are_hashed_on_the_way(store: Store) -> None:
    """Those that are here can be read and hashed at once, by their offsets."""
    data = os.urandom(90_000)
    partial = store.partial(Digest.of(data))
    assert partial.lead()
    await partial.set_size(len(data))
    await partial.write(60_000, data[60_000:])
    assert list(partial.have) == [(60_000, 90_000)]
    assert read(partial.slice(60_000, 61_000)) == data[60_000:61_000]
    hasher = hashlib.sha256()
    await partial.write(0, data[:30_000], hasher)
    await partial.write(30_000, memoryview(data)[30_000:60_000])
    assert list(partial.have) == [(0, 90_000)]
    assert await partial.hash(hasher, 30_000, 90_000) == 90_000
    assert hasher.hexdigest() == partial.digest.hex
    partial.close()


async def test_one_leads_and_the_others_follow(store: Store) -> None:
    """Followers see size, bytes and the end; whoever leads next goes on where the last one stopped."""
    data = os.urandom(50_000)
    digest = Digest.of(data)
    first, second = store.partial(digest), store.partial(digest)
    assert first.lead()
    assert not second.lead()
    await first.set_size(len(data))
    await first.write(0, data[:20_000])
    second.follow()
    assert (second.size, list(second.have), second.current) == (50_000, [(0, 20_000)], True)
    assert read(second.slice(0, 20_000)) == data[:20_000]
    first.release()
    assert second.lead()
    assert (second.inherited, second.have.total) == (True, 20_000)
    await second.write(20_000, data[20_000:])
    await second.commit()
    first.follow()
    assert (first.current, first.verified) == (False, True)
    for partial in (first, second):
        assert read(partial.slice(0, 50_000)) == data
        partial.close()


async def test_what_is_closed_or_dropped_is_gone_on_with_or_not(store: Store) -> None:
    """A closed download keeps its bytes for the next; discarded or begun again, it has none."""
    digest = Digest.of(b"x" * 1000)
    for end, left in (("close", 500), ("discard", 0)):
        partial = store.partial(digest)
        assert partial.lead()
        partial.restart()
        await partial.set_size(1000)
        await partial.write(0, b"x" * 500)
        follower = store.partial(digest)
        getattr(partial, end)()
        follower.follow()
        assert (follower.current, follower.verified) == (left > 0, False)
        follower.close()
        if end == "discard":
            partial.close()
        partial = store.partial(digest)
        assert partial.lead()
        assert (partial.have.total, partial.inherited) == (left, left > 0)
        partial.restart()
        assert (partial.have.total, partial.size, partial.inherited) == (0, None, False)
        partial.discard()
        partial.close()


async def test_a_blob_finished_by_another_is_read_instead(store: Store) -> None:
    """Between the miss and the lead: nothing is fetched again."""
    digest = await put(store, b"done")
    partial = store.partial(digest)
    assert partial.lead()
    assert partial.finished()
    assert (partial.size, partial.verified, read(partial.slice(0, 4))) == (4, True, b"done")
    partial.close()
    other = store.partial(Digest.of(b"not done"))
    assert other.lead()
    assert not other.finished()
    other.discard()
    other.close()


# ---------------------------------------------------------------------- room


async def test_the_least_used_goes_when_room_is_needed(store: Store) -> None:
    """What is kept stays within the limit; what was evicted while somebody reads it is read to its end."""
    blobs = [await put(store, os.urandom(300_000)) for _ in range(3)]
    await put(store, os.urandom(300_000))
    assert store.size(blobs[0]) is None
    assert (await store.statistics()).size <= LIMIT


async def test_a_claim_evicts_nothing(store: Store) -> None:
    """However large a blob is said to be: room is made for bytes that come."""
    blobs = [await put(store, os.urandom(90_000)) for _ in range(10)]
    partial = store.partial(Digest.of(b"claimed"))
    assert partial.lead()
    await partial.set_size(900_000)
    await partial.write(0, b"x")
    assert all(store.size(blob) is not None for blob in blobs)
    for offset in range(1, 450_001, 50_000):
        await partial.write(offset, bytes(50_000))
    gone = sum(store.size(blob) is None for blob in blobs)
    assert 4 <= gone <= 8, "room is made for what has come, and a bounded step more"
    partial.discard()
    partial.close()


async def test_what_nobody_goes_on_downloading_goes_before_content(store: Store) -> None:
    """Half a blob of a registry that fails may never become a whole one. What is led stays."""
    kept = await put(store, os.urandom(200_000))
    given_up, led = [store.partial(Digest.of(name)) for name in (b"given up", b"led")]
    for partial in (given_up, led):
        assert partial.lead()
        await partial.set_size(500_000)
        await partial.write(0, bytes(300_000))
    given_up.release()
    await put(store, os.urandom(400_000))
    assert store.size(kept) is not None
    assert (given_up.current, led.current) == (False, True)
    for partial in (given_up, led):
        partial.close()


@pytest.mark.parametrize("size", [LIMIT + 1, 10**15])
async def test_what_can_never_be_kept_is_refused_at_once(store: Store, size: int) -> None:
    """Larger than everything, or than what is not pinned: nothing is evicted for it."""
    image = await put_image(store, APP, ONE, os.urandom(400_000))
    await store.pin(APP, ONE)
    other = await put(store, os.urandom(100_000))
    for claimed in (size, 700_000):
        partial = store.partial(Digest.of(b"large"))
        assert partial.lead()
        with pytest.raises(StorageFull):
            await partial.set_size(claimed)
        partial.discard()
        partial.close()
    assert store.size(other) == 100_000
    assert await store.manifest(image.digest) == image


async def test_downloads_together_stay_within_the_limit(store: Store) -> None:
    """Two that fit each by itself, and not both: one of them is refused its bytes, the other lands."""
    partials = []
    for name in (b"a", b"b"):
        partial = store.partial(Digest.of(name))
        assert partial.lead()
        await partial.set_size(600_000)
        partials.append(partial)
    refused = 0
    for offset in range(0, 600_000, 50_000):
        for partial in list(partials):
            try:
                await partial.write(offset, bytes(50_000))
            except StorageFull:
                refused += 1
                partial.discard()
                partial.close()
                partials.remove(partial)
    assert refused == 1
    [partial] = partials
    await partial.commit()
    partial.close()
    assert (await store.statistics()).size == 600_000


# ---------------------------------------------------------------------- manifests and names


async def test_manifests_keep_their_bytes_and_say_who_has_them(store: Store) -> None:
    """Exactly as they came; a repository has a manifest that it gave, and what that names."""
    layer = os.urandom(100)
    image = await put_image(store, APP, ONE, layer)
    assert await store.manifest(image.digest) == image
    assert store.hot_manifest(image.digest) == image
    assert store.size(image.digest) == len(image.body)
    for digest in (image.digest, Digest.of(layer), Digest.of(b"{}")):
        assert await store.holder(digest) == APP
    assert await store.naming(Digest.of(layer), 0.0) == [image.digest]
    assert await store.naming(Digest.of(layer), 2.0**40) == []
    assert await store.repositories() == [APP]
    await store.put_manifest(OTHER, image)
    assert await store.repositories() == [APP, OTHER]


async def put_index(store: Store, repository: Repository, tag: Tag, *images: Manifest) -> Manifest:
    """Keeps an index of images with a tag."""
    listed = [{"mediaType": image.media_type, "digest": str(image.digest), "size": len(image.body)} for image in images]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
    index = Manifest(OCI_INDEX, Digest.of(body), body)
    await store.put_manifest(repository, index)
    await store.set_tag(repository, tag, TagRecord(index.descriptor, 5.0))
    return index


async def test_many_manifests_are_what_each_is(store: Store) -> None:
    """By tags and digests, in the order asked for; None for what is not there."""
    image = await put_image(store, APP, ONE, b"layer")
    index = await put_index(store, OTHER, TWO, image)
    signed = Manifest(DOCKER_SCHEMA1_SIGNED, Digest.of(PAYLOAD), sign(PAYLOAD))
    await store.put_manifest(APP, signed)
    gone = TagRecord(Descriptor(OCI_INDEX, Digest.of(b"gone"), 4), 5.0)
    await store.set_tag(APP, TWO, gone)
    asked: list[tuple[Repository, Reference]] = [(OTHER, TWO), (APP, ONE), (APP, TWO), (APP, Tag("3")), (OTHER, ONE)]
    asked += [(APP, index.digest), (APP, signed.digest)]
    assert await store.manifests_of(asked) == [index, image, None, None, None, index, signed]
    assert await store.manifests_of([(APP, gone.descriptor.digest)]) == [None]
    assert await store.manifests_of([]) == []


async def test_manifests_are_read_ahead_all_the_way_down(tmp_path: Path) -> None:
    """A store that has just been opened has read those below an index once it has the index. What is damaged or gone is no manifest, and no error."""
    async with DiskStore(tmp_path, Upkeep(LIMIT)) as store:
        images = [await put_image(store, APP, ONE, bytes([n])) for n in range(4)]
        index = await put_index(store, APP, ONE, *images)
        signed = Manifest(DOCKER_SCHEMA1_SIGNED, Digest.of(PAYLOAD), sign(PAYLOAD))
        await store.put_manifest(APP, signed)
    for number, content in ((1, b"damaged"), (2, None)):
        path = tmp_path / "blobs" / "sha256" / images[number].digest.hex
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    async with DiskStore(tmp_path, Upkeep(LIMIT)) as store:
        assert await store.manifests_of([(APP, ONE), (APP, signed.digest)]) == [index, signed]
        assert [store.hot_manifest(image.digest) for image in images] == [images[0], None, None, images[3]]
        assert [await store.manifest(image.digest) for image in images] == [images[0], None, None, images[3]]
        assert await store.manifests_of([(APP, images[1].digest)]) == [None]


async def test_all_that_have_content_are_known(store: Store) -> None:
    """By a tag, by a manifest, by what a registry has given or said, or an archive brought; not by a manifest that names it. What is gone was had by nobody."""
    layer, own = os.urandom(100), os.urandom(100)
    image = await put_image(store, APP, ONE, layer)
    body = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"digest": str(image.digest), "size": 1}]}
    ).encode()
    index = Manifest(OCI_INDEX, Digest.of(body), body)
    above, tagged = Repository("quay.io", "above/app"), Repository("docker.io", "library/tagged")
    await store.put_manifest(above, index, told=False)
    await store.set_tag(tagged, TWO, TagRecord(index.descriptor, 5.0))
    assert await store.holders(Digest.of(layer)) == frozenset()
    assert await store.holders(image.digest) == {APP}
    assert await store.told_holders(image.digest) == {APP}
    assert await store.holders(index.digest) == {above, tagged}
    assert await store.told_holders(index.digest) == frozenset()
    assert [await store.is_named(one, Digest.of(layer)) for one in (APP, above, tagged)] == [True, False, False]
    assert await store.is_named(above, image.digest)
    await store.note_holder(above, [Digest.of(layer), image.digest], told=False)
    await store.note_holder(APP, [Digest.of(layer)], told=True)
    assert await store.holders(Digest.of(layer)) == {APP, above}
    assert await store.told_holders(Digest.of(layer)) == {APP}
    await store.note_holder(above, [Digest.of(layer)], told=True)
    await store.note_holder(above, [Digest.of(layer)], told=False)
    assert await store.told_holders(Digest.of(layer)) == {APP, above}
    await store.note_holder(OTHER, [Digest.of(own)], told=True)
    await put(store, own)
    assert await store.told_holders(Digest.of(own)) == {OTHER}
    await store.delete(APP, ONE)
    assert await store.holders(image.digest) == {above}, "an index of it is here"
    assert await store.holders(Digest.of(b"loose")) == frozenset()


async def test_a_signed_manifest_is_kept_by_what_its_digest_names(store: Store) -> None:
    """Schema 1: it comes back with its signatures, and is verified and counted as other manifests are."""
    manifest = Manifest(DOCKER_SCHEMA1_SIGNED, Digest.of(PAYLOAD), sign(PAYLOAD))
    await store.put_manifest(APP, manifest)
    assert await store.manifest(manifest.digest) == manifest
    assert await store.contents() == {manifest.digest: len(PAYLOAD)}
    async with aclosing(store.verify(await store.contents(), remove=True)) as verdicts:
        assert [found.state async for found in verdicts] == [State.WHOLE]
    assert await store.holder(manifest.digest) == APP


async def test_a_tag_means_what_was_set_last(store: Store) -> None:
    """Until it is dropped; other tags and repositories are left alone."""
    records = [TagRecord(Descriptor(OCI_INDEX, Digest.of(bytes([n])), n), float(n)) for n in range(3)]
    await store.set_tag(APP, ONE, records[0])
    await store.set_tag(APP, ONE, records[1])
    await store.set_tag(APP, TWO, records[2])
    await store.set_tag(OTHER, ONE, records[2])
    assert [await store.tag(*name) for name in ((APP, ONE), (APP, TWO), (OTHER, ONE))] == [records[1], records[2], records[2]]
    assert sorted(await store.tags(APP)) == ["1", "2"]
    assert [await store.tags(APP, record.descriptor.digest) for record in records] == [[], ["1"], ["2"]]
    await store.drop_tag(APP, ONE)
    assert await store.tag(APP, ONE) is None
    assert await store.tags(APP) == ["2"]
    assert await store.tag(OTHER, ONE) == records[2]


async def test_documents_are_values(store: Store) -> None:
    """What is stored under a key comes back; changing it afterwards changes nothing."""
    value = {"asked": 1.5, "list": ["a", {"b": None}]}
    await store.set_document("tags x", value)
    value["list"] = []
    assert await store.document("tags x") == {"asked": 1.5, "list": ["a", {"b": None}]}
    await store.set_document("tags x", {})
    assert await store.document("tags x") == {}


async def test_what_an_archive_is_about_to_bring_is_nobodys_yet(store: Store) -> None:
    """Without a bucket, nothing comes of it."""
    digest = Digest.of(b"brought")
    await store.note_brought(None, [digest])
    await store.note_brought(APP, [ONE])
    assert (await store.holders(digest), await store.tag(APP, ONE)) == (frozenset(), None)


async def test_a_lock_is_free_after_its_holder(store: Store) -> None:
    """Also when that has failed; other keys are not held."""
    with pytest.raises(ZeroDivisionError):
        async with store.lock(Question.CHECK, "a"), store.lock(Question.FETCH, "b"):
            raise ZeroDivisionError
    async with asyncio.timeout(PATIENCE), store.lock(Question.CHECK, "a"), store.lock(Question.FETCH, "b"):
        pass


# ---------------------------------------------------------------------- what people do


async def test_pins_hold_what_a_tag_means(store: Store) -> None:
    """Made before or after the image is cached, they keep all of it; they follow the tag, and outlive it."""
    assert not await store.pin(APP, ONE)
    layers = [os.urandom(100_000), os.urandom(100_001)]
    await put_image(store, APP, ONE, layers[0])
    assert await store.pin(APP, ONE)
    await put_image(store, APP, ONE, layers[1])
    await store.drop_tag(APP, ONE)
    for _ in range(6):
        await put(store, os.urandom(300_000))
    assert store.size(Digest.of(layers[0])) is None
    assert store.size(Digest.of(layers[1])) == 100_001
    assert await store.unpin(APP, ONE)
    assert not await store.unpin(APP, ONE)


async def test_lists_hold_what_they_name(store: Store) -> None:
    """As pins do, while the image is in any list; what leaves the last one can be evicted, unless it is pinned by hand. A list that is not told keeps its own."""
    layers = [os.urandom(100_000 + number) for number in range(4)]
    tags = [Tag(str(number)) for number in range(4)]
    await store.set_listed({"a": [(APP, tags[0]), (APP, tags[1])], "b": [(APP, tags[0]), (APP, tags[2]), (APP, tags[3])]})
    for tag, layer in zip(tags, layers, strict=True):
        await put_image(store, APP, tag, layer)

    async def check(*expected: int) -> None:
        # Nothing else fits beside it.
        await put(store, os.urandom(LIMIT - 101_000 * len(expected) - 20_000))
        assert [number for number, layer in enumerate(layers) if store.size(Digest.of(layer)) is not None] == list(expected)

    await check(0, 1, 2, 3)
    assert not await store.unpin(APP, tags[0])
    await store.pin(APP, tags[2])
    await store.set_listed({"a": None, "b": [(APP, tags[3])]})
    assert [(image.list, image.reference) for image in await store.listed()] == [("a", tags[0]), ("a", tags[1]), ("b", tags[3])]
    with pytest.raises(Pinned, match="list b"):
        await store.delete(APP, tags[3])
    await store.delete(APP, tags[3], force=True)
    await check(0, 1, 2)
    await store.set_listed({"b": [(APP, tags[0])]})
    await check(0, 2)
    await store.set_listed({})
    await check(2)
    assert await store.listed() == []
    assert await store.unpin(APP, tags[2])
    await check()


async def test_lists_hold_what_is_attached_to_their_images(store: Store) -> None:
    """While the image is listed: a pull that succeeds says anew what that is, one that fails only adds; by no other list, and for no image that is not listed."""
    layers = [os.urandom(100_000 + number) for number in range(4)]
    for tag in ("image", "0", "1", "2", "3"):
        await put_image(store, APP, Tag(tag), os.urandom(100) if tag == "image" else layers[int(tag)])
    digests = [record.descriptor.digest for tag in "0123" if (record := await store.tag(APP, Tag(tag))) is not None]
    image = Tag("image")
    await store.set_listed({"a": [(APP, image)], "b": [(APP, image)]})

    async def check(*expected: int) -> None:
        # Nothing else fits beside it.
        await put(store, os.urandom(LIMIT - 101_000 * len(expected) - 20_000))
        assert [number for number, layer in enumerate(layers) if store.size(Digest.of(layer)) is not None] == list(expected)

    await store.note_listed("a", APP, image, 1.0, "", digests[:3])
    await store.note_listed("b", APP, image, 1.0, "", digests[:1])
    await store.note_listed("a", APP, Tag("unlisted"), 1.0, "", digests[3:])
    await check(0, 1, 2)
    await store.note_listed("a", APP, image, 2.0, "no connection", digests[:1])
    await store.set_listed({"a": None, "b": [(APP, image)]})
    await check(0, 1, 2)
    await store.note_listed("a", APP, image, 3.0, "", digests[1:2])
    await check(0, 1)
    await store.set_listed({"a": [], "b": None})
    await check(0)
    await store.delete(APP, image, force=True)
    await check()


async def test_what_leaves_less_room_is_said(store: Store) -> None:
    """In words for people."""
    assert await store.shortage()


async def test_how_pulls_of_listed_images_went(store: Store) -> None:
    """The last one that succeeded, the last one, failures in a row and why; kept while the image is listed, of each list apart."""
    await store.set_listed({"a": [(APP, ONE), (OTHER, TWO)], "b": [(APP, ONE)]})
    await store.note_listed("a", APP, ONE, 10.0, "no connection")
    await store.note_listed("a", APP, ONE, 20.0, "no room")
    await store.note_listed("a", OTHER, TWO, 20.0, "")
    await store.note_listed("gone", OTHER, TWO, 20.0, "")

    async def state() -> list[tuple[object, ...]]:
        return [(one.list, one.reference, one.ran, one.tried, one.failures, one.fault) for one in await store.listed()]

    failed, fine, other = ("a", ONE, None, 20.0, 2, "no room"), ("a", TWO, 20.0, 20.0, 0, ""), ("b", ONE, None, None, 0, "")
    assert await state() == [failed, fine, other]
    await store.set_listed({"b": [(APP, ONE)], "a": [(OTHER, TWO), (APP, ONE), (APP, TWO)]})
    assert await state() == [failed, fine, ("a", TWO, None, None, 0, ""), other]
    await store.note_listed("a", APP, ONE, 30.0, "")
    await store.note_listed("a", OTHER, TWO, 40.0, "too late")
    assert await state() == [
        ("a", ONE, 30.0, 30.0, 0, ""),
        ("a", TWO, 20.0, 40.0, 1, "too late"),
        ("a", TWO, None, None, 0, ""),
        other,
    ]
    assert all(one.since > 1e9 for one in await store.listed())
    with store.lead_lists():
        pass


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_deleting_takes_what_no_other_image_has(store: Store, by: str) -> None:
    """Names, pins and bytes; a shared layer stays, and so does what somebody is reading, to its end."""
    shared, own = os.urandom(5000), os.urandom(3000)
    one = await put_image(store, APP, ONE, shared, own)
    two = await put_image(store, OTHER, TWO, shared)
    reader = await store.open(Digest.of(own))
    assert reader is not None
    name: Reference = ONE if by == "tag" else one.digest
    await store.pin(APP, name)
    with pytest.raises(Pinned):
        await store.delete(APP, name)
    assert await store.tag(APP, ONE) is not None
    deleted = await store.delete(APP, name, force=True)
    assert (deleted.digest, deleted.tags) == (one.digest, ("1",))
    assert (deleted.freed, deleted.kept) == (3000 + len(one.body), 5000 + len(b"{}"))
    assert await store.tag(APP, ONE) is None
    assert not await store.unpin(APP, name)
    assert await store.manifest(one.digest) is None
    assert await store.manifest(two.digest) == two
    assert [store.size(Digest.of(data)) for data in (shared, own)] == [5000, None]
    assert await joined(reader) == own
    await reader.aclose()
    with pytest.raises(ManifestUnknown):
        await store.delete(APP, name)


async def test_collecting_takes_nothing_that_is_new(store: Store) -> None:
    """Blobs whose manifest may be on its way, and images that nothing says to remove; a dry run changes nothing either."""
    await put_image(store, APP, ONE, os.urandom(1000))
    await put(store, os.urandom(1000))
    before = await store.contents()
    for dry_run in (True, False):
        collected = await store.collect(dry_run=dry_run)
        assert {collected.expired, collected.orphans, collected.unfinished, collected.evicted} == {Gone(0, 0)}
    assert await store.contents() == before


@pytest.mark.parametrize("remove", [False, True])
async def test_verifying_finds_what_is_damaged(store: Store, damage: Damage, remove: bool) -> None:
    """Each content has its verdict, with who has it; with `remove`, what is damaged is no longer cached when it comes."""
    image = await put_image(store, APP, ONE, layer := os.urandom(1000))
    loose = await put(store, os.urandom(1000))
    damage(Digest.of(layer))
    damage(loose)
    found = {}
    async with aclosing(store.verify(await store.contents(), remove=remove)) as verdicts:
        async for verdict in verdicts:
            found[verdict.digest] = verdict
            if verdict.state is State.DAMAGED:
                assert (store.size(verdict.digest) is None) is remove
    assert {digest for digest, verdict in found.items() if verdict.state is State.WHOLE} == {image.digest, Digest.of(b"{}")}
    assert [found[digest].holder for digest in (Digest.of(layer), loose)] == [APP, None]
    assert not found[loose].is_manifest


async def test_damage_is_not_served_once_it_is_looked_for(store: Store, damage: Damage) -> None:
    """Verified in the background, a damaged blob is removed; a sound one stays."""
    sound, rotten = await put(store, os.urandom(1000)), await put(store, os.urandom(1000))
    damage(rotten)
    store.verify_behind(sound)
    store.verify_behind(rotten)
    await until(lambda: store.size(rotten) is None)
    assert await store.open(rotten) is None
    reader = await store.open(sound)
    assert reader is not None
    await reader.aclose()


# ---------------------------------------------------------------------- processes


async def test_work_in_the_background_begins_and_ends(store: Store) -> None:
    """With nothing to do; the store is closed while it goes on."""

    async def restored(*_: object) -> None:
        raise AssertionError("nothing is damaged")

    digest = await put(store, b"kept")
    store.start(restored)
    store.start_counting()
    store.count_pull(APP, ONE)
    await asyncio.sleep(0)
    assert store.size(digest) == 4


async def test_a_status_is_there_until_it_is_removed(store: Store) -> None:
    """As JSON gives it back: it is for other processes."""
    assert await store.statuses() == []
    await store.set_status({"a": (1, 2)})
    assert await store.statuses() == [{"a": [1, 2]}]
    await store.set_status([])
    assert await store.statuses() == [[]]
    await store.set_status(None)
    assert await store.statuses() == []


async def test_a_store_yields_no_change_of_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it writes."""
    monkeypatch.setattr(disk_store, "_WATCH", 0.01)
    changes = store.watch()
    waiting = asyncio.ensure_future(anext(changes))
    image = await put_image(store, APP, ONE, b"layer")
    await store.set_tag(APP, TWO, TagRecord(image.descriptor, 5.0))
    await store.drop_tag(APP, TWO)
    await store.delete(APP, ONE)
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await changes.aclose()


async def test_a_store_on_the_disk_yields_what_others_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags that were set, by name; and that something was dropped or deleted. Its own writes in between count for nothing."""
    monkeypatch.setattr(disk_store, "_WATCH", 0.01)
    async with DiskStore(tmp_path, Upkeep(LIMIT)) as one, DiskStore(tmp_path, Upkeep(LIMIT)) as two, asyncio.timeout(PATIENCE):
        changes = one.watch()
        image = await put_image(two, APP, ONE, b"layer")
        assert await anext(changes) == Change(False, ((APP, ONE),))
        await one.set_tag(APP, TWO, TagRecord(image.descriptor, 6.0))
        await one.drop_tag(APP, TWO)
        await two.set_tag(APP, ONE, TagRecord(image.descriptor, 7.0))
        assert await anext(changes) == Change(False, ((APP, ONE),))
        await two.set_tag(APP, TWO, TagRecord(image.descriptor, 7.0))
        await two.drop_tag(APP, TWO)
        assert (await anext(changes)).deleted
        await two.delete(APP, ONE)
        assert await anext(changes) == Change(True, ())
        await changes.aclose()


async def test_room_that_another_process_has_granted_is_not_given_away(tmp_path: Path) -> None:
    """Its downloads go on without asking as far as they were granted: together all stay within the limit."""
    async with DiskStore(tmp_path, Upkeep(LIMIT)) as one, DiskStore(tmp_path, Upkeep(LIMIT)) as two:
        others = [two.partial(Digest.of(bytes([number]))) for number in range(40)]
        for partial in others:
            assert partial.lead()
            await partial.set_size(20_000)
            await partial.write(0, bytes(10_000))
        large = one.partial(Digest.of(b"large"))
        assert large.lead()
        await large.set_size(500_000)
        refused = False
        for offset in range(0, 500_000, 10_000):
            try:
                await large.write(offset, bytes(10_000))
            except StorageFull:
                refused = True
                break
        assert refused
        for partial in others:
            await partial.write(10_000, bytes(5_000))
        assert large.have.total + sum(partial.have.total for partial in others) <= LIMIT
        for partial in (large, *others):
            partial.close()


async def test_what_is_asked_of_another_mirror_is_known_while_it_is(store: Store) -> None:
    """For each blob by itself, as long as one of several questions is open, however they end."""
    one, other = Digest.of(b"one"), Digest.of(b"other")
    assert not store.asks_peer(one)
    with store.asking_peer(one):
        with pytest.raises(MirrorError), store.asking_peer(one):
            raise MirrorError("broken off")
        assert store.asks_peer(one)
        assert not store.asks_peer(other)
    assert not store.asks_peer(one)


async def test_every_method_of_a_store_is_called_here() -> None:
    """Or in test_sources.py and test_hosted.py, which run on both stores too: the suite is as wide as the interface."""
    text = "".join(Path(__file__).with_name(f"test_{name}.py").read_text() for name in ("conformance", "sources", "hosted"))
    for protocol, name in (
        (Store, "store"),
        (Possessions, "store"),
        (Partial, "partial"),
        (HostedStore, "hosted"),
        (Upload, "upload"),
    ):
        for method in vars(protocol):
            if not method.startswith("_"):
                assert re.search(rf"\.{method}\b", text), f"{name}.{method}"


# ---------------------------------------------------------------------- the history of tags


def descriptor(name: str) -> Descriptor:
    return Descriptor(OCI_MANIFEST, Digest.of(name.encode()), 5, "https://registry.example")


async def test_a_tags_history_says_what_it_meant_and_when(store: Store) -> None:
    """One sighting for each time that it meant something without a break: moved, moved back, gone, and there again."""
    a, b = descriptor("a"), descriptor("b")
    for moment, found in ((1.0, a), (2.0, a), (3.0, b), (4.0, a)):
        await store.set_tag(APP, ONE, TagRecord(found, moment))
    await store.drop_tag(APP, ONE, gone=5.0)
    await store.drop_tag(APP, ONE, gone=6.0)
    await store.set_tag(APP, ONE, TagRecord(a, 7.0))
    assert await store.history(APP, ONE) == [
        Sighting(a, 1.0, 2.0, served=1.0),
        Sighting(b, 3.0, 3.0, served=3.0),
        Sighting(a, 4.0, 4.0, served=4.0, gone=5.0),
        Sighting(a, 7.0, 7.0, served=7.0),
    ]
    assert [sighting.descriptor.endpoint for sighting in await store.history(APP, ONE)] == [a.endpoint] * 4
    assert await store.history(APP, TWO) == await store.history(OTHER, ONE) == []
    assert (await store.tags_of(APP, b.digest), await store.tags_of(OTHER, b.digest)) == (["1"], [])


async def test_however_often_a_tag_moves_what_was_served_is_in_its_history(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the latest sightings are returned of a tag that moves and moves, but those that clients got are among them, the first one too."""
    monkeypatch.setattr("mirror.storage.disk.catalog.sightings._MOST", 3)
    names = ["first", "second", "third", "fourth"]
    for moment, name in enumerate(names):
        await store.set_tag(APP, ONE, TagRecord(descriptor(name), float(moment)))
    for moment in range(100, 120):
        await store.note_tag(APP, ONE, descriptor(f"held {moment % 2}"), float(moment))
    history = await store.history(APP, ONE)
    assert [one.digest for one in history if one.served is not None] == [descriptor(name).digest for name in names]
    assert [one.first for one in history][-3:] == [117.0, 118.0, 119.0]
    assert isinstance(store, MemoryStore) or len(history) == 7


async def test_since_when_a_tag_is_known_to_mean_a_digest(store: Store) -> None:
    """The first time of each, however often it is checked, moves away and back, or is gone; what was only held back was seen too. None for what it never meant."""
    a, b = descriptor("a"), descriptor("b")
    for moment, found in ((1.0, a), (2.0, a), (3.0, b), (4.0, a)):
        await store.set_tag(APP, ONE, TagRecord(found, moment))
    await store.drop_tag(APP, ONE, gone=5.0)
    await store.set_tag(APP, ONE, TagRecord(a, 7.0))
    await store.note_tag(APP, TWO, b, 8.0)
    asked = [(APP, TWO, b.digest), (APP, ONE, a.digest), (APP, ONE, b.digest), (APP, TWO, a.digest), (OTHER, ONE, a.digest)]
    assert await store.first_seen(asked) == [8.0, 1.0, 3.0, None, None]
    assert await store.first_seen([]) == []


async def test_the_history_stays_when_the_image_is_deleted(store: Store) -> None:
    """A tag that is deleted here has meant what it has meant."""
    manifest = await put_image(store, APP, ONE, b"layer")
    await store.delete(APP, ONE)
    assert await store.manifest(manifest.digest) is None
    (sighting,) = await store.history(APP, ONE)
    assert (sighting.digest, sighting.gone) == (manifest.digest, None)


async def test_what_is_held_back_is_seen_and_not_served(store: Store) -> None:
    """`note_tag` records it, `set_tag` with `held_until` does not count as its being served, and what is served instead keeps its place."""
    a, b = descriptor("a"), descriptor("b")
    await store.set_tag(APP, ONE, TagRecord(a, 1.0))
    await store.note_tag(APP, ONE, b, 2.0)
    await store.set_tag(APP, ONE, TagRecord(a, 2.0, 100.0), seen=False)
    assert await store.tag(APP, ONE) == TagRecord(a, 2.0, 100.0)
    assert [(sighting.digest, sighting.served) for sighting in await store.history(APP, ONE)] == [
        (a.digest, 1.0),
        (b.digest, None),
    ]
    held = HeldTag(APP, ONE, a.digest, b.digest, 2.0, 100.0)
    assert await store.held() == await store.held(APP) == [held]
    assert await store.held(OTHER) == []
    await store.set_tag(APP, ONE, TagRecord(b, 100.0), seen=False)
    assert await store.held() == []
    assert [sighting.served for sighting in await store.history(APP, ONE)] == [1.0, 100.0]


async def test_a_release_is_recorded_with_who_and_why_and_has_the_registry_asked(store: Store) -> None:
    """The tag is not fresh any more, so that the next request finds what is new. A tag that is gone, or was never seen, cannot be released."""
    a, b, released = descriptor("a"), descriptor("b"), Released(3.0, "ann", "CVE")
    assert await store.release(APP, ONE, released) is None
    await store.set_tag(APP, ONE, TagRecord(a, 1.0))
    await store.note_tag(APP, ONE, b, 2.0)
    await store.set_tag(APP, ONE, TagRecord(a, 2.0, 100.0), seen=False)
    assert [one.released for one in await store.held()] == [False]
    assert await store.release(APP, ONE, released) == b.digest
    assert [one.released for one in await store.held()] == [True]
    assert [sighting.released for sighting in await store.history(APP, ONE)] == [None, released]
    record = await store.tag(APP, ONE)
    assert record is not None
    assert (record.descriptor.digest, record.checked) == (a.digest, 0.0)
    await store.drop_tag(APP, ONE, gone=4.0)
    assert await store.release(APP, ONE, released) is None


async def test_moves_are_listed_the_latest_first_with_those_that_went_back(store: Store) -> None:
    """A tag's first sighting is no move, and neither is one that is gone and comes again as it was."""
    a, b = descriptor("a"), descriptor("b")
    for moment, tag, found in ((1.0, ONE, a), (2.0, TWO, b), (3.0, ONE, b), (4.0, ONE, a)):
        await store.set_tag(APP, tag, TagRecord(found, moment))
    await store.drop_tag(APP, TWO, gone=5.0)
    await store.set_tag(APP, TWO, TagRecord(b, 6.0))
    back, forth = Move(APP, ONE, b.digest, a.digest, 4.0, True), Move(APP, ONE, a.digest, b.digest, 3.0, False)
    assert await store.moves(10) == [back, forth]
    assert await store.moves(1) == [back]


async def test_digests_are_blocked_and_unblocked_by_hand(store: Store) -> None:
    """With who, when and why. Blocking again replaces the reason."""
    digest = Digest.of(b"poison")
    assert (await store.blocks(), await store.unblock(digest)) == ([], False)
    await store.block(Block(digest, "first", "ann", 1.0))
    await store.block(Block(digest, "poisoned", "ann", 2.0))
    assert await store.blocks() == [Block(digest, "poisoned", "ann", 2.0)]
    assert await store.unblock(digest)
    assert await store.blocks() == []


@pytest.mark.parametrize("held_until", [100.0, None])
async def test_what_is_served_in_place_of_something_held_back_is_not_evicted(store: Store, held_until: float | None) -> None:
    """It may not be had elsewhere any more. If nothing is held back, it is content like any other."""
    layer = b"a" * 300_000
    image = await put_image(store, APP, ONE, layer)
    await store.set_tag(APP, ONE, TagRecord(image.descriptor, 6.0, held_until), seen=False)
    for number in range(12):
        await put(store, bytes([number]) * 200_000)
    assert (store.size(Digest.of(layer)) is not None) == (held_until is not None)


async def test_what_guards_have_done_is_counted(store: Store) -> None:
    """By rule, verdict and name, with the last reason; the latest first."""
    for reason in ("first", "second"):
        store.count_ruling("cool", "held", APP, ONE, reason)
    store.count_ruling("list", "refused", APP, Digest.of(b"poison"), "poisoned")
    listed, cool = await store.rulings(10)
    assert (cool.rule, cool.verdict, cool.repository, cool.reference, cool.count, cool.reason) == (
        "cool",
        "held",
        APP,
        ONE,
        2,
        "second",
    )
    assert (listed.reference, listed.count) == (Digest.of(b"poison"), 1)
    assert await store.rulings(1) == [listed]


async def test_clients_cannot_fill_the_catalog_with_what_is_refused(store: Store) -> None:
    """Whoever asks for one digest after another that a rule refuses adds a line each time: the latest are kept."""
    digests = [Digest.of(str(number).encode()) for number in range(MOST_RULINGS + 10)]
    for digest in digests:
        store.count_ruling("none", "refused", APP, digest, "it is denied")
    kept = [ruled.reference for ruled in await store.rulings(len(digests))]
    assert 0.9 * MOST_RULINGS < len(kept) <= MOST_RULINGS
    assert kept[0] == digests[-1]
    assert digests[0] not in kept
