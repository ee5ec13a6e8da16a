"""``mirror import``: archives of every shape, what is in them already, and what is still lacking. Malicious ones are in tests/bundles/test_archives.py."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.support.archives import docker_save, layout_of, pack
from tests.support.commands import Commands, mirror_bytes
from tests.support.images import Image, digest_of, make_image, make_index
from tests.support.mirrors import MirrorProcess
from tests.support.programs import run
from tests.support.scripted import Scripted

NAME = "docker.io/library/app:1"
REBUILT = "sha256:123ec83c50b0eb281285ff438dc0803208dc90629390a5cb3e89934e8167c6a3"
"""What the image of seed 3 becomes, whichever way it comes in: a new digest would make others of all that were imported before."""


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """On a cache directory that does not exist yet, where no upstream can be reached."""
    return Commands(tmp_path / "cache")


async def piped(commands: Commands, data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """`mirror import`, with an archive on its standard input, which is a pipe."""
    return await asyncio.to_thread(mirror_bytes, "import", *arguments, *commands.flags, stdin=data)


def cached(tmp_path: Path, digest: str) -> bool:
    return (tmp_path / "cache" / "blobs" / "sha256" / digest.partition(":")[2]).exists()


def served(tmp_path: Path, image: Image, name: str = "library/app", tag: str = "1") -> None:
    """A mirror without upstream serves the image by its tag, and every blob of it."""
    with MirrorProcess(tmp_path / "cache", {"docker.io": "http://127.0.0.1:1"}) as mirror:
        for path, digest in [(f"manifests/{tag}", image.digest), *((f"blobs/{blob}", blob) for blob in image.blobs)]:
            with urllib.request.urlopen(f"{mirror.url}/v2/{name}/{path}") as answer:
                assert digest_of(answer.read()) == digest


def compressed(data: bytes, form: str) -> bytes:
    return {"tar": lambda: data, "gz": lambda: gzip.compress(data, 1), "zst": lambda: zstandard.compress(data, 1)}[form]()


@pytest.mark.parametrize("form", ["tar", "gz", "zst"])
@pytest.mark.parametrize("way", ["file", "pipe"])
async def test_a_layout_is_imported_and_served(commands: Commands, tmp_path: Path, form: str, way: str) -> None:
    """From a file and from a pipe, compressed or not; the mirror serves it with no upstream, and a second import brings nothing."""
    image = make_index(1)
    tar = tmp_path / f"lab.{form}"
    tar.write_bytes(compressed(pack(layout_of({NAME: image})), form))
    argument = str(tar) if way == "file" else "-"

    async def imported() -> Any:
        done = await piped(commands, tar.read_bytes(), argument, "--json")
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    first = await imported()
    assert [(one["image"], one["digest"], one["fault"]) for one in first["images"]] == [(NAME, image.digest, None)]
    assert first["images"][0]["platforms"] == ["linux/amd64", "linux/arm64"]
    served(tmp_path, image)
    assert (await imported())["size"] == 0


async def test_a_folder_and_pieces(commands: Commands, tmp_path: Path) -> None:
    """An unpacked layout; pieces that are found beside the first, or named by the file that they were; a missing one is named."""
    files = layout_of({NAME: make_image(2)})
    folder = tmp_path / "layout"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert "would come in" in await commands("import", str(folder), "--dry-run")
    assert not list((tmp_path / "cache" / "blobs" / "sha256").iterdir())
    data = pack(files)
    for number in range(4):
        (tmp_path / f"lab.tar.{number:03}").write_bytes(data[number * 100_000 : (number + 1) * 100_000 if number < 3 else None])
    assert "1 complete" in await commands("import", str(tmp_path / "lab.tar"))
    assert "already here" in await commands("import", str(tmp_path / "lab.tar.000"))
    assert "already here" in await commands("import", *(str(tmp_path / f"lab.tar.{number:03}") for number in (2, 0, 1, 3)))
    assert "already here" in await commands("import", str(folder))
    (tmp_path / "lab.tar.001").unlink()
    done = await commands.run("import", str(tmp_path / "lab.tar.000"))
    assert done.returncode == 2
    assert "lab.tar.001 is missing" in done.stderr


@pytest.mark.parametrize("way", ["file", "pipe"])
@pytest.mark.parametrize("links", [False, True])
async def test_docker_save_of_before_2023(commands: Commands, tmp_path: Path, way: str, links: bool) -> None:
    """Uncompressed layers, of which names say nothing; one that two images share is a link. The manifest is made here, the same for everybody who imports it, and said so."""
    image = make_image(3)
    tar = pack(*docker_save(NAME, image, links=links))
    file = tmp_path / "saved.tar"
    file.write_bytes(tar)
    done = await piped(commands, tar, str(file) if way == "file" else "-", "--json")
    assert done.returncode == 0, done.stderr.decode()
    (one,) = json.loads(done.stdout)["images"]
    assert (one["image"], one["rebuilt"], one["fault"]) == (NAME, True, None)
    config = json.loads(image.manifests[-1][1])["config"]["digest"]
    diff_ids = json.loads(image.blobs[config])["rootfs"]["diff_ids"]
    with open(tmp_path / "cache" / "blobs" / "sha256" / one["digest"].partition(":")[2], "rb") as made:
        manifest = json.load(made)
    assert [layer["digest"] for layer in manifest["layers"]] == diff_ids
    assert manifest["config"]["digest"] == config
    assert one["digest"] == REBUILT
    assert all(cached(tmp_path, digest) for digest in [config, *diff_ids, one["digest"]])
    assert list((tmp_path / "cache" / "spool").iterdir()) == []


@pytest.mark.parametrize("way", ["file", "pipe"])
async def test_a_bad_archive_leaves_nothing_on_the_disk(commands: Commands, tmp_path: Path, way: str) -> None:
    """No image, no download, no blob but whole ones under their own digests; the status is 1."""
    whole = pack(layout_of({NAME: make_image(6)}))
    layer = max(layout_of({NAME: make_image(6)}).items(), key=lambda entry: len(entry[1]))[0]
    start = whole.index(layer.encode()) + 512
    damaged = whole[: start + 1000] + b"damage" + whole[start + 1006 :]
    for number, data in enumerate(
        (whole[: start + 5000], damaged, gzip.compress(damaged), gzip.compress(whole)[:-200], b"", b"x" * 5000)
    ):
        (tmp_path / "bad.tar").write_bytes(data)
        done = await piped(commands, data, str(tmp_path / "bad.tar") if way == "file" else "-")
        assert done.returncode == 1, number
        assert done.stderr.startswith(b"mirror: "), number
        assert list((tmp_path / "cache" / "spool").iterdir()) == []
        assert (await commands.json("ls"))["images"] == []
        for blob in (tmp_path / "cache" / "blobs" / "sha256").iterdir():
            assert digest_of(blob.read_bytes()) == f"sha256:{blob.name}"


async def test_names(commands: Commands, tmp_path: Path) -> None:
    """A tar without names takes `--as`, with a tag or with the archive's own; without it, nothing is served, and the error says what to do."""
    image = make_image(4)
    files = layout_of({"": image})
    (tmp_path / "nameless.tar").write_bytes(pack(files))
    done = await commands.run("import", str(tmp_path / "nameless.tar"))
    assert done.returncode == 1
    assert "--as NAME" in done.stderr
    assert "1 complete" in await commands("import", str(tmp_path / "nameless.tar"), "--as", "app:1")
    served(tmp_path, image)
    (tmp_path / "tag.tar").write_bytes(pack(layout_of({"": image}, bare_tag="v7")))
    assert "docker.io/library/app:v7" in await commands("import", str(tmp_path / "tag.tar"), "--as", "app")


