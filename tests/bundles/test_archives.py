"""Archives that are damaged, or made to do harm: an error that names the member, and nothing that is served or left."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import os
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror.bundles.archive import MOST_MEMBERS, ArchiveInvalid
from mirror.bundles.importing import Import, Importer, Wishes
from mirror.bundles.sources import Files, Folder, Pipe, Source
from mirror.errors import MirrorError, StorageFull
from mirror.manifests import OCI_MANIFEST, Manifest
from mirror.names import Digest, Reference, Repository, Tag, parse_image
from mirror.patterns import Pattern
from mirror.storage.memory import MemoryStore
from mirror.storage.settings import HostedRules
from tests.support.archives import docker_save, layout_of, pack
from tests.support.images import make_image

NAME = "docker.io/library/app:1"
APP = Repository("docker.io", "library/app")
IMAGE = make_image(1, size=2000)
LAYOUT = layout_of({NAME: IMAGE})
WHOLE = pack(LAYOUT)
BLOB = next(name for name in LAYOUT if name.startswith("blobs/"))
MIB = 1024 * 1024


def parse(name: str) -> tuple[Repository, Reference]:
    return parse_image(name, "docker.io", {})


async def imported(store: MemoryStore, source: Source) -> Import:
    this = Import(source, Wishes(parse))
    with contextlib.closing(source), contextlib.closing(Importer(store)) as importer:
        await importer.run(this)
    return this


def source_of(data: bytes, folder: Path, way: str) -> Source:
    path = folder / "archive"
    path.write_bytes(data)
    return Files([path]) if way == "file" else Pipe(open(path, "rb", buffering=0))


def member(name: str = "x", **fields: object) -> bytes:
    """A tar with one member, without its end."""
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(records: str, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header, and a file after it."""
    data = records.encode()
    return member("pax", type=kind, size=len(data)) + data + bytes(-len(data) % 512) + member("y") + bytes(1024)


def long_name(name: str) -> bytes:
    """A file whose name is in a header of its own, as GNU tar writes it."""
    data = name.encode() + b"\0"
    return (
        member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=len(data)) + data.ljust(512, b"\0") + member() + bytes(1024)
    )


def record(key: str, value: str) -> str:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return f"{length} {key}={value}\n"


def without(name: str) -> bytes:
    return pack({key: value for key, value in LAYOUT.items() if key != name})


def manifest_json(value: object) -> bytes:
    return pack({"manifest.json": json.dumps(value).encode(), "a.json": b"{}"})


class Zeros(io.RawIOBase):
    """Endless zeros after what it begins with."""

    def __init__(self, begin: bytes) -> None:
        self._begin = begin

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = min(len(view), len(self._begin)) or len(view)
        view[:count] = self._begin[:count] or bytes(count)
        self._begin = self._begin[count:]
        return count


def _twice() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for data in (b"{}", b"[]"):
            info = tarfile.TarInfo("./index.json" if data == b"[]" else "index.json")
            info.size = 2
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def _saved(change: Callable[[dict[str, bytes]], object]) -> bytes:
    files, links = docker_save(NAME, IMAGE)
    change(files)
    return pack(files, links)


def _circle() -> bytes:
    files, _ = docker_save(NAME, IMAGE)
    del files[f"{0:064x}/layer.tar"]
    return pack(files, {f"{0:064x}/layer.tar": "../a/b", "a/b": f"../{0:064x}/layer.tar"})


