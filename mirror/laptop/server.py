"""Answers pulls over HTTP. OCI distribution-spec 1.1: "Pull", "Content Discovery" and "Error Codes"."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from mirror.laptop.archive import Changed
from mirror.laptop.library import Blob, Damaged, Library
from mirror.laptop.names import full, is_digest, segments_of
from mirror.laptop.page import page

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]{1,255}")
_INDEX = "application/vnd.oci.image.index.v1+json"
_MAPPED = "::ffff:"
_MOST_NAMED = 5
"""Tags or images that an error names."""


class Refused(Exception):
    """An error for the client, with one of the specification's codes."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class Server(ThreadingHTTPServer):
    """Serves a library, each connection in a thread of its own."""

    daemon_threads = True
    request_queue_size = 256
    # On Windows it would let two programs listen on one port.
    allow_reuse_address = os.name == "posix"

    def __init__(self, host: str, port: int, library: Library) -> None:
        """`host` is an address, "" for all of this machine. Raises OSError."""
        self.library = library
        self.quiet = threading.Event()
        """Set while no blob is being sent."""
        self.quiet.set()
        self._sending = 0
        self._lock = threading.Lock()
        both = not host and socket.has_ipv6 and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
        super().__init__((host, port), Handler, bind_and_activate=False)
        try:
            if both:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self.server_bind()
            self.server_activate()
        except BaseException:
            self.server_close()
            raise

    def server_bind(self) -> None:
        # That of HTTPServer asks DNS for this machine's name, which takes seconds without a network.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def begin_sending(self) -> None:
        with self._lock:
            self._sending += 1
            self.quiet.clear()

    def end_sending(self) -> None:
        with self._lock:
            self._sending -= 1
            if not self._sending:
                self.quiet.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # That a client has gone, or is too slow, is its own affair.
        if not isinstance(error, (ConnectionError, socket.timeout)):
            say(f"{client_address[0]}: {error!r}")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "mirror"
    sys_version = ""
    timeout = 120
    """Seconds without a byte after which a connection is closed."""
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _refuse_write(self) -> None:
        # Its body is not read, so nothing can follow it on this connection.
        self.close_connection = True
        message = "images are only served here, from a bundle: nothing can be pushed or deleted"
        self._send_error(Refused(405, "UNSUPPORTED", message, {"Allow": "GET, HEAD"}))

    do_POST = do_PUT = do_PATCH = do_DELETE = _refuse_write

    def _answer(self) -> None:
        try:
            self._route()
        except Refused as error:
            self._send_error(error)
        except Damaged as error:
            say(str(error))
            self._send_error(Refused(500, "UNKNOWN", str(error)))

    def _route(self) -> None:
        path, _, raw_query = self.path.partition("?")
        query = {key: values[-1] for key, values in parse_qs(raw_query, keep_blank_values=True).items()}
        segments, registry = segments_of(path)
        if segments[:1] != ["v2"]:
            if path != "/":
                raise Refused(404, "UNSUPPORTED", "there is nothing here: the list of images is at /")
            body = page(self.server.library, self._host(), self.headers.get("Accept-Language", ""))
            headers = {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            }
            self._send(200, headers, body.encode())
            return
        rest = segments[1:]
        namespace = registry or query.get("ns", "")
        if rest in ([], [""]):
            self._send(200, {"Content-Type": "application/json"}, b"{}")
        elif rest == ["_catalog"]:
            self._list("repositories", sorted(self.server.library.tags), {}, path, query)
        elif len(rest) > 2 and rest[-2] == "manifests":
            self._manifest(full("/".join(rest[:-2]), namespace), rest[-1])
        elif len(rest) > 2 and rest[-2] == "blobs":
            self._blob(rest[-1])
        elif len(rest) > 2 and rest[-2:] == ["tags", "list"]:
            repository = full("/".join(rest[:-2]), namespace)
            self._list("tags", sorted(self._tags(repository)), {"name": "/".join(rest[:-2])}, path, query)
        elif len(rest) > 2 and rest[-2] == "referrers":
            self._referrers(rest[-1], query)
        else:
            raise Refused(404, "UNSUPPORTED", "no such resource: /v2/<name>/manifests|blobs|tags|referrers/… are")

    def _tags(self, repository: str) -> dict[str, str]:
        tags = self.server.library.tags.get(repository)
        if tags is None:
            names = sorted(image.repository for image in self.server.library.images)
            raise Refused(404, "NAME_UNKNOWN", f"{repository} is not in the bundle; it has {_some(list(dict.fromkeys(names)))}")
        return tags

    def _manifest(self, repository: str, reference: str) -> None:
        library = self.server.library
        digest = reference
        if not is_digest(reference):
            tags = self._tags(repository)
            if reference not in tags:
                raise Refused(
                    404, "MANIFEST_UNKNOWN", f"{repository}:{reference} is not in the bundle; it has {_some(sorted(tags))}"
                )
            digest = tags[reference]
            say(f"{self.address_string()} {self.command} {repository}:{reference}")
        media_type = library.manifests.get(digest)
        if media_type is None:
            raise Refused(404, "MANIFEST_UNKNOWN", f"{repository}@{digest} is not in the bundle: it may be of another platform")
        self._send_blob(library.blobs[digest], media_type)

    def _blob(self, digest: str) -> None:
        blob = self.server.library.blobs.get(digest)
        if blob is None:
            raise Refused(
                404, "BLOB_UNKNOWN", f"{digest} is not in the bundle: it may have been left out, since it was in an earlier one"
            )
        self._send_blob(blob, "application/octet-stream")

    def _send_blob(self, blob: Blob, media_type: str) -> None:
        etag = f'"{blob.digest}"'
        headers = {"Content-Type": media_type, "Docker-Content-Digest": blob.digest, "ETag": etag, "Accept-Ranges": "bytes"}
        if any(one.strip() in ("*", etag, f"W/{etag}") for one in self.headers.get("If-None-Match", "").split(",")):
            self._send(304, headers, None)
            return
        start, stop, status = 0, blob.size, 200
        wanted = self._range(blob.size) if self.headers.get("If-Range", etag) == etag else None
        if wanted is not None:
            start, stop = wanted
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        headers["Content-Length"] = str(stop - start)
        if self.command == "HEAD":
            self._send(status, headers, None)
            return
        self.server.begin_sending()
        try:
            self._send_parts(blob, start, stop, status, headers)
        finally:
            self.server.end_sending()

    def _send_parts(self, blob: Blob, start: int, stop: int, status: int, headers: dict[str, str]) -> None:
        try:
            parts = blob.open_parts(start, stop)
            part = next(parts, None)
        except OSError as error:
            say(f"{blob.archive} cannot be read: {error}")
            raise Refused(500, "UNKNOWN", f"{blob.archive} cannot be read: {error}") from None
        self._send(status, headers, None)
        while part is not None:
            file, offset, count = part
            if self.connection.sendfile(file, offset, count) != count:
                raise Changed(f"{blob.archive} has become shorter")
            part = next(parts, None)

    def _range(self, size: int) -> tuple[int, int] | None:
        """The range that is asked for; None for all. Of several ranges, which a server may ignore (RFC 9110, section 14.2), all is sent."""
        header = self.headers.get("Range", "")
        match = _RANGE.fullmatch(header.strip())
        if match is None or match[1] == match[2] == "":
            return None
        first, last = match[1], match[2]
        if not first:
            start, stop = max(size - int(last), 0), size
        else:
            start, stop = int(first), min(int(last) + 1, size) if last else size
        if start >= stop:
            message = f"{header!r} is not within the {size} bytes of the blob"
            raise Refused(416, "UNSUPPORTED", message, {"Content-Range": f"bytes */{size}"})
        return start, stop

    def _list(self, key: str, names: list[str], more: dict[str, str], path: str, query: dict[str, str]) -> None:
        """A list, by pages where `n` is given (distribution-spec, "Listing Tags")."""
        headers = {"Content-Type": "application/json"}
        number, last = query.get("n"), query.get("last", "")
        names = [name for name in names if name > last]
        if number is not None:
            if not re.fullmatch("[0-9]{1,9}", number):
                raise Refused(400, "PAGINATION_NUMBER_INVALID", "n is the number of entries that are wanted")
            rest, names = names[int(number) :], names[: int(number)]
            if rest and names:
                following = {"n": number, "last": names[-1], **({"ns": query["ns"]} if "ns" in query else {})}
                headers["Link"] = f'<{quote(path, safe="/:%")}?{urlencode(following)}>; rel="next"'
        self._send(200, headers, json.dumps({**more, key: names}).encode())

    def _referrers(self, digest: str, query: dict[str, str]) -> None:
        headers = {"Content-Type": _INDEX}
        found = self.server.library.referrers.get(digest, [])
        if "artifactType" in query:
            found = [one for one in found if one.get("artifactType") == query["artifactType"]]
            headers["OCI-Filters-Applied"] = "artifactType"
        self._send(200, headers, json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": found}).encode())

    def _send_error(self, error: Refused) -> None:
        headers = {"Content-Type": "application/json", **error.headers}
        self._send(error.status, headers, json.dumps({"errors": [{"code": error.code, "message": str(error)}]}).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes | None) -> None:
        """Sends a response; with `body` None only its head."""
        self.send_response_only(status, HTTPStatus(status).phrase)
        for name, value in {
            "Server": self.version_string(),
            "Docker-Distribution-Api-Version": "registry/2.0",
            **headers,
        }.items():
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is not None and self.command != "HEAD":
            self.wfile.write(body)

    def _host(self) -> str:
        """The address of this server as the client knows it."""
        host = self.headers.get("Host", "")
        return host if _HOST.fullmatch(host) else f"localhost:{self.server.server_port}"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """http.server reports here what is no request in HTTP."""
        say(f"{self.address_string()}: {format % args}")

    def address_string(self) -> str:
        """The client's address. One of IPv4 comes as one of IPv6 to a socket that takes both."""
        address = str(self.client_address[0])
        return address[len(_MAPPED) :] if address.startswith(_MAPPED) else address


def say(text: str) -> None:
    """Prints a line. Control characters, which may come from a client, are escaped."""
    line = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    print(f"mirror: {line}", file=sys.stderr, flush=True)


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "") if names else "none"
