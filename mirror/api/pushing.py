"""Pushes and deletes: OCI distribution-spec 1.1, "Push" and "Content Management"."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import closing
from urllib.parse import quote, urlencode, urlsplit

from aiohttp import web

from mirror import metrics
from mirror.access.rules import Action
from mirror.api.context import RequestContext, whose
from mirror.api.events import request_event
from mirror.api.gate import Gate
from mirror.api.request_body import patient_reader
from mirror.api.responses import VERSION, error_response
from mirror.api.targets import Resource, Target, Targets
from mirror.cache.cache import Cache
from mirror.cache.guarding import Guard, Guarded, refusal
from mirror.errors import (
    BlobUnknown,
    ChunkOutOfOrder,
    Denied,
    HostedFull,
    Invalid,
    ManifestTooLarge,
    ManifestUnknown,
    Refused,
    Unknown,
    Unsupported,
    UploadInvalid,
)
from mirror.events import NOBODY, Events
from mirror.events import Action as What
from mirror.hosted.chunks import check_order, receive
from mirror.hosted.manifests import manifest_of_client
from mirror.manifests import MAX_SIZE, Manifest, blobs_of, entries_of
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.hosted import HostedStore, Upload


class Pushing:
    """Answers requests that change hosted repositories, and requests for uploads."""

    def __init__(self, cache: Cache, targets: Targets, gate: Gate, public_url: str | None, events: Events = NOBODY) -> None:
        """`public_url` is the mirror's URL behind a proxy: the path in it, if any, begins every Location."""
        self._cache = cache
        self._gate = gate
        self._hosted: HostedStore = cache.store.hosted
        self._targets = targets
        self._events = events
        self._prefix = urlsplit(public_url or "").path.rstrip("/")

    async def answer(self, context: RequestContext, target: Target, repository: Repository) -> web.StreamResponse:
        """Answers a request with a method other than GET and HEAD, or for an upload. Raises MirrorError."""
        request = context.request
        self._check_active(request, repository)
        _check_origin(request)
        await self._gate.identify(context, target)
        deletes = request.method == "DELETE" and target.resource is not Resource.UPLOAD
        self._gate.check(context, Action.DELETE if deletes else Action.PUSH, repository)
        self._check_hosted(repository)
        try:
            return await self._changed(context, target, repository)
        except HostedFull as error:
            details = {"limit": "hosted.max_size", "reason": error.message}
            self._events.send(request_event(context, What.QUOTA, repository, details=details, once="hosted.max_size"))
            raise

    async def _changed(self, context: RequestContext, target: Target, repository: Repository) -> web.StreamResponse:
        request, reference = context.request, target.reference
        match target.resource, request.method:
            case Resource.UPLOAD, "POST" if not target.upload:
                return await self._begin(context, target, repository)
            case Resource.UPLOAD, "GET" | "HEAD" if target.upload:
                with closing(await self._hosted.resume(repository, target.upload, write=False)) as upload:
                    return self._received(204, target, upload)
            case Resource.UPLOAD, "PATCH" if target.upload:
                return await self._append(request, target, repository)
            case Resource.UPLOAD, "PUT" if target.upload:
                return await self._complete(context, target, repository)
            case Resource.UPLOAD, "DELETE" if target.upload:
                with closing(await self._hosted.resume(repository, target.upload)) as upload:
                    await upload.discard()
                return web.Response(status=204, headers=dict([VERSION]))
            case Resource.MANIFEST, "PUT" if reference is not None:
                return await self._put_manifest(context, target, repository, reference)
            case Resource.MANIFEST, "DELETE" if reference is not None:
                return await self._delete_manifest(context, repository, reference)
            case Resource.BLOB, "DELETE" if isinstance(reference, Digest):
                if not await self._hosted.delete_blob(repository, reference):
                    raise BlobUnknown(f"{repository.path} has no blob {reference}")
                self._events.send(request_event(context, What.DELETE, repository, digest=reference, is_blob=True))
                return web.Response(status=202, headers=dict([VERSION]))
        allowed = {Resource.UPLOAD: "GET, PATCH, PUT, DELETE" if target.upload else "POST"}.get(target.resource, "GET, HEAD")
        raise Unsupported(f"{request.method} is not supported here", allowed)

    def _check_active(self, request: web.BaseRequest, repository: Repository) -> None:
        if not self._hosted.active:
            raise Unsupported(
                f"{request.method} is not supported: nothing can be pushed to this mirror. To have it take pushes to names such as"
                f' {example(repository)}, add to its settings file the lines [hosted] and repositories = ["{example(repository)}"],'
                " and restart it"
            )

    def _check_hosted(self, repository: Repository) -> None:
        if not self._hosted.covers(repository):
            raise Denied(
                f"{repository.path} does not live in this mirror, and cannot be pushed to: hosted.repositories in its settings has the names"
                " that can be"
            )

    def _check_guard(self, repository: Repository, *digests: Digest) -> None:
        """Raises Guarded if something is blocked: nobody could pull it."""
        if (guard := self._cache.guard) is not None:
            for digest in digests:
                if (error := guard.blocks(repository, digest)) is not None:
                    raise error

    async def _check_manifest(self, guard: Guard, repository: Repository, manifest: Manifest, tags: Sequence[Tag]) -> None:
        """Raises Guarded if a manifest, or that these tags mean it, is refused for good. What waits for time or a signature is taken: it is signed after it
        was pushed."""
        references: list[Reference] = [manifest.digest, *tags]
        for reference in references:
            ruling = await guard.foresee(repository, reference, manifest.descriptor, _Pushed(manifest))
            if ruling.may_pass or (ruling.error is None and ruling.held_until is None):
                continue
            guard.count(repository, reference, ruling)
            if ruling.error is not None:
                raise ruling.error
            rule, _, reason, _ = ruling.verdicts[0]
            raise refusal(image_name(repository, reference), rule, reason, manifest.digest)

    # ------------------------------------------------------------------ uploads

    async def _begin(self, context: RequestContext, target: Target, repository: Repository) -> web.StreamResponse:
        request, query = context.request, target.query
        if (algorithm := query.get("digest-algorithm", "sha256")) not in ("sha256", "sha512"):
            raise UploadInvalid(f"digest-algorithm is sha256 or sha512, not {algorithm[:40]!r}")
        if "mount" in query:
            digest = Digest.parse(query["mount"])
            self._check_guard(repository, digest)
            if await self._mounted(context, target, repository, digest):
                return self._created(target, f"blobs/{digest}", digest)
        wanted = Digest.parse(query["digest"]) if "digest" in query else None
        if wanted is not None:
            self._check_guard(repository, wanted)
        await self._hosted.check_room(request.content_length or 0)
        with closing(await self._hosted.begin(repository, whose(context))) as upload:
            if wanted is None:
                return self._received(202, target, upload)
            try:
                await receive(upload, patient_reader(request))
                await upload.commit(wanted, context.who)
            except BaseException:
                await upload.discard()
                raise
        return self._created(target, f"blobs/{wanted}", wanted)

    async def _mounted(self, context: RequestContext, target: Target, repository: Repository, digest: Digest) -> bool:
        """Mounts a blob from a repository that the client may pull from; from any such one if it names none (distribution-spec 1.1, "Mounting a blob from
        another repository")."""
        may_pull = self._gate.filter(context)
        holders = [holder for holder in await self._cache.store.holders(digest) if may_pull is None or may_pull(holder)]
        if "from" in target.query:
            try:
                source = self._targets.repository(target.query["from"], target.query.get("ns"))
            except (Invalid, Unknown):
                return False
            holders = [holder for holder in holders if holder == source]
        if not await self._passes(holders, digest):
            return False
        return await self._hosted.mount(repository, digest, context.who)

    async def _passes(self, holders: Sequence[Repository], digest: Digest) -> bool:
        """Returns whether clients may pull a blob from one of some repositories."""
        if (guard := self._cache.guard) is None:
            return bool(holders)
        for holder in holders:
            # What is refused there can still be uploaded by somebody who has it.
            with contextlib.suppress(Guarded):
                await guard.check_blob(holder, digest)
                return True
        return False

    async def _append(self, request: web.BaseRequest, target: Target, repository: Repository) -> web.StreamResponse:
        with closing(await self._hosted.resume(repository, target.upload)) as upload:
            if (refusal := await self._take_chunk(request, target, upload)) is not None:
                return refusal
            return self._received(202, target, upload)

    async def _complete(self, context: RequestContext, target: Target, repository: Repository) -> web.StreamResponse:
        request = context.request
        if "digest" not in target.query:
            raise UploadInvalid("the PUT that ends an upload has ?digest=")
        digest = Digest.parse(target.query["digest"])
        self._check_guard(repository, digest)
        with closing(await self._hosted.resume(repository, target.upload)) as upload:
            if (refusal := await self._take_chunk(request, target, upload)) is not None:
                return refusal
            await upload.commit(digest, context.who)
        return self._created(target, f"blobs/{digest}", digest)

    async def _take_chunk(self, request: web.BaseRequest, target: Target, upload: Upload) -> web.StreamResponse | None:
        """Appends the body of a request. Returns the response for one that is not what comes next; the upload is as it was then."""
        try:
            length = check_order(upload, request.headers.get("Content-Range"), request.content_length)
            await self._hosted.check_room(length or 0)
            await receive(upload, patient_reader(request), length)
        except ChunkOutOfOrder as error:
            response = error_response(error)
            response.headers.update(self._where(target, upload))
            return response
        return None

    # ------------------------------------------------------------------ manifests

    async def _put_manifest(
        self, context: RequestContext, target: Target, repository: Repository, reference: Reference
    ) -> web.StreamResponse:
        request = context.request
        body, read = bytearray(), patient_reader(request)
        while len(body) <= MAX_SIZE and (data := await read()):
            body += data
        if len(body) > MAX_SIZE:
            raise ManifestTooLarge(f"a manifest may have {MAX_SIZE} bytes")
        # In a thread: a large one takes some tenths of a second.
        pushed = await asyncio.to_thread(manifest_of_client, bytes(body), request.headers.get("Content-Type"), reference)
        listed = [Tag.parse(tag) for tag in target.tags] if isinstance(reference, Digest) else [reference]
        tags = [tag.value for tag in listed]
        guard = self._cache.guard
        if guard is not None:
            await self._check_manifest(guard, repository, pushed.manifest, listed)
        # What a guard holds back is served when the guard says so.
        await self._hosted.put_manifest(repository, pushed, tags, context.who, served=guard is None)
        await self._cache.manifests.pushed(repository, listed)
        self._tell_of_push(context, repository, pushed.manifest, tags)
        response = self._created(target, f"manifests/{pushed.manifest.digest}", pushed.manifest.digest)
        if guard is not None and isinstance(reference, Tag):
            response.headers.update(guard.headers(repository, reference))
        if pushed.subject is not None:
            response.headers["OCI-Subject"] = str(pushed.subject)
        if isinstance(reference, Digest):
            for tag in listed:
                response.headers.add("OCI-Tag", tag.value)
        return response

    async def _delete_manifest(self, context: RequestContext, repository: Repository, reference: Reference) -> web.StreamResponse:
        if isinstance(reference, Tag):
            gone = await self._hosted.delete_tag(repository, reference.value)
        else:
            gone = await self._hosted.delete_manifest(repository, reference)
        if not gone:
            raise ManifestUnknown(f"{repository.path} has no manifest {reference}")
        self._cache.manifests.forget()
        if isinstance(reference, Tag):
            told = request_event(context, What.DELETE, repository, tag=reference.value)
        else:
            told = request_event(context, What.DELETE, repository, digest=reference)
        self._events.send(told)
        return web.Response(status=202, headers=dict([VERSION]))

    def _tell_of_push(self, context: RequestContext, repository: Repository, manifest: Manifest, tags: Sequence[str]) -> None:
        if not self._events.wants(What.PUSH):
            return
        found = manifest.descriptor
        config, layers = blobs_of(manifest.body)
        images = [entry.descriptor for entry in entries_of(manifest.body)]
        references = (*([] if config is None else [config]), *layers, *images)
        for tag in tags or [""]:
            self._events.send(
                request_event(
                    context,
                    What.PUSH,
                    repository,
                    tag=tag,
                    digest=found.digest,
                    media_type=found.media_type,
                    size=found.size,
                    references=references,
                )
            )

    # ------------------------------------------------------------------ responses

    def _url(self, target: Target, rest: str) -> str:
        """A URL below the repository, as the client named it: relative, since a proxy may have another scheme, host and port (RFC 3986, section 4.2)."""
        marks = ("/blobs/", "/manifests/")
        base = target.path[: max(target.path.rfind(mark) for mark in marks)]
        query = {key: target.query[key] for key in ("ns",) if key in target.query}
        return f"{self._prefix}{quote(target.prefix + base, safe='/:')}/{rest}{f'?{urlencode(query)}' if query else ''}"

    def _created(self, target: Target, rest: str, digest: Digest) -> web.Response:
        metrics.hosted_pushes.labels(rest.partition("s/")[0]).inc()
        headers = {"Location": self._url(target, rest), "Docker-Content-Digest": str(digest), VERSION[0]: VERSION[1]}
        return web.Response(status=201, headers=headers)

    def _received(self, status: int, target: Target, upload: Upload) -> web.Response:
        return web.Response(status=status, headers={**self._where(target, upload), VERSION[0]: VERSION[1]})

    def _where(self, target: Target, upload: Upload) -> dict[str, str]:
        return {
            "Location": self._url(target, f"blobs/uploads/{upload.id}"),
            "Range": f"0-{max(upload.size - 1, 0)}",
            "Docker-Upload-UUID": upload.id,
        }


class _Pushed:
    """A manifest that is being pushed, as guards look at it: its repository has everything else."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def manifest(self, digest: Digest) -> Manifest | None:
        return self._manifest if digest == self._manifest.digest else None

    def document(self, digest: Digest) -> bytes | None:
        return None

    def meaning(self, repository: Repository, tag: Tag) -> Digest | None:
        return None

    def referrers(self, repository: Repository, digest: Digest) -> list[Digest]:
        return []


def _check_origin(request: web.BaseRequest) -> None:
    """Returns unless a page of a browser has sent a request: any page can make one send a POST to this machine. Raises Refused."""
    if "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise Refused("pages of other sites may not push: use a registry's client")


def example(repository: Repository) -> str:
    """A pattern that covers a repository, for people; of a name of one part, one that does not change what others pull."""
    first = repository.path.partition("/")[0]
    return "team/**" if first == "library" else f"{first}/**"
