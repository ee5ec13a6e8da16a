"""A registry that commits, on demand, the faults a real one won't, and counts every request.

::

    async with Scripted() as upstream:
        image = upstream.add_image("library/app", "latest", layers=[b"..."])
        upstream.fail(str(image.layers[0]), Cut(after=1000))        # the next request for it, once
        ...
        assert upstream.count("GET", str(image.layers[0])) == 2

Faults apply to the next `times` requests whose path contains the fragment and whose method is GET (or `method`), in the order they were set. ``Length(10) &
Hold(after=1)`` is both in one answer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest
from tests.support.ports import free_port

_CHUNK = 64 * 1024
_F = TypeVar("_F", bound="Fault")


@dataclass
class Fault:
    """Base: nothing is wrong."""

    def __and__(self, other: Fault) -> Fault:
        return Combined((self, other))

    def of(self, kind: type[_F]) -> _F | None:
        """This fault, or the one in it, that is of some kind."""
        return self if isinstance(self, kind) else None


@dataclass
class Combined(Fault):
    """Several faults in one answer: those that choose it (`Pending` and `Delay`, then `Status` or `Redirect`) come first, those of its body last."""

    faults: tuple[Fault, ...]

    def of(self, kind: type[_F]) -> _F | None:
        return next((found for fault in self.faults if (found := fault.of(kind)) is not None), None)


@dataclass
class Cut(Fault):
    """The connection ends after so many bytes of body."""

    after: int


@dataclass
class Hold(Fault):
    """The body stops after so many bytes until `release` is set; `reached` is set when it has."""

    after: int
    release: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Rate(Fault):
    """The body comes at so many bytes per second."""

    per_second: float


@dataclass
class Corrupt(Fault):
    """One byte of the body is wrong; `at` counts from the start of the blob."""

    at: int


@dataclass
class Status(Fault):
    """An answer of another status; 0 for none, where a later request is the one to fail."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors":[{"code":"UNKNOWN","message":"scripted"}]}'


@dataclass
class Delay(Fault):
    """The headers come late, by seconds."""

    seconds: float


@dataclass
class Pending(Fault):
    """The headers do not come until `release` is set; `reached` is set when the request has come."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Raw(Fault):
    """These bytes are all that comes, then the connection ends: by a reset, or in an orderly way."""

    data: bytes = b""
    reset: bool = False


@dataclass
class Silence(Fault):
    """No answer comes, until the client gives up."""


@dataclass
class NoRange(Fault):
    """A Range is ignored and answered 200."""


@dataclass
class WrongRange(Fault):
    """A Range is answered with another one."""


@dataclass
class Chunked(Fault):
    """No Content-Length."""


@dataclass
class Endless(Fault):
    """No Content-Length, and the body never ends."""


@dataclass
class Length(Fault):
    """A Content-Length that is not the body's."""

    claimed: int


@dataclass
class Headers(Fault):
    """Other headers; a value of None takes one away."""

    headers: dict[str, str | None]


@dataclass
class Redirect(Fault):
    """Sent elsewhere."""

    location: str
    status: int = 307


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    query: str
    range: str | None
    authorization: str | None
    accept: str | None


@dataclass(frozen=True)
class Image:
    """What `add_image` made."""

    digest: Digest
    body: bytes
    config: Digest
    layers: tuple[Digest, ...]