def _many() -> bytes:
    template = member("x")
    headers = []
    for number in range(MOST_MEMBERS + 5):
        info = bytearray(template)
        name = f"{number}".encode()
        info[:100] = name + bytes(100 - len(name))
        info[148:156] = b" " * 8
        info[148:156] = b"%06o\0 " % sum(info)
        headers.append(bytes(info))
    return b"".join(headers)


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "traversal": (lambda: pack({"../../etc/passwd": b"x"}), "'../../etc/passwd' leads out"),
    "traversal within": (lambda: pack({"blobs/sha256/../../../x": b"x"}), "leads out"),
    "absolute": (lambda: pack({"/etc/passwd": b"x"}), "'/etc/passwd' is an absolute path"),
    "traversal in a pax path": (lambda: pax(record("path", "../x")), "'../x' leads out"),
    "link out": (lambda: member(type=LINK, linkname="../../etc/shadow"), "'x' is a link that leads out"),
    "absolute link": (lambda: member(type=LINK, linkname="/etc/shadow"), "absolute path"),
    "hard link out": (lambda: member(type=HARD, linkname="../x"), "leads out"),
    "absolute hard link": (lambda: member(type=HARD, linkname="/etc/shadow"), "absolute path"),
    "character device": (lambda: member(type=tarfile.CHRTYPE), "'x' is a character device"),
    "block device": (lambda: member(type=tarfile.BLKTYPE), "'x' is a block device"),
    "fifo": (lambda: member(type=tarfile.FIFOTYPE), "'x' is a FIFO"),
    "unknown type": (lambda: member(type=b"Z"), "unknown type"),
    "GNU sparse": (lambda: member(type=tarfile.GNUTYPE_SPARSE), "'x' is a sparse file"),
    "pax sparse": (lambda: pax(record("GNU.sparse.realsize", "99999999999")), "sparse"),
    "pax bomb": (lambda: member("pax", type=tarfile.XHDTYPE, size=2**40), "extended header of 1099511627776 bytes"),
    "long name bomb": (lambda: member("long", type=tarfile.GNUTYPE_LONGNAME, size=2**33), "extended header"),
    "malformed pax": (lambda: pax("12 no equals"), "malformed extended header"),
    "pax without end": (lambda: pax("99999 path=x\n"), "malformed extended header"),
    "size of a pax header": (lambda: pax(record("size", "-1")), "'y' has a size that no file has"),
    "huge digits": (lambda: pax(record("size", "9" * 5000)), "has a size that no file has"),
    "global path": (lambda: pax(record("path", "x"), tarfile.XGLTYPE), "all members the same path"),
    "negative size": (lambda: member(size=-1), "has a size that no file has"),
    "endless size": (lambda: member(size=2**60), "has a size that no file has"),
    "folder with content": (lambda: member(type=tarfile.DIRTYPE, size=5), "folder with content"),
    "NUL in a name": (lambda: pax(record("path", "a\0b")), "is no name of a file"),
    "long name": (lambda: pax(record("path", "a/" * 5000)), "is no name of a file"),
    "duplicate": (_twice, "is there twice"),
    "wrong digest": (lambda: pack({**LAYOUT, BLOB: b"other"}), f"{BLOB} is not what its name says"),
    "wrong digest of a document": (lambda: pack({**LAYOUT, f"blobs/sha256/{'0' * 64}": b"{}"}), "is not what its name says"),
    "a blob without a digest": (lambda: pack({**LAYOUT, "blobs/sha256/passwd": b"x"}), "its name is no digest"),
    "an unknown algorithm": (lambda: pack({**LAYOUT, "blobs/md5/aa": b"x"}), "its name is no digest"),
    "cut in a header": (lambda: WHOLE[: 512 * 3 + 100], "cut off"),
    "cut in a blob": (lambda: WHOLE[: WHOLE.index(BLOB.encode()) + 600], "cut off"),
    "no end": (lambda: WHOLE.rstrip(b"\0")[:-700], "cut off"),
    "empty": (lambda: b"", "less than one header"),
    "not a tar": (lambda: b"<html>" * 200, "this is no tar"),
    "a tar of something else": (lambda: pack({"readme.txt": b"x"}), "neither index.json nor manifest.json"),
    "deep JSON": (lambda: pack({**LAYOUT, "index.json": b'{"manifests":' + b"[" * 200_000}), "index.json is not JSON"),
    "JSON of another shape": (lambda: pack({**LAYOUT, "index.json": b"[]"}), "index.json is no list"),
    "entries of another shape": (lambda: pack({**LAYOUT, "index.json": b'{"manifests":[1]}'}), "index.json is no list"),
    "a digest of another shape": (lambda: pack({**LAYOUT, "index.json": b'{"manifests":[{"digest":"x"}]}'}), "is not a digest"),
    "a name of another shape": (lambda: pack(layout_of({"../../etc:1": IMAGE})), "names an image"),
    "a large description": (lambda: pack({"index.json": bytes(17 * MIB)}), "index.json has 17825792 bytes"),
    "manifest.json of another shape": (lambda: manifest_json({"a": 1}), "is no list"),
    "a configuration that is not there": (
        lambda: manifest_json([{"Config": "b.json", "Layers": []}]),
        "b.json, which manifest.json",
    ),
    "a configuration out of the archive": (lambda: manifest_json([{"Config": "../a.json", "Layers": []}]), "leads out"),
    "a configuration without layers": (lambda: manifest_json([{"Config": "a.json", "Layers": ["x"]}]), "disagree"),
    "a layer that is not there": (lambda: _saved(lambda files: files.pop(f"{0:064x}/layer.tar")), "is not in the archive"),
    "a layer that is another": (
        lambda: _saved(lambda files: files.update({f"{0:064x}/layer.tar": pack({"evil": b"x"})})),
        "is not",
    ),
    "links in a circle": (_circle, "link to a link"),
    "much that belongs to no image": (lambda: pack({"junk": bytes(257 * MIB)}), "belong to no image"),
    "gzip bomb": (lambda: gzip.compress(pack({"junk": bytes(300 * MIB)}), 9), "belong to no image"),
    "zstd bomb": (lambda: zstandard.compress(pack({"junk": bytes(300 * MIB)})), "belong to no image"),
    "gzip cut off": (lambda: gzip.compress(WHOLE)[:-100], "damaged or cut off"),
    "gzip damaged": (lambda: gzip.compress(WHOLE)[:-8] + bytes(8), "damaged or cut off"),
    "zstd cut off": (lambda: zstandard.compress(WHOLE)[:-100], "cut off"),
    "zstd damaged": (lambda: b"\x28\xb5\x2f\xfd" + b"\xff" * 600, "damaged or cut off"),
    "gzip with a tail": (lambda: gzip.compress(WHOLE) + b"tail", "damaged or cut off"),
    "traversal in a GNU long name": (lambda: long_name("../x"), "'../x' leads out"),
    "a long value of a pax header": (lambda: pax(record("path", "x" * 60_000)), "is no name of a file"),
    "a pax header above the limit": (lambda: pax(record("comment", "x" * 70_000)), "65536 are allowed"),
    "a size in base 256": (lambda: member(size=2**70), "has a size that no file has"),
    "another case": (lambda: pack({name.upper(): data for name, data in LAYOUT.items()}), "neither index.json nor manifest.json"),
    "a tar of tars": (lambda: pack({"inner.tar": WHOLE}), "neither index.json nor manifest.json"),
    "only an end": (lambda: bytes(10240), "neither index.json nor manifest.json"),
    "a million members": (lambda: gzip.compress(_many(), 1), f"more than {MOST_MEMBERS} members"),
}


