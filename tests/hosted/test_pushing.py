"""Pushes over HTTP: OCI distribution-spec 1.1, request by request."""

from __future__ import annotations

import asyncio
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from mirror.manifests import MAX_SIZE, OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror
from tests.support.pushes import HOSTED, Said, manifest_of, push_blob, push_image, put_manifest, say
from tests.support.scripted import Scripted

DATA = b"0123456789" * 10
DIGEST = Digest.of(DATA)


@pytest.fixture
async def hosting(start: StartMirror) -> Mirror:
    return await start(settings={"hosted": HOSTED})


async def begun(mirror: Mirror, repository: str = "team/app", query: str = "") -> str:
    """The Location of a new upload."""
    said = await say(mirror.session, "POST", f"/v2/{repository}/blobs/uploads/{query}")
    assert said.status == 202
    return str(said.headers["Location"])


# ---------------------------------------------------------------------- who and where


async def test_what_is_blocked_cannot_be_pushed(start: StartMirror, tmp_path: Path) -> None:
    """403 for a blob by each of its ways, POST, PUT and mount, and for a manifest that is blocked, or that names what is; the rest can be pushed."""
    image = manifest_of(b"{}", DATA)
    named = manifest_of(b"{}", DATA, b"other")
    (tmp_path / "blocked.txt").write_text(
        f"{Digest.of(b'bad')} poisoned\n{Digest.of(image)} poisoned\n{Digest.of(b'other')} poisoned\n"
    )
    mirror: Mirror = await start(settings={"hosted": HOSTED, "guard": [{"blocklist": [str(tmp_path / "blocked.txt")]}]})
    for data in (b"{}", DATA):
        await push_blob(mirror.session, "team/app", data)
    uploads, bad = "/v2/team/app/blobs/uploads/", Digest.of(b"bad")
    location = await begun(mirror)
    refused = [
        await say(mirror.session, "POST", f"{uploads}?digest={bad}", b"bad"),
        await say(mirror.session, "POST", f"{uploads}?mount={bad}&from=class/app"),
        await say(mirror.session, "PUT", f"{location}?digest={bad}", b"bad"),
        await put_manifest(mirror.session, "team/app", "1", image),
        await put_manifest(mirror.session, "team/app", "1", named),
    ]
    assert [(said.status, said.code, "poisoned" in said.message) for said in refused] == [(403, "DENIED", True)] * 5
    assert (await say(mirror.session, "HEAD", "/v2/team/app/manifests/1")).status == 404
    assert not mirror.cached(bad)
    await push_image(mirror.session, "team/app", "1", DATA, annotations={"not": "blocked"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/team/app/blobs/uploads/"),
        ("PUT", "/v2/team/app/manifests/1"),
        ("DELETE", "/v2/team/app/manifests/1"),
        ("DELETE", f"/v2/team/app/blobs/{DIGEST}"),
        ("PATCH", "/v2/app/blobs/uploads/1"),
        ("GET", "/v2/team/app/blobs/uploads/1"),
    ],
)
async def test_without_the_table_nothing_can_be_pushed(mirror: Mirror, upstream: Scripted, method: str, path: str) -> None:
    """405, with the lines to add; no registry is asked."""
    said = await say(mirror.session, method, path)
    assert (said.status, said.code) == (405, "UNSUPPORTED")
    assert "[hosted]" in said.message
    assert "team/**" in said.message
    assert upstream.asked == []


async def test_other_names_cannot_be_pushed_to(hosting: Mirror) -> None:
    """403, and the setting that has the names that can."""
    for path in ("/v2/app", "/v2/other/app", "/v2/ghcr.io/team/app"):
        said = await say(hosting.session, "POST", f"{path}/blobs/uploads/")
        assert (said.status, said.code) == (403, "DENIED")
        assert "hosted.repositories" in said.message


async def test_a_page_of_another_site_cannot_push(hosting: Mirror) -> None:
    """A browser sends a POST to this machine for any page; it says for which."""
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        said = await say(hosting.session, "POST", "/v2/team/app/blobs/uploads/", **headers)
        assert said.status == 403


