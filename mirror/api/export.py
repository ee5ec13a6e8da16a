"""Bundles over HTTP: ``GET /export/….tar``. The same images are the same bytes, so a download that was cut goes on with Range (RFC 9110, section 14)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from aiohttp import web

from mirror.access.rules import Action
from mirror.api.content import choose_ranges
from mirror.api.context import RequestContext, header, stream_body
from mirror.api.gate import Gate
from mirror.api.ranges import matches
from mirror.api.targets import Target, Targets, platforms_in
from mirror.bundles.contents import Gatherer
from mirror.bundles.layout import Layout
from mirror.bundles.writing import BundleReader
from mirror.cache.cache import Cache
from mirror.errors import ManifestUnknown, MirrorError
from mirror.names import Digest, Reference, Repository
from mirror.tasks import SingleFlight

_MOST_IMAGES = 5000
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Exports:
    """Answers requests for bundles, of what is cached: nothing is fetched."""

    def __init__(self, cache: Cache, targets: Targets) -> None:
        self._cache = cache
        self._targets = targets
        self._layouts: WeakValueDictionary[str, Layout] = WeakValueDictionary()
        """Those that are being sent, by ETag: many clients who get the same share one."""
        self._making: SingleFlight[Layout] = SingleFlight()

    async def aclose(self) -> None:
        await self._making.aclose()

    async def answer(self, context: RequestContext, target: Target, gate: Gate) -> web.StreamResponse:
        """GET and HEAD. Raises Incomplete where an image is not cached whole, what `gate` raises where one is not for whoever asks, other MirrorErrors."""
        request = context.request
        images, everything = await self._images(target, gate.filter(context))
        if gate.is_closed:
            for repository, reference in images:
                gate.check(context, Action.PULL, repository)
                await gate.check_upstream(context, repository, reference)
                if isinstance(reference, Digest):
                    await gate.check_content(context, repository, reference, is_manifest=True, ask=False)
        may_have: Callable[[Repository, Digest, bool], Awaitable[bool]] | None = None
        if gate.filter(context) is not None:

            async def may_have(repository: Repository, digest: Digest, is_manifest: bool) -> bool:
                try:
                    await gate.check_content(context, repository, digest, is_manifest=is_manifest)
                except MirrorError:
                    return False
                return True

        whose = None if may_have is None else context.identity
        key = tuple(images), everything, *(target.query.get(name) for name in ("platform", "referrers")), whose
        layout, _ = await self._making.do(key, lambda: self._layout(target, images, everything, may_have))
        headers = {"Content-Type": "application/x-tar", "ETag": layout.etag, "Cache-Control": "no-cache"}
        if matches(header(request, "If-None-Match"), layout.etag):
            del headers["Content-Type"]
            return web.Response(status=304, headers=headers)
        name = _NOT_IN_FILE_NAMES.sub("-", target.path.removeprefix("/export/"))
        headers["Content-Disposition"] = f'attachment; filename="{name[-150:]}"'
        if request.method == "HEAD":
            headers["Accept-Ranges"] = "bytes"
            headers["Content-Length"] = str(layout.size)
            return web.StreamResponse(headers=headers)
        # Unlike content by digest, a bundle may change: a date in If-Range proves nothing.
        applies = request.headers.get("If-Range", layout.etag).strip() == layout.etag
        ranges, status, multipart = choose_ranges(request, headers, layout.size, applies=applies)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = multipart.length if multipart is not None else ranges[0][1] - ranges[0][0]
        await stream_body(context, response, BundleReader(layout, self._cache.store), ranges, multipart)
        return response

    async def _layout(
        self,
        target: Target,
        images: list[tuple[Repository, Reference]],
        everything: bool,
        may_have: Callable[[Repository, Digest, bool], Awaitable[bool]] | None,
    ) -> Layout:
        platforms = platforms_in(target.query.get("platform", ""))
        referrers = target.query.get("referrers", "yes") not in ("no", "0", "false")
        gatherer = Gatherer(
            self._cache.store,
            platforms,
            cached=platforms is None,
            referrers=referrers,
            guard=self._cache.guard,
            may_have=may_have,
        )
        failed = await gatherer.add_all(images)
        if failed and not everything:
            raise failed[0][2]
        if len(failed) == len(images):
            raise ManifestUnknown("no image is cached whole")
        layout = await asyncio.to_thread(Layout, await gatherer.contents())
        return self._layouts.setdefault(layout.etag, layout)

    async def _images(
        self, target: Target, may_name: Callable[[Repository], bool] | None
    ) -> tuple[list[tuple[Repository, Reference]], bool]:
        """The images that are asked for, and True if they are all that there are, or all that `may_name` allows."""
        named = target.query.get("images", "")
        if named.strip() == "*":
            page = await self._cache.inventory.images(count=_MOST_IMAGES)
            images = [(image.repository, image.reference) for image in page.entries]
            return [one for one in images if may_name is None or may_name(one[0])], True
        names = [name for name in named.split(",") if name.strip()]
        if names:
            return list(dict.fromkeys(self._targets.image(name) for name in names)), False
        assert target.repository is not None and target.reference is not None
        return [(target.repository, target.reference)], False
