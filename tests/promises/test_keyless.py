"""``identities`` of [[guard]] tables: cosign's keyless signatures, in both forms, by a scripted sigstore. tests/e2e/test_keyless.py has real ones."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from mirror.config import ConfigError, load
from mirror.guards import deciding
from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted
from tests.support.sigstore import (
    ISSUER,
    SUBJECT,
    Signed,
    Sigstore,
    attach_bundle,
    attach_payload,
    new_key,
    payload_of,
    statement_of,
)

LATEST = "/v2/app/manifests/latest"
Document = dict[str, Any]
Change = Callable[[Document], None]


def nothing(_: Document) -> None: ...


def sign_payload(
    upstream: Scripted,
    digest: Digest,
    sigstore: Sigstore,
    how: Signed | None = None,
    named: Digest | None = None,
    change: Change = nothing,
) -> None:
    payload = payload_of(named or digest)
    annotations = sigstore.sign_payload(payload, how)
    change(annotations)
    attach_payload(upstream, digest, payload, annotations)


def sign_bundle(
    upstream: Scripted,
    digest: Digest,
    sigstore: Sigstore,
    how: Signed | None = None,
    named: Digest | None = None,
    change: Change = nothing,
) -> None:
    bundle = sigstore.sign_statement(statement_of(named or digest), how)
    change(bundle)
    attach_bundle(upstream, digest, json.dumps(bundle).encode())


FORMS = {"payload": sign_payload, "bundle": sign_bundle}


def settings(
    folder: Path, sigstore: Sigstore, issuer: str = ISSUER, subject: str = "https://github.com/our-company/*"
) -> Document:
    root = folder / "trusted_root.json"
    root.write_bytes(sigstore.trusted_root)
    identity = {"issuer": issuer, "subject": subject}
    return {"guard": [{"name": "signed", "signed": {"identities": [identity], "trusted_root": str(root)}}]}


@pytest.fixture(scope="module")
def sigstore() -> Sigstore:
    return Sigstore()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("issuer", "subject", "who"),
    [
        (ISSUER, "https://github.com/our-company/*", SUBJECT),
        (ISSUER, SUBJECT, SUBJECT),
        ("https://*", "*@our-company.example", "ann@our-company.example"),
    ],
)
async def test_what_an_identity_has_signed_is_served(
    start: StartMirror, upstream: Scripted, sigstore: Sigstore, tmp_path: Path, form: str, issuer: str, subject: str, who: str
) -> None:
    """By an exact name or a pattern, of a workflow or of a person, in both forms; signatures are read once for each image, and nobody but the registry is asked."""
    image = upstream.add_image("library/app", "latest")
    FORMS[form](upstream, image.digest, sigstore, Signed(subject=who))
    mirror: Mirror = await start(settings=settings(tmp_path, sigstore, issuer, subject))
    assert (await mirror.get(LATEST)).body == image.body
    asked = len(upstream.asked)
    for method in ("GET", "HEAD"):
        got = await mirror.get(LATEST, method)
        assert (got.status, "Mirror-Guard" in got.headers) == (200, False)
    assert len(upstream.asked) == asked


WRONG_SIGNERS = {
    "issuer": Signed(issuer="https://accounts.example.test"),
    "subject": Signed(subject="https://github.com/our-company-evil/app/.github/workflows/release.yml@refs/heads/main"),
    "mail": Signed(subject="ann@our-company.example"),
    "after the certificate's end": Signed(late=1),
    "usage": Signed(usage=ExtendedKeyUsageOID.CLIENT_AUTH),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", [*WRONG_SIGNERS, "image", "ca", "certificates", "rekor"])
async def test_what_no_identity_has_signed_is_refused(
    start: StartMirror, upstream: Scripted, sigstore: Sigstore, tmp_path: Path, form: str, fault: str
) -> None:
    """Somebody else, somebody whom another issuer knows, a certificate for something else or that has ended, another image, and each authority that is not in the trusted root."""
    image = upstream.add_image("library/app", "latest")
    other: dict[str, Any] = {fault: new_key()} if fault in ("ca", "certificates", "rekor") else {}
    authorities = replace(sigstore, **other)
    named = Digest.of(b"another") if fault == "image" else None
    FORMS[form](upstream, image.digest, authorities, WRONG_SIGNERS.get(fault), named)
    mirror: Mirror = await start(settings=settings(tmp_path, sigstore))
    for method in ("GET", "HEAD"):
        assert (await mirror.get(LATEST, method)).status == 403
    got = await mirror.get(LATEST)
    assert "no signature by the keys or identities" in json.loads(got.body)["errors"][0]["message"]


def another_promise(sigstore: Sigstore, name: str) -> Change:
    """Takes a part of a good signature of something else."""
    other = sigstore.sign_payload(payload_of(Digest.of(b"another")))
    return lambda annotations: annotations.update({f"dev.sigstore.cosign/{name}": other[f"dev.sigstore.cosign/{name}"]})


def later(annotations: Document) -> None:
    """The promise says another time than was signed."""
    bundle = json.loads(annotations["dev.sigstore.cosign/bundle"])
    bundle["Payload"]["integratedTime"] -= 1
    annotations["dev.sigstore.cosign/bundle"] = json.dumps(bundle)


PAYLOAD_FAULTS: dict[str, Callable[[Sigstore], Change]] = {
    "another certificate": lambda sigstore: another_promise(sigstore, "certificate"),
    "another entry": lambda sigstore: another_promise(sigstore, "bundle"),
    "another time": lambda _: later,
    "no certificate": lambda _: lambda made: made.pop("dev.sigstore.cosign/certificate") and None,
    "no entry": lambda _: lambda made: made.pop("dev.sigstore.cosign/bundle") and None,
    "an entry without a promise": lambda _: lambda made: made.update({"dev.sigstore.cosign/bundle": '{"Payload": {}}'}),
    "no PEM": lambda _: lambda made: made.update({"dev.sigstore.cosign/certificate": "a"}),
    "no signature": lambda _: lambda made: made.update({"dev.cosignproject.cosign/signature": "a"}),
    "no text": lambda _: lambda made: made.update({"dev.sigstore.cosign/bundle": 1, "dev.sigstore.cosign/certificate": []}),
    "deep": lambda _: lambda made: made.update({"dev.sigstore.cosign/bundle": "[" * 100_000}),
}


@pytest.mark.parametrize("fault", PAYLOAD_FAULTS)
async def test_a_payload_whose_parts_do_not_belong_together_counts_for_nothing(
    start: StartMirror, upstream: Scripted, sigstore: Sigstore, tmp_path: Path, fault: str
) -> None:
    """The certificate, the log's entry and its promise are all about this payload; whatever else the annotations hold is no fault of the mirror."""
    image = upstream.add_image("library/app", "latest")
    sign_payload(upstream, image.digest, sigstore, change=PAYLOAD_FAULTS[fault](sigstore))
    mirror: Mirror = await start(settings=settings(tmp_path, sigstore))
    assert (await mirror.get(LATEST)).status == 403


