"""What every store promises of hosted repositories (mirror/storage/hosted.py), on each of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.bucket.hosting import DurableHosted
from mirror.disk_room import DiskRoom
from mirror.errors import (
    DigestInvalid,
    HostedFull,
    InUse,
    LimitReached,
    ManifestInvalid,
    MirrorError,
    Pinned,
    ReferenceUnknown,
    StorageFull,
    TagImmutable,
    UploadBusy,
    UploadUnknown,
)
from mirror.hosted.manifests import pushed_manifest
from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest, Repository, Tag
from mirror.patterns import Pattern
from mirror.storage.disk.store import DiskStore
from mirror.storage.disk.uploads import UploadFile, UploadFiles
from mirror.storage.hosted import PushedManifest
from mirror.storage.memory import MemoryStore
from mirror.storage.settings import HostedRules, Upkeep
from mirror.storage.sightings import Released
from mirror.storage.store import Store
from mirror.upstream import Connections, Timeouts
from mirror.upstream.bucket import Bucket
from mirror.upstream.objects import Objects
from mirror.upstream.transport import Transport
from tests.storage.test_conformance import ONE, OTHER, joined, put_image
from tests.support.patience import PATIENCE
from tests.support.pushes import manifest_of
from tests.support.s3 import S3

APP, BASE = Repository("docker.io", "team/app"), Repository("docker.io", "team/base")
RULES = HostedRules("docker.io", (Pattern("team/**"),), 50_000, ((Pattern("team/**"), Pattern("v*")),), untagged=0.0, grace=0.0)


@pytest.fixture(params=["disk", "disk and bucket", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """One of the two stores, or one behind which there is a bucket of a real S3 server."""
    if request.param == "memory":
        async with MemoryStore(100_000, RULES) as memory:
            yield memory
        return
    async with contextlib.AsyncExitStack() as stack:
        url = "s3://images" if request.param == "disk and bucket" else None
        disk = await stack.enter_async_context(DiskStore(tmp_path / "cache", Upkeep(100_000, hosted=RULES), bucket=url))
        if request.param == "disk and bucket":
            s3: S3 = request.getfixturevalue("s3")
            transport = Transport(Timeouts(1, 3, 1, 1), Connections(1, 1, 1))
            stack.push_async_callback(transport.aclose)
            bucket = Bucket(Objects("s3://images", s3.url, None), transport, None)
            stack.push_async_callback(bucket.aclose)
            disk.hosted = DurableHosted(disk.hosted, disk, disk.outbox, bucket, "mirror", lambda: False)
        yield disk


async def push(store: Store, repository: Repository, data: bytes, algorithm: str = "sha256") -> Digest:
    """Uploads a blob."""
    digest = Digest.of(data, algorithm)
    upload = await store.hosted.begin(repository, "somebody")
    await upload.write([data[:10], data[10:]])
    await upload.commit(digest, "somebody")
    upload.close()
    return digest


def image(*layers: bytes, **fields: object) -> PushedManifest:
    body = manifest_of(b"{}", *layers, **fields)
    return pushed_manifest(body, OCI_MANIFEST, Digest.of(body))


async def push_image(store: Store, repository: Repository, tags: list[str], *layers: bytes, **fields: object) -> Digest:
    for data in (b"{}", *layers):
        await push(store, repository, data)
    pushed = image(*layers, **fields)
    await store.hosted.put_manifest(repository, pushed, tags, "somebody")
    return pushed.manifest.digest


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 1, 20_000])
async def test_a_repository_has_what_was_uploaded_to_it(store: Store, size: int, algorithm: str) -> None:
    """And no other repository has it. It can be read."""
    data = os.urandom(size)
    digest = await push(store, APP, data, algorithm)
    assert (await store.hosted.has(APP, digest), await store.hosted.has(BASE, digest)) == (True, False)
    reader = await store.open(digest)
    assert reader is not None
    assert await joined(reader) == data
    await reader.aclose()
    assert await store.holders(digest) == {APP}


async def test_content_that_is_not_what_its_digest_says_is_not_kept(store: Store) -> None:
    """The bytes stay, so the client can say the right digest."""
    upload = await store.hosted.begin(APP, "somebody")
    await upload.write([b"some", b"thing"])
    with pytest.raises(DigestInvalid):
        await upload.commit(Digest.of(b"something else"), "")
    assert upload.size == 9
    await upload.commit(Digest.of(b"something"), "")
    upload.close()
    assert store.size(Digest.of(b"something")) == 9


async def test_an_upload_is_as_long_as_it_is_rewound_to(store: Store) -> None:
    """What comes after that is what the digest counts."""
    upload = await store.hosted.begin(APP, "somebody")
    await upload.write([b"some", b"what"])
    await upload.rewind(4)
    assert upload.size == 4
    await upload.write([b"thing"])
    await upload.commit(Digest.of(b"something"), "")
    upload.close()
    assert store.size(Digest.of(b"something")) == 9


async def test_what_is_not_here_is_nowhere_else(store: Store) -> None:
    """Of a store that has begun nothing in the background."""
    await store.hosted.check_complete()


async def test_which_repositories_live_here(store: Store) -> None:
    """Those that the patterns cover, in the registry of names without one."""
    assert store.hosted.active
    covered = {"team/app": True, "team/a/b": True, "team": False, "library/team": False, "teams/app": False}
    assert {path: store.hosted.covers(Repository("docker.io", path)) for path in covered} == covered
    assert not store.hosted.covers(Repository("ghcr.io", "team/app"))


async def test_an_upload_is_continued_by_its_id(store: Store) -> None:
    """By one writer at a time, for the same repository only, until it ends."""
    first = await store.hosted.begin(APP, "somebody")
    await first.write([b"one"])
    with pytest.raises(UploadBusy):
        await store.hosted.resume(APP, first.id)
    looked = await store.hosted.resume(APP, first.id, write=False)
    assert looked.size == 3
    looked.close()
    first.close()
    for repository, name in ((BASE, first.id), (APP, "0" * 32), (APP, "../../etc/passwd")):
        with pytest.raises(UploadUnknown):
            await store.hosted.resume(repository, name)
    second = await store.hosted.resume(APP, first.id)
    assert second.size == 3
    await second.write([b"two"])
    await second.commit(Digest.of(b"onetwo"), "")
    second.close()
    with pytest.raises(UploadUnknown):
        await store.hosted.resume(APP, first.id)


async def test_a_cancelled_upload_is_gone(store: Store) -> None:
    """And its bytes count no more."""
    upload = await store.hosted.begin(APP, "somebody")
    await upload.write([b"x" * 1000])
    assert (await store.hosted.usage()).uploads == 1000
    await upload.discard()
    upload.close()
    assert (await store.hosted.usage()).uploads == 0
    with pytest.raises(UploadUnknown):
        await store.hosted.resume(APP, upload.id)


async def test_a_manifest_needs_what_it_names(store: Store) -> None:
    """In its own repository. Then its tags mean it."""
    await push(store, APP, b"{}")
    await push(store, BASE, b"layer")
    with pytest.raises(ReferenceUnknown):
        await store.hosted.put_manifest(APP, image(b"layer"), ["1"], "")
    assert await store.hosted.tags(APP) == []
    assert await store.hosted.mount(APP, Digest.of(b"layer"), "")
    await store.hosted.put_manifest(APP, image(b"layer"), ["1", "2"], "")
    assert await store.hosted.tags(APP) == ["1", "2"]
    record = await store.tag(APP, Tag("2"))
    assert record is not None
    assert record.descriptor == image(b"layer").manifest.descriptor
    assert await store.manifest(record.descriptor.digest) == image(b"layer").manifest


async def test_a_manifest_says_true_sizes(store: Store) -> None:
    """Of blobs and of manifests, where it says any that must be true: clients refuse what has another size."""
    await push(store, APP, b"{}")
    await push(store, APP, b"layer")
    child = image(b"layer")
    await store.hosted.put_manifest(APP, child, [], "")
    for named, size in ((Digest.of(b"layer"), 5), (child.manifest.digest, len(child.manifest.body))):
        pushed = dataclasses.replace(image(b"layer"), sizes={named: size + 1})
        with pytest.raises(ManifestInvalid):
            await store.hosted.put_manifest(APP, pushed, ["1"], "")
        assert await store.hosted.tags(APP) == []
        await store.hosted.put_manifest(APP, dataclasses.replace(pushed, sizes={named: size}), [str(size)], "")
        assert await store.hosted.tags(APP) == [str(size)]
        await store.hosted.delete_tag(APP, str(size))


async def test_tags_come_in_pages(store: Store) -> None:
    """In ASCII order."""
    await push_image(store, APP, ["b", "a", "B", "10", "9"])
    assert await store.hosted.tags(APP) == ["10", "9", "B", "a", "b"]
    assert await store.hosted.tags(APP, "9", 2) == ["B", "a"]
    assert await store.hosted.tags(APP, "zzz") == []


async def test_cached_content_is_mounted(store: Store) -> None:
    """From then on it is the repository's, and counts for it; what is not here cannot be mounted."""
    await put_image(store, OTHER, ONE, b"layer" * 100)
    layer = Digest.of(b"layer" * 100)
    await store.note_holder(OTHER, [layer], told=True)
    before = (await store.statistics()).size
    assert await store.holders(layer) == {OTHER}
    assert await store.hosted.mount(APP, layer, "")
    assert await store.hosted.has(APP, layer)
    assert (await store.statistics()).size == before - 500
    assert (await store.hosted.usage()).content == 500
    assert not await store.hosted.mount(APP, Digest.of(b"elsewhere"), "")