async def test_only_this_machine_may_push(start: StartMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """From elsewhere it is 403, and pulls are open as ever."""
    mirror = await start(settings={"hosted": HOSTED})
    await push_image(mirror.session, "team/app", "1", DATA)
    monkeypatch.setattr("mirror.api.connected_client.is_on_loopback", lambda transport: False)
    for method, path in (("POST", "/v2/team/app/blobs/uploads/"), ("DELETE", "/v2/team/app/manifests/1")):
        said = await say(mirror.session, method, path)
        assert (said.status, said.code) == (403, "DENIED")
        assert "mirror user add" in said.message
    assert (await mirror.get("/v2/team/app/manifests/1")).status == 200


# ---------------------------------------------------------------------- blobs


async def pushed_at_once(mirror: Mirror, digest: Digest) -> Said:
    return await say(mirror.session, "POST", f"/v2/team/app/blobs/uploads/?digest={digest}", DATA)


async def pushed_by_put(mirror: Mirror, digest: Digest) -> Said:
    return await say(mirror.session, "PUT", f"{await begun(mirror)}?digest={digest}", DATA)


async def pushed_in_chunks(mirror: Mirror, digest: Digest) -> Said:
    location = await begun(mirror)
    for start in range(0, 100, 40):
        chunk = DATA[start : start + 40]
        said = await say(mirror.session, "PATCH", location, chunk, Content_Range=f"{start}-{start + len(chunk) - 1}")
        assert (said.status, said.headers["Range"]) == (202, f"0-{start + len(chunk) - 1}")
        location = said.headers["Location"]
    return await say(mirror.session, "PUT", f"{location}?digest={digest}")


async def pushed_with_a_last_chunk(mirror: Mirror, digest: Digest) -> Said:
    location = await begun(mirror)
    await say(mirror.session, "PATCH", location, DATA[:60], Content_Range="0-59")
    return await say(mirror.session, "PUT", f"{location}?digest={digest}", DATA[60:], Content_Range="60-99")


async def pushed_as_a_stream(mirror: Mirror, digest: Digest) -> Said:
    async def body() -> Any:
        for start in range(0, 100, 10):
            yield DATA[start : start + 10]

    location = await begun(mirror)
    said = await say(mirror.session, "PATCH", location, body())
    assert said.status == 202
    return await say(mirror.session, "PUT", f"{location}?digest={digest}")


WAYS = [pushed_at_once, pushed_by_put, pushed_in_chunks, pushed_with_a_last_chunk, pushed_as_a_stream]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_blob_is_pushed_in_every_way(hosting: Mirror, way: Any, algorithm: str) -> None:
    """201 with a relative Location, under which it is; no registry is asked; nothing stays in the spool."""
    digest = Digest.of(DATA, algorithm)
    assert (await hosting.head(f"/v2/team/app/blobs/{digest}")).status == 404
    said = await way(hosting, digest)
    assert (said.status, said.headers["Location"]) == (201, f"/v2/team/app/blobs/{digest}")
    assert said.headers["Docker-Content-Digest"] == str(digest)
    got = await hosting.get(said.headers["Location"])
    assert (got.status, got.body) == (200, DATA)
    assert (await hosting.get(said.headers["Location"], Range="bytes=10-19")).body == DATA[10:20]
    assert (await hosting.get(f"/v2/team/other/blobs/{digest}")).status == 404
    assert hosting.spooled() == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_wrong_digest_is_refused(hosting: Mirror, way: Any) -> None:
    """400 DIGEST_INVALID, and nothing is there."""
    said = await way(hosting, Digest.of(b"something else"))
    assert (said.status, said.code) == (400, "DIGEST_INVALID")
    assert (await hosting.get(f"/v2/team/app/blobs/{Digest.of(b'something else')}")).status == 404
    assert not hosting.cached(DIGEST)


@pytest.mark.parametrize("content_range", ["50-99", "0-9", "41-99"])
async def test_a_chunk_out_of_order_is_refused(hosting: Mirror, content_range: str) -> None:
    """416 with what is here, which GET says too, and the upload goes on from there."""
    location = await begun(hosting)
    await say(hosting.session, "PATCH", location, DATA[:40], Content_Range="0-39")
    for method, url in (("PATCH", location), ("PUT", f"{location}?digest={DIGEST}")):
        start, last = map(int, content_range.split("-"))
        said = await say(hosting.session, method, url, DATA[start : last + 1], Content_Range=content_range)
        assert (said.status, said.headers["Range"], said.headers["Location"]) == (416, "0-39", location)
    status = await say(hosting.session, "GET", location)
    assert (status.status, status.headers["Range"], status.headers["Location"]) == (204, "0-39", location)
    said = await say(hosting.session, "PUT", f"{location}?digest={DIGEST}", DATA[40:], Content_Range="40-99")
    assert said.status == 201


@pytest.mark.parametrize("content_range", ["0-1000", "x", "9-0", "0-", "-5"])
async def test_a_content_range_that_makes_no_sense_is_refused(hosting: Mirror, content_range: str) -> None:
    """400, or 416 where it is one, and the body another; and nothing is appended."""
    location = await begun(hosting)
    said = await say(hosting.session, "PATCH", location, DATA, Content_Range=content_range)
    of_the_body = content_range in ("0-1000", "9-0")
    assert (said.status, said.code) == ((416, "RANGE_INVALID") if of_the_body else (400, "BLOB_UPLOAD_INVALID"))
    assert (await say(hosting.session, "GET", location)).headers["Range"] == "0-0"


@pytest.mark.parametrize("length", [10, 99, 2 * 1024 * 1024 + 10])
@pytest.mark.parametrize("more", [-5, 5])
async def test_a_body_in_pieces_of_another_length_than_its_range_is_refused(hosting: Mirror, length: int, more: int) -> None:
    """416, and nothing of it counts, however much was written meanwhile: the upload goes on where it was, by PATCH or PUT."""
    location = await begun(hosting)
    await say(hosting.session, "PATCH", location, DATA)
    data = os.urandom(length)

    async def body(size: int) -> Any:
        for start in range(0, size, 64 * 1024):
            yield (data + b"more!")[start : min(start + 64 * 1024, size)]

    for method, url in (("PATCH", location), ("PUT", f"{location}?digest={Digest.of(DATA + data)}")):
        said = await say(hosting.session, method, url, body(length + more), Content_Range=f"100-{99 + length}")
        assert (said.status, said.headers["Range"], said.headers["Location"]) == (416, "0-99", location)
    said = await say(hosting.session, "PUT", url, body(length), Content_Range=f"100-{99 + length}")
    assert said.status == 201
    assert (await hosting.get(f"/v2/team/app/blobs/{Digest.of(DATA + data)}")).body == DATA + data


async def test_an_upload_is_cancelled(hosting: Mirror) -> None:
    """204, and then there is none."""
    location = await begun(hosting)
    await say(hosting.session, "PATCH", location, DATA)
    assert (await say(hosting.session, "DELETE", location)).status == 204
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        said = await say(hosting.session, method, f"{location}?digest={DIGEST}")
        assert said.status == 404
    assert hosting.spooled() == []


async def test_an_upload_goes_on_after_a_restart(start: StartMirror, tmp_path: Path) -> None:
    """From the byte that GET says, in another process as well: nothing of it is only in memory."""
    first = await start(settings={"hosted": HOSTED})
    location = await begun(first)
    await say(first.session, "PATCH", location, DATA[:70])
    await first.stop()
    second = await start(settings={"hosted": HOSTED})
    assert (await say(second.session, "GET", location)).headers["Range"] == "0-69"
    beside = await start(settings={"hosted": HOSTED})
    await say(beside.session, "PATCH", location, DATA[70:80], Content_Range="70-79")
    said = await say(second.session, "PUT", f"{location}?digest={DIGEST}", DATA[80:])
    assert said.status == 201
    assert (await beside.get(f"/v2/team/app/blobs/{DIGEST}")).body == DATA


async def test_a_client_that_leaves_can_go_on(hosting: Mirror) -> None:
    """What has come of a body stays."""
    location = await begun(hosting)
    data = os.urandom(8 * 1024 * 1024)
    half = len(data) // 2

    async def body() -> Any:
        yield data[:half]
        await asyncio.sleep(0)
        raise ConnectionResetError

    with pytest.raises(Exception):  # noqa: B017
        await say(hosting.session, "PATCH", location, body())
    received = 0
    while True:
        said = await say(hosting.session, "GET", location)
        received = int(said.headers["Range"].removeprefix("0-")) + 1
        resumed = await say(hosting.session, "PATCH", location, data[received:], Content_Range=f"{received}-{len(data) - 1}")
        if resumed.status == 202:
            break
        # The mirror has not noticed yet, or some more bytes have come.
        assert resumed.status in (409, 416)
    assert 0 < received <= half
    assert (await say(hosting.session, "PUT", f"{location}?digest={Digest.of(data)}")).status == 201


async def test_an_upload_belongs_to_its_repository(hosting: Mirror) -> None:
    """By another one's name it is not found."""
    location = await begun(hosting)
    said = await say(hosting.session, "GET", location.replace("team/app", "team/other"))
    assert (said.status, said.code) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize(
    ("asked", "head"),
    [
        ("/v2/team/app", "/v2/team/app"),
        ("/v2/docker.io/team/app", "/v2/docker.io/team/app"),
        ("/docker.io/v2/team/app", "/docker.io/v2/team/app"),
    ],
)
async def test_locations_have_the_name_that_the_client_uses(start: StartMirror, asked: str, head: str) -> None:
    """Below the path at which a proxy has the mirror, and with the client's own ns."""
    for url, prefix in ((None, ""), ("https://mirror.example.com/registry", "/registry")):
        server = {} if url is None else {"public_url": url}
        access = [{"who": ["127.0.0.0/8"], "may": ["pull", "push"]}]
        mirror = await start(settings={"hosted": HOSTED, "server": server, "access": access})
        said = await say(mirror.session, "POST", f"{asked}/blobs/uploads/?ns=docker.io")
        assert said.headers["Location"].startswith(f"{prefix}{head}/blobs/uploads/")
        assert said.headers["Location"].endswith("?ns=docker.io")
        await mirror.stop()


# ---------------------------------------------------------------------- mounts


async def test_a_blob_is_mounted_from_another_hosted_repository(hosting: Mirror) -> None:
    """With `from` and without it; what is not there begins an upload."""
    await push_blob(hosting.session, "team/base", DATA)
    for name, query in (("one", "&from=team/base"), ("two", "")):
        said = await say(hosting.session, "POST", f"/v2/team/{name}/blobs/uploads/?mount={DIGEST}{query}")
        assert (said.status, said.headers["Location"]) == (201, f"/v2/team/{name}/blobs/{DIGEST}")
        assert (await hosting.get(f"/v2/team/{name}/blobs/{DIGEST}")).body == DATA
    for query in (f"?mount={DIGEST}&from=team/elsewhere", f"?mount={Digest.of(b'x')}", f"?mount={DIGEST}&from=***"):
        said = await say(hosting.session, "POST", f"/v2/team/three/blobs/uploads/{query}")
        assert said.status == 202
        assert "/uploads/" in said.headers["Location"]


@pytest.mark.parametrize("damaged", [True, False])
async def test_what_was_changed_on_the_disk_is_verified_before_it_is_promised(hosting: Mirror, damaged: bool) -> None:
    """A file that something else has written to has its size, and may have other bytes: a mount of it, and a client that asks whether it must send it, are answered
    once it is hashed. A damaged one is sent again."""
    await push_blob(hosting.session, "team/base", DATA)
    file = hosting.directory / "blobs" / "sha256" / DIGEST.hex
    for ask in ("mount", "HEAD"):
        file.write_bytes(b"x" * len(DATA) if damaged else DATA)
        os.utime(file, (1.0, 1.0))
        if ask == "mount":
            said = await say(hosting.session, "POST", f"/v2/team/app/blobs/uploads/?mount={DIGEST}&from=team/base")
            assert said.status == (202 if damaged else 201)
        else:
            said = await say(hosting.session, "HEAD", f"/v2/team/base/blobs/{DIGEST}")
            assert said.status == (404 if damaged else 200)
        assert file.exists() is not damaged
        if damaged:
            assert (await say(hosting.session, "HEAD", f"/v2/team/base/blobs/{DIGEST}")).status == 404
            await push_blob(hosting.session, "team/base", DATA)
    assert (await hosting.get(f"/v2/team/base/blobs/{DIGEST}")).body == DATA


async def test_a_cached_layer_is_mounted_and_never_sent(start: StartMirror, upstream: Scripted) -> None:
    """From the image that was pulled, or from any; from another image, or a registry that is not mirrored, it is not."""
    image = upstream.add_image("library/base", "1", layers=[DATA])
    mirror = await start(settings={"hosted": HOSTED})
    assert (await mirror.get("/v2/library/base/manifests/1")).status == 200
    assert (await mirror.get(f"/v2/library/base/blobs/{DIGEST}")).body == DATA
    await mirror.until_cached(DIGEST)
    asked = len(upstream.asked)
    for number, (source, status) in enumerate(
        [("library/base", 201), ("base", 201), ("docker.io/library/base", 201), ("other", 202), ("nowhere.example/base", 202)]
    ):
        said = await say(mirror.session, "POST", f"/v2/team/{number}/blobs/uploads/?mount={DIGEST}&from={source}")
        assert said.status == status, source
    said = await say(mirror.session, "POST", f"/v2/team/any/blobs/uploads/?mount={DIGEST}")
    assert said.status == 201
    await push_blob(mirror.session, "team/any", b"{}")
    assert (await put_manifest(mirror.session, "team/any", "1", manifest_of(b"{}", DATA))).status == 201
    assert len(upstream.asked) == asked
    assert (await mirror.get(f"/v2/library/base/manifests/{image.digest}")).status == 200


# ---------------------------------------------------------------------- manifests


async def test_a_manifest_is_kept_byte_for_byte(hosting: Mirror, upstream: Scripted) -> None:
    """By tag and by digest, with its own media type; no registry is asked for any of it."""
    digest, body = await push_image(hosting.session, "team/app", "1", DATA)
    for reference in ("1", str(digest)):
        for _ in range(2):
            got = await hosting.get(f"/v2/team/app/manifests/{reference}")
            assert (got.status, got.body, got.headers["Content-Type"]) == (200, body, OCI_MANIFEST)
            assert got.headers["Docker-Content-Digest"] == str(digest)
        head = await hosting.head(f"/v2/team/app/manifests/{reference}")
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(body)))
    assert (await hosting.get("/v2/team/app/manifests/2")).status == 404
    assert (await hosting.get(f"/v2/team/other/manifests/{digest}")).status == 404
    assert upstream.asked == []