def logged(bundle: Document) -> Document:
    found: Document = bundle["verificationMaterial"]["tlogEntries"][0]
    return found


def restate(bundle: Document) -> None:
    text = statement_of(Digest.of(b"another"))
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(text).decode()


BUNDLE_FAULTS: dict[str, Change] = {
    "another statement": restate,
    "no certificate": lambda made: made["verificationMaterial"].pop("certificate") and None,
    "no entry": lambda made: made["verificationMaterial"].update(tlogEntries=[]),
    "no proof": lambda made: logged(made).pop("inclusionProof") and None,
    "another root": lambda made: logged(made)["inclusionProof"].update(rootHash=base64.b64encode(bytes(32)).decode()),
    "no checkpoint": lambda made: logged(made)["inclusionProof"].update(checkpoint={"envelope": "a"}),
    "another time": lambda made: logged(made).update(integratedTime=str(int(logged(made)["integratedTime"]) - 1)),
    "no promise": lambda made: logged(made).pop("inclusionPromise") and None,
    "something else": lambda made: made.update(dsseEnvelope={**made["dsseEnvelope"], "payloadType": "text/plain"}),
    "numbers": lambda made: made.update(verificationMaterial=1),
}


@pytest.mark.parametrize("fault", BUNDLE_FAULTS)
async def test_a_bundle_whose_parts_do_not_belong_together_counts_for_nothing(
    start: StartMirror, upstream: Scripted, sigstore: Sigstore, tmp_path: Path, fault: str
) -> None:
    """As for payloads; the log's proof is needed too."""
    image = upstream.add_image("library/app", "latest")
    sign_bundle(upstream, image.digest, sigstore, change=BUNDLE_FAULTS[fault])
    mirror: Mirror = await start(settings=settings(tmp_path, sigstore))
    assert (await mirror.get(LATEST)).status == 403