async def test_a_new_name_for_what_is_cached(commands: Commands, tmp_path: Path) -> None:
    """It is imported, though no byte of it is new, also where only the manifest is; the same once more is already here. A dry run says which it would be."""
    image, other = make_image(4), make_image(4)
    other.manifests[0] = (other.manifests[0][0], other.manifests[0][1] + b"\n")
    tar, changed = tmp_path / "nameless.tar", tmp_path / "changed.tar"
    tar.write_bytes(pack(layout_of({"": image})))
    changed.write_bytes(pack(layout_of({"": other})))

    async def state(file: Path, name: str, *flags: str) -> str:
        row, last = (await commands("import", str(file), "--as", name, *flags)).splitlines()[1:3]
        assert row.startswith("docker.io/library/app")
        assert "1 image: 1 complete" in last
        return re.split(r" {2,}", row.strip())[-1]

    assert await state(tar, "app:1") == "imported"
    for file, name in ((tar, "app:2"), (changed, "app:2"), (tar, f"app@{image.digest}")):
        known = "@" in name
        assert await state(file, name, "--dry-run") == ("already here" if known else "would come in")
        assert await state(file, name) == ("already here" if known else "imported")
        assert await state(file, name) == "already here"
    assert {one["image"]: one["digest"] for one in (await commands.json("ls"))["images"]} == {
        "docker.io/library/app:1": image.digest,
        "docker.io/library/app:2": other.digest,
    }