async def test_a_tag_means_at_once_what_was_pushed_last(start: StartMirror) -> None:
    """After a 404 as well. In other processes within a second or so."""
    mirror = await start(settings={"hosted": HOSTED}, negative_ttl="1h", tag_ttl="1h")
    beside = await start(settings={"hosted": HOSTED})
    assert (await mirror.get("/v2/team/app/manifests/1")).status == 404
    for layer in (b"one", b"two", b"three"):
        digest, body = await push_image(mirror.session, "team/app", "1", layer)
        assert (await mirror.get("/v2/team/app/manifests/1")).body == body
        while (await beside.get("/v2/team/app/manifests/1")).body != body:
            pass
        assert (await beside.get(f"/v2/team/app/manifests/{digest}")).body == body
    assert (await say(mirror.session, "DELETE", "/v2/team/app/manifests/1")).status == 202
    assert (await mirror.get("/v2/team/app/manifests/1")).status == 404
    while (await beside.get("/v2/team/app/manifests/1")).status != 404:
        pass


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        (manifest_of(b"{}", b"absent"), OCI_MANIFEST, 404, "MANIFEST_BLOB_UNKNOWN"),
        (b"no JSON", OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"[]", OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"{}", "text/html", 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}"), OCI_INDEX, 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}", schemaVersion=1), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}", layers=[{"digest": "sha256:short"}]), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}", layers="x"), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}", layers=[None]), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}", layers=["x"]), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}", subject="x"), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}").decode().encode("utf-16"), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}").decode().encode("utf-8-sig"), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (manifest_of(b"{}", more=math.nan), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        *(
            (manifest_of(b"{}", layers=[{"digest": str(Digest.of(b"{}")), "size": size}]), OCI_MANIFEST, 400, "MANIFEST_INVALID")
            for size in (-1, 1, 3, "2", 2.0, True, None, 2**63, math.inf)
        ),
        (manifest_of(b"{}").replace(b'"size": 2', b'"size": 3'), OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"x" * (MAX_SIZE + 1), OCI_MANIFEST, 413, "SIZE_INVALID"),
    ],
)
async def test_a_manifest_that_is_none_is_refused(hosting: Mirror, body: bytes, media_type: str, status: int, code: str) -> None:
    """What clients could not read, too. And its tag does not exist then."""
    await push_blob(hosting.session, "team/app", b"{}")
    said = await put_manifest(hosting.session, "team/app", "1", body, media_type)
    assert (said.status, said.code) == (status, code)
    assert (await hosting.get("/v2/team/app/manifests/1")).status == 404