async def test_what_was_pushed_is_not_evicted(store: Store) -> None:
    """However much is cached after it; and it does not count for the cache."""
    layer = os.urandom(40_000)
    digest = await push_image(store, APP, ["1"], layer)
    for number in range(5):
        await put_image(store, OTHER, Tag(str(number)), os.urandom(60_000), config=b"%d" % number)
    await store.collect()
    assert store.size(Digest.of(layer)) == 40_000
    assert await store.manifest(digest) is not None


async def test_a_pushed_tag_has_a_time(store: Store) -> None:
    """Of the push, since no registry says what it means; none for what it does not mean."""
    digest = await push_image(store, APP, ["1"])
    record = await store.tag(APP, Tag("1"))
    assert record is not None
    assert await store.first_seen([(APP, Tag("1"), digest), (APP, Tag("1"), Digest.of(b"other"))]) == [record.checked, None]


async def test_what_is_served_in_place_of_a_push_that_is_held_is_kept(store: Store) -> None:
    """Though no tag names it, until clients get what was pushed; the list of what is held says what they get, and the history who pushed."""
    first = await push_image(store, APP, ["1"], b"first")
    second = image(b"second")
    await push(store, APP, b"second")
    await store.hosted.put_manifest(APP, second, ["1"], "ann", served=False)
    record = await store.tag(APP, Tag("1"))
    assert record is not None
    assert record.descriptor.digest == second.manifest.digest
    await store.hosted.note_ruled(APP, Tag("1"), first, 1.0, None)
    await store.hosted.note_ruled(APP, Tag("1"), second.manifest.digest, 2.0, 3.0)
    assert [(held.served, held.new, held.until) for held in await store.held(APP)] == [(first, second.manifest.digest, 3.0)]
    await store.hosted.collect()
    assert await store.hosted.has(APP, first)
    assert await store.release(APP, Tag("1"), Released(4.0, "ann", "urgent")) == second.manifest.digest
    after = await store.tag(APP, Tag("1"))
    assert after is not None
    assert after.checked == record.checked
    await store.hosted.note_ruled(APP, Tag("1"), second.manifest.digest, 5.0, None)
    assert await store.held(APP) == []
    history = await store.history(APP, Tag("1"))
    assert [seen.descriptor.endpoint for seen in history] == ["push by somebody", "push by ann"]
    assert [seen.served is not None for seen in history] == [True, True]
    assert await store.moves(5) == []
    await store.hosted.collect()
    assert not await store.hosted.has(APP, first)


