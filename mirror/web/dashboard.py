"""Opens the dashboard when it is needed. Its modules and the template engine are a tenth of a start, and clients that pull need neither."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import web

from mirror.api.browser_logins import BrowserLogins
from mirror.api.targets import Target
from mirror.cache.cache import Cache
from mirror.names import Reference, Repository
from mirror.tasks import BackgroundTask
from mirror.web.admin import Admin
from mirror.web.site_info import SiteInfo

if TYPE_CHECKING:
    from mirror.web.site import Site

_OPEN_AFTER = 30.0
"""Seconds from the start until the dashboard is opened, if no page was asked for before. Clients that waited for the mirror to start pull first."""


class Dashboard:
    """Answers requests for the dashboard. It is opened by the first one, or half a minute after the start, whichever comes first."""

    def __init__(
        self,
        cache: Cache,
        admin: Admin,
        logins: BrowserLogins,
        site_info: SiteInfo,
        parse: Callable[[str], tuple[Repository, Reference]],
    ) -> None:
        """`parse` takes an image's name as people write it. Raises Invalid."""
        self._parts = (cache, admin, logins, site_info, parse)
        self._site: Site | None = None
        self._background_task = BackgroundTask(self._warm)

    def start(self) -> None:
        self._background_task.start()

    async def aclose(self) -> None:
        """Ends event streams, uploads and fetches, so that the mirror can stop."""
        await self._background_task.aclose()
        if self._site is not None:
            await self._site.aclose()

    async def answer(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Answers as Site.answer does."""
        return await (await self._opened()).answer(request, target)

    async def _warm(self) -> None:
        await asyncio.sleep(_OPEN_AFTER)
        await (await self._opened()).warm()

    async def _opened(self) -> Site:
        if self._site is None:
            # In a thread: pulls go on meanwhile.
            site = await asyncio.to_thread(_site_class)
            self._site = self._site or site(*self._parts)
        return self._site


def _site_class() -> type[Site]:
    from mirror.web.site import Site

    return Site
