"""A scripted sigstore: its certificate authority, its log of certificates and its log of signatures (Rekor, version 1), each with a key made here.

tests/e2e/test_keyless.py has real ones of all three; this one makes what a real one would not, and lacks only what no verifier sees.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirror.names import Digest
from tests.support.scripted import Scripted

PAYLOAD, BUNDLE = "application/vnd.dev.cosign.simplesigning.v1+json", "application/vnd.dev.sigstore.bundle.v0.3+json"
ISSUER = "https://token.actions.githubusercontent.com"
SUBJECT = "https://github.com/our-company/app/.github/workflows/release.yml@refs/heads/main"

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def sign(key: Key, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def public(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def attach_payload(upstream: Scripted, digest: Digest, payload: bytes, annotations: dict[str, str]) -> None:
    """The old form: a tag with the payload as a layer."""
    blob, config = upstream.add_blob(payload), upstream.add_blob(b"{}")
    body = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(config), "size": 2},
        "layers": [{"mediaType": PAYLOAD, "digest": str(blob), "size": len(payload), "annotations": annotations}],
    }
    upstream.add_manifest("library/app", f"sha256-{digest.hex}.sig", json.dumps(body).encode())


def attach_bundle(upstream: Scripted, digest: Digest, bundle: bytes) -> None:
    """The new form: a bundle that refers to the image."""
    subject = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(digest), "size": 1}
    upstream.add_image("library/app", layers=[bundle], artifactType=BUNDLE, subject=subject)


def payload_of(digest: Digest) -> bytes:
    """What is signed in the old form."""
    return json.dumps(
        {"critical": {"image": {"docker-manifest-digest": str(digest)}, "type": "cosign container image signature"}}
    ).encode()


def statement_of(digest: Digest, **changes: Any) -> bytes:
    """What is signed in the new form."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.hex}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
        **changes,
    }
    return json.dumps(statement).encode()


@dataclass
class Signed:
    """Who signed, and how: what a signer can do wrong."""

    issuer: str = ISSUER
    subject: str = SUBJECT
    late: float = 0.0
    """Seconds between the end of the certificate and the signature."""
    usage: x509.ObjectIdentifier = x509.oid.ExtendedKeyUsageOID.CODE_SIGNING