async def test_a_mount_that_comes_too_early_does_not_lose_who_has_the_blob(store: Store) -> None:
    """While it is downloaded, whose repository has it is noted before it is kept: it can be mounted then."""
    digest = Digest.of(b"layer")
    await store.note_holder(OTHER, [digest], told=True)
    assert not await store.hosted.mount(APP, digest, "")
    await put_image(store, OTHER, ONE, b"layer")
    assert OTHER in await store.told_holders(digest)
    assert await store.hosted.mount(APP, digest, "")


@pytest.mark.parametrize("how", ["tag", "digest", "deleted as a tag", "deleted as a manifest"])
async def test_a_pushed_tag_that_is_deleted_is_gone_in_its_history(store: Store, how: str) -> None:
    """By a client and by `mirror rm`: unlike a cached one, there is no such tag any more. Others that mean the image go on."""
    digest = await push_image(store, APP, ["1", "2"], b"layer")
    if how == "tag":
        await store.delete(APP, Tag("1"))
    elif how == "digest":
        await store.delete(APP, digest)
    elif how == "deleted as a tag":
        await store.hosted.delete_tag(APP, "1")
    else:
        await store.hosted.delete_manifest(APP, digest)
    (one,), (two,) = await store.history(APP, Tag("1")), await store.history(APP, Tag("2"))
    assert (one.gone is not None, two.gone is not None) == (True, how not in ("tag", "deleted as a tag"))
    again = await push_image(store, APP, ["1"], b"layer")
    assert [(seen.digest, seen.gone is None) for seen in await store.history(APP, Tag("1"))] == [(digest, False), (again, True)]


