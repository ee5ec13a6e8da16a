"""Manifests and blobs: OCI distribution-spec 1.1, "Pull"."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator

from aiohttp import web

from mirror.api.context import RequestContext, header, stream_body
from mirror.api.ranges import Multipart, content_range, matches, parse_ranges, range_applies
from mirror.api.repeat_reads import RepeatReads
from mirror.api.responses import IMMUTABLE, PRIVATE, VERSION, cache_status, etag
from mirror.api.sending import read_slice, send_each
from mirror.cache.cache import Cache
from mirror.cache.outcome import HIT, Outcome
from mirror.errors import NotAllowed
from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.slices import Part

_SMALL = 64 * 1024
"""Bytes up to which a blob is sent in one piece with its headers."""


async def manifest(context: RequestContext, cache: Cache, repository: Repository, reference: Reference) -> web.StreamResponse:
    """GET and HEAD of a manifest.

    `Accept` is not negotiated: the bytes are what the digest names, "the Content-Type header will indicate the type of the returned manifest", and every client
    of today takes all of the types, or ``*/*``. To convert an index for one that does not would change the digest.
    """
    request = context.request
    outcome: Outcome | None = None
    if request.method == "HEAD" and cache.manifests.hot(repository, reference) is None:
        descriptor, outcome = await cache.manifests.resolve(repository, reference)
        if context.prove is not None and outcome.hit:
            await context.prove()
        cache.store.count_pull(repository, reference)
        context.count("manifest", outcome)
        return _aged(_guarded(_described(descriptor, outcome, request), context, cache, repository, reference), context, cache)

    async def make() -> web.StreamResponse:
        nonlocal outcome
        found = cache.manifests.hot(repository, reference)
        made_by = HIT
        if found is None:
            found, made_by = await cache.manifests.get(repository, reference)
            if context.prove is not None and made_by.hit:
                await context.prove()
        outcome = outcome or made_by
        return _aged(_guarded(_manifest(request, found, outcome), context, cache, repository, reference), context, cache)

    response = await context.keep(make)
    assert outcome is not None
    cache.store.count_pull(repository, reference)
    context.count("manifest", outcome)
    if request.method == "GET" and isinstance(response, web.Response):
        context.count_sent("manifest", response.content_length or 0)
    return response


def _guarded(
    response: web.StreamResponse, context: RequestContext, cache: Cache, repository: Repository, reference: Reference
) -> web.StreamResponse:
    """Adds headers that say what is held back, or would have been. Raises NotAllowed for another mirror of the fleet where that gets something else by a tag than the
    registry says: each decides for its own clients, and one that never learns of a move could not release it."""
    if cache.guard is not None:
        response.headers.update(cache.guard.headers(repository, reference))
        if context.is_peer and response.headers.get("Mirror-Tag", "").startswith("held"):
            raise NotAllowed(f"{reference} is held back here: the registry says what it means")
    return response


def _aged(response: web.StreamResponse, context: RequestContext, cache: Cache) -> web.StreamResponse:
    """Adds for another mirror how old the answer for a tag is (RFC 9111, section 5.1), so that the times for which each of them keeps it do not add up."""
    target = context.target
    if context.mirror and target is not None and target.repository is not None and isinstance(target.reference, Tag):
        age = cache.manifests.age(target.repository, target.reference)
        if age is not None:
            response.headers["Age"] = str(math.ceil(age))
    return response


def _manifest(request: web.BaseRequest, found: Manifest, outcome: Outcome) -> web.StreamResponse:
    headers = _headers(found.media_type, found.digest, outcome)
    if matches(header(request, "If-None-Match"), headers["ETag"]):
        return _unmodified(headers)
    return web.Response(body=found.body, headers=headers)


async def blob(
    context: RequestContext, cache: Cache, repeat_reads: RepeatReads, repository: Repository, digest: Digest
) -> web.StreamResponse:
    """GET and HEAD of a blob, whole or a range of it."""
    request = context.request
    if request.method == "HEAD":
        descriptor, outcome = await cache.stat_blob(repository, digest, context.prove)
        context.count("blob", outcome)
        return _described(descriptor, outcome, request)
    reader, outcome = await cache.blob(repository, digest, context.prove)
    if outcome is HIT and "Range" not in request.headers and repeat_reads.is_repeat(request.remote, digest):
        # In the background: the bytes are probably right, and hashing gigabytes takes longer than clients wait.
        cache.store.verify_behind(digest)
    try:
        context.count("blob", outcome)
        headers = _headers("application/octet-stream", digest, outcome)
        headers["Cache-Control"] = IMMUTABLE if context.is_public else PRIVATE
        if matches(header(request, "If-None-Match"), headers["ETag"]):
            return _unmodified(headers)
        size = reader.size
        if size is None:
            # Without a size, ranges cannot be served, and only the chunked coding can mark the end.
            response = web.StreamResponse(headers=headers)
            await stream_body(context, response, reader, [(0, None)])
            return response
        applies = range_applies(request.headers.get("If-Range"), headers["ETag"])
        ranges, status, multipart = choose_ranges(request, headers, size, applies=applies)
        start, stop = ranges[0]
        if outcome is HIT and multipart is None and stop - start <= _SMALL:
            body = await _small(reader.parts(start, stop)) if stop > start else b""
            context.count_sent("blob", len(body))
            if len(body) == size:
                repeat_reads.given(request.remote, digest)
            return web.Response(status=status, body=body, headers=headers)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = multipart.length if multipart is not None else stop - start
        await stream_body(context, response, reader, ranges, multipart)
        if outcome is HIT and context.sent == size:
            repeat_reads.given(request.remote, digest)
        return response
    finally:
        await reader.aclose()


def choose_ranges(
    request: web.BaseRequest, headers: dict[str, str], size: int, *, applies: bool
) -> tuple[list[tuple[int, int]], int, Multipart | None]:
    """Returns what a request for a body of `size` bytes is sent, the status, and the form of several ranges; completes `headers`.

    `applies` is False where If-Range voids the Range. Raises RangeNotSatisfiable.
    """
    headers["Accept-Ranges"] = "bytes"
    wanted = parse_ranges(header(request, "Range"), size) if applies else None
    if wanted is None:
        return [(0, size)], 200, None
    if len(wanted) == 1:
        headers["Content-Range"] = content_range(wanted[0], size)
        return wanted, 206, None
    multipart = Multipart(wanted, size, headers["Content-Type"])
    headers["Content-Type"] = multipart.content_type
    return wanted, 206, multipart


async def _small(parts: AsyncGenerator[Part, None]) -> bytes:
    body: list[bytes] = []

    async def keep(part: Part) -> None:
        body.append(part if isinstance(part, bytes) else read_slice(part))

    await send_each(parts, keep)
    return b"".join(body)


def _headers(media_type: str, digest: Digest, outcome: Outcome) -> dict[str, str]:
    return {
        "Content-Type": media_type,
        "Docker-Content-Digest": str(digest),
        VERSION[0]: VERSION[1],
        "ETag": etag(digest),
        "Cache-Status": cache_status(outcome),
    }


def _described(descriptor: Descriptor, outcome: Outcome, request: web.BaseRequest) -> web.StreamResponse:
    headers = _headers(descriptor.media_type, descriptor.digest, outcome)
    if matches(header(request, "If-None-Match"), headers["ETag"]):
        return _unmodified(headers)
    headers["Content-Length"] = str(descriptor.size)
    return web.StreamResponse(headers=headers)


def _unmodified(headers: dict[str, str]) -> web.StreamResponse:
    del headers["Content-Type"]
    return web.Response(status=304, headers=headers)
