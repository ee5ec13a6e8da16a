"""A real sigstore on this machine: Fulcio, the log of certificates (TesseraCT), Rekor 2 and a timestamp authority, each built from its Go module.

Scripted are the issuer of identities, and Rekor 1 for the old form. tests/support/sigstore.py is scripted as a whole.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.support.ports import free_port
from tests.support.programs import Program, answers, require, run
from tests.support.sigstore import Sigstore, new_key

_PASSWORD = b"a password of a test"


class _Issuer(ThreadingHTTPServer):
    """An OpenID Connect issuer: only what Fulcio asks it for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.key = rsa.generate_private_key(65537, 2048)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def document(self, path: str) -> dict[str, Any]:
        if path == "/keys":
            key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
            return {"keys": [{**key, "kid": "one", "use": "sig", "alg": "RS256"}]}
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Issuer)
        body = json.dumps(self.server.document(self.path)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None: ...  # noqa: A002


class _OldRekor(ThreadingHTTPServer):
    """Rekor, version 1, scripted: a real one needs a database. Each entry is the only leaf of a log."""

    daemon_threads = True

    def __init__(self, authority: Sigstore) -> None:
        super().__init__(("127.0.0.1", 0), _Entries)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.authority = authority
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Entries(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, _OldRekor)
        proposed = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        entry = self.server.authority.entry(proposed["kind"], proposed["spec"], int(time.time()))
        proof = entry["verification"]["inclusionProof"]
        body = json.dumps({proof["rootHash"]: entry}).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Location", f"/api/v1/log/entries/{proof['rootHash']}")
        self.send_header("ETag", proof["rootHash"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None: ...  # noqa: A002


class SigstorePrograms:
    """`trusted_root` and `signing_config` are files for cosign and the mirror."""

    def __init__(self, folder: Path) -> None:
        require("cosign", "fulcio", "tesseract", "rekor-server", "timestamp-server")
        folder.mkdir()
        self._folder = folder
        self._programs: list[Program] = []
        self._issuer = _Issuer()
        self._authority = Sigstore(origin="127.0.0.1")
        self._old_rekor = _OldRekor(self._authority)
        self.issuer = self._issuer.url
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        folder = self._folder
        authority = self._authority
        (folder / "ca.pem").write_bytes(authority.root.public_bytes(Encoding.PEM))
        sealed = authority.ca.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(_PASSWORD))
        (folder / "ca.key").write_bytes(sealed)
        self._write_key("ct", new_key())
        self._write_key("rekor", new_key())
        certificates, rekor, fulcio, stamps = (f"http://127.0.0.1:{port}" for port in self._ports(4))
        self._run(
            "tesseract",
            f"--http_endpoint={certificates.removeprefix('http://')}",
            "--origin=ct.example.test",
            f"--storage_dir={folder / 'ct'}",
            f"--private_key={folder / 'ct.key'}",
            f"--roots_pem_file={folder / 'ca.pem'}",
            "--checkpoint_interval=200ms",
            ready=f"{certificates}/ct/v1/get-roots",
        )
        self._run(
            "rekor-server",
            "serve",
            f"--http-port={rekor.rpartition(':')[2]}",
            f"--grpc-port={free_port()}",
            f"--http-metrics-port={free_port()}",
            f"--hostname={authority.origin}",
            f"--storage-dir={folder / 'rekor'}",
            f"--signer-filepath={folder / 'rekor.key'}",
            "--checkpoint-interval=200ms",
            "--batch-max-age=100ms",
            ready=f"{rekor}/healthz",
        )
        settings = f"oidc-issuers:\n  {self.issuer}:\n    issuer-url: {self.issuer}\n    client-id: sigstore\n    type: email\n"
        (folder / "fulcio.yaml").write_text(settings)
        self._run(
            "fulcio",
            "serve",
            "--ca=fileca",
            f"--fileca-cert={folder / 'ca.pem'}",
            f"--fileca-key={folder / 'ca.key'}",
            f"--fileca-key-passwd={_PASSWORD.decode()}",
            "--fileca-watch=false",
            f"--config-path={folder / 'fulcio.yaml'}",
            f"--ct-log-url={certificates}",
            "--host=127.0.0.1",
            f"--port={fulcio.rpartition(':')[2]}",
            "--grpc-host=127.0.0.1",
            f"--grpc-port={free_port()}",
            f"--metrics-port={free_port()}",
            f"--legacy-unix-domain-socket={folder / 'fulcio.sock'}",
            ready=f"{fulcio}/healthz",
        )
        self._run(
            "timestamp-server",
            "serve",
            "--host=127.0.0.1",
            f"--port={stamps.rpartition(':')[2]}",
            "--timestamp-signer=memory",
            "--disable-ntp-monitoring",
            ready=f"{stamps}/ping",
        )
        with urllib.request.urlopen(f"{stamps}/api/v1/timestamp/certchain") as answer:
            (folder / "tsa.pem").write_bytes(answer.read())
        self._write_key("old-rekor", authority.rekor)
        self._fulcio = fulcio
        self.trusted_root, self.signing_config = folder / "trusted_root.json", folder / "signing_config.json"
        since = f"start-time={(datetime.now(UTC) - timedelta(hours=1)):%Y-%m-%dT%H:%M:%SZ}"
        run(
            "cosign",
            "trusted-root",
            "create",
            f"--fulcio=url={fulcio},certificate-chain={folder / 'ca.pem'},{since}",
            f"--ctfe=url={certificates},public-key={folder / 'ct.pub'},{since}",
            f"--rekor=url={rekor},public-key={folder / 'rekor.pub'},{since},origin={authority.origin}",
            f"--rekor=url={self._old_rekor.url},public-key={folder / 'old-rekor.pub'},{since}",
            f"--tsa=url={stamps}/api/v1/timestamp,certificate-chain={folder / 'tsa.pem'},{since}",
            f"--out={self.trusted_root}",
        )
        run(
            "cosign",
            "signing-config",
            "create",
            f"--fulcio=url={fulcio},api-version=1,{since},operator=test",
            f"--rekor=url={rekor},api-version=2,{since},operator=test",
            "--rekor-config=ANY",
            f"--tsa=url={stamps}/api/v1/timestamp,api-version=1,{since},operator=test",
            "--tsa-config=ANY",
            f"--out={self.signing_config}",
        )

    def sign(self, image: str, email: str, *, old: bool) -> None:
        """Has cosign sign an image in the name of somebody; `old`: with a tag instead of a bundle, and in the older log."""
        services = (
            [
                "--new-bundle-format=false",
                "--use-signing-config=false",
                f"--fulcio-url={self._fulcio}",
                f"--rekor-url={self._old_rekor.url}",
            ]
            if old
            else [f"--signing-config={self.signing_config}"]
        )
        given = [f"--identity-token={self._token(email)}", f"--trusted-root={self.trusted_root}"]
        run("cosign", "sign", "--yes", "--allow-http-registry", *services, *given, image)

    def _token(self, email: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": "sigstore",
            "sub": email,
            "email": email,
            "email_verified": True,
            "iat": now,
            "exp": now + 600,
        }
        return jwt.encode(claims, self._issuer.key, "RS256", {"kid": "one"})

    def stop(self) -> None:
        for program in self._programs:
            program.stop()
        for server in (self._issuer, self._old_rekor):
            server.shutdown()
            server.server_close()

    def _ports(self, count: int) -> list[int]:
        return [free_port() for _ in range(count)]

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> None:
        (self._folder / f"{name}.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self._folder / f"{name}.pub").write_bytes(public)

    def _run(self, *command: str, ready: str) -> None:
        program = Program(list(command), self._folder / f"{command[0]}.log")
        self._programs.append(program)
        program.wait_until(lambda: answers(ready))
