"""What a laptop answers, request by request."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.laptop.archive import Archive
from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest
from tests.laptop.conftest import Client, Laptops, Made, described, index, library_of, manifest

LAYER = os.urandom(300_000)
ABSENT = Digest.of(b"absent")


class Lab:
    """A bundle with an index of which one platform is there, an image of another registry, one without a tag, and a signature."""

    def __init__(self, path: Path, size: int | None = None) -> None:
        made = Made()
        self.redis, blobs = manifest([LAYER])
        other, _ = manifest([b"of another platform"])
        self.index = index(self.redis, other)
        made.hold(self.redis, *blobs)
        self.digest = made.image("docker.io/library/redis:7", self.index, media_type=OCI_INDEX, seen=1_790_000_000.0)
        made.image("docker.io/library/redis:latest", self.index, media_type=OCI_INDEX)
        self.etcd, blobs = manifest([b"etcd"])
        made.image("quay.io/coreos/etcd:v3", self.etcd, *blobs)
        self.pinned, blobs = manifest([b"pinned"])
        made.image(f"ghcr.io/owner/pinned@{Digest.of(self.pinned)}", self.pinned, *blobs)
        subject = described(OCI_MANIFEST, self.redis)
        self.signature, blobs = manifest(
            [b"signed"], b"{}", subject=subject, artifactType="a/signature", annotations={"by": "me"}
        )
        made.referrer(f"docker.io/library/redis@{Digest.of(self.signature)}", self.signature, Digest.of(self.redis), *blobs)
        cosign, blobs = manifest([b"old"], b"{}")
        made.referrer(f"docker.io/library/redis:sha256-{Digest.of(self.redis).hex}.sig", cosign, Digest.of(self.redis), *blobs)
        self.content = made.write(path, size)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab.tar")


@pytest.fixture
def client(lab: Lab, serve: Laptops, tmp_path: Path) -> Client:
    return serve(tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        "/v2/library/redis/manifests/7",
        "/v2/redis/manifests/7",
        "/v2/docker.io/library/redis/manifests/7",
        "/v2/docker.io/redis/manifests/7",
        "/v2/index.docker.io/library/redis/manifests/7",
        "/v2/library/redis/manifests/7?ns=docker.io",
        "/v2/docker.io/library/redis/manifests/7?ns=docker.io",
        "/docker.io/v2/library/redis/manifests/latest",
        "//v2/library/redis/manifests/7",
    ],
)
def test_an_image_is_found_by_every_name_that_clients_give_it(client: Client, lab: Lab, target: str) -> None:
    """dockerd's, containerd's, buildkit's, podman's: the index byte for byte, with its digest and media type."""
    found = client.get(target)
    assert (found.status, found.body) == (200, lab.index)
    assert found.headers["Content-Type"] == OCI_INDEX
    assert found.headers["Docker-Content-Digest"] == str(lab.digest)
    assert client("HEAD", target).headers["Content-Length"] == str(len(lab.index))


def test_other_registries_are_told_apart(client: Client, lab: Lab) -> None:
    """The same path is another image there, or none."""
    for target in (
        "/v2/coreos/etcd/manifests/v3?ns=quay.io",
        "/v2/quay.io/coreos/etcd/manifests/v3",
        "/quay.io/v2/coreos/etcd/manifests/v3",
    ):
        assert client.get(target).body == lab.etcd
    assert client.get("/v2/coreos/etcd/manifests/v3").error == (404, "NAME_UNKNOWN")
    assert client.get("/v2/quay.io/library/redis/manifests/7").error == (404, "NAME_UNKNOWN")


def test_manifests_are_found_by_digest_with_their_own_media_type(client: Client, lab: Lab) -> None:
    """Those that an index lists, those without a tag, signatures. What is no manifest is none by its digest."""
    for body in (lab.redis, lab.pinned, lab.signature):
        found = client.get(f"/v2/library/redis/manifests/{Digest.of(body)}")
        assert (found.status, found.body, found.headers["Content-Type"]) == (200, body, OCI_MANIFEST)
    for digest in (Digest.of(LAYER), ABSENT):
        assert client.get(f"/v2/library/redis/manifests/{digest}").error == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize(
    ("header", "status", "start", "stop"),
    [
        ("", 200, 0, 300_000),
        ("bytes=0-0", 206, 0, 1),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=299990-", 206, 299_990, 300_000),
        ("bytes=299990-999999", 206, 299_990, 300_000),
        ("bytes=-5", 206, 299_995, 300_000),
        ("bytes=-999999", 206, 0, 300_000),
        ("bytes=0-1,5-6", 200, 0, 300_000),
        ("bytes=-", 200, 0, 300_000),
        ("lines=1-2", 200, 0, 300_000),
        ("bytes=300000-", 416, 0, 0),
        ("bytes=9-3", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
@pytest.mark.parametrize("size", [None, 70_000], ids=["one file", "pieces"])
def test_ranges_of_a_blob(
    serve: Laptops, tmp_path: Path, header: str, status: int, start: int, stop: int, size: int | None
) -> None:
    """RFC 9110, section 14: one range is sent, also across pieces; of several the whole; 416 says how many bytes there are."""
    Lab(tmp_path / "lab.tar", size)
    client = serve(tmp_path)
    found = client.get(f"/v2/library/redis/blobs/{Digest.of(LAYER)}", **({"Range": header} if header else {}))
    assert found.status == status
    if status == 416:
        assert found.headers["Content-Range"] == "bytes */300000"
        return
    assert found.body == LAYER[start:stop]
    assert found.headers.get("Content-Range") == (f"bytes {start}-{stop - 1}/300000" if status == 206 else None)


def test_conditional_requests(client: Client) -> None:
    """If-None-Match with the digest is 304 without a body; If-Range with another voids the range."""
    target = f"/v2/library/redis/blobs/{Digest.of(LAYER)}"
    etag = client("HEAD", target).headers["ETag"]
    known = client.get(target, If_None_Match=f'"other", W/{etag}')
    assert (known.status, known.body) == (304, b"")
    assert client.get(target, Range="bytes=0-1", If_Range=etag).status == 206
    assert client.get(target, Range="bytes=0-1", If_Range='"other"').status == 200


def test_lists(client: Client, lab: Lab) -> None:
    """Tags and repositories, by pages with a Link; referrers with a filter."""
    cosign = f"sha256-{Digest.of(lab.redis).hex}.sig"
    assert client.get("/v2/redis/tags/list").json == {"name": "redis", "tags": sorted(["7", "latest", cosign])}
    first = client.get("/v2/redis/tags/list?n=2&ns=docker.io")
    assert (first.json["tags"], first.headers["Link"]) == (
        ["7", "latest"],
        '</v2/redis/tags/list?n=2&last=latest&ns=docker.io>; rel="next"',
    )
    rest = client.get("/v2/redis/tags/list?n=2&last=latest&ns=docker.io")
    assert rest.json["tags"] == [cosign] and "Link" not in rest.headers
    assert client.get("/v2/redis/tags/list?n=two").error == (400, "PAGINATION_NUMBER_INVALID")
    assert client.get("/v2/redis/tags/list?n=0").json["tags"] == []
    assert client.get("/v2/ghcr.io/owner/pinned/tags/list").json["tags"] == []
    repositories = ["docker.io/library/redis", "ghcr.io/owner/pinned", "quay.io/coreos/etcd"]
    assert client.get("/v2/_catalog").json == {"repositories": repositories}
    referrers = f"/v2/library/redis/referrers/{Digest.of(lab.redis)}"
    expected = {**described(OCI_MANIFEST, lab.signature), "artifactType": "a/signature", "annotations": {"by": "me"}}
    for query, found in (("", [expected]), ("?artifactType=a/signature", [expected]), ("?artifactType=b", [])):
        answer = client.get(referrers + query)
        assert (answer.json["manifests"], answer.headers["Content-Type"]) == (found, OCI_INDEX)
        assert answer.headers.get("OCI-Filters-Applied") == ("artifactType" if query else None)
    assert client.get(f"/v2/library/redis/referrers/{ABSENT}").json["manifests"] == []


@pytest.mark.parametrize(
    ("method", "target", "status", "code", "said"),
    [
        ("GET", "/v2/redis/manifests/9", 404, "MANIFEST_UNKNOWN", "it has 7, latest"),
        (
            "GET",
            "/v2/absent/manifests/9",
            404,
            "NAME_UNKNOWN",
            "docker.io/library/redis, ghcr.io/owner/pinned, quay.io/coreos/etcd",
        ),
        ("GET", "/v2/absent/tags/list", 404, "NAME_UNKNOWN", "docker.io/library/absent is not in the bundle"),
        ("GET", f"/v2/redis/blobs/{ABSENT}", 404, "BLOB_UNKNOWN", str(ABSENT)),
        ("GET", "/v2/redis/blobs/7", 404, "BLOB_UNKNOWN", "7"),
        ("GET", "/v2/redis/other", 404, "UNSUPPORTED", "no such resource"),
        ("GET", "/favicon.ico", 404, "UNSUPPORTED", "at /"),
        ("POST", "/v2/redis/blobs/uploads/", 405, "UNSUPPORTED", "nothing can be pushed"),
        ("PUT", "/v2/redis/manifests/7", 405, "UNSUPPORTED", "nothing can be pushed"),
        ("PATCH", "/v2/redis/blobs/uploads/1", 405, "UNSUPPORTED", "nothing can be pushed"),
        ("DELETE", "/v2/redis/manifests/7", 405, "UNSUPPORTED", "nothing can be pushed"),
    ],
)
def test_errors_are_those_of_the_specification(
    client: Client, method: str, target: str, status: int, code: str, said: str
) -> None:
    """With a code (distribution-spec 1.1, "Error Codes") and what there is instead; 405 says what is allowed."""
    found = client(method, target)
    assert found.error == (status, code)
    assert said in found.json["errors"][0]["message"]
    assert found.headers.get("Allow") == ("GET, HEAD" if status == 405 else None)


def test_the_base_says_that_it_is_a_registry(client: Client) -> None:
    """200 for anyone: 401 would have Docker send credentials."""
    for target in ("/v2/", "/v2", "/quay.io/v2/"):
        found = client.get(target)
        assert (found.status, found.headers["Docker-Distribution-Api-Version"]) == (200, "registry/2.0")


def test_the_page_has_images_and_commands(client: Client) -> None:
    """In English, or in Chinese, with the day of a tag where the bundle has it; nothing that a client sends gets into it unchecked, and no script runs on it."""
    english = client.get("/", Host="lab.lan:5000")
    assert "<title>Images on this computer</title>" in english.body.decode()
    assert "docker pull lab.lan:5000/docker.io/library/redis:7" in english.body.decode()
    assert "docker pull lab.lan:5000/ghcr.io/owner/pinned@sha256:" in english.body.decode()
    assert english.body.decode().count("<td>2026-09-21</td>") == 1
    assert "本机提供的镜像" in client.get("/", Accept_Language="zh-CN,zh;q=0.9").body.decode()
    assert "<script" not in client.get("/", Host='"><script>').body.decode()
    assert english.headers["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_a_blob_is_verified_once_however_many_want_it(
    lab: Lab, serve: Laptops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty clients at once: all of them get every byte, and the digest is computed once."""
    client = serve(tmp_path)
    read = Archive.read_chunks
    begun: list[tuple[int, int]] = []

    def counting(archive: Archive, start: int, length: int) -> Iterator[bytes]:
        begun.append((start, length))
        yield from read(archive, start, length)

    monkeypatch.setattr(Archive, "read_chunks", counting)
    together = threading.Barrier(40)

    def pull(_: int) -> bytes:
        together.wait(30)
        return client.get(f"/v2/library/redis/blobs/{Digest.of(LAYER)}").body

    with ThreadPoolExecutor(40) as pool:
        assert set(pool.map(pull, range(40))) == {LAYER}
    assert [length for _, length in begun] == [len(LAYER)]


def test_no_byte_of_a_damaged_blob_is_sent(lab: Lab, serve: Laptops, tmp_path: Path) -> None:
    """Nor by a range that holds none of the damage. The error names the blob and what to do."""
    at = lab.content.index(LAYER) + 200_000
    (tmp_path / "lab.tar").write_bytes(lab.content[:at] + bytes([lab.content[at] ^ 1]) + lab.content[at + 1 :])
    client = serve(tmp_path)
    for range_ in ({}, {"Range": "bytes=0-9"}):
        found = client.get(f"/v2/library/redis/blobs/{Digest.of(LAYER)}", **range_)
        assert found.error == (500, "UNKNOWN")
        assert f"{Digest.of(LAYER)} is damaged in lab.tar: copy lab.tar again" in found.body.decode()
    assert client.get("/v2/quay.io/coreos/etcd/manifests/v3").status == 200


def test_a_damaged_manifest_takes_only_its_image_away(lab: Lab, serve: Laptops, tmp_path: Path) -> None:
    """It is said at the start, and on the page."""
    at = lab.content.index(lab.etcd)
    (tmp_path / "lab.tar").write_bytes(lab.content[:at] + b"[" + lab.content[at + 1 :])
    client = serve(tmp_path)
    assert client.get("/v2/quay.io/coreos/etcd/manifests/v3").status == 404
    assert client.get("/v2/redis/manifests/7").status == 200
    assert "quay.io/coreos/etcd:v3 is not served: its manifest is missing or damaged" in client.server.library.problems
    assert "quay.io/coreos/etcd:v3 is not served" in client.get("/").body.decode()