async def test_a_manifest_by_digest_must_have_it(hosting: Mirror) -> None:
    """SHA-512 as well; several tags may come with it."""
    await push_blob(hosting.session, "team/app", b"{}")
    body = manifest_of(b"{}")
    said = await put_manifest(hosting.session, "team/app", str(Digest.of(b"other")), body)
    assert (said.status, said.code) == (400, "DIGEST_INVALID")
    digest = Digest.of(body, "sha512")
    said = await put_manifest(hosting.session, "team/app", f"{digest}?tag=1&tag=1.0&tag=1", body)
    assert (said.status, said.headers["Docker-Content-Digest"]) == (201, str(digest))
    assert said.headers.getall("OCI-Tag") == ["1", "1.0"]
    assert (await hosting.get("/v2/team/app/manifests/1.0")).headers["Docker-Content-Digest"] == str(digest)


async def test_layers_that_no_registry_has_need_not_be_there(hosting: Mirror) -> None:
    """Foreign ones, by their media type; and the subject may come later."""
    await push_blob(hosting.session, "team/app", b"{}")
    foreign = {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": str(DIGEST), "size": 1}
    subject = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"later")), "size": 1}
    body = manifest_of(b"{}", layers=[foreign], subject=subject)
    said = await put_manifest(hosting.session, "team/app", "1", body)
    assert (said.status, said.headers["OCI-Subject"]) == (201, str(Digest.of(b"later")))