async def test_a_pinned_image_that_is_hosted_takes_no_room_of_the_cache(store: Store) -> None:
    """A download that fits into the cache is kept."""
    await push_image(store, APP, ["1"], os.urandom(40_000))
    assert await store.pin(APP, ONE)
    data = os.urandom(90_000)
    partial = store.partial(Digest.of(data))
    assert partial.lead()
    await partial.set_size(len(data))
    await partial.write(0, data)
    await partial.commit()
    partial.close()
    assert store.size(Digest.of(data)) == 90_000


async def test_more_than_the_limit_is_refused(store: Store) -> None:
    """While it comes, and what was there before stays."""
    await push(store, APP, b"x" * 30_000)
    upload = await store.hosted.begin(APP, "somebody")
    with pytest.raises(HostedFull):
        await upload.write([b"y" * 30_000])
    await upload.discard()
    upload.close()
    with pytest.raises(HostedFull):
        await store.hosted.check_room(20_001)
    await store.hosted.check_room(20_000)
    await push(store, BASE, b"z" * 20_000)


async def test_what_is_announced_evicts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever size a client says that it will send, the cache makes room only for the bytes that come; what cannot fit, or is beyond the limit, is refused before."""
    disk = 1_000_000
    rules = dataclasses.replace(RULES, max_size=800_000)

    def measured(*_: object) -> DiskRoom:
        used = sum(file.stat().st_size for name in ("blobs", "spool") for file in (tmp_path / name).rglob("*") if file.is_file())
        return DiskRoom(disk, disk - used, 0, None)

    monkeypatch.setattr("mirror.storage.disk.maintenance.eviction.measure", measured)
    async with DiskStore(tmp_path, Upkeep(900_000, hosted=rules)) as store:
        layers = [os.urandom(100_000) for _ in range(6)]
        await put_image(store, Repository("docker.io", "library/cached"), ONE, *layers)

        def cached() -> int:
            return sum(store.size(Digest.of(layer)) is not None for layer in layers)

        await store.hosted.check_room(750_000)
        with pytest.raises(HostedFull):
            await store.hosted.check_room(800_001)
        upload = await store.hosted.begin(APP, "somebody")
        with pytest.raises(HostedFull):
            await upload.write([b"x" * 800_001])
        assert cached() == 6
        await upload.write([b"x" * 300_000])
        assert cached() == 6, "there was room"
        await upload.write([b"x" * 300_000])
        assert 0 < cached() < 6
        upload.close()
        disk = 650_000
        with pytest.raises(StorageFull):
            await store.hosted.check_room(190_000)


def leave_alone(directory: Path, *uploads: str) -> None:
    """Makes it long ago that some uploads were written to, the first ones the longest."""
    for number, upload in enumerate(uploads):
        os.utime(directory / "spool" / f"{upload}.upload", (0.0, 1000.0 + number))


async def begin(store: Store, whose: str, data: bytes = b"") -> str:
    """Begins an upload that is not ended; returns its id."""
    with contextlib.closing(await store.hosted.begin(APP, whose)) as upload:
        if data:
            await upload.write([data])
        return upload.id


async def is_there(store: Store, upload: str) -> bool:
    try:
        (await store.hosted.resume(APP, upload, write=False)).close()
    except UploadUnknown:
        return False
    return True


@pytest.fixture
async def tight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DiskStore]:
    """Of which one client may have 3 uploads, all together 5."""
    for name, value in (("_EACH", 3), ("_ALL", 5), ("_UNCHECKED", 0)):
        monkeypatch.setattr(f"mirror.storage.disk.upload_limits.{name}", value)
    async with DiskStore(tmp_path, Upkeep(100_000, hosted=RULES)) as made:
        yield made


async def test_unfinished_uploads_are_bounded_in_number(tight: DiskStore, tmp_path: Path) -> None:
    """Of each client and of all: one more is refused while they are continued, and takes the place of the one that was left alone for longest; never of one that
    is being written, nor of another client's that has fewer."""
    mine = [await begin(tight, "mine") for _ in range(3)]
    with pytest.raises(LimitReached):
        await tight.hosted.begin(APP, "mine")
    theirs = [await begin(tight, "theirs") for _ in range(2)]
    with pytest.raises(LimitReached):
        await tight.hosted.begin(APP, "theirs")
    leave_alone(tmp_path, *theirs, *mine)
    busy = await tight.hosted.resume(APP, mine[0])
    theirs.append(await begin(tight, "theirs"))
    busy.close()
    assert [await is_there(tight, one) for one in (*mine, *theirs)] == [True, False, True, True, True, True]
    mine.append(await begin(tight, "mine"))
    assert [await is_there(tight, one) for one in (*mine, *theirs)] == [True, False, True, True, False, True, True], (
        "of those who had most"
    )
    assert len(list((tmp_path / "spool").iterdir())) == 5


async def test_unfinished_uploads_are_bounded_in_bytes(tight: DiskStore, tmp_path: Path) -> None:
    """One may have all of hosted.max_size, what its client has beside it half. Those that were left alone go, and others' go where there is no room else."""
    mine = [await begin(tight, "mine", b"x" * size) for size in (13_000, 14_000)]
    with contextlib.closing(await tight.hosted.begin(APP, "mine")) as more:
        with pytest.raises(LimitReached):
            await more.write([b"x" * 12_500])
        leave_alone(tmp_path, *mine)
        await more.write([b"x" * 12_500])
    assert [await is_there(tight, one) for one in (*mine, more.id)] == [False, True, True], "all would be more than half"
    with contextlib.closing(await tight.hosted.begin(APP, "theirs")) as other:
        with pytest.raises(HostedFull):
            await other.write([b"x" * 39_000])
        await other.write([b"x" * 37_500])
    assert [await is_there(tight, one) for one in (mine[1], more.id, other.id)] == [False, True, True]
    assert (await tight.hosted.usage()).uploads == 50_000


async def test_what_is_too_large_is_so_beside_another_upload_of_its_client(tight: DiskStore) -> None:
    """Not a matter of how much it has in progress, though nobody knows its size before it is here: there is no use in trying again."""
    await begin(tight, "mine", b"x" * 1000)
    with contextlib.closing(await tight.hosted.begin(APP, "mine")) as large:
        for _ in range(4):
            await large.write([b"x" * 12_000])
        with pytest.raises(HostedFull):
            await large.write([b"x" * 12_000])


async def test_an_immutable_tag_stays(store: Store) -> None:
    """It is pushed again with the same manifest only, and not deleted."""
    digest = await push_image(store, APP, ["v1", "latest"], b"one")
    await push_image(store, APP, ["v1"], b"one")
    await push(store, APP, b"two")
    with pytest.raises(TagImmutable):
        await store.hosted.put_manifest(APP, image(b"two"), ["v1"], "")
    await store.hosted.put_manifest(APP, image(b"two"), ["latest"], "")
    with pytest.raises(TagImmutable):
        await store.hosted.delete_tag(APP, "v1")
    with pytest.raises(TagImmutable):
        await store.hosted.delete_manifest(APP, digest)


async def test_what_is_deleted_is_gone_from_its_repository_only(store: Store) -> None:
    """A tag, a manifest with its tags, a blob that no manifest names any more. What is pinned stays."""
    digest = await push_image(store, APP, ["1", "2"], b"layer")
    await push_image(store, BASE, ["1"], b"layer")
    assert await store.hosted.delete_tag(APP, "2")
    assert not await store.hosted.delete_tag(APP, "2")
    assert await store.hosted.has(APP, digest)
    with pytest.raises(InUse):
        await store.hosted.delete_blob(APP, Digest.of(b"layer"))
    await store.pin(APP, ONE)
    for delete in (store.hosted.delete_tag(APP, "1"), store.hosted.delete_manifest(APP, digest)):
        with pytest.raises(Pinned):
            await delete
    await store.unpin(APP, ONE)
    assert await store.hosted.delete_manifest(APP, digest)
    assert not await store.hosted.delete_manifest(APP, digest)
    assert await store.hosted.tags(APP) == []
    assert await store.hosted.delete_blob(APP, Digest.of(b"layer"))
    assert not await store.hosted.delete_blob(APP, Digest.of(b"layer"))
    assert (await store.hosted.has(BASE, digest), await store.hosted.tags(BASE)) == (True, ["1"])