@pytest.mark.parametrize("member", ["index.json", "bundle.json", "SHA256SUMS"])
def test_a_bundle_whose_lists_are_damaged_is_not_served(lab: Lab, tmp_path: Path, member: str) -> None:
    """By a bit that makes other names of the same length, too."""
    at = lab.content.index(b"\0" * 100, lab.content.index(member.encode())) + 512
    at = lab.content.index(b"redis" if member != "SHA256SUMS" else b"  blobs", at - 512)
    (tmp_path / "lab.tar").write_bytes(lab.content[:at] + bytes([lab.content[at] ^ 1]) + lab.content[at + 1 :])
    library = library_of(tmp_path)
    assert not library.images
    (problem,) = library.problems
    assert "lab.tar" in problem and "copy it again" in problem


def test_a_file_that_was_replaced_is_not_served(client: Client, lab: Lab, tmp_path: Path) -> None:
    """Offsets are those of the file at the start; the error says what to do."""
    target = f"/v2/library/redis/blobs/{Digest.of(LAYER)}"
    assert client.get(target).status == 200
    (tmp_path / "new").write_bytes(lab.content[::-1])
    (tmp_path / "new").rename(tmp_path / "lab.tar")
    found = client.get(target)
    assert found.error == (500, "UNKNOWN")
    assert "has been replaced since the start: start again" in found.body.decode()