@dataclass
class Sigstore:
    ca: Key = field(default_factory=new_key)
    certificates: Key = field(default_factory=new_key)
    """The log of certificates."""
    rekor: Key = field(default_factory=new_key)
    origin: str = "rekor.example.test"
    """The name of that log. Clients expect it to be the host of its URL."""

    def __post_init__(self) -> None:
        self.root = self._certificate(self.ca, [], datetime.now(UTC) - timedelta(days=1), timedelta(days=10), None)

    @property
    def trusted_root(self) -> bytes:
        since = {"start": "2020-01-01T00:00:00Z"}

        def log(key: Key) -> dict[str, Any]:
            shown = {"rawBytes": base64_of(public(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
            return {
                "baseUrl": f"https://{self.origin}",
                "hashAlgorithm": "SHA2_256",
                "publicKey": shown,
                "logId": {"keyId": base64_of(hashlib.sha256(public(key)).digest())},
            }

        chain = {"certificates": [{"rawBytes": base64_of(self.root.public_bytes(Encoding.DER))}]}
        subject = {"organization": "example.test", "commonName": "a scripted sigstore"}
        authority = {"subject": subject, "uri": "https://fulcio.example.test", "certChain": chain, "validFor": since}
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.rekor)],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self.certificates)],
                "timestampAuthorities": [],
            }
        ).encode()

    def sign_payload(self, payload: bytes, how: Signed | None = None) -> dict[str, str]:
        """Returns the annotations of a signature in the old form."""
        how = how or Signed()
        key = new_key()
        moment = int(time.time())
        certificate = self.certificate(key, how, moment)
        signature = sign(key, payload)
        entry = self.entry(
            "hashedrekord",
            {
                "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}},
                "signature": {"content": base64_of(signature), "publicKey": {"content": base64_of(_pem(certificate))}},
            },
            moment,
        )
        promised = {name: entry[name] for name in ("body", "integratedTime", "logIndex", "logID")}
        bundle = {"SignedEntryTimestamp": entry["verification"]["signedEntryTimestamp"], "Payload": promised}
        return {
            "dev.cosignproject.cosign/signature": base64_of(signature),
            "dev.sigstore.cosign/certificate": _pem(certificate).decode(),
            "dev.sigstore.cosign/chain": _pem(self.root).decode(),
            "dev.sigstore.cosign/bundle": json.dumps(bundle),
        }

    def sign_statement(self, statement: bytes, how: Signed | None = None) -> dict[str, Any]:
        """Returns a bundle in the new form."""
        how = how or Signed()
        key = new_key()
        moment = int(time.time())
        certificate = self.certificate(key, how, moment)
        kind = "application/vnd.in-toto+json"
        signature = base64_of(sign(key, b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(statement), statement)))
        envelope = {"payload": base64_of(statement), "payloadType": kind, "signatures": [{"sig": signature}]}
        entry = self.entry(
            "dsse",
            {
                "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(json.dumps(envelope).encode()).hexdigest()},
                "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(statement).hexdigest()},
                "signatures": [{"signature": signature, "verifier": base64_of(_pem(certificate))}],
            },
            moment,
        )
        proof = entry["verification"]["inclusionProof"]
        logged = {
            "logIndex": str(entry["logIndex"]),
            "logId": {"keyId": base64_of(bytes.fromhex(entry["logID"]))},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(entry["integratedTime"]),
            "inclusionPromise": {"signedEntryTimestamp": entry["verification"]["signedEntryTimestamp"]},
            "inclusionProof": {
                "logIndex": str(proof["logIndex"]),
                "rootHash": base64_of(bytes.fromhex(proof["rootHash"])),
                "treeSize": str(proof["treeSize"]),
                "hashes": [],
                "checkpoint": {"envelope": proof["checkpoint"]},
            },
            "canonicalizedBody": entry["body"],
        }
        return {
            "mediaType": BUNDLE,
            "verificationMaterial": {
                "certificate": {"rawBytes": base64_of(certificate.public_bytes(Encoding.DER))},
                "tlogEntries": [logged],
                "timestampVerificationData": {"rfc3161Timestamps": []},
            },
            "dsseEnvelope": envelope,
        }

    def entry(self, kind: str, spec: dict[str, Any], moment: int) -> dict[str, Any]:
        """Returns what Rekor answers for a new entry: its promise, and the proof that it is the only leaf of a tree."""
        body = canonical({"apiVersion": "0.0.1", "kind": kind, "spec": spec})
        log_id = hashlib.sha256(public(self.rekor)).digest()
        entry: dict[str, Any] = {"body": base64_of(body), "integratedTime": moment, "logID": log_id.hex(), "logIndex": 0}
        promise = sign(self.rekor, canonical(entry))
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"{self.origin} - 1\n1\n{base64_of(root)}\n"
        checkpoint = f"{note}\n— {self.origin} {base64_of(log_id[:4] + sign(self.rekor, note.encode()))}\n"
        proof = {"logIndex": 0, "rootHash": root.hex(), "treeSize": 1, "hashes": [], "checkpoint": checkpoint}
        return {**entry, "verification": {"signedEntryTimestamp": base64_of(promise), "inclusionProof": proof}}

    def certificate(self, key: Key, how: Signed, moment: float) -> x509.Certificate:
        """Returns the certificate of somebody who signs at `moment`, ten minutes long, as the log of certificates has seen it."""
        start = datetime.fromtimestamp(moment, UTC) - timedelta(seconds=how.late + (660 if how.late else 60))
        names: list[x509.GeneralName] = [
            x509.RFC822Name(how.subject)
            if "@" in how.subject and "/" not in how.subject
            else x509.UniformResourceIdentifier(how.subject)
        ]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.ExtendedKeyUsage([how.usage]), False),
            (x509.SubjectAlternativeName(names), True),
            (_extension("1.3.6.1.4.1.57264.1.8", asn1.encode_der(how.issuer)), False),
        ]
        seen = self._certificate(key, extensions, start, timedelta(minutes=10), self.ca)
        stamp = int(start.timestamp() * 1000)
        authority, shown = hashlib.sha256(public(self.ca)).digest(), seen.tbs_certificate_bytes
        signed = struct.pack("!BBQH", 0, 0, stamp, 1) + authority + len(shown).to_bytes(3, "big") + shown + b"\0\0"
        signature = sign(self.certificates, signed)
        log_id = hashlib.sha256(public(self.certificates)).digest()
        timestamp = b"\0" + log_id + struct.pack("!QHBBH", stamp, 0, 4, 3, len(signature)) + signature
        each = struct.pack("!H", len(timestamp)) + timestamp
        value = asn1.encode_der(struct.pack("!H", len(each)) + each)
        extensions.append((_extension("1.3.6.1.4.1.11129.2.4.2", value), False))
        return self._certificate(key, extensions, start, timedelta(minutes=10), self.ca, seen.serial_number)

    def _certificate(
        self,
        key: Key,
        extensions: list[tuple[x509.ExtensionType, bool]],
        start: datetime,
        length: timedelta,
        by: Key | None,
        serial: int | None = None,
    ) -> x509.Certificate:
        named = {x509.NameOID.ORGANIZATION_NAME: "example.test", x509.NameOID.COMMON_NAME: "a scripted sigstore"}
        name = x509.Name([x509.NameAttribute(oid, value) for oid, value in named.items()])
        builder = (
            x509.CertificateBuilder(name, x509.Name([]) if by else name, key.public_key(), serial or x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + length)
            .add_extension(x509.BasicConstraints(by is None, None), True)
            .add_extension(_usage(authority=by is None), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca.public_key()), False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(by or key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _extension(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
