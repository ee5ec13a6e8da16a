"""Gathers what each page shows from the cache, and renders its template."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from mirror.cache.cache import Cache
from mirror.cache.freshness import is_fresh
from mirror.cache.warming import WarmState
from mirror.clients import CLIENTS, Address, Client
from mirror.downloads.active import Download
from mirror.errors import AdminNeeded, CatalogFailed, ManifestUnknown, MirrorError, NameUnknown, RouteUnknown, Unknown
from mirror.fleet_documents import MOST_LATE, differing
from mirror.names import Reference, Repository, Tag, image_name
from mirror.storage.inventory import ORDERS, Details, History, Image, Pulled, Totals, UnderWay, Variant
from mirror.storage.scans import SEVERITIES, scan_results
from mirror.storage.sightings import PUSHED_BY
from mirror.tasks import SingleFlight, close_all
from mirror.web import charts
from mirror.web.actions import EVERY, PLATFORMS, Actions
from mirror.web.context import PageContext, page_number
from mirror.web.downloads import ImageDownload, by_image
from mirror.web.finding import Finding
from mirror.web.guarded import GuardReport
from mirror.web.seen import seen_details, seen_images, seen_repositories
from mirror.web.setup import plan
from mirror.web.site_info import SiteInfo
from mirror.web.templating import Templates
from mirror.web.timeline import MOST
from mirror.web.timeline import shown as shown_change
from mirror.web.worked_out import WorkedOut

if TYPE_CHECKING:
    from mirror.bundles.importing import Import

PAGE = 25
"""Images, or repositories, on a page."""
_FRESH = 5.0
"""Seconds for which computed figures are shown; then they are computed again in the background."""
_OLD = 3600.0
"""Seconds after which a page waits for new figures. Until then it shows the old ones at once, and the new ones a second later."""
_PAUSE = 0.1
"""Seconds between two templates that are compiled before anybody asks for a page."""
_MOST_DOWNLOADS = 50
_MOST_PARTS = 200
"""Layers of a platform that are shown."""
_MOST_VARIANTS = 40
"""Platforms of an image that are shown. An index may list as many as its author likes."""
_LONGEST_SEARCH = 200
_TOP = 6
_MORE_TAGS = 12
_MOST_USED = 100
"""Users whose bytes of this month are shown."""


@dataclass(frozen=True, slots=True)
class State:
    """The data of the live parts of the overview."""

    downloads: tuple[ImageDownload, ...]
    totals: Totals
    history: History
    report: Mapping[str, Any]
    """What /readyz says."""
    top: tuple[Pulled, ...] = ()
    warm: Sequence[WarmState] = ()


class Pages:
    """Renders each page. Methods raise MirrorError: CatalogFailed where the cache's catalog cannot be read."""

    def __init__(self, cache: Cache, actions: Actions, site_info: SiteInfo, templates: Templates) -> None:
        self._cache = cache
        self._actions = actions
        self._site_info = site_info
        self._templates = templates
        self._figures: tuple[float, Totals, History, tuple[Pulled, ...]] | None = None
        self._finding = Finding(cache)
        self._guards = GuardReport(cache, site_info)
        fleet = site_info.fleet
        self._members = None if fleet is None else WorkedOut(fleet.states)
        self._renewals: SingleFlight[tuple[Totals, History, tuple[Pulled, ...]]] = SingleFlight()

    async def warm(self) -> None:
        """Compiles templates and computes figures, so that the first page does not have to wait."""
        for _ in self._templates.compile():
            # Requests come first.
            await asyncio.sleep(_PAUSE)
        with contextlib.suppress(CatalogFailed):
            await self._current_figures()

    async def aclose(self) -> None:
        members = () if self._members is None else (self._members.aclose,)
        await close_all(self._renewals.aclose, self._finding.aclose, self._guards.aclose, *members)

    def changed(self) -> None:
        """Makes the next page compute the figures again."""
        self._figures = None
        self._guards.changed()

    async def state(self) -> State:
        downloads = await self._downloads()
        totals, history, top = await self._current_figures()
        return State(downloads, totals, history, self._site_info.report(), top, await self._cache.warming.state())

    def parts(self, state: State, language: str) -> Mapping[str, str]:
        """Renders the live parts of the overview, by the IDs of their elements."""
        shown = {"state": state, "site_info": self._site_info, "most": _MOST_DOWNLOADS}
        trend = charts.trend(state.history, state.totals.size, time.time())
        page = self._templates.page
        return {
            "faults": page("_faults.html", language, **shown),
            "figures": page("_figures.html", language, trend=trend, **shown),
            "downloads": page("_downloads.html", language, downloads=state.downloads, most=_MOST_DOWNLOADS),
            "traffic": page("_traffic.html", language, chart=charts.bars(state.history), **shown),
            "upstreams": page("_upstreams.html", language, **shown),
            "top": page("_top.html", language, **shown),
            "warm": page("_warm.html", language, **shown),
        }

    async def overview(self, context: PageContext) -> str:
        images = await self._list(context)
        if context.may_see is not None:
            return self._render("mine.html", context, **images)
        state = await self.state()
        return self._render("overview.html", context, parts=self.parts(state, context.language), **images)

    async def images(self, context: PageContext) -> str:
        """Renders only the list of images, for a search while it is typed."""
        return self._render("_list.html", context, **await self._list(context))

    async def repository(self, context: PageContext, repository: Repository) -> str:
        if context.may_see is not None and not context.may_see(repository):
            raise NameUnknown(f"nothing is cached of {repository}")
        found = await self._list(context, repository)
        cached = found["page"].total
        if cached and context.query.get("view") != "tags":
            return self._render("repository.html", context, repository=repository, **found)
        try:
            tags = await self._finding.tags(context, repository)
        except Unknown as error:
            raise NameUnknown(f"nothing is cached of {repository}, and {error.message}") from None
        downloads = await self._downloads() if context.may_see is None else ()
        return self._render(
            "tags.html",
            context,
            repository=repository,
            cached=cached,
            platforms=PLATFORMS,
            every=EVERY,
            downloads=self._templates.page("_downloads.html", context.language, downloads=downloads, most=_MOST_DOWNLOADS),
            **tags,
        )

    async def search(self, context: PageContext) -> str:
        """Renders the results of a search: cached images, and repositories that the registry's search finds."""
        text = context.query.get("q", "")[:_LONGEST_SEARCH]
        found = await self._finding.search(text)
        return self._render("search.html", context, **await self._list(context), **found)

    async def classroom(self, context: PageContext) -> str:
        """Renders the images for a class to copy commands from: those that are pinned, or in a list, first."""
        number = page_number(context.query)
        search = context.query.get("q", "")[:_LONGEST_SEARCH]
        page = await seen_images(self._cache.inventory, context.may_see, search, "pinned", (number - 1) * PAGE, PAGE)
        together = [str(image) for image in page.entries if (image.pinned or image.listed) and not image.missing]
        return self._render(
            "class.html",
            context,
            page=page,
            together=together,
            current=number,
            pages=max(1, -(-page.total // PAGE)),
            search=search,
        )

    async def image(self, context: PageContext, repository: Repository, reference: Reference) -> str:
        details = await self._cache.inventory.image(repository, reference)
        if details is not None and context.may_see is not None:
            details = seen_details(details, context.may_see)
        if details is None:
            raise ManifestUnknown(f"nothing is cached of {image_name(repository, reference)}")
        others = await self._cache.inventory.images("", "pulled", 0, _MORE_TAGS + 1, repository)
        variants, attestations = _variants(details)
        history = []
        if isinstance(reference, Tag):
            ask = "compare" in context.query
            history = await self._cache.timelines.of_tag(repository, reference, MOST, ask=ask)
        shown = _chosen(variants[:_MOST_VARIANTS], context.query.get("platform", ""))
        return self._render(
            "image.html",
            context,
            details=details,
            scans=[] if shown is None else await scan_results(self._cache.store, shown.digest),
            severities=SEVERITIES[::-1],
            variants=variants[:_MOST_VARIANTS],
            more_variants=len(variants) - _MOST_VARIANTS,
            attestations=attestations,
            shown=shown,
            others=[other for other in others.entries if other.reference != details.image.reference][:_MORE_TAGS],
            tags=others.total,
            every=EVERY,
            most=_MOST_PARTS,
            timeline=history,
            shown_change=shown_change,
            pushed_by=PUSHED_BY,
            **self._about(),
        )

    async def guards(self, context: PageContext) -> str:
        shown = await self._guards.shown(for_admin=context.session is not None)
        return self._render("guards.html", context, name_of=image_name, **shown)

    async def fleet(self, context: PageContext) -> str:
        """Renders the mirrors of the fleet, as each of them says how it is. Raises RouteUnknown where there is no fleet."""
        fleet, members = self._site_info.fleet, self._members
        if fleet is None or members is None:
            raise RouteUnknown("this mirror belongs to no fleet: fleet.mirrors and fleet.own are not set (docs/scale.md)")
        states = await members.get(anew=context.session is not None)
        own = next((url for url in fleet.mirrors if url not in fleet.others), None)
        found = {"members": states, "mirrors": fleet.mirrors, "most_late": MOST_LATE, "differs": differing(states, own)}
        return self._render("fleet.html", context, **found)

    def settings(self, context: PageContext) -> str:
        return self._render("settings.html", context, ends=self._site_info.certificate_ends())

    def upload(self, context: PageContext, imported: Import | None = None) -> str:
        """Renders the form for an archive, and what came of the last one."""
        return self._render("import.html", context, imported=imported, platforms=PLATFORMS)

    def setup(self, context: PageContext) -> str:
        name = context.query.get("client", "")
        client = CLIENTS.get(name) or next(iter(CLIENTS.values()))
        files: dict[str, str] = {}
        others: list[str] = []
        if context.address is not None:
            for file in client.plan([context.address], self._site_info.registries()):
                # Registries that differ only in their name are shown once.
                if any(registry in file.path for registry in self._site_info.registries()[1:]):
                    others.append(file.path)
                else:
                    files[file.path] = file.text
        return self._render("setup.html", context, clients=CLIENTS.values(), client=client, files=files, others=others)

    def script(self, client: Client, address: Address) -> str:
        return self._templates.script("setup.sh", plan=plan(client, address, self._site_info.registries()))

    def login(
        self,
        context: PageContext,
        to: str,
        error: MirrorError | None = None,
        *,
        offered: bool = False,
        user: str = "",
        issuers: Sequence[str] = (),
    ) -> str:
        """Renders the form; where it is `offered` to users, with a field for their name."""
        return self._render("login.html", context, to=to, error=error, offered=offered, user=user, issuers=issuers)

    async def account(self, context: PageContext) -> str:
        """Renders who has logged in, and what was sent this month: to them, or for an admin to everybody."""
        if not context.user and context.session is None:
            raise AdminNeeded("this page is for whoever has logged in")
        try:
            month = await asyncio.to_thread(self._site_info.month)
        except OSError as error:
            raise CatalogFailed(f"what was sent this month cannot be read: {error}") from None
        if context.session is None:
            month = [one for one in month if one.key == context.user]
        return self._render("account.html", context, month=month[:_MOST_USED], more=len(month) - _MOST_USED)

    def error(self, context: PageContext, error: MirrorError, image: str = "") -> str:
        """Renders an error; `image` is one that is not cached and can be fetched."""
        return self._render("error.html", context, error=error, image=image, platforms=PLATFORMS, every=EVERY)

    def _render(self, name: str, context: PageContext, **values: Any) -> str:
        offline = self._site_info.report().get("offline", False)
        return self._templates.page(name, context.language, v=context, site_info=self._site_info, offline=offline, **values)

    async def _list(self, context: PageContext, repository: Repository | None = None) -> dict[str, Any]:
        """The images of a repository, or all: by repository, unless something is searched for or single images are wanted."""
        search = context.query.get("q", "")[:_LONGEST_SEARCH]
        order = context.query.get("order", "")
        order = order if order in ORDERS else ORDERS[0]
        number = page_number(context.query)
        start = (number - 1) * PAGE
        grouped = repository is None and not search and context.query.get("view") != "images"
        page: Any
        if grouped:
            page = await seen_repositories(self._cache.inventory, context.may_see, order, start, PAGE)
        else:
            page = await seen_images(self._cache.inventory, context.may_see, search, order, start, PAGE, repository)
        base = {
            "q": search,
            "order": order if order != ORDERS[0] else "",
            "view": "" if grouped or repository or search else "images",
        }
        place = "/" if repository is None else f"/repository/{repository}"

        def link(**changes: object) -> str:
            query = {key: value for key, value in {**base, **changes}.items() if value}
            return f"{place}?{urlencode(query)}#images-title" if query else f"{place}#images-title"

        return {
            "page": page,
            "grouped": grouped,
            "current": number,
            "pages": max(1, -(-page.total // PAGE)),
            "search": search,
            "order": order,
            "link": link,
            **self._about(),
        }

    def _about(self) -> dict[str, Any]:
        """Functions for templates that show images."""
        now = time.time()

        def fresh(image: Image) -> bool:
            return is_fresh(image.checked, self._site_info.tag_ttl, now)

        return {"fresh": fresh}

    async def _downloads(self) -> tuple[ImageDownload, ...]:
        downloads = await self._cache.active.downloads()
        shown = by_image(downloads, await self._images_under_way(downloads[: 2 * _MOST_DOWNLOADS]))
        return (*(_failed(image, message) for image, message in self._actions.failures), *shown)

    async def _images_under_way(self, downloads: Iterable[Download]) -> dict[tuple[str, str], UnderWay]:
        digests: dict[str, list[str]] = {}
        for download in downloads:
            digests.setdefault(download.repository, []).append(download.digest)
        found = {}
        for name, wanted in digests.items():
            registry, _, path = name.partition("/")
            images = await self._cache.inventory.under_way(Repository(registry, path), wanted)
            found.update({(name, digest): image for digest, image in images.items()})
        return found

    async def _current_figures(self) -> tuple[Totals, History, tuple[Pulled, ...]]:
        now = time.monotonic()
        known = self._figures
        if known is None or now - known[0] > _FRESH:
            renewal, _ = self._renewals.start("figures", self._work_out)
            if known is None or now - known[0] > _OLD:
                return await asyncio.shield(renewal)
        return known[1:]

    async def _work_out(self) -> tuple[Totals, History, tuple[Pulled, ...]]:
        totals = await self._cache.inventory.totals()
        history = await self._cache.inventory.history()
        top = await self._cache.inventory.most_pulled(_TOP)
        self._figures = time.monotonic(), totals, history, top
        return totals, history, top


def _variants(details: Details) -> tuple[list[Variant], int]:
    """The manifests that have a platform, or are cached, those that are cached first; and how many others there are, such as attestations."""
    shown = [variant for variant in details.variants if variant.cached or variant.platform not in (None, "unknown/unknown")]
    return sorted(shown, key=lambda variant: not variant.cached), len(details.variants) - len(shown)


def _chosen(variants: list[Variant], wanted: str) -> Variant | None:
    """The one whose platform or digest is asked for, or the first."""
    return next((one for one in variants if wanted and wanted in (one.platform, str(one.digest))), next(iter(variants), None))


def _failed(image: str, message: str) -> ImageDownload:
    return ImageDownload(image, image, None, 0, None, 0, 0.0, 0, None, True, message)