def test_a_later_bundle_completes_an_earlier_one(serve: Laptops, tmp_path: Path) -> None:
    """Layers of `lab.tar` serve images of `lab-2.tar` that were exported without them; a tag that both have is the later one's, 10 after 2."""
    base, more = os.urandom(1000), os.urandom(1000)
    for name, body in (("lab-2.tar", b"2"), ("lab-10.tar", b"10")):
        made = Made()
        newer, (config, *_) = manifest([base, more, body])
        made.image("docker.io/library/app:1", newer, config, more, body)
        made.write(tmp_path / name)
    (only,) = library_of(tmp_path).images
    assert only.missing == 1
    first, blobs = manifest([base])
    made = Made()
    made.image("docker.io/library/app:1", first, *blobs)
    made.write(tmp_path / "lab.tar")
    (tmp_path / "._lab.tar").write_bytes(b"of macOS")
    client = serve(tmp_path)
    assert client.server.library.problems == []
    (image,) = client.server.library.images
    assert image.missing == 0
    assert json.loads(client.get("/v2/app/manifests/1").body)["layers"][2]["digest"] == str(Digest.of(b"10"))
    assert client.get(f"/v2/app/blobs/{Digest.of(base)}").body == base


def test_an_image_that_is_not_whole_is_named(serve: Laptops, tmp_path: Path) -> None:
    """A delta without its base: the page says so, and the error for the layer what may have become of it."""
    made = Made()
    body, (config, layer) = manifest([b"left out"])
    made.image("docker.io/library/app:1", body, config)
    made.write(tmp_path / "lab.tar")
    client = serve(tmp_path)
    assert "incomplete: 1 layers" in client.get("/").body.decode()
    found = client.get(f"/v2/app/blobs/{Digest.of(layer)}")
    assert found.error == (404, "BLOB_UNKNOWN") and "in an earlier one" in found.body.decode()


def test_a_build_cache_is_served_whole(serve: Laptops, tmp_path: Path) -> None:
    """BuildKit's cache, an index of layers: none of them is taken for a manifest, each is served, and one that is not in the tar counts as missing."""
    layers, config = [os.urandom(2000), b"absent"], b'{"layers":[],"records":[]}'
    listed = [
        *(described("application/vnd.oci.image.layer.v1.tar+gzip", layer) for layer in layers),
        described("application/vnd.buildkit.cacheconfig.v0", config),
    ]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
    made = Made()
    made.image("docker.io/library/app:cache", body, layers[0], config, media_type=OCI_INDEX)
    made.write(tmp_path / "lab.tar")
    library = library_of(tmp_path)
    assert library.problems == []
    (image,) = library.images
    assert (image.size, image.missing) == (len(layers[0]) + len(config), 1)
    client = serve(tmp_path)
    for data in (layers[0], config):
        assert client.get(f"/v2/library/app/blobs/{Digest.of(data)}").body == data
    assert client.get(f"/v2/library/app/manifests/{Digest.of(config)}").error == (404, "MANIFEST_UNKNOWN")