@pytest.mark.parametrize("field", ["manifests", "layers", "blobs", "config", "fsLayers"])
async def test_what_is_named_as_a_foreign_layer_and_otherwise_is_needed(hosting: Mirror, field: str) -> None:
    """Else a manifest could stand for what its repository does not have."""
    await push_blob(hosting.session, "team/app", b"{}")
    named = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": str(DIGEST), "blobSum": str(DIGEST), "size": 1}
    foreign = {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": str(DIGEST), "size": 1}
    document = json.loads(manifest_of(b"{}", layers=[foreign]))
    document[field] = named if field == "config" else [*document.get(field, ()), named]
    said = await put_manifest(hosting.session, "team/app", "1", json.dumps(document).encode())
    assert (said.status, said.code) == (404, "MANIFEST_BLOB_UNKNOWN")


async def test_an_index_needs_its_manifests(hosting: Mirror) -> None:
    """In its repository: a sparse index could not be pulled."""
    digest, body = await push_image(hosting.session, "team/app", "1", DATA)
    listed = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(body)}
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed]}).encode()
    said = await put_manifest(hosting.session, "team/other", "1", index, OCI_INDEX)
    assert (said.status, said.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert (await put_manifest(hosting.session, "team/app", "all", index, OCI_INDEX)).status == 201
    assert (await hosting.get("/v2/team/app/manifests/all")).headers["Content-Type"] == OCI_INDEX


# ---------------------------------------------------------------------- lists


async def test_ten_thousand_tags_are_listed_in_pages(hosting: Mirror) -> None:
    """In ASCII order, each once, by the Link of each page, or all at once."""
    digest, body = await push_image(hosting.session, "team/app", "0", DATA)
    names = [f"tag-{number:05}" for number in range(10_000)]
    for start in range(0, 10_000, 20):
        tags = "&".join(f"tag={name}" for name in names[start : start + 20])
        assert (await put_manifest(hosting.session, "team/app", f"{digest}?{tags}", body)).status == 201
    found: list[str] = []
    url = "/v2/team/app/tags/list?n=999"
    while url:
        got = await hosting.get(url)
        page = json.loads(got.body)
        assert page["name"] == "team/app"
        found += page["tags"]
        link = got.headers.get("Link")
        url = link[1:].partition(">")[0] if link else ""
    assert found == ["0", *names]
    assert json.loads((await hosting.get("/v2/team/app/tags/list")).body)["tags"] == found
    assert json.loads((await hosting.get("/v2/team/app/tags/list?n=2&last=tag-00041")).body)["tags"] == names[42:44]
    assert json.loads((await hosting.get("/v2/team/app/tags/list?n=0")).body)["tags"] == []


async def test_the_catalog_has_hosted_repositories(hosting: Mirror) -> None:
    """Under the names that they are pushed to."""
    for name in ("team/b", "team/a", "class/x/y"):
        await push_image(hosting.session, name, "1", DATA)
    assert json.loads((await hosting.get("/v2/_catalog")).body)["repositories"] == ["class/x/y", "team/a", "team/b"]
    got = await hosting.get("/v2/_catalog?n=2")
    assert json.loads(got.body)["repositories"] == ["class/x/y", "team/a"]
    assert "last=team%2Fa" in got.headers["Link"]


async def test_referrers_are_filtered_and_read_from_the_fallback_tag(hosting: Mirror) -> None:
    """Those with the subject, and those that a client without this API listed under the tag; none for what nothing refers to."""
    digest, _ = await push_image(hosting.session, "team/app", "1", DATA)
    url = f"/v2/team/app/referrers/{digest}"
    assert json.loads((await hosting.get(url)).body)["manifests"] == []
    subject = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 1}
    for kind in ("application/a", "application/b"):
        await push_image(hosting.session, "team/app", kind[-1], b"", subject=subject, artifactType=kind)
    found = json.loads((await hosting.get(url)).body)["manifests"]
    assert sorted(one["artifactType"] for one in found) == ["application/a", "application/b"]
    got = await hosting.get(f"{url}?artifactType=application/b")
    assert [one["artifactType"] for one in json.loads(got.body)["manifests"]] == ["application/b"]
    assert got.headers["OCI-Filters-Applied"] == "artifactType"
    old, body = await push_image(hosting.session, "team/app", "old", b"old")
    listed = {"mediaType": OCI_MANIFEST, "digest": str(old), "size": len(body), "artifactType": "application/c"}
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed]}).encode()
    assert (await put_manifest(hosting.session, "team/app", f"sha256-{digest.hex}", index, OCI_INDEX)).status == 201
    found = json.loads((await hosting.get(url)).body)["manifests"]
    assert sorted(one["artifactType"] for one in found) == ["application/a", "application/b", "application/c"]


# ---------------------------------------------------------------------- deletes and rules


async def test_what_is_deleted_is_gone(hosting: Mirror) -> None:
    """A tag alone; a manifest with its tags; a blob that nothing names. Then 404."""
    digest, _ = await push_image(hosting.session, "team/app", "1", DATA)
    await push_image(hosting.session, "team/app", "2", DATA)
    assert (await hosting.get("/v2/team/app/manifests/1")).status == 200
    for path, status in (
        ("manifests/1", 202),
        ("manifests/1", 404),
        (f"blobs/{DIGEST}", 409),
        (f"manifests/{digest}", 202),
        (f"manifests/{digest}", 404),
        ("manifests/2", 404),
        (f"blobs/{DIGEST}", 202),
        (f"blobs/{DIGEST}", 404),
    ):
        assert (await say(hosting.session, "DELETE", f"/v2/team/app/{path}")).status == status, path
        if status != 409:
            assert (await hosting.get(f"/v2/team/app/{path}")).status in (404, 405), path


async def test_an_immutable_tag_is_not_moved(start: StartMirror) -> None:
    """409, and it means what it meant."""
    mirror = await start(settings={"hosted": {**HOSTED, "immutable": ["team/**:v*"]}})
    digest, body = await push_image(mirror.session, "team/app", "v1", b"one")
    await push_blob(mirror.session, "team/app", b"two")
    said = await put_manifest(mirror.session, "team/app", "v1", manifest_of(b"{}", b"two"))
    assert (said.status, said.code) == (409, "DENIED")
    assert (await put_manifest(mirror.session, "team/app", "v1", body)).status == 201
    assert (await say(mirror.session, "DELETE", f"/v2/team/app/manifests/{digest}")).status == 409
    assert (await mirror.get("/v2/team/app/manifests/v1")).body == body


