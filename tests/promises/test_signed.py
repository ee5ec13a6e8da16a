"""``signed`` of [[guard]] tables: cosign's signatures by key, in both forms, made here as cosign's specification says."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirror.guards import deciding
from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted, Status
from tests.support.sigstore import BUNDLE, attach_bundle, attach_payload, payload_of, statement_of

LATEST = "/v2/app/manifests/latest"
Sign = Callable[[bytes], bytes]


def make_key(kind: str) -> tuple[bytes, Sign]:
    """A public key in PEM, and the function that signs with the private one."""
    if kind == "ed25519":
        edwards = ed25519.Ed25519PrivateKey.generate()
        return edwards.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), edwards.sign
    if kind == "rsa":
        big = rsa.generate_private_key(65537, 2048)
        pem = big.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem, lambda data: big.sign(data, padding.PKCS1v15(), hashes.SHA256())
    curve = ec.generate_private_key(ec.SECP256R1())
    pem = curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem, lambda data: curve.sign(data, ec.ECDSA(hashes.SHA256()))


def sign_with_payload(upstream: Scripted, digest: Digest, sign: Sign, named: Digest | None = None) -> None:
    payload = payload_of(named or digest)
    annotations = {"dev.cosignproject.cosign/signature": base64.b64encode(sign(payload)).decode()}
    attach_payload(upstream, digest, payload, annotations)


def sign_with_bundle(upstream: Scripted, digest: Digest, sign: Sign, named: Digest | None = None, **changes: Any) -> None:
    kind, payload = "application/vnd.in-toto+json", statement_of(named or digest, **changes)
    signature = sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    bundle = json.dumps({"mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": ""}}, "dsseEnvelope": envelope})
    attach_bundle(upstream, digest, bundle.encode())


FORMS = {"payload": sign_with_payload, "bundle": sign_with_bundle}


def settings(folder: Path, pem: bytes, **more: Any) -> dict[str, Any]:
    (folder / "key.pub").write_bytes(pem)
    return {"guard": [{"name": "signed", "signed": {"keys": [str(folder / "key.pub")]}, **more}]}


@pytest.mark.parametrize("kind", ["ecdsa", "rsa", "ed25519"])
@pytest.mark.parametrize("form", FORMS)
async def test_what_is_signed_is_served(start: StartMirror, upstream: Scripted, tmp_path: Path, form: str, kind: str) -> None:
    """By each kind of key, in both forms; signatures are read once for each image."""
    pem, sign = make_key(kind)
    image = upstream.add_image("library/app", "latest")
    FORMS[form](upstream, image.digest, sign)
    mirror: Mirror = await start(settings=settings(tmp_path, pem))
    assert (await mirror.get(LATEST)).body == image.body
    asked = len(upstream.asked)
    for method in ("GET", "HEAD"):
        got = await mirror.get(LATEST, method)
        assert (got.status, "Mirror-Guard" in got.headers) == (200, False)
    assert len(upstream.asked) == asked


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", ["none", "key", "image", "predicate"])
async def test_what_is_not_signed_by_the_key_is_refused(
    start: StartMirror, upstream: Scripted, tmp_path: Path, form: str, fault: str
) -> None:
    """No signature, one by another key, one of another image, and a statement that is no signature."""
    pem, sign = make_key("ecdsa")
    image = upstream.add_image("library/app", "latest")
    if fault == "key":
        FORMS[form](upstream, image.digest, make_key("ecdsa")[1])
    elif fault == "image":
        FORMS[form](upstream, image.digest, sign, Digest.of(b"another"))
    elif fault == "predicate":
        sign_with_bundle(upstream, image.digest, sign, predicateType="https://slsa.dev/provenance/v1")
    mirror: Mirror = await start(settings=settings(tmp_path, pem))
    for method in ("GET", "HEAD"):
        assert (await mirror.get(LATEST, method)).status == 403
    got = await mirror.get(LATEST)
    assert "no signature by the keys" in json.loads(got.body)["errors"][0]["message"]


@pytest.mark.parametrize("form", FORMS)
async def test_the_last_signed_image_is_served_until_the_new_one_is_signed(
    start: StartMirror, upstream: Scripted, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag moves before its signature is made: the pull gets what was signed, and the new image once it is."""
    monkeypatch.setattr(deciding, "_SIGNED_LATER", 0.0)
    pem, sign = make_key("ecdsa")
    old = upstream.add_image("library/app", "latest")
    FORMS[form](upstream, old.digest, sign)
    mirror: Mirror = await start(tag_ttl=0, settings=settings(tmp_path, pem))
    assert (await mirror.get(LATEST)).body == old.body
    new = upstream.add_image("library/app", "latest")
    got = await mirror.get(LATEST)
    assert (got.body, got.headers["Mirror-Tag"]) == (old.body, f"held; new={new.digest}")
    FORMS[form](upstream, new.digest, sign)
    assert (await mirror.get(LATEST)).body == new.body


async def test_a_signature_is_verified_without_the_registry_after_a_restart(
    start: StartMirror, upstream: Scripted, tmp_path: Path
) -> None:
    """It is cached, as what it signs is."""
    pem, sign = make_key("ecdsa")
    image = upstream.add_image("library/app", "latest")
    sign_with_payload(upstream, image.digest, sign)
    mirror: Mirror = await start(tag_ttl=0, settings=settings(tmp_path, pem))
    await mirror.get(LATEST)
    await mirror.stop()
    await upstream.stop()
    mirror = await start(tag_ttl=0, settings=settings(tmp_path, pem))
    assert (await mirror.get(LATEST)).body == image.body


async def test_signatures_need_no_signature(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """Clients that verify by themselves get them by their tags, and as referrers."""
    pem, sign = make_key("ecdsa")
    image = upstream.add_image("library/app", "latest")
    sign_with_payload(upstream, image.digest, sign)
    mirror: Mirror = await start(settings=settings(tmp_path, pem))
    assert (await mirror.get(f"/v2/app/manifests/sha256-{image.digest.hex}.sig")).status == 200
    assert (await mirror.get(f"/v2/app/referrers/{image.digest}")).status == 200


async def test_what_was_served_before_there_was_a_rule_is_no_way_around_it(
    start: StartMirror, upstream: Scripted, tmp_path: Path
) -> None:
    """A tag moved to an image that is signed, which cannot be had now: what clients got before is not signed, so they get an error."""
    pem, sign = make_key("ecdsa")
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    assert (await mirror.get(LATEST)).status == 200
    await mirror.stop()
    new = upstream.add_image("library/app", "latest")
    sign_with_payload(upstream, new.digest, sign)
    for reference in (str(new.digest), "latest"):
        # HEAD says what the tag means.
        upstream.fail(f"manifests/{reference}", Status(503), times=100)
    mirror = await start(tag_ttl=0, settings=settings(tmp_path, pem))
    assert (await mirror.get(LATEST)).status == 503
    upstream.heal()
    assert (await mirror.get(LATEST)).body == new.body
