"""The pages: what each shows, gathered from the cache and handed to its template."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mirror.cache.cache import Cache
from mirror.clients import CLIENTS, Address, Client
from mirror.downloads.active import Download
from mirror.errors import ManifestUnknown, MirrorError
from mirror.names import Reference, Repository, image_name
from mirror.storage.disk.catalog.history import History
from mirror.storage.disk.catalog.inventory import ORDERS, Image, Inventory, Totals
from mirror.tasks import BackgroundTask, SingleFlight
from mirror.web import charts
from mirror.web.context import PageContext
from mirror.web.setup import plan
from mirror.web.templating import Templates
from mirror.web.translations import keys

PAGE = 25
"""Images on a page."""
_FRESH = 5.0
"""Seconds for which figures are good; then they are worked out anew, behind."""
_OLD = 3600.0
"""Seconds after which nobody is shown them any more. Until then a page has them at once, and the new ones a second later."""
_MOST_DOWNLOADS = 50
_MOST_PARTS = 200
"""Platforms of an image that are shown, and layers of each: upstream may name as many as it likes."""
_LONGEST_SEARCH = 200


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """What the pages tell of the mirror itself. Sizes in bytes, times in seconds."""

    version: str
    registries: tuple[str, ...]
    max_size: int
    tag_ttl: float
    report: Callable[[], dict[str, Any]]
    """As /readyz has it."""


@dataclass(frozen=True, slots=True)
class State:
    """How things stand now."""

    downloads: tuple[Download, ...]
    totals: Totals
    history: History
    registries: Mapping[str, Any]


class Pages:
    """Renders each. Raises MirrorError, and OSError and sqlite3.Error where the cache's catalog cannot be read."""

    def __init__(self, cache: Cache, site_info: SiteInfo, templates: Templates) -> None:
        self._cache = cache
        self._site_info = site_info
        self._templates = templates
        self._figures: tuple[float, Totals, History] | None = None
        self._renewals: SingleFlight[tuple[Totals, History]] = SingleFlight()
        self._background_task = BackgroundTask(self._warm)

    def start(self) -> None:
        """Begins to do what the first page would have to wait for."""
        self._background_task.start()

    async def aclose(self) -> None:
        await self._background_task.aclose()
        await self._renewals.aclose()

    def changed(self) -> None:
        """Has the figures worked out anew for who comes next."""
        self._figures = None

    async def state(self) -> State:
        downloads = await self._cache.active.downloads()
        totals, history = await self._current_figures()
        return State(tuple(downloads), totals, history, self._site_info.report()["registries"])

    def parts(self, state: State, language: str) -> Mapping[str, str]:
        """What moves by itself, by the names of the elements on the page."""
        shown = {"state": state, "site_info": self._site_info, "most": _MOST_DOWNLOADS}
        trend = charts.trend(state.history, state.totals.size, time.time())
        page = self._templates.page
        return {
            "figures": page("_figures.html", language, trend=trend, **shown),
            "downloads": page("_downloads.html", language, **shown),
            "traffic": page("_traffic.html", language, bars=charts.bars(state.history), **shown),
            "upstreams": page("_upstreams.html", language, **shown),
        }

    async def overview(self, context: PageContext) -> str:
        images = await self._images(context)
        state = await self.state()
        return self._page("overview.html", context, parts=self.parts(state, context.language), **images)

    async def images(self, context: PageContext) -> str:
        """The list of images alone, for a search while it is typed."""
        return self._page("_images.html", context, **await self._images(context))

    async def image(self, context: PageContext, repository: Repository, reference: Reference) -> str:
        details = await self._cache.inventory.ask(Inventory.image, repository, reference)
        if details is None:
            raise ManifestUnknown(f"nothing is cached of {image_name(repository, reference)}")
        return self._page("image.html", context, details=details, most=_MOST_PARTS, **self._about([details.image]))

    def setup(self, context: PageContext) -> str:
        name = context.query.get("client", "")
        client = CLIENTS.get(name) or next(iter(CLIENTS.values()))
        files: dict[str, str] = {}
        others: list[str] = []
        if context.address is not None:
            for file in client.plan(context.address, self._site_info.registries):
                # Those that differ in the registry's name alone are shown once.
                if any(registry in file.path for registry in self._site_info.registries[1:]):
                    others.append(file.path)
                else:
                    files[file.path] = file.text
        return self._page("setup.html", context, clients=CLIENTS.values(), client=client, files=files, others=others)

    def script(self, client: Client, address: Address) -> str:
        return self._templates.script("setup.sh", plan=plan(client, address, self._site_info.registries))

    def login(self, context: PageContext, to: str, error: MirrorError | None = None) -> str:
        return self._page("login.html", context, to=to, error=error, kind=_kind(error))

    def error(self, context: PageContext, error: MirrorError) -> str:
        return self._page("error.html", context, error=error, kind=_kind(error))

    def _page(self, name: str, context: PageContext, **values: Any) -> str:
        return self._templates.page(name, context.language, v=context, site_info=self._site_info, **values)

    async def _images(self, context: PageContext) -> dict[str, Any]:
        search = context.query.get("q", "")[:_LONGEST_SEARCH]
        order = context.query.get("order", "")
        order = order if order in ORDERS else ORDERS[0]
        wanted = context.query.get("page", "")
        number = int(wanted) if wanted.isascii() and wanted.isdigit() and 0 < len(wanted) < 8 else 1
        number = max(number, 1)
        page = await self._cache.inventory.ask(Inventory.images, search, order, (number - 1) * PAGE, PAGE)
        return {
            "page": page,
            "number": number,
            "pages": max(1, -(-page.total // PAGE)),
            "search": search,
            "order": order,
            "orders": ORDERS,
            **self._about(page.images),
        }

    def _about(self, images: Any) -> dict[str, Any]:
        """What templates ask about images."""
        now = time.time()

        def fresh(image: Image) -> bool:
            return image.fresh(self._site_info.tag_ttl, now)

        return {"fresh": fresh}

    async def _warm(self) -> None:
        for _ in self._templates.compile():
            # Requests come first.
            await asyncio.sleep(0)
        with contextlib.suppress(sqlite3.Error, OSError):
            await self._current_figures()

    async def _current_figures(self) -> tuple[Totals, History]:
        now = time.monotonic()
        known = self._figures
        if known is None or now - known[0] > _FRESH:
            renewal, _ = self._renewals.start("figures", self._work_out)
            if known is None or now - known[0] > _OLD:
                return await asyncio.shield(renewal)
        return known[1], known[2]

    async def _work_out(self) -> tuple[Totals, History]:
        totals = await self._cache.inventory.ask(Inventory.totals)
        history = await self._cache.inventory.ask(Inventory.history)
        self._figures = time.monotonic(), totals, history
        return totals, history


def _kind(error: MirrorError | None) -> str | None:
    """The nearest of an error's classes that the texts have a word for."""
    return next((kind.__name__ for kind in type(error).__mro__ if f"fault_{kind.__name__}" in keys()), None)
