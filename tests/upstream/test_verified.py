"""Bytes that a digest vouches for are served, whatever else is said of them."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from mirror.manifests import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    OCI_INDEX,
    OCI_MANIFEST,
    payload_of,
)
from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror
from tests.support.schema1 import PAYLOAD, base64url, sign
from tests.support.scripted import Headers, Scripted

WASM = "application/vnd.example.module.v3+json"


@pytest.mark.parametrize("by_tag", [False, True])
@pytest.mark.parametrize(
    ("content_type", "document", "served"),
    [
        (OCI_INDEX, {"mediaType": OCI_MANIFEST, "layers": [], "config": {}}, OCI_MANIFEST),
        (DOCKER_MANIFEST, {"mediaType": OCI_MANIFEST, "layers": [], "config": {}}, OCI_MANIFEST),
        (OCI_MANIFEST, {"mediaType": WASM}, WASM),
        (f"{WASM}; charset=utf-8", {}, WASM),
        (WASM, {"mediaType": 3}, WASM),
        ("text/html", {"mediaType": WASM}, WASM),
        ("application/json", {"anything": 1}, "application/json"),
        ("application/json", {"manifests": []}, OCI_INDEX),
        (DOCKER_LIST, {"manifests": []}, DOCKER_LIST),
        (OCI_MANIFEST, {"mediaType": "text/html", "layers": [], "config": {}}, OCI_MANIFEST),
    ],
)
async def test_media_types_that_disagree_or_are_unknown(
    mirror: Mirror, upstream: Scripted, by_tag: bool, content_type: str, document: dict[str, Any], served: str
) -> None:
    """The document's own type counts, else the Content-Type; unknown ones are passed through. Fetched once, kept, and served as the same type again."""
    body = json.dumps(document).encode()
    digest = upstream.add_manifest("library/app", "latest", body, content_type)
    path = f"/v2/app/manifests/{'latest' if by_tag else digest}"
    for _ in range(2):
        answer = await mirror.get(path)
        assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, body, served)
    assert (await mirror.head(path)).headers["Content-Type"] == served
    assert mirror.cached(digest)
    assert upstream.count("GET") == 1
    assert upstream.asked[-1].accept == (ACCEPT if by_tag else f"{ACCEPT}, */*")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b'{"hotel": "login"}'),
        ("application/xhtml+xml", b'{"script": 1}'),
        ("application/vnd.evil+xml", b'{"mediaType": "text/html"}'),
        ("image/svg+xml", b"{}"),
        (OCI_MANIFEST, b"<html>"),
    ],
)
async def test_what_a_browser_would_run_is_not_passed_through(
    mirror: Mirror, upstream: Scripted, content_type: str, body: bytes
) -> None:
    """It would be served from the dashboard's own origin."""
    digest = upstream.add_manifest("library/app", None, body, content_type)
    assert (await mirror.get(f"/v2/app/manifests/{digest}")).status == 503
    assert not mirror.cached(digest)


async def test_unknown_types_without_a_digest_are_refused(mirror: Mirror, upstream: Scripted) -> None:
    """By tag, where the registry does not say which digest it means: it may be anybody's JSON."""
    upstream.add_manifest("library/app", "latest", b'{"hotel": "login"}', "application/json")
    upstream.fail("latest", Headers({"Docker-Content-Digest": None}), times=9)
    assert (await mirror.get("/v2/app/manifests/latest")).status == 503


async def test_signed_schema_1_is_named_by_its_payload(start: StartMirror, upstream: Scripted) -> None:
    """Served with its signatures, by tag and by the digest of what they sign, after a restart and without upstream too.

    What is kept under its name is what the name verifies; where the signatures are lost, that alone is served.
    """
    mirror = await start()
    signed, digest = sign(PAYLOAD), Digest.of(PAYLOAD)
    for reference in ("old", str(digest)):
        upstream.manifests["library/app", reference] = DOCKER_SCHEMA1_SIGNED, signed
    upstream.fail("/old", Headers({"Docker-Content-Digest": str(digest)}), times=9)
    for reference in ("old", str(digest), "old"):
        answer = await mirror.get(f"/v2/app/manifests/{reference}")
        assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, signed, DOCKER_SCHEMA1_SIGNED)
        assert answer.headers["Docker-Content-Digest"] == str(digest)
    assert upstream.count("GET") == 1
    assert (mirror.directory / "blobs" / "sha256" / digest.hex).read_bytes() == PAYLOAD
    await mirror.stop()
    await upstream.stop()
    for expected, media_type in ((signed, DOCKER_SCHEMA1_SIGNED), (PAYLOAD, DOCKER_SCHEMA1)):
        mirror = await start(mirror.directory)
        for reference in ("old", str(digest)):
            answer = await mirror.get(f"/v2/app/manifests/{reference}")
            assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, expected, media_type)
            head = await mirror.head(f"/v2/app/manifests/{reference}")
            assert (head.status, head.headers["Docker-Content-Digest"]) == (200, str(digest))
        await mirror.stop()
        shutil.rmtree(mirror.directory / "catalog" / "documents")


@pytest.mark.parametrize(
    "signed",
    [
        sign(PAYLOAD).replace(b"library/app", b"library/bad"),
        sign(PAYLOAD, protected="%%%"),
        sign(PAYLOAD, protected=base64url(b"[]")),
        sign(PAYLOAD, protected=base64url(b'{"formatLength": -1, "formatTail": ""}')),
        sign(PAYLOAD, protected=base64url(b'{"formatLength": 1e9, "formatTail": ""}')),
        # All of the payload in the tail, and another image around it.
        json.dumps(
            {
                "schemaVersion": 1,
                "fsLayers": ["others"],
                "signatures": [
                    {"protected": base64url(json.dumps({"formatLength": 1, "formatTail": base64url(PAYLOAD[1:])}).encode())}
                ],
            }
        ).encode(),
        PAYLOAD.replace(b"old", b"new"),
    ],
)
async def test_signatures_do_not_vouch_for_other_bytes(mirror: Mirror, upstream: Scripted, signed: bytes) -> None:
    """Whatever a signature says of lengths and tails, only what the digest names is served."""
    digest = Digest.of(PAYLOAD)
    upstream.manifests["library/app", str(digest)] = DOCKER_SCHEMA1_SIGNED, signed
    assert (await mirror.get(f"/v2/app/manifests/{digest}")).status == 503
    assert payload_of(signed) != PAYLOAD