async def test_the_log_says_why_a_signature_does_not_count(
    start: StartMirror, upstream: Scripted, sigstore: Sigstore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who signed what, so that the settings can be mended."""
    caplog.set_level("INFO")
    image = upstream.add_image("library/app", "latest")
    sign_bundle(upstream, image.digest, sigstore, Signed(subject="bob@example.test"))
    mirror: Mirror = await start(settings=settings(tmp_path, sigstore))
    await mirror.get(LATEST)
    assert (
        f"docker.io/library/app@{image.digest}: signatures of it do not count: bob@example.test, whom {ISSUER} knows"
        in caplog.text
    )


@pytest.mark.parametrize("form", FORMS)
async def test_the_last_signed_image_is_served_until_the_new_one_is_signed(
    start: StartMirror, upstream: Scripted, sigstore: Sigstore, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else moved the tag, and signed that: the pull gets what the right one signed."""
    monkeypatch.setattr(deciding, "_SIGNED_LATER", 0.0)
    old = upstream.add_image("library/app", "latest")
    FORMS[form](upstream, old.digest, sigstore)
    mirror: Mirror = await start(tag_ttl=0, settings=settings(tmp_path, sigstore))
    assert (await mirror.get(LATEST)).body == old.body
    evil = upstream.add_image("library/app", "latest")
    FORMS[form](upstream, evil.digest, sigstore, Signed(subject="eve@example.test"))
    assert (await mirror.get(LATEST)).body == old.body
    newer = upstream.add_image("library/app", "latest")
    FORMS[form](upstream, newer.digest, sigstore)
    assert (await mirror.get(LATEST)).body == newer.body


@pytest.mark.parametrize("form", FORMS)
async def test_the_first_response_says_what_was_found(
    start: StartMirror, upstream: Scripted, sigstore: Sigstore, tmp_path: Path, form: str
) -> None:
    """Also where the mirror has to learn the tag of the signature to decide."""
    image = upstream.add_image("library/app", "latest")
    FORMS[form](upstream, image.digest, sigstore, Signed(subject="eve@example.test"))
    observing = settings(tmp_path, sigstore)
    observing["guard"][0]["mode"] = "observe"
    mirror: Mirror = await start(settings=observing)
    assert "would-refuse" in (await mirror.get(LATEST)).headers["Mirror-Guard"]


IDENTITY = 'identities = [{ issuer = "https://a.example", subject = "b" }]'
NO_LOGS = b'{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}'


@pytest.mark.parametrize(
    ("line", "root", "text"),
    [
        ("", b"", "keys or identities are expected"),
        (IDENTITY, b"", "identities and trusted_root belong together"),
        ('trusted_root = "ROOT"', b"", "keys or identities are expected"),
        (f'trusted_root = "ROOT/absent"\n{IDENTITY}', b"", "cannot be read"),
        (f'trusted_root = "ROOT"\n{IDENTITY}', b"a", "is no trusted root, as `cosign trusted-root create` writes it"),
        (f'trusted_root = "ROOT"\n{IDENTITY}', NO_LOGS, "is no trusted root.*tlogs: Field required"),
        ('identities = [{ issuer = "https://a.example" }]', b"", "subject"),
        ('identities = [{ issuer = "https://a.example", subjects = "b" }]', b"", "subject"),
    ],
)
def test_settings_that_verify_nothing_are_refused(tmp_path: Path, line: str, root: bytes, text: str) -> None:
    """At the start, where somebody looks, and not at a pull."""
    (tmp_path / "root").write_bytes(root)
    file = tmp_path / "mirror.toml"
    file.write_text(f"[[guard]]\n[guard.signed]\n{line}\n".replace("ROOT", str(tmp_path / "root")))
    with pytest.raises(ConfigError, match=text):
        load(file, {}, {})


def test_identities_need_the_extra(tmp_path: Path, sigstore: Sigstore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error at the start says what to install."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "sigstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sigstore", None)
    (tmp_path / "root").write_bytes(sigstore.trusted_root)
    file = tmp_path / "mirror.toml"
    file.write_text(f'[[guard]]\n[guard.signed]\ntrusted_root = "{tmp_path / "root"}"\n{IDENTITY}\n')
    with pytest.raises(ConfigError, match=r"pip install 'registry-mirror\[keyless\]'"):
        load(file, {}, {})