@pytest.mark.parametrize("way", ["file", "pipe"])
@pytest.mark.parametrize("attack", ATTACKS)
async def test_attacks(tmp_path: Path, attack: str, way: str) -> None:
    """The error says what is wrong and where. No image is served, no download is left, and nothing is written but under its own digest."""
    made, message = ATTACKS[attack]
    store = MemoryStore()
    source = source_of(made(), tmp_path, way)
    with pytest.raises(ArchiveInvalid) as caught:
        await imported(store, source)
    assert message in caught.value.message
    assert await store.tag(APP, Tag("1")) is None
    assert await store.repositories() == []
    assert not store.downloads
    assert all(Digest.of(content) == digest for digest, content in store.content.items())
    assert sorted(os.listdir(tmp_path)) == ["archive"]


@pytest.mark.parametrize("way", ["file", "pipe"])
async def test_an_archive_that_is_cut_off_anywhere(tmp_path: Path, way: str) -> None:
    """Before, within and after every header and content: an error, no image, and no blob that is not whole."""
    end = len(WHOLE.rstrip(b"\0"))
    cuts = sorted({cut + more for cut in range(0, end, 512) for more in (0, 1, 511) if cut + more < end})
    assert len(cuts) > 60
    for cut in cuts:
        store = MemoryStore()
        with pytest.raises(ArchiveInvalid):
            await imported(store, source_of(WHOLE[:cut], tmp_path, way))
        assert await store.repositories() == []
        assert not store.downloads
        assert all(Digest.of(content) == digest for digest, content in store.content.items())


@pytest.mark.parametrize("way", ["file", "pipe"])
async def test_compressed_pieces_one_after_the_other(tmp_path: Path, way: str) -> None:
    """As `cat a.gz b.gz` and pigz make them (RFC 1952, section 2.2); frames of zstd too (RFC 8878, section 3)."""
    for compress in (gzip.compress, zstandard.compress):
        data = compress(WHOLE[:3000]) + compress(WHOLE[3000:])
        this = await imported(MemoryStore(), source_of(data, tmp_path, way))
        assert [image.fault for image in this.images] == [""]


