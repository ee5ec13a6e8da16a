"""A certificate authority for tests, and what it signs."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LOOPBACK = ipaddress.ip_address("127.0.0.1")


class Authority:
    """`ca` is what clients must trust; that of an authority with an `issuer` is an intermediate."""

    def __init__(self, folder: Path, issuer: Authority | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of the tests {folder.name}")])
        made = _builder(self._name, issuer._name if issuer else self._name, self._key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.ca = folder / "ca.crt"
        signed = made.sign(issuer._key if issuer else self._key, hashes.SHA256())
        self.ca.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        self.certificate, self.key = folder / "mirror.crt", folder / "mirror.key"
        self.serial = self.issue()

    def issue(self, password: bytes | None = None) -> int:
        """Writes a new certificate for 127.0.0.1 and its key over the ones that are there; gives its serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        made = _builder(name, self._name, key.public_key())
        made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(_LOOPBACK)]), critical=False)
        signed = made.sign(self._key, hashes.SHA256())
        protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        self.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, protection))
        return signed.serial_number

    def issue_to(self, name: str) -> tuple[Path, Path]:
        """Writes a client's certificate with a common name, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), self._name, key.public_key()).sign(
            self._key, hashes.SHA256()
        )
        certificate, key_file = self.ca.with_name(f"{name}.crt"), self.ca.with_name(f"{name}.key")
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        return certificate, key_file


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return (
        made.serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )
