"""The origin behind TLS: nginx in front of it, which sends blobs straight from the registry's files, so that it is not what is measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from benchmarks.origin import Origin
from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.programs import Program, answers


class TlsFront:
    """``with TlsFront(origin, folder) as front:`` it is at `front.url`, and `front.environment` has contenders trust its certificate."""

    def __init__(self, origin: Origin, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        authority = Authority(folder / "ca")
        port = free_port()
        self.url = f"https://127.0.0.1:{port}"
        # Go's and Python's TLS both read it.
        self.environment = {"SSL_CERT_FILE": str(authority.ca)}
        blobs = origin.blobs
        user = "user root; " if os.geteuid() == 0 else ""
        config = folder / "nginx.conf"
        config.write_text(
            f"""{user}worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 1024; }}
            http {{
              access_log off; sendfile on; client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp; fastcgi_temp_path {folder}/f;
              uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
              server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {authority.certificate}; ssl_certificate_key {authority.key};
                location / {{ proxy_pass {origin.url}; proxy_http_version 1.1; proxy_set_header Host 127.0.0.1:{port}; }}
                location ~ /blobs/sha256:(?<hex>(?<two>..).*)$ {{ default_type application/octet-stream;
                  add_header Docker-Content-Digest sha256:$hex; alias {blobs}/sha256/$two/$hex/data; }} }} }}"""
        )
        self._program = Program(["nginx", "-c", str(config), "-p", str(folder)], folder / "log")
        # It answers plain HTTP with 400, which is an answer too.
        self._program.wait_until(lambda: answers(f"http://127.0.0.1:{port}/"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.stop()
