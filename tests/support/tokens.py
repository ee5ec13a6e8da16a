"""A token service for docker-registry: real JWTs, signed with a key whose certificate the registry trusts.

Distribution's "Docker Registry v2 Authentication via central service"; docker-registry 2.8 takes the certificate in the ``x5c`` header.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

SERVICE, ISSUER = "registry.test", "token.test"


class TokenService:
    """Gives pull tokens to the accounts it knows, and counts what it is asked."""

    def __init__(self, folder: Path, accounts: dict[str, str], rights: dict[str, set[str]] | None = None) -> None:
        """`rights` are the repositories that each account may pull from, those of "" for whoever has none; by default accounts may everything, and others get no token."""
        folder.mkdir(parents=True, exist_ok=True)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.accounts = accounts
        self._rights = rights
        self._certificate = self._make_certificate()
        bundle = folder / "token.pem"
        bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        self.asked: list[str] = []
        """The scopes asked for."""
        self.refused = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                scope = parse_qs(urlsplit(self.path).query).get("scope", [""])[0]
                known = {_basic(*account): account[0] for account in service.accounts.items()}
                given = self.headers.get("Authorization")
                if given not in known and (given is not None or service._rights is None or "" not in service._rights):
                    service.refused += 1
                    self.send_error(401)
                    return
                service.asked.append(scope)
                if service._rights is not None and scope.split(":")[1:2] not in (
                    [name] for name in service._rights.get(known.get(given or "", ""), ())
                ):
                    scope = ""
                body = json.dumps({"token": service.token(scope), "expires_in": 300}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self.settings = {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(bundle)}
        """For docker-registry's auth.token."""

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def token(self, scope: str) -> str:
        """A signed token for a scope such as ``repository:library/app:pull``."""
        access = []
        if scope:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        segments = {
            "iss": ISSUER,
            "sub": "",
            "aud": SERVICE,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": os.urandom(8).hex(),
            "access": access,
        }
        signed = b".".join(_url64(json.dumps(part).encode()) for part in (header, segments))
        signature = self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + _url64(signature)).decode()

    def _make_certificate(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self._key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return builder.sign(self._key, hashes.SHA256())


def _url64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