EVIL = "\x1b]0;owned\x07\u202e\udcff"
"""Sets a terminal's title, reverses the text, and is not UTF-8."""
EVIL_CONFIG = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{'a' * 64}"]}}).encode()


def evil(config: str, layers: list[str], files: dict[str, bytes]) -> bytes:
    entry = {"Config": config, "RepoTags": ["app:1"], "Layers": layers}
    return pack({**files, "manifest.json": json.dumps([entry]).encode()})


@pytest.mark.parametrize("way", ["file", "pipe"])
@pytest.mark.parametrize(
    "made",
    [
        evil(EVIL, [], {}),
        evil(f"{EVIL}.json", [], {f"{EVIL}.json": EVIL_CONFIG}),
        evil("c.json", [f"{EVIL}/layer.tar"], {"c.json": EVIL_CONFIG}),
        evil("c.json", [f"{EVIL}/layer.tar"], {"c.json": EVIL_CONFIG, f"{EVIL}/layer.tar": b"x"}),
        pack({f"../{EVIL}": b""}),
    ],
    ids=["no config", "config", "no layer", "layer", "path"],
)
async def test_names_in_an_archive_do_not_control_a_terminal(tmp_path: Path, made: bytes, way: str) -> None:
    """Errors show them escaped, as printable text that can be encoded."""
    with pytest.raises(ArchiveInvalid) as caught:
        await imported(MemoryStore(), source_of(made, tmp_path, way))
    assert "owned" in caught.value.message
    assert caught.value.message.isprintable()


async def test_what_the_cache_cannot_hold_is_an_error(tmp_path: Path) -> None:
    """A blob larger than the cache, whose bytes are never sent, and an endless one: refused by the size that its header says."""
    begin = member(f"blobs/sha256/{'1' * 64}", size=2**40)
    store = MemoryStore(max_size=MIB)
    with pytest.raises(StorageFull) as caught:
        await imported(store, Pipe(Zeros(begin)))
    assert "blobs/sha256/111" in caught.value.message
    assert "cache.max_size" in caught.value.message
    begin = member("x/layer.tar", size=2**40)
    with pytest.raises(StorageFull):
        await imported(store, Pipe(Zeros(begin)))
    assert not store.downloads


async def test_memory_is_bounded(tmp_path: Path) -> None:
    """A large layer passes through in pieces; and gigabytes of JSON are refused."""
    digest = Digest.of(bytes(200 * MIB))
    begin = member(f"blobs/sha256/{digest.hex}", size=200 * MIB)

    class Nothing(MemoryStore):
        """Counts a blob as cached, so that its bytes are read and not kept."""

        def size(self, asked: Digest) -> int | None:
            return 200 * MIB if asked == digest else super().size(asked)

    archive = tmp_path / "archive"
    archive.write_bytes(begin + bytes(200 * MIB) + WHOLE)
    tracemalloc.start()
    with open(archive, "rb", buffering=0) as file:
        await imported(Nothing(), Pipe(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * MIB
    padding = b'{"a":"' + b"x" * (3 * MIB) + b'"}'
    archive.write_bytes(pack({f"{number}/json": padding for number in range(30)}))
    with pytest.raises(ArchiveInvalid) as caught:
        await imported(MemoryStore(), Files([archive]))
    assert "bytes of manifests and configurations" in caught.value.message


async def test_a_folder_with_links_and_fifos(tmp_path: Path) -> None:
    """Nothing in a folder is followed or waited for; what is a regular file counts."""
    for name, data in LAYOUT.items():
        (tmp_path / "layout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "layout" / name).write_bytes(data)
    (tmp_path / "secret").write_bytes(LAYOUT[BLOB])
    (tmp_path / "layout" / BLOB).unlink()
    (tmp_path / "layout" / BLOB).symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "layout" / "blobs" / "fifo")
    store = MemoryStore()
    this = await imported(store, Folder(tmp_path / "layout"))
    assert [str(digest).rpartition(":")[2] for digest in this.images[0].lacking] == [BLOB.rpartition("/")[2]]
    assert await store.tag(APP, Tag("1")) is None


async def test_an_interrupted_import_goes_on(tmp_path: Path) -> None:
    """What came before the archive was cut off stays, and is not read again."""
    cut = source_of(WHOLE.rstrip(b"\0")[:-700], tmp_path, "pipe")
    store = MemoryStore()
    with pytest.raises(ArchiveInvalid):
        await imported(store, cut)
    kept = set(store.content)
    assert kept
    this = await imported(store, source_of(WHOLE, tmp_path, "pipe"))
    assert kept & this.came.keys() == set()
    assert not this.images[0].fault
    assert await store.tag(APP, Tag("1")) is not None


def mutated(data: bytes, changes: list[tuple[int, int]], cut: int | None) -> bytes:
    made = bytearray(data)
    for position, value in changes:
        made[position % len(made)] = value
    return bytes(made if cut is None else made[: cut % len(made)])


CHANGES = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=6)
HEADERS = st.lists(
    st.tuples(st.sampled_from([*range(0, 512, 7), 124, 125, 135, 148, 156, 157, 257, 345]), st.integers(0, 255)), max_size=4
)
SAVED = pack(*docker_save(NAME, IMAGE, links=True))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([WHOLE, SAVED, gzip.compress(WHOLE), zstandard.compress(SAVED)]),
    CHANGES,
    HEADERS,
    st.none() | st.integers(0, 2**20),
    st.sampled_from(["file", "pipe"]),
)
def test_any_archive_is_imported_or_refused(
    data: bytes, changes: list[tuple[int, int]], header: list[tuple[int, int]], cut: int | None, way: str
) -> None:
    """Bytes changed anywhere, and in headers: never another error, nothing under a digest that is not its own, and whatever is served is there whole."""

    async def run() -> None:
        store = MemoryStore()
        with tempfile.TemporaryDirectory() as folder:
            source = source_of(mutated(mutated(data, changes, None), header, cut), Path(folder), way)
            with contextlib.suppress(MirrorError):
                await imported(store, source)
        assert not store.downloads
        assert all(Digest.of(content) == digest for digest, content in store.content.items())
        for repository in await store.repositories():
            for tag in await store.tags(repository):
                record = await store.tag(repository, Tag(tag))
                assert record is not None
                manifest = await store.manifest(record.descriptor.digest)
                assert manifest is not None
                document = json.loads(manifest.body)
                for blob in [document["config"], *document["layers"]]:
                    assert store.size(Digest.parse(blob["digest"])) is not None

    asyncio.run(run())