async def test_the_json_of_a_name_that_is_given(commands: Commands, tmp_path: Path) -> None:
    """`new_name` tells a new name for what is cached from what was here already; without a name the fault says what to do."""
    image = make_image(4)
    tar = tmp_path / "nameless.tar"
    tar.write_bytes(pack(layout_of({"": image})))
    size = sum(map(len, image.blobs.values()))

    async def document(*flags: str, status: int = 0) -> Any:
        return await commands.json("import", str(tar), *flags, status=status)

    def one(name: str | None, new: int, new_name: bool, fault: str | None = None) -> dict[str, Any]:
        found = {"image": name, "digest": image.digest, "platforms": ["linux/amd64"], "new": new, "new_name": new_name}
        more: dict[str, Any] = {"guards": [], "held_until": None, "served": None if fault else image.digest}
        return {**found, "lacking": [], "rebuilt": False, "seen": None, "fault": fault, **more}

    first, second = "docker.io/library/app:1", "registry.lan/team/app:2"
    nameless = await document(status=1)
    assert nameless["images"] == [one(None, size, False, "has no name in the archive: run it again with --as NAME")]
    shutil.rmtree(tmp_path / "cache")
    assert await document("--as", "app:1", "--dry-run") == {"images": [one(first, size, True)], "size": size}
    assert await document("--as", "app:1") == {"images": [one(first, size, True)], "size": size}
    assert await document("--as", "app:1") == {"images": [one(first, 0, False)], "size": 0}
    assert await document("--as", second) == {"images": [one(second, 0, True)], "size": 0}
    assert await document("--as", second, "--dry-run") == {"images": [one(second, 0, False)], "size": 0}


async def test_platforms_and_pins(commands: Commands, tmp_path: Path) -> None:
    """Of an index only what is wanted comes in; a platform that is not there is named, and the image is not served."""
    index, amd64, arm64 = make_index(5), make_image(5), make_image(5, architecture="arm64")
    (tmp_path / "lab.tar").write_bytes(pack(layout_of({NAME: index})))
    assert "linux/amd64" in await commands("import", str(tmp_path / "lab.tar"), "--platform", "amd64", "--pin")
    assert all(cached(tmp_path, blob) for blob in amd64.blobs)
    assert not any(cached(tmp_path, blob) for blob in arm64.blobs)
    assert [one["pinned"] for one in (await commands.json("ls"))["images"]] == [True]
    done = await commands.run("import", str(tmp_path / "lab.tar"), "--platform", "s390x")
    assert done.returncode == 1
    assert "linux/s390x" in done.stderr


async def test_a_pipe_for_one_platform(commands: Commands, tmp_path: Path) -> None:
    """A dry run reports it and keeps nothing; then the blobs of the other platform are passed over where the manifests came before them, kept where they did not."""
    index, amd64, arm64 = make_index(6), make_image(6), make_image(6, architecture="arm64")
    files = layout_of({NAME: index})
    blobs = [name for name in files if f"sha256:{name.rpartition('/')[2]}" in index.blobs]
    wanted = ("-", "--platform", "arm64", "--json")
    early = pack({**{name: data for name, data in files.items() if name not in blobs}, **{name: files[name] for name in blobs}})
    late = pack({**{name: files[name] for name in blobs}, **{name: data for name, data in files.items() if name not in blobs}})
    shared = amd64.blobs.keys() & arm64.blobs.keys()
    for data, passes_over in ((early, True), (late, False)):
        dry = json.loads((await piped(commands, data, *wanted, "--dry-run")).stdout)
        assert dry["images"][0]["platforms"] == ["linux/arm64"]
        assert not any(cached(tmp_path, blob) for blob in index.blobs)
        done = await piped(commands, data, *wanted)
        assert (done.returncode, json.loads(done.stdout)["images"]) == (0, dry["images"])
        assert all(cached(tmp_path, blob) for blob in arm64.blobs)
        # Configurations are read to find out, and are small.
        layers = [blob for blob, content in amd64.blobs.items() if blob not in shared and not content.startswith(b"{")]
        assert layers
        assert any(cached(tmp_path, blob) for blob in layers) != passes_over
        shutil.rmtree(tmp_path / "cache")