async def test_referrers_are_listed_by_their_subject(store: Store) -> None:
    """As descriptors with type and annotations, in their own repository, until they are deleted."""
    digest = await push_image(store, APP, ["1"], b"layer")
    subject = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 1}
    signed = await push_image(store, APP, [], b"signature", subject=subject, artifactType="application/x", annotations={"a": "b"})
    size = len(image(b"signature", subject=subject, artifactType="application/x", annotations={"a": "b"}).manifest.body)
    described = {"mediaType": OCI_MANIFEST, "digest": str(signed), "size": size}
    assert await store.hosted.referrers(APP, digest) == [
        {**described, "artifactType": "application/x", "annotations": {"a": "b"}}
    ]
    assert await store.hosted.referrers(BASE, digest) == []
    await store.hosted.delete_manifest(APP, signed)
    assert await store.hosted.referrers(APP, digest) == []


async def test_the_list_of_referrers_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever pushes referrers full of annotations makes nobody read gigabytes: all are listed, as many as fit with their annotations, the short ones first."""
    monkeypatch.setattr("mirror.storage.disk.catalog.hosted.MOST_DESCRIBED", 2000)
    monkeypatch.setattr("mirror.storage.memory_hosted.MOST_DESCRIBED", 2000)
    digest = await push_image(store, APP, ["1"], b"layer")
    subject = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 1}
    for number in range(4):
        await push_image(store, APP, [], b"signature", subject=subject, annotations={"n": "x" * (300 * number + 1)})
    found = await store.hosted.referrers(APP, digest)
    assert sorted(len(one.get("annotations", {}).get("n", "")) for one in found) == [0, 1, 301, 601]
    assert all(one["size"] > 0 and one["digest"] for one in found)


def test_what_a_referrer_says_of_itself_is_bounded() -> None:
    """Of its annotations the list has 64 KiB, the short ones first, and no media type that is none."""
    long, many = {"long": "x" * 70_000, "short": "y"}, {f"n{number}": "x" * 1000 for number in range(1000)}
    assert image(annotations=long, artifactType="application/x").described["annotations"] == {"short": "y"}
    assert 50 < len(image(annotations=many, artifactType="application/x").described["annotations"]) < 66
    assert "artifactType" not in image(artifactType="a" * 300).described


async def test_a_collection_deletes_what_nothing_names(store: Store) -> None:
    """Blobs without a manifest, manifests without a tag, index or subject, and what only those name. All else stays."""
    kept = await push_image(store, APP, ["1"], b"kept")
    subject = {"mediaType": OCI_MANIFEST, "digest": str(kept), "size": 1}
    signature = await push_image(store, APP, [], b"signature", subject=subject)
    await push(store, APP, b"alone" * 10)
    old = await push_image(store, APP, ["moved"], b"old" * 10)
    await push_image(store, APP, ["moved"], b"new")
    done = await store.hosted.collect()
    assert (done.manifests, done.blobs, done.tags) == (1, 2, ())
    assert done.size == 50 + 30 + len(image(b"old" * 10).manifest.body)
    for gone in (Digest.of(b"alone" * 10), Digest.of(b"old" * 10), old):
        assert (store.size(gone), await store.hosted.has(APP, gone)) == (None, False)
    assert await store.hosted.touch(APP, kept)
    assert not await store.hosted.touch(APP, old)
    for stays in (kept, signature, *map(Digest.of, (b"{}", b"kept", b"signature", b"new"))):
        assert await store.hosted.has(APP, stays)
        assert store.size(stays) is not None
    assert (await store.collect()).hosted.size == 0


FIRST, SECOND = b"the first layer", b"the second layer"


async def test_whoever_pushes_a_manifest_does_not_hold_what_it_names(store: Store) -> None:
    """A layer that registries do not have may be named without being there: naming a digest gives nobody what another repository holds under it."""
    secret = await push(store, BASE, FIRST)
    layer = {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": str(secret), "size": len(FIRST)}
    digest = await push_image(store, APP, ["1"], layers=[layer])
    assert await store.holders(secret) == {BASE}
    assert await store.holders(digest) == {APP}
    assert await store.holders(Digest.of(b"{}")) == {APP}


async def test_uploads_side_by_side_stay_within_the_limit(store: Store) -> None:
    """What each brings is counted as it comes, however much had room when it began."""
    one, other = await store.hosted.begin(APP, "somebody"), await store.hosted.begin(APP, "somebody")
    await one.write([b"1" * 20_000])
    await other.write([b"2" * 20_000])
    with pytest.raises(HostedFull):
        await one.write([b"1" * 20_000])
    await one.write([b"1" * 10_000])
    assert (one.size, other.size) == (30_000, 20_000)
    await one.discard()
    await other.write([b"2" * 20_000])
    one.close()
    other.close()


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[DiskStore]:
    async with DiskStore(tmp_path, Upkeep(100_000, hosted=RULES)) as made:
        yield made


async def test_what_a_lost_manifest_names_is_kept(disk: DiskStore) -> None:
    """A file of a few bytes that the disk has lost does not cost the layers: the manifest can be pushed again, and once it is deleted all goes."""
    digest = await push_image(disk, APP, ["1"], FIRST, SECOND)
    os.truncate(disk.blobs.path(digest), 1)
    assert await disk.manifest(digest) is None, "damaged, and removed"
    assert not (await disk.hosted.collect()).blobs
    await disk.hosted.put_manifest(APP, image(FIRST, SECOND), ["1"], "somebody")
    assert await disk.manifest(digest) is not None
    os.truncate(disk.blobs.path(digest), 1)
    disk._content.cool()
    assert await disk.manifest(digest) is None
    assert await disk.hosted.delete_manifest(APP, digest)
    assert (await disk.hosted.collect()).blobs == 3
    assert disk.size(Digest.of(FIRST)) is None


async def test_a_manifest_that_is_refused_takes_no_room(disk: DiskStore) -> None:
    """Neither one that names what is not there, nor one for a tag that must not move: nothing would count or delete its file."""
    await push_image(disk, APP, ["v1"], FIRST)
    await push(disk, APP, SECOND)
    before = set((disk.blobs.root / "blobs" / "sha256").iterdir())
    for pushed, tag, error in ((image(b"not here"), "1", ReferenceUnknown), (image(SECOND), "v1", TagImmutable)):
        with pytest.raises(error):
            await disk.hosted.put_manifest(APP, pushed, [tag], "somebody")
    assert set((disk.blobs.root / "blobs" / "sha256").iterdir()) == before


async def test_an_upload_whose_client_leaves_while_it_is_opened_can_be_continued(
    disk: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is closed, and with it the lock that keeps out others; no descriptor is lost."""
    upload = await disk.hosted.begin(APP, "somebody")
    upload.close()
    descriptors = len(os.listdir("/proc/self/fd"))
    opening, leaves = asyncio.Event(), threading.Event()
    loop, resume = asyncio.get_running_loop(), UploadFiles.resume

    def slow(*arguments: Any, **options: Any) -> UploadFile:
        found = resume(*arguments, **options)
        loop.call_soon_threadsafe(opening.set)
        leaves.wait(PATIENCE)
        return found

    monkeypatch.setattr(UploadFiles, "resume", slow)
    request = asyncio.create_task(disk.hosted.resume(APP, upload.id))
    await opening.wait()
    request.cancel()
    leaves.set()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert len(os.listdir("/proc/self/fd")) == descriptors
    monkeypatch.undo()
    (await disk.hosted.resume(APP, upload.id)).close()


async def test_other_rules_count_at_once_and_lose_nothing(store: Store) -> None:
    """A pattern that goes away takes no image with it; a smaller limit refuses the next push; with the old rules all is as it was."""
    await push_image(store, APP, ["1"], b"layer")
    store.hosted.take(dataclasses.replace(RULES, repositories=(Pattern("other/**"),), max_size=1))
    assert not store.hosted.covers(APP)
    assert store.hosted.covers(Repository("docker.io", "other/app"))
    assert await store.hosted.tags(APP) == ["1"]
    async with asyncio.timeout(PATIENCE):
        # It may be looked for in a bucket first.
        while True:
            with contextlib.suppress(MirrorError):
                await store.hosted.check_complete()
                break
            await asyncio.sleep(0.01)
    with pytest.raises(HostedFull):
        await push(store, Repository("docker.io", "other/app"), b"more")
    store.hosted.take(RULES)
    assert store.hosted.covers(APP)
    await push(store, APP, b"more")