async def test_whoever_begins_too_many_uploads_is_told_so(hosting: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 TOOMANYREQUESTS with Retry-After and what to do; when one is cancelled, the next can begin."""
    monkeypatch.setattr("mirror.storage.disk.upload_limits._EACH", 2)
    locations = [await begun(hosting), await begun(hosting)]
    said = await say(hosting.session, "POST", "/v2/team/app/blobs/uploads/")
    assert (said.status, said.code, said.headers["Retry-After"]) == (429, "TOOMANYREQUESTS", "60")
    assert "cancel" in said.message
    assert (await say(hosting.session, "DELETE", locations[0])).status == 204
    await push_blob(hosting.session, "team/app", DATA)


async def test_more_than_the_limit_is_refused_before_it_is_sent(start: StartMirror) -> None:
    """403 with the limit and what to do, and everything before it stays."""
    mirror = await start(settings={"hosted": {**HOSTED, "max_size": "2MiB"}})
    await push_image(mirror.session, "team/app", "1", DATA)
    large = os.urandom(2 * 1024 * 1024)
    location = await begun(mirror)
    said = await say(mirror.session, "PUT", f"{location}?digest={Digest.of(large)}", large)
    assert (said.status, said.code) == (403, "DENIED")
    assert "hosted.max_size" in said.message
    assert (await mirror.get("/v2/team/app/manifests/1")).status == 200


@pytest.mark.parametrize(
    "more", [{"annotations": {"a": "\ud800"}}, {"annotations": {"\udfff": "a"}}, {"artifactType": "a/\ud800"}]
)
async def test_a_referrer_that_utf8_cannot_say_does_not_end_the_list(hosting: Mirror, more: dict[str, Any]) -> None:
    """Half a surrogate pair can be pushed, as JSON has it (RFC 8259, section 8.2), by anybody who may push: all others are listed beside it, and it as it says."""
    image, body = await push_image(hosting.session, "team/app", "1", DATA)
    subject = {"mediaType": OCI_MANIFEST, "digest": str(image), "size": len(body)}
    for fields in ({}, more):
        body = manifest_of(b"{}", DATA, subject=subject, **fields)
        assert (await put_manifest(hosting.session, "team/app", str(Digest.of(body)), body)).status == 201
    got = await hosting.get(f"/v2/team/app/referrers/{image}")
    assert got.status == 200
    listed = {one["digest"]: one for one in json.loads(got.body.decode())["manifests"]}
    assert len(listed) == 2
    assert more.items() <= listed[str(Digest.of(body))].items()