async def test_a_delta_names_what_is_lacking_and_wants_it(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """Without the base: no tag, the missing layer's digest, and a list that `mirror export` takes. With the base: complete."""
    base = b"base" * 1000
    old = upstream.add_image("library/app", "0", layers=[base])
    new = upstream.add_image("library/app", "1", layers=[base, b"new" * 1000])
    sender = Commands(tmp_path / "sender", upstream)
    platform = ("--platform", "linux/amd64")
    await sender("export", "app:0", *platform, "-o", str(tmp_path / "0.tar"))
    await sender("export", "app:1", *platform, "--since", str(tmp_path / "0.tar"), "-o", str(tmp_path / "1.tar"))
    want = tmp_path / "want.txt"
    done = await commands.run("import", str(tmp_path / "1.tar"), "--want", str(want))
    assert done.returncode == 1
    assert str(new.layers[0]) in done.stderr
    assert want.read_text() == f"{NAME}  # lacks {new.layers[0]}\n"
    assert (await commands.json("ls"))["images"] == []
    await sender("export", "-f", str(want), *platform, "-o", str(tmp_path / "again.tar"))
    assert "1 complete" in await commands("import", str(tmp_path / "0.tar"))
    assert "1 complete" in await commands("import", str(tmp_path / "1.tar"), "--want", str(want))
    assert want.read_text() == ""
    assert cached(tmp_path, str(new.layers[1]))
    assert old.digest != new.digest


async def test_a_required_key(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """A bundle of that key comes in, from a file and a pipe; unsigned, signed by another, or changed, nothing of it does."""
    upstream.add_image("library/app", "1", layers=[b"layer" * 1000])
    for key in ("lab", "other"):
        run("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(tmp_path / f"{key}.key"))
        run("openssl", "pkey", "-in", str(tmp_path / f"{key}.key"), "-pubout", "-out", str(tmp_path / f"{key}.pub"))
    sender = Commands(tmp_path / "sender", upstream)
    signed, plain, changed = (tmp_path / f"{name}.tar" for name in ("signed", "plain", "changed"))
    await sender("export", "app:1", "--platform", "linux/amd64", "-o", str(plain))
    await sender("export", "app:1", "--platform", "linux/amd64", "--sign", str(tmp_path / "lab.key"), "-o", str(signed))
    changed.write_bytes(signed.read_bytes().replace(b"library/app:1", b"library/evil1"))
    extended = io.BytesIO(signed.read_bytes())
    with tarfile.open(fileobj=extended, mode="a") as tar:
        tar.addfile(tarfile.TarInfo("extra.json"), io.BytesIO())
    (tmp_path / "extended.tar").write_bytes(extended.getvalue())
    for tar_, key, fault in (
        (plain, "lab", "not signed"),
        (signed, "other", "is required"),
        (changed, "lab", "not what was signed"),
        (tmp_path / "extended.tar", "lab", "not among the signed files"),
    ):
        for argument in (str(tar_), "-"):
            done = await piped(commands, tar_.read_bytes(), argument, "--require-key", str(tmp_path / f"{key}.pub"))
            assert done.returncode == 1, (tar_, argument, done.stderr)
            assert fault in done.stderr.decode()
        assert (await commands.json("ls"))["images"] == []
        # Of the last one, signed blobs come before the file that is not.
        assert tar_.name == "extended.tar" or list((tmp_path / "cache" / "blobs" / "sha256").iterdir()) == []
    for argument in ("-", str(signed)):
        shutil.rmtree(tmp_path / "cache")
        done = await piped(commands, signed.read_bytes(), argument, "--require-key", str(tmp_path / "lab.pub"))
        assert done.returncode == 0, done.stderr
        assert len((await commands.json("ls"))["images"]) == 1