# ---------------------------------------------------------------------- what an archive opens

HOSTED = HostedRules("docker.io", (Pattern("team/**"),))
PRIVATE = Repository("docker.io", "private/app")


@pytest.mark.parametrize("name", [NAME, "docker.io/team/app:1"], ids=["of a registry", "hosted"])
@pytest.mark.parametrize("way", ["file", "pipe"])
async def test_an_archive_opens_what_it_brings_and_nothing_else(tmp_path: Path, name: str, way: str) -> None:
    """Its images' clients have what was in it, also what was cached before, once its bytes are the right ones. What a stranger's archive only names, such as a private
    layer or manifest of this machine, is not theirs; with other bytes under that name it is refused."""
    repository = parse(name)[0]
    layout = layout_of({name: IMAGE})
    layers = [Digest.parse(digest) for digest in IMAGE.blobs]
    async with MemoryStore(hosted=HOSTED) as store:
        for digest in layers:
            store.keep(digest, IMAGE.blobs[str(digest)])
        await store.note_holder(PRIVATE, layers, told=True)
        await store.put_manifest(PRIVATE, Manifest(OCI_MANIFEST, Digest.parse(IMAGE.digest), IMAGE.manifests[-1][1]))
        secret = layers[-1]
        file = f"blobs/{str(secret).replace(':', '/')}"
        named = {key: data for key, data in layout.items() if key != file}
        [image] = (await imported(store, source_of(pack(named), tmp_path, way))).images
        assert await store.holders(secret) == {PRIVATE}
        assert bool(image.fault) is store.hosted.covers(repository), "no registry could be asked for what is missing"
        only_index = {key: data for key, data in layout.items() if not key.startswith("blobs/")}
        [image] = (await imported(store, source_of(pack(only_index), tmp_path, way))).images
        assert image.fault or repository in await store.holders(Digest.parse(IMAGE.digest))
        with pytest.raises(ArchiveInvalid):
            await imported(store, source_of(pack({**layout, file: bytes(len(layout[file]))}), tmp_path, way))
        assert await store.holders(secret) == {PRIVATE}
        await imported(store, source_of(pack(layout), tmp_path, way))
        assert await store.holders(secret) == {PRIVATE, repository}
        assert repository not in await store.told_holders(secret)
