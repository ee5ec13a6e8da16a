"""The context of a request, which collects what is logged and counted; and sending a blob as its body."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from aiohttp import web

from mirror import metrics
from mirror.access.bearer import Grant
from mirror.access.rules import Identity, Rule
from mirror.api.client_network import client_network
from mirror.api.ranges import Multipart
from mirror.api.sending import FileSender, pieces, read_slice, send_each
from mirror.api.targets import Target, without_secret
from mirror.api.unread import Hold
from mirror.cache.guarding import Guarded
from mirror.cache.outcome import Outcome
from mirror.errors import MirrorError, UpstreamCut
from mirror.storage.slices import FileSlice, Part, Reader

log = logging.getLogger(__name__)

NOBODY = Identity()


@dataclass(slots=True)
class RequestContext:
    """The state of a request while it is answered."""

    request: web.BaseRequest
    hold: Hold
    target: Target | None = None
    outcome: Outcome | None = None
    sent: int = 0
    """Bytes of body."""
    complete: bool = True
    """False if the body was cut short, by either side."""
    cut: str = ""
    """Why the body was cut short."""
    kind: str = ""
    """``blob`` or ``manifest`` for a request for content."""
    identity: Identity = NOBODY
    """Who asks, once the gate has found out."""
    has_login: bool = False
    """True if the request carried a login, of a user or of nobody, as a bearer token may be."""
    granted: tuple[Grant, ...] | None = None
    """What its bearer token was asked for."""
    login_until: float = math.inf
    """When the login is over, in seconds since the epoch."""
    rule: Rule | None = None
    """The rule that allowed it."""
    pushes_manifest: bool = False
    """True if it may push the manifest that it sends."""
    refused: Guarded | None = None
    """What it is answered with, if a guard refuses it."""
    access_version: int = -1
    """The version of users, tokens and rules that it was admitted by."""
    mirror: str = ""
    """What the mirror is called that asks; empty for a client."""
    is_peer: bool = False
    """True if that mirror is of the same fleet."""
    is_trusted_mirror: bool = False
    """True if it has proved that it belongs to this one, and so checks itself what its clients may have."""
    prove: Callable[[], Awaitable[None]] | None = None
    """Raises if the repository does not have what was asked for, where that was left to the registry, which may not be asked after all. None if it is known."""
    is_public: bool = True
    """False if the answer is for whoever asks alone: caches on the way must not keep it for others."""

    @property
    def who(self) -> str:
        """The user, or what else proved who asks, or the address."""
        identity = self.identity
        return identity.user or identity.token or identity.certificate or identity.subject or self.request.remote or ""

    @property
    def shown_path(self) -> str:
        """The target, for logs: shortened, and without secrets."""
        return without_secret(self.request.raw_path[:300])

    async def keep(self, make: Callable[[], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """Returns the response of `make`, once there is room for its body in memory; see `Hold.keep`."""
        return await self.hold.keep(make)

    def count(self, kind: str, outcome: Outcome) -> None:
        """Counts a request for content: `kind` is ``blob`` or ``manifest``."""
        self.outcome, self.kind = outcome, kind
        assert self.target is not None and self.target.repository is not None
        labels = (self.target.repository.registry, kind)
        if self.is_peer:
            metrics.peer_requests.labels(*labels, "hit" if outcome.hit else "miss").inc()
            return
        metrics.requests.labels(*labels).inc()
        (metrics.hits if outcome.hit else metrics.misses).labels(*labels).inc()

    def count_time(self, seconds: float) -> None:
        """Records the duration of a request for content. It is not recorded if the client left before the response."""
        if self.kind and self.outcome is not None and not self.is_peer:
            metrics.request_seconds.labels(self.kind, "hit" if self.outcome.hit else "miss").observe(seconds)

    def count_sent(self, kind: str, size: int) -> None:
        """Counts bytes of body that were sent to the client."""
        assert self.target is not None
        self.sent += size
        if size:
            # A bundle of all images counts for none of their registries.
            registry = self.target.repository.registry if self.target.repository is not None else "all"
            (metrics.peer_sent_bytes if self.is_peer else metrics.pushed_bytes).labels(registry, kind).inc(size)


def whose(context: RequestContext) -> str:
    """By whom requests, and what they leave here, are counted together: a user, or whatever else proves who it is, or else an address."""
    identity = context.identity
    if identity.user is not None:
        return identity.user
    if identity.token is not None:
        return f"token {identity.token}"
    if identity.certificate is not None:
        return f"certificate {identity.certificate}"
    return f"subject {identity.subject}" if identity.issuers else client_network(context.request.remote)


def header(request: web.BaseRequest, name: str) -> str | None:
    """Returns the value of a list-based header, with several field lines joined (RFC 9110, section 5.3); None if there is none."""
    return ", ".join(request.headers.getall(name, ())) or None


async def stream_body(
    context: RequestContext,
    response: web.StreamResponse,
    reader: Reader,
    ranges: Sequence[tuple[int, int | None]],
    multipart: Multipart | None = None,
) -> None:
    """Sends the headers, and ranges ``[start, stop)`` of a blob; several as `multipart`.

    If the client leaves or upstream fails, the connection is aborted, so that the client does not take the body for complete. Raises nothing but CancelledError.
    """
    request = context.request
    try:
        writer = await response.prepare(request)
    except ConnectionError:
        writer = None
    transport = request.transport
    if writer is None or transport is None:
        context.complete, context.cut = False, "the client left"
        return
    sender = None
    if ranges[0][1] is not None and transport.get_extra_info("sslcontext") is None:
        # Without a write buffer: `drain` waits for the kernel, so sendfile cannot overtake bytes written before.
        transport.set_write_buffer_limits(0)
        with contextlib.suppress(OSError):
            # FileSender needs a descriptor. Without one, bytes are read and written.
            sender = FileSender(transport)
    try:
        writer.send_headers()
        await writer.drain()

        async def send(part: Part) -> None:
            if isinstance(part, bytes):
                await response.write(part)
                await writer.drain()
                context.count_sent("blob", len(part))
            elif sender is not None:
                await writer.drain()
                try:
                    await sender.send(part)
                finally:
                    context.count_sent("blob", sender.sent)
            else:
                await _write(context, response, part)

        for number, (start, stop) in enumerate(ranges):
            if multipart is not None:
                await response.write(multipart.preambles[number])
            before = context.sent
            async with aclosing(reader.parts(start, stop)) as parts:
                await send_each(parts, send)
            if stop is not None and context.sent - before != stop - start:
                raise UpstreamCut("the blob is shorter than upstream said")
        if multipart is not None:
            await response.write(multipart.end)
    except (OSError, MirrorError) as error:
        context.complete = False
        context.cut = str(error) or type(error).__name__
        transport.abort()
    except Exception:
        # An error response is impossible now: it would be taken for bytes of the blob.
        log.exception("failed within the body of %s %s", request.method, context.shown_path)
        context.complete, context.cut = False, "the mirror failed"
        transport.abort()
    finally:
        if sender is not None:
            sender.close()


async def _write(context: RequestContext, response: web.StreamResponse, part: FileSlice) -> None:
    for piece in pieces(part):
        data = read_slice(piece)
        await response.write(data)
        context.count_sent("blob", len(data))