class Scripted:
    """An OCI registry in memory, on a loopback port."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.asked: list[Asked] = []
        self.sent: dict[str, int] = {}
        """Bytes of body sent, by digest."""
        self.auth: str | None = None
        """None, ``bearer`` or ``basic``."""
        self.accounts: dict[str, str] = {}
        """For Basic and for the token service; empty: anybody may have a token."""
        self.token_life: Any = 60
        """Seconds, or whatever a token service says instead."""
        self.realm: str | None = None
        """Another realm than this server's own."""
        self.redirect_blobs_to: Scripted | None = None
        self.refuses_authorization = False
        """As S3-like stores do: 400 to any request with Authorization."""
        self.referrers_api = True
        self.page_size: int | None = None
        self.page_seconds = 0.0
        self.link = "</v2/{rest}>"
        """How a next page is linked; ``{rest}`` is what comes after /v2/, ``{query}`` its query."""
        self.links_on = False
        """The last page links to an empty one, which links to itself."""
        self.prefix = ""
        """Of all paths, as behind a proxy."""
        self.hub: dict[str, dict[str, Any]] = {}
        """Docker Hub's search: results by name, whose description or name must contain the term."""
        self.tag_details: dict[str, list[dict[str, Any]]] = {}
        """Docker Hub's details of tags, by repository."""
        self.extra_headers: dict[str, str] = {}
        self.blob_headers: dict[str, str] = {}
        """The same for blobs."""
        self.rate: float | None = None
        """Bytes per second of each body, where no fault says otherwise."""
        self.manifests_per_second: float | None = None
        """Requests for manifests beyond that are answered 429, without Retry-After."""
        self.tokens_per_second: float | None = None
        """The same for tokens."""
        self.blobs_per_second: float | None = None
        """The same for blobs."""
        self._allowances: dict[str, tuple[float, float]] = {}
        self.rights: dict[str, set[str]] = {}
        """The repositories that each account may pull from, those of "" for whoever has none; all may everything where it is empty."""
        self.ranges = True
        self.keeps_apart = False
        """A repository has the blobs that its manifests name, and no others."""
        self.hollow: set[str] = set()
        """Repositories that do not have even those: a registry that checks nothing."""
        self.bodies = 0
        self.most_bodies = 0
        """Bodies that were sent side by side, at most."""
        self._faults: list[tuple[str, str, Fault]] = []
        self._tokens: dict[str, str] = {}
        self._runner: web.ServerRunner | None = None
        self._stopping = asyncio.Event()
        self.port = free_port()

    # ------------------------------------------------------------------ running

    async def __aenter__(self) -> Scripted:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def connections(self) -> int:
        """Connections that are open."""
        assert self._runner is not None
        assert self._runner.server is not None
        return len(self._runner.server.connections)

    @property
    def acknowledged(self) -> int:
        """Bytes that the kernels of the clients have received, over the connections that are open: what was sent over the wire."""
        assert self._runner is not None
        assert self._runner.server is not None
        transports = [one.transport for one in self._runner.server.connections if one.transport is not None]
        return sum(
            struct.unpack_from("Q", one.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), 120)[0]
            for one in transports
        )

    async def start(self) -> None:
        """Listens, on the same port whenever it is started again."""
        self._stopping.clear()
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()

    async def stop(self) -> None:
        """Gone: connections are refused."""
        self._stopping.set()
        for _, _, fault in self._faults:
            for held in (fault.of(Hold), fault.of(Pending)):
                if held is not None:
                    held.release.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # ------------------------------------------------------------------ contents

    def add_blob(self, data: bytes, algorithm: str = "sha256") -> Digest:
        digest = Digest.of(data, algorithm)
        self.blobs[str(digest)] = data
        return digest

    def add_manifest(
        self, repository: str, tag: str | None, body: bytes, media_type: str = OCI_MANIFEST, algorithm: str = "sha256"
    ) -> Digest:
        digest = Digest.of(body, algorithm)
        for reference in filter(None, (tag, str(digest))):
            self.manifests[repository, reference] = media_type, body
        return digest

    def add_image(
        self,
        repository: str,
        tag: str | None = None,
        layers: list[bytes] | None = None,
        configuration: dict[str, Any] | None = None,
        **more: Any,
    ) -> Image:
        """A single-platform image; `more` are further fields of its manifest, `configuration` those of its configuration."""
        config_body = json.dumps(
            {"architecture": "amd64", "os": "linux", "salt": os.urandom(4).hex(), **(configuration or {})}
        ).encode()
        config = self.add_blob(config_body)
        contents = layers if layers is not None else [os.urandom(1000)]
        digests = tuple(self.add_blob(layer) for layer in contents)
        body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": str(config),
                    "size": len(config_body),
                },
                "layers": [
                    {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": str(digest), "size": len(layer)}
                    for digest, layer in zip(digests, contents, strict=True)
                ],
                **more,
            }
        ).encode()
        return Image(self.add_manifest(repository, tag, body), body, config, digests)

    def add_index(self, repository: str, tag: str, images: list[Image], **more: Any) -> tuple[Digest, bytes]:
        """An index of images for different platforms; `more` are further fields of each entry."""
        manifests = [
            {
                "mediaType": OCI_MANIFEST,
                "digest": str(image.digest),
                "size": len(image.body),
                "platform": {"os": "linux", "architecture": arch},
                **more,
            }
            for image, arch in zip(images, ("amd64", "arm64", "s390x"), strict=False)
        ]
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()
        return self.add_manifest(repository, tag, body, OCI_INDEX), body

    # ------------------------------------------------------------------ faults and counts

    def fail(self, fragment: str, *faults: Fault, times: int = 1, method: str = "GET") -> None:
        """Sets faults for the next requests, each for `times` of them; the `method` ``*`` stands for all."""
        for fault in faults:
            self._faults += [(fragment, method, fault)] * times

    def heal(self) -> None:
        """No more faults."""
        self._faults.clear()

    def count(self, method: str, fragment: str = "") -> int:
        """How many requests came whose path contains `fragment`."""
        return sum(1 for asked in self.asked if asked.method == method and fragment in asked.path)

    def _fault(self, method: str, path: str) -> Fault:
        for index, (fragment, wanted, fault) in enumerate(self._faults):
            if wanted in (method, "*") and fragment in path:
                del self._faults[index]
                return fault
        return Fault()

    # ------------------------------------------------------------------ answering

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        self.asked.append(
            Asked(
                request.method,
                request.path,
                request.query_string,
                headers.get("Range"),
                headers.get("Authorization"),
                headers.get("Accept"),
            )
        )
        if request.path == "/token":
            return await self._token(request)
        if self.refuses_authorization and "Authorization" in headers:
            return web.Response(status=400, text="two kinds of authentication")
        if (refused := self._unauthorized(request)) is not None:
            return refused
        fault = self._fault(request.method, request.path)
        if (pending := fault.of(Pending)) is not None:
            pending.reached.set()
            await pending.release.wait()
        if (delay := fault.of(Delay)) is not None:
            await asyncio.sleep(delay.seconds)
        if (status := fault.of(Status)) is not None and status.status:
            return web.Response(
                status=status.status, headers={"Content-Type": "application/json", **status.headers}, body=status.body
            )
        if (raw := fault.of(Raw)) is not None:
            return await _raw(request, raw)
        if fault.of(Silence) is not None:
            await self._stopping.wait()
        if (redirect := fault.of(Redirect)) is not None:
            return web.Response(status=redirect.status, headers={"Location": redirect.location})
        path = request.path.removeprefix(self.prefix)
        kind = "blobs" if "/blobs/" in path else "manifests"
        if f"/{kind}/" in path and not self._allows(kind, getattr(self, f"{kind}_per_second")):
            return web.Response(status=429, text='{"errors":[{"code":"TOOMANYREQUESTS"}]}')
        if path in ("/v2/", "/v2"):
            return web.Response(text="{}", headers=self.extra_headers)
        if path == "/v1/search":
            if (hold := fault.of(Hold)) is not None:
                hold.reached.set()
                await hold.release.wait()
            answer = self._search(request.query["q"], int(request.query["n"]))
            if fault.of(Rate) is not None or fault.of(Endless) is not None:
                return await self._streamed(request, answer, fault)
            return answer
        if match := re.fullmatch(r"/v2/repositories/(.+)/tags", path):
            return self._tag_details(match[1], request)
        if match := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            return self._manifest(match[1], match[2], fault)
        if match := re.fullmatch(r"/v2/(.+)/blobs/([^/]+)", path):
            if self.redirect_blobs_to is not None:
                return web.Response(status=307, headers={"Location": f"{self.redirect_blobs_to.url}{path}?signature=secret"})
            if match[1] in self.hollow or (
                self.keeps_apart
                and not any(
                    repository == match[1] and match[2].encode() in body for (repository, _), (_, body) in self.manifests.items()
                )
            ):
                return web.Response(status=404)
            return await self._blob(request, match[2], fault)
        if path.startswith("/images/"):
            return await self._object(request, path, fault)
        if match := re.fullmatch(r"/v2/(.+)/tags/list", path):
            await asyncio.sleep(self.page_seconds)
            if (hold := fault.of(Hold)) is not None:
                hold.reached.set()
                await hold.release.wait()
            return self._tags(request, match[1])
        if (match := re.fullmatch(r"/v2/(.+)/referrers/([^/]+)", path)) and self.referrers_api:
            return self._referrers(match[1], match[2])
        return web.Response(status=404, text="no such route")

    async def _object(self, request: web.BaseRequest, path: str, fault: Fault) -> web.StreamResponse:
        """As an S3 server whose bucket ``images`` has the blobs, and to which anything may be written."""
        if request.method == "PUT":
            async for _ in request.content.iter_any():
                pass
            return web.Response(headers={"ETag": '"1"'})
        match = re.fullmatch(r"/images/blobs/(\w+)/../(\w+)", path)
        if match and (digest := f"{match[1]}:{match[2]}") in self.blobs:
            return await self._blob(request, digest, fault)
        return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")

    def _allows(self, kind: str, per_second: float | None) -> bool:
        if per_second is None:
            return True
        now = asyncio.get_running_loop().time()
        before, since = self._allowances.get(kind, (1.0, now))
        allowance = min(1.0, before + (now - since) * per_second)
        allowed = allowance >= 1.0
        self._allowances[kind] = allowance - allowed, now
        return allowed

    def _unauthorized(self, request: web.BaseRequest) -> web.Response | None:
        given = request.headers.get("Authorization", "")
        if self.auth == "basic":
            if given.removeprefix("Basic ") not in {_basic(*account) for account in self.accounts.items()}:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="scripted"'})
            user = base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")[0]
            match = re.fullmatch(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/.+", request.path)
            if match and not self._may(user, f"repository:{match[1]}:pull"):
                return web.Response(status=403, text='{"errors":[{"code":"DENIED"}]}')
        elif self.auth == "bearer":
            match = re.fullmatch(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/.+", request.path)
            scope = f"repository:{match[1]}:pull" if match else ""
            if self._tokens.get(given.removeprefix("Bearer ")) != scope:
                realm = self.realm or f"{self.url}/token"
                challenge = f'Bearer realm="{realm}",service="scripted",scope="{scope}"'
                return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return None

    async def _token(self, request: web.BaseRequest) -> web.Response:
        fault = self._fault("GET", "/token")
        if (raw := fault.of(Raw)) is not None:
            return await _raw(request, raw)
        if fault.of(Silence) is not None:
            await self._stopping.wait()
        if (delay := fault.of(Delay)) is not None:
            await asyncio.sleep(delay.seconds)
        if (status := fault.of(Status)) is not None and status.status:
            return web.Response(status=status.status, headers=status.headers, body=status.body)
        if not self._allows("tokens", self.tokens_per_second):
            return web.Response(status=429, headers={"Retry-After": "142.918µs"}, text="toomanyrequests")
        given = request.headers.get("Authorization", "").removeprefix("Basic ")
        known = {_basic(*account): account[0] for account in self.accounts.items()}
        if self.accounts and given not in known and (given or "" not in self.rights):
            return web.Response(status=401)
        token, scope = os.urandom(8).hex(), request.query.get("scope", "")
        if not self._may(known.get(given, ""), scope):
            # As distribution's token services do: a token that is good for less than was asked for.
            scope = "nothing"
        self._tokens[token] = scope
        return web.json_response({"token": token, "expires_in": self.token_life})

    def _may(self, user: str, scope: str) -> bool:
        repository = scope.removeprefix("repository:").rpartition(":")[0]
        return not self.rights or not repository or repository in self.rights.get(user, set())

    def revoke_tokens(self) -> None:
        """All tokens given so far are refused from now on."""
        self._tokens.clear()

    def _manifest(self, repository: str, reference: str, fault: Fault) -> web.Response:
        found = self.manifests.get((repository, reference))
        if found is None:
            return web.Response(status=404, headers=self.extra_headers, text='{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        media_type, body = found
        if (wrong := fault.of(Corrupt)) is not None:
            body = body[: wrong.at] + bytes([body[wrong.at] ^ 1]) + body[wrong.at + 1 :]
        digest = reference if ":" in reference else str(Digest.of(found[1]))
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest, **self.extra_headers}
        other = fault.of(Headers)
        for name, value in (other.headers if other is not None else {}).items():
            headers.pop(name, None)
            if value is not None:
                headers[name] = value
        return web.Response(body=body, headers=headers)

    async def _blob(self, request: web.BaseRequest, digest: str, fault: Fault) -> web.StreamResponse:
        data = self.blobs.get(digest)
        if data is None:
            return web.Response(status=404)
        start, stop, status = 0, len(data), 200
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest, **self.blob_headers}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if match and self.ranges and fault.of(NoRange) is None:
            start, stop, status = int(match[1]), min(int(match[2] or len(data)) + 1, len(data)), 206
            shift = 1 if fault.of(WrongRange) is not None else 0
            headers["Content-Range"] = f"bytes {start + shift}-{stop - 1 + shift}/{len(data)}"
        response = web.StreamResponse(status=status, headers=headers)
        if fault.of(Chunked) is not None or fault.of(Endless) is not None:
            response.enable_chunked_encoding()
        else:
            length = fault.of(Length)
            response.content_length = stop - start if length is None else length.claimed
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        self.bodies += 1
        self.most_bodies = max(self.most_bodies, self.bodies)
        try:
            with contextlib.suppress(ConnectionError):
                await self._body(request, response, digest, data, start, stop, fault)
        finally:
            self.bodies -= 1
        return response

    async def _body(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        digest: str,
        data: bytes,
        start: int,
        stop: int,
        fault: Fault,
    ) -> None:
        position, first = start, start
        steady, cut, hold = fault.of(Rate), fault.of(Cut), fault.of(Hold)
        wrong, length = fault.of(Corrupt), fault.of(Length)
        rate = self.rate if steady is None else steady.per_second
        began = asyncio.get_running_loop().time()
        while position < stop:
            if rate is not None:
                await asyncio.sleep(began + (position - first) / rate - asyncio.get_running_loop().time())
            end = min(position + _CHUNK, stop)
            for stops in (cut, hold):
                if stops is not None:
                    end = min(end, max(first + stops.after, position))
            piece = data[position:end]
            if wrong is not None and position <= wrong.at < end:
                offset = wrong.at - position
                piece = piece[:offset] + bytes([piece[offset] ^ 1]) + piece[offset + 1 :]
            if piece:
                await response.write(piece)
                self.sent[digest] = self.sent.get(digest, 0) + len(piece)
            position = end
            if cut is not None and position - first >= cut.after:
                assert request.transport is not None
                request.transport.close()
                return
            if hold is not None and position - first >= hold.after:
                hold.reached.set()
                await hold.release.wait()
                hold = None
        while fault.of(Endless) is not None:
            await response.write(bytes(_CHUNK))
        if length is not None and length.claimed > stop - start:
            assert request.transport is not None
            request.transport.close()

    async def _streamed(self, request: web.BaseRequest, answer: web.Response, fault: Fault) -> web.StreamResponse:
        """Sends an answer byte by byte, or without an end; `sent` counts the bytes under its path."""
        response = web.StreamResponse(headers={"Content-Type": answer.content_type})
        response.enable_chunked_encoding()
        await response.prepare(request)
        steady, endless = fault.of(Rate), fault.of(Endless) is not None
        assert isinstance(answer.body, bytes)
        body = answer.body
        with contextlib.suppress(ConnectionError):
            while body or endless:
                piece = body[: 1 if steady is not None else _CHUNK] or b" " * _CHUNK
                await response.write(piece)
                self.sent[request.path] = self.sent.get(request.path, 0) + len(piece)
                body = body[len(piece) :]
                if steady is not None:
                    await asyncio.sleep(1 / steady.per_second)
        return response

    def _search(self, term: str, count: int) -> web.Response:
        found = [entry for name, entry in self.hub.items() if term in name or term in str(entry.get("description"))]
        return web.json_response({"num_results": len(found), "query": term, "results": found[:count]})

    def _tag_details(self, repository: str, request: web.BaseRequest) -> web.Response:
        size, page = int(request.query["page_size"]), int(request.query["page"])
        wanted = request.query.get("name", "")
        found = [entry for entry in self.tag_details.get(repository, []) if wanted in str(entry.get("name"))]
        following = f"{self.url}{request.path}?page={page + 1}" if len(found) > page * size else None
        return web.json_response(
            {"count": len(found), "next": following, "previous": None, "results": found[(page - 1) * size : page * size]}
        )

    def add_to_hub(self, name: str, description: str = "", stars: int = 0, official: bool = False) -> None:
        """Makes a repository known to Docker Hub's search, as its v1 API describes one."""
        self.hub[name] = {
            "name": name,
            "description": description,
            "star_count": stars,
            "is_official": official,
            "is_automated": False,
        }

    def _tags(self, request: web.BaseRequest, repository: str) -> web.Response:
        tags = sorted(reference for name, reference in self.manifests if name == repository and ":" not in reference)
        if not any(name == repository for name, _ in self.manifests):
            return web.Response(status=404)
        headers = {}
        if self.page_size is not None:
            tags = [tag for tag in tags if tag > request.query.get("last", "")]
            if len(tags) > self.page_size or self.links_on:
                tags = tags[: self.page_size]
                query = f"last={tags[-1] if tags else request.query.get('last', '')}"
                link = self.link.format(rest=f"{repository}/tags/list?{query}", query=query)
                headers["Link"] = link if ";" in link else f'{link}; rel="next"'
        return web.json_response({"name": repository, "tags": tags}, headers=headers)

    def _referrers(self, repository: str, digest: str) -> web.Response:
        found = []
        for (name, reference), (media_type, body) in self.manifests.items():
            document = json.loads(body)
            if name == repository and ":" in reference and document.get("subject", {}).get("digest") == digest:
                entry = {
                    "mediaType": media_type,
                    "digest": reference,
                    "size": len(body),
                    "artifactType": document.get("artifactType", ""),
                }
                found.append(entry)
        return web.json_response({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}, content_type=OCI_INDEX)


async def _raw(request: web.BaseRequest, fault: Raw) -> web.Response:
    """Ends the connection after some bytes; what is returned goes nowhere."""
    assert request.transport is not None
    if fault.reset:
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.write(fault.data)
    request.transport.close()
    await asyncio.sleep(0)
    return web.Response()


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()
