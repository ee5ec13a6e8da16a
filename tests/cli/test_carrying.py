"""What one mirror exports, another imports, and answers without any upstream as the first one did."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest
from tests.support.commands import Commands, mirror_bytes
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted

OFFLINE = {"upstream": {"offline": True}}
CACHE_TYPES = {
    "oci": (OCI_INDEX, "application/vnd.oci.image.layer.v1.tar+zstd"),
    "docker": (
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ),
}


@pytest.fixture
def sender(upstream: Scripted, tmp_path: Path) -> Commands:
    return Commands(tmp_path / "sender", upstream)


@pytest.fixture
def receiver(tmp_path: Path) -> Commands:
    return Commands(tmp_path / "receiver")


async def bring(commands: Commands, tar: Path, way: str) -> None:
    """Imports a tar from its file, or from a pipe."""
    if way == "file":
        assert "0 not" in await commands("import", str(tar))
        return
    done = await asyncio.to_thread(mirror_bytes, "import", "-", *commands.flags, stdin=tar.read_bytes())
    assert done.returncode == 0, done.stderr.decode()


async def referrers(mirror: Mirror, digest: Digest) -> list[dict[str, Any]]:
    got = await mirror.get(f"/v2/app/referrers/{digest}")
    assert (got.status, got.headers["Content-Type"]) == (200, OCI_INDEX)
    return sorted(json.loads(got.body)["manifests"], key=lambda entry: str(entry["digest"]))


def subject(body: bytes) -> dict[str, Any]:
    return {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(body)), "size": len(body)}


def list_by_tag(upstream: Scripted, described: Digest, *bodies: bytes) -> None:
    """The "referrers tag schema" of registries without the referrers API (distribution-spec 1.1)."""
    upstream.referrers_api = False
    listed = [{**subject(body), "artifactType": json.loads(body)["artifactType"]} for body in bodies]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    upstream.add_manifest("library/app", f"sha256-{described.hex}", json.dumps(index).encode(), OCI_INDEX)


@pytest.mark.parametrize("way", ["file", "pipe"])
@pytest.mark.parametrize("listed", ["by the API", "by a tag"])
async def test_referrers_and_signatures_are_answered_as_before(
    sender: Commands, receiver: Commands, upstream: Scripted, start: StartMirror, tmp_path: Path, listed: str, way: str
) -> None:
    """The lists of referrers, of those and of what refers to them, and cosign's tags: the same from a mirror that has a registry as from one that was given a tar.

    With --no-referrers the lists are empty, the tags are not there, and nothing of it is in the cache.
    """
    app = upstream.add_image("library/app", "1", layers=[os.urandom(1000)])
    sbom = upstream.add_image("library/app", layers=[b"sbom"], subject=subject(app.body), artifactType="application/spdx+json")
    nested = upstream.add_image("library/app", layers=[b"of it"], subject=subject(sbom.body), artifactType="a/signature")
    tags = [f"sha256-{app.digest.hex}.{end}" for end in ("sig", "att", "sbom")]
    signatures = [upstream.add_image("library/app", tag, layers=[tag.encode()]) for tag in tags]
    if listed == "by a tag":
        list_by_tag(upstream, app.digest, sbom.body)
        list_by_tag(upstream, sbom.digest, nested.body)
    subjects = (app.digest, sbom.digest, nested.digest)
    first = await start(directory=tmp_path / "sender")
    before = [await referrers(first, digest) for digest in subjects]
    assert [[entry["digest"] for entry in found] for found in before] == [[str(sbom.digest)], [str(nested.digest)], []]
    with_them, without = tmp_path / "with.tar", tmp_path / "without.tar"
    await sender("export", "app:1", "--platform", "linux/amd64", "-o", str(with_them))
    await sender("export", "app:1", "--platform", "linux/amd64", "--no-referrers", "-o", str(without))
    await first.stop()
    asked = len(upstream.asked)
    await bring(receiver, with_them, way)
    second = await start(directory=tmp_path / "receiver", settings=OFFLINE)
    assert [await referrers(second, digest) for digest in subjects] == before
    for image, tag in zip(signatures, tags, strict=True):
        got = await second.get(f"/v2/app/manifests/{tag}")
        assert (got.status, got.body) == (200, image.body)
    for image in (app, sbom, nested, *signatures):
        assert (await second.get(f"/v2/app/manifests/{image.digest}")).body == image.body
        assert (await second.get(f"/v2/app/blobs/{image.layers[0]}")).body == upstream.blobs[str(image.layers[0])]
    plain = Commands(tmp_path / "plain")
    await bring(plain, without, way)
    third = await start(directory=tmp_path / "plain", settings=OFFLINE)
    assert (await third.get("/v2/app/manifests/1")).body == app.body
    assert [await referrers(third, digest) for digest in subjects] == [[], [], []]
    for image, tag in zip(signatures, tags, strict=True):
        assert (await third.get(f"/v2/app/manifests/{tag}")).status == 404
        assert not third.cached(image.digest) and not third.cached(image.layers[0])
    assert len(upstream.asked) == asked


def add_build_cache(upstream: Scripted, form: str, *layers: bytes) -> tuple[bytes, dict[Digest, bytes]]:
    """What buildctl's `--export-cache type=registry,image-manifest=false` makes. Returns the index and the blobs."""
    index_type, layer_type = CACHE_TYPES[form]
    config = json.dumps({"layers": [{"blob": str(Digest.of(layer))} for layer in layers], "records": []}).encode()
    blobs = {upstream.add_blob(data): data for data in (*layers, config)}
    listed = [{"mediaType": layer_type, "digest": str(Digest.of(layer)), "size": len(layer)} for layer in layers]
    listed.append({"mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": str(Digest.of(config)), "size": len(config)})
    body = json.dumps({"schemaVersion": 2, "mediaType": index_type, "manifests": listed}).encode()
    upstream.add_manifest("library/app", "cache", body, index_type)
    return body, blobs


