"""Keyless signatures: by a key that was thrown away, whose certificate names who signed, as ``cosign sign`` makes them. They are verified offline by sigstore's own library.

A certificate counts for minutes. That the signature is from within them is known from the transparency log, or from a timestamp authority. Whose word counts for all of
that is in a trusted root (sigstore's protobuf-specs, "sigstore_trustroot.proto").

The library is an extra, ``registry-mirror[keyless]``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from mirror.guards.signatures import STATEMENT, BadSignature, decoded, parsed

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_CERTIFICATE = "dev.sigstore.cosign/certificate"
_PROMISE = "dev.sigstore.cosign/bundle"
_ISSUER, _OLD_ISSUER, _NAME = "1.3.6.1.4.1.57264.1.8", "1.3.6.1.4.1.57264.1.1", "1.3.6.1.4.1.57264.1.7"
"""Of what Fulcio's certificates have (sigstore/fulcio, "docs/oid-info.md")."""
_LONGEST = 300
"""Characters of a fault."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who may sign. Both are shell patterns; ``*`` matches slashes too."""

    issuer: str
    """The URL of the OpenID Connect issuer that knows who it was."""
    subject: str
    """An address of mail, or the URI of a workflow."""

    def fits(self, issuer: str, subjects: Sequence[str]) -> bool:
        return (
            issuer != "" and fnmatchcase(issuer, self.issuer) and any(fnmatchcase(subject, self.subject) for subject in subjects)
        )


class Identities:
    """Identities, one of which must have signed. Implements `mirror.guards.signatures.Verifier`."""

    def __init__(self, identities: Sequence[Identity], trusted_root: bytes) -> None:
        """Raises ValueError if the trusted root is none, ImportError without the library."""
        from sigstore.errors import Error
        from sigstore.models import TrustedRoot
        from sigstore.verify import Verifier
        from sigstore_models.trustroot.v1 import TrustedRoot as Document

        self._identities = tuple(identities)
        self._document = trusted_root
        try:
            self._verifier = Verifier(trusted_root=TrustedRoot(Document.from_json(trusted_root)))
        except Error as error:
            raise ValueError(str(error)) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identities) and (other._identities, other._document) == (self._identities, self._document)

    def __hash__(self) -> int:
        return hash((self._identities, self._document))

    def verify(self, payload: bytes, signature: bytes, annotations: Mapping[str, Any]) -> None:
        for name, what in ((_CERTIFICATE, "no certificate"), (_PROMISE, "no entry of a transparency log")):
            if not isinstance(annotations.get(name), str):
                raise BadSignature(f"it has {what}")
        with _foreign():
            self._verifier.verify_artifact(payload, _old_bundle(signature, annotations), _Policy(self._identities))

    def statement(self, bundle: bytes) -> bytes:
        from sigstore.models import Bundle

        with _foreign():
            kind, payload = self._verifier.verify_dsse(Bundle.from_json(bundle), _Policy(self._identities))
        if kind != STATEMENT:
            raise BadSignature("it is no envelope with a statement")
        return payload


@contextmanager
def _foreign() -> Iterator[None]:
    """Raises BadSignature for whatever goes wrong: what a stranger's document makes of the library, and of those that it uses, is not known."""
    try:
        yield
    except Exception as error:
        raise BadSignature(str(error).partition("\n")[0][:_LONGEST] or type(error).__name__) from error


@dataclass(frozen=True, slots=True)
class _Policy:
    """Implements the library's `VerificationPolicy`: who may have signed."""

    identities: Sequence[Identity]

    def verify(self, cert: Certificate) -> None:
        """Raises the library's VerificationError."""
        from sigstore.errors import VerificationError

        issuer, subjects = _issuer(cert), _subjects(cert)
        if not any(identity.fits(issuer, subjects) for identity in self.identities):
            who = " or ".join(subjects) or "nobody"
            raise VerificationError(f"{who}, whom {issuer or 'nobody'} knows, is none of the identities")


def _old_bundle(signature: bytes, annotations: Mapping[str, Any]) -> Any:
    """Returns a bundle of what is in the annotations of an old signature.

    Of the transparency log they have its signed promise only (sigstore/rekor, "SignedEntryTimestamp"), no proof, which the library requires since. So the entry
    gets an empty proof, and a check that leaves it out, as cosign does. If the library did not call that check any more, no such signature would count.
    """
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificate
    from sigstore.models import Bundle, TransparencyLogEntry

    class Promised(TransparencyLogEntry):
        def _verify(self, keyring: Any) -> None:
            self._verify_set(keyring)

    promise = parsed(annotations[_PROMISE].encode())
    entry = promise["Payload"]
    body = parsed(decoded(entry["body"]))
    certificate = load_pem_x509_certificate(annotations[_CERTIFICATE].encode())
    bundle = Bundle.from_json(
        json.dumps(
            {
                "mediaType": str(Bundle.BundleType.BUNDLE_0_1),
                "verificationMaterial": {
                    "x509CertificateChain": {"certificates": [{"rawBytes": _encoded(certificate.public_bytes(Encoding.DER))}]},
                    "tlogEntries": [
                        {
                            "logIndex": str(entry["logIndex"]),
                            "logId": {"keyId": _encoded(bytes.fromhex(entry["logID"]))},
                            "kindVersion": {"kind": body["kind"], "version": body["apiVersion"]},
                            "integratedTime": str(entry["integratedTime"]),
                            "inclusionPromise": {"signedEntryTimestamp": promise["SignedEntryTimestamp"]},
                            "inclusionProof": {
                                "logIndex": "0",
                                "treeSize": "1",
                                "rootHash": "",
                                "hashes": [],
                                "checkpoint": {"envelope": ""},
                            },
                            "canonicalizedBody": entry["body"],
                        }
                    ],
                },
                "messageSignature": {"signature": _encoded(signature)},
            }
        )
    )
    bundle._log_entry = Promised(bundle.log_entry._inner)
    return bundle


def _issuer(certificate: Certificate) -> str:
    """Returns who issued the identity: a UTF8String in DER or, in certificates from before 2023, the bare text. Empty if nobody is named."""
    from cryptography.hazmat import asn1
    from cryptography.x509 import UnrecognizedExtension

    values = {
        one.oid.dotted_string: one.value.value for one in certificate.extensions if isinstance(one.value, UnrecognizedExtension)
    }
    if _ISSUER in values:
        return asn1.decode_der(str, values[_ISSUER])
    return values.get(_OLD_ISSUER, b"").decode()


def _subjects(certificate: Certificate) -> list[str]:
    """Returns whom a certificate is for: addresses of mail, URIs, and names of Fulcio's own kind."""
    from cryptography.x509 import OtherName, RFC822Name, SubjectAlternativeName, UniformResourceIdentifier

    names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    others = [one.value.decode() for one in names.get_values_for_type(OtherName) if one.type_id.dotted_string == _NAME]
    return [*names.get_values_for_type(RFC822Name), *names.get_values_for_type(UniformResourceIdentifier), *others]


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