@pytest.mark.parametrize("way", ["file", "pipe"])
@pytest.mark.parametrize("form", CACHE_TYPES)
async def test_a_build_cache_is_carried_whole(
    sender: Commands, receiver: Commands, upstream: Scripted, start: StartMirror, tmp_path: Path, form: str, way: str
) -> None:
    """BuildKit's cache, an index of layers: its blobs come with it, each asked for once, whatever the platform, by the command and over HTTP, and are answered offline."""
    body, blobs = add_build_cache(upstream, form, os.urandom(3000), os.urandom(4000))
    image = upstream.add_image("library/app", "1")
    tar = tmp_path / "lab.tar"
    await sender("export", "app:cache", "app:1", "--platform", "linux/amd64", "-o", str(tar))
    for digest in blobs:
        assert upstream.count("GET", f"/blobs/{digest}") == 1
        assert upstream.count("GET", f"/manifests/{digest}") == 0
    first = await start(directory=tmp_path / "sender")
    assert (await first.get("/export/lab.tar?images=app:cache,app:1")).body == tar.read_bytes()
    await first.stop()
    asked = len(upstream.asked)
    await bring(receiver, tar, way)
    second = await start(directory=tmp_path / "receiver", settings=OFFLINE)
    assert (await second.get("/v2/app/manifests/cache")).body == body
    for digest, data in blobs.items():
        assert (await second.get(f"/v2/app/blobs/{digest}")).body == data
    assert (await second.get("/v2/app/manifests/1")).body == image.body
    assert len(upstream.asked) == asked


async def test_a_build_cache_that_is_not_whole_is_named(
    sender: Commands, receiver: Commands, upstream: Scripted, tmp_path: Path
) -> None:
    """Export names the blob that is missing; a delta is refused where its base is not, with that blob, and complete where it is."""
    base, newer = os.urandom(3000), os.urandom(4000)
    add_build_cache(upstream, "oci", base)
    first = tmp_path / "1.tar"
    await sender("export", "app:cache", "-o", str(first))
    body, _ = add_build_cache(upstream, "oci", base, newer)
    delta = tmp_path / "2.tar"
    await sender("export", "app:cache", "--since", str(first), "-o", str(delta))
    done = await receiver.run("import", str(delta))
    assert done.returncode == 1
    assert f"is not complete: {Digest.of(base)} is missing" in done.stderr
    assert (await receiver.json("ls"))["images"] == []
    for tar in (first, delta):
        await receiver("import", str(tar))
    assert str(Digest.of(body)) in {image["digest"] for image in (await receiver.json("ls"))["images"]}
    (tmp_path / "sender" / "blobs" / "sha256" / Digest.of(newer).hex).unlink()
    done = await sender.run("export", "app:cache", "--offline", "-o", str(tmp_path / "3.tar"))
    assert done.returncode == 1
    assert "docker.io/library/app:cache is not cached whole" in done.stderr
    assert str(Digest.of(newer)) in done.stderr
    assert not (tmp_path / "3.tar").exists()
    # The first cache has lost its tag, not its content.
    done = await sender.run("export", "--all", "-o", str(tmp_path / "3.tar"))
    assert done.returncode == 0
    assert "docker.io/library/app:cache is not cached whole" in done.stderr
