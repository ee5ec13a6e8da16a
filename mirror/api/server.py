"""Dispatches requests to the registry's API, monitoring and the dashboard; turns errors into responses.

It uses aiohttp's low-level `web.Server`: the router takes a third of a hit's time, and repository names contain slashes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiohttp import web

from mirror import cdn_loop
from mirror.api import content, monitoring, search
from mirror.api.access import AccessLog
from mirror.api.browser_logins import LOGGED_IN, BrowserLogins
from mirror.api.client_network import Network, behind_proxies
from mirror.api.connection import IDLE, LONGEST_LINE, MOST_HEADERS, Connection, Connections
from mirror.api.context import RequestContext
from mirror.api.gate import Gate
from mirror.api.hosts import KnownHosts
from mirror.api.listing import Listing
from mirror.api.mirrors import Mirrors
from mirror.api.pushing import Pushing
from mirror.api.repeat_reads import RepeatReads
from mirror.api.responses import base_response, error_response
from mirror.api.sending import send_in_pieces
from mirror.api.shortcuts import Shortcuts
from mirror.api.targets import Resource, Target, Targets, without_secret
from mirror.api.unread import Hold, UnreadBodies, large_body
from mirror.cache.cache import Cache
from mirror.cache.guarding import Guarded
from mirror.cache.nearby import offline_miss
from mirror.client_login import act_for
from mirror.errors import AdminNeeded, Denied, LoginNeeded, MirrorError, Offline, Unsupported, UpstreamError
from mirror.events import NOBODY, Events
from mirror.names import Digest, Repository
from mirror.tasks import close_all

if TYPE_CHECKING:
    from mirror.api.export import Exports
    from mirror.api.fleet import FleetRequests

log = logging.getLogger(__name__)

_FOR_ALL = ("/healthz", "/readyz", "/metrics", "/v1/_ping", "/login", "/import", "/settings")
_FOR_ALL_BELOW = ("/web/", "/setup", "/oidc/")
"""Paths that name no image, or want the admin token themselves."""
_FOR_PROGRAMS = ("/healthz", "/readyz", "/metrics", "/v1/_ping", "/v1/search")
_FLEET = "/fleet/"
"""What other mirrors of the fleet ask beside content; see mirror/api/fleet.py."""
Dashboard = Callable[[web.BaseRequest, Target], Awaitable[web.StreamResponse]]


class Api:
    """Answers requests."""

    def __init__(
        self,
        cache: Cache,
        targets: Targets,
        default: str,
        report: Callable[[bool], dict[str, Any]],
        access: AccessLog | None,
        dashboard: Dashboard,
        hosts: KnownHosts,
        gate: Gate,
        logins: BrowserLogins,
        is_admin: Callable[[web.BaseRequest], bool],
        mirrors: Mirrors,
        trusted_proxies: Sequence[Network] = (),
        public_url: str | None = None,
        events: Events = NOBODY,
        fleet: FleetRequests | None = None,
    ) -> None:
        """`report` returns the JSON object of /readyz, with a list "degraded", and with errors that may name images if it is passed True. `dashboard` answers requests for other paths; it raises MirrorError. `is_admin` returns
        whether a request comes from somebody who has logged in to it. `fleet` answers other mirrors of the fleet, if there are any."""
        self._cache = cache
        self._targets = targets
        self._report = report
        self._access = access
        self._dashboard = dashboard
        self._hosts = hosts
        self._gate = gate
        self._is_admin = is_admin
        self._logins = logins
        self._mirrors = mirrors
        self._fleet = fleet
        self._trusted_proxies = trusted_proxies
        self._shortcuts = Shortcuts(cache, access)
        self.access_changed()
        self._listing = Listing(cache, default)
        self._pushing = Pushing(cache, targets, gate, public_url, events)
        self._exports: Exports | None = None
        self._repeat_reads = RepeatReads()
        self._unread = UnreadBodies()

    def access_changed(self) -> None:
        """Forgets answers that depend on who may do what."""
        self._shortcuts.per_client = self._gate.notes_pulls or bool(self._trusted_proxies)
        self._shortcuts.forget()

    async def aclose(self) -> None:
        """Ends work that was started for requests."""
        await close_all(self._listing.aclose, *([] if self._exports is None else [self._exports.aclose]))

    def server(self) -> tuple[web.Server, Connections]:
        """An aiohttp server, which the caller shuts down, and the factory of its connections."""
        # When a client leaves, its handler is cancelled; downloads belong to the process and go on.
        server = web.Server(self._serve, handler_cancellation=True, access_log=None)
        # Compressed bodies are not decompressed: 400 kB can become 400 MB, and no client has to send one.
        connections = Connections(
            server,
            self._shortcuts,
            access_log=None,
            keepalive_timeout=IDLE,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
            max_headers=MOST_HEADERS,
            auto_decompress=False,
        )
        return server, connections

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._trusted_proxies:
            request = behind_proxies(request, self._trusted_proxies)
        hold = self._unread.hold(request.remote)
        try:
            response = await self.handle(request, hold)
            if (body := large_body(response)) is not None:
                response = await send_in_pieces(request, response, body)
            if (connection := Connection.of(request)) is not None:
                await connection.finish(request, response)
        finally:
            hold.release()
        return response

    async def handle(self, request: web.BaseRequest, hold: Hold) -> web.StreamResponse:
        """Answers a request. Raises nothing but CancelledError."""
        began = asyncio.get_running_loop().time()
        context = RequestContext(request, hold)
        try:
            by_mirror = self._mirrors.recognise(context)
            if by_mirror is None:
                response = await self._answer(context)
            else:
                with cdn_loop.entered(by_mirror):
                    response = await self._answer(context)
        except Offline as error:
            response = error_response(await self._miss(error, context))
        except MirrorError as error:
            if isinstance(error, UpstreamError | Denied):
                log.warning("%s %s: %s", request.method, context.shown_path, error.message, extra={"cause": error.message})
            if isinstance(error, Guarded):
                context.refused = error
            response = error_response(error)
        except asyncio.CancelledError:
            if self._access is not None:
                context.complete = False
                self._note(context, web.Response(status=499), asyncio.get_running_loop().time() - began)
            raise
        except Exception:
            log.exception("cannot answer %s %s", request.method, context.shown_path)
            response = error_response(MirrorError("the mirror failed to answer this; its log says why"))
        finally:
            # The connection's next request may be another client's.
            act_for(None)
        seconds = asyncio.get_running_loop().time() - began
        context.count_time(seconds)
        self._gate.answered(context, response)
        if self._access is not None:
            self._note(context, response, seconds)
        if not context.complete:
            log.info("%s %s: cut short: %s", request.method, context.shown_path, context.cut, extra={"cause": context.cut})
        return response

    async def _miss(self, error: Offline, context: RequestContext) -> Offline:
        target = context.target
        if target is None or target.repository is None or context.request.method == "HEAD":
            return error
        others = self._gate.filter(context) is None
        return await offline_miss(self._cache.inventory, target.repository, target.reference, others=others)

    async def _answer(self, context: RequestContext) -> web.StreamResponse:
        request = context.request
        target = context.target = self._targets.parse(request.raw_path)
        if target.resource is Resource.OTHER:
            self._hosts.check(request, everywhere=target.path not in _FOR_PROGRAMS)
            if target.path == "/token":
                return await self._issue_token(context)
            if self._fleet is not None and target.path.startswith(_FLEET):
                return await self._fleet.answer(context, target)
            if "Cookie" in request.headers:
                await self._logins.recognise(context)
            if request.method not in ("GET", "HEAD"):
                await self._gate.recognise_admin(context, target)
                return await self._dashboard(request, target)
            if self._gate.is_closed and target.path not in _FOR_ALL and not target.path.startswith(_FOR_ALL_BELOW):
                try:
                    await self._admit_to_dashboard(context, target)
                except (AdminNeeded, LoginNeeded):
                    if "text/html" not in request.headers.get("Accept", ""):
                        raise
                    # Browsers get the form, and nobody else: neither do they ask for a password themselves, nor does dockerd learn of one.
                    place = f"/login?to={quote(without_secret(request.raw_path), safe='')}"
                    return web.Response(status=303, headers={"Location": place, "Cache-Control": "no-store", "Vary": "Accept"})
            return await context.keep(lambda: self._outside_api(context, target))
        self._hosts.check(request, everywhere=False)
        if request.method not in ("GET", "HEAD") or target.resource is Resource.UPLOAD:
            if target.repository is None or target.resource is Resource.EXPORT:
                raise Unsupported(f"{request.method} is not supported here")
            return await self._pushing.answer(context, target, target.repository)
        await self._gate.admit(context, target)
        repository, reference = target.repository, target.reference
        if target.resource is Resource.EXPORT:
            return await self._opened_exports().answer(context, target, self._gate)
        if repository is not None:
            match target.resource:
                case Resource.MANIFEST if reference is not None:
                    response = await content.manifest(context, self._cache, repository, reference)
                    connection = Connection.of(request)
                    if (
                        connection is not None
                        and connection.request is not None
                        and not context.mirror
                        and self._gate.is_current(context)
                    ):
                        agent = request.headers.get("User-Agent", "")[:200]
                        self._shortcuts.remember(
                            connection.request,
                            connection.loopback,
                            connection.client,
                            response,
                            repository,
                            reference,
                            agent,
                            request.remote or "",
                            self._gate.permit(context, response),
                        )
                    return response
                case Resource.BLOB if isinstance(reference, Digest):
                    return await self._blob(context, repository, reference)
        if target.resource in (Resource.TAGS, Resource.REFERRERS, Resource.CATALOG):
            return await self._listing.answer(context, target, self._gate.filter(context))
        return base_response()

    async def _blob(self, context: RequestContext, repository: Repository, digest: Digest) -> web.StreamResponse:
        end = self._gate.begin_download(context)
        try:
            return await content.blob(context, self._cache, self._repeat_reads, repository, digest)
        finally:
            if end is not None:
                end()

    async def _issue_token(self, context: RequestContext) -> web.StreamResponse:
        # Few mirrors have users.
        from mirror.api.token_service import issue_token

        return await issue_token(context, self._gate)

    async def _admit_to_dashboard(self, context: RequestContext, target: Target) -> None:
        """Pages name images and repositories of all kinds: they are for admins, and for those who may pull everything. A search names only what may be pulled."""
        if self._is_admin(context.request):
            return
        if LOGGED_IN in context.request:
            self._logins.check_page(context, target.path)
            return
        await self._gate.identify(context, target)
        if target.path != "/v1/search":
            self._gate.check_everything(context)

    def _opened_exports(self) -> Exports:
        if self._exports is None:
            # Few mirrors are asked for bundles, and their modules are a fiftieth of a start.
            from mirror.api.export import Exports

            self._exports = Exports(self._cache, self._targets)
        return self._exports

    async def _outside_api(self, context: RequestContext, target: Target) -> web.StreamResponse:
        match target.path:
            case "/healthz":
                return monitoring.healthz()
            case "/readyz":
                return monitoring.readyz(self._report(not self._gate.is_closed))
            case "/metrics":
                return monitoring.measurements()
            case "/v1/_ping":
                return search.ping()
            case "/v1/search":
                return await search.search(self._cache, target, self._gate.filter(context))
        return await self._dashboard(context.request, target)

    def _note(self, context: RequestContext, response: web.StreamResponse, seconds: float) -> None:
        assert self._access is not None
        request, target = context.request, context.target
        path = without_secret(target.path[:300]) if target else context.shown_path
        if target and target.repository and target.resource is not Resource.EXPORT:
            path = ""
        size = context.sent
        if isinstance(response, web.Response) and not size and request.method != "HEAD":
            size = response.content_length or 0
        self._access.note(
            request.remote or "",
            request.method,
            str(target.repository) if target and target.repository else "",
            str(target.reference) if target and target.reference else "",
            path,
            response.status,
            size,
            seconds,
            response.headers.get("Cache-Status", ""),
            request.headers.get("User-Agent", "")[:200],
            context.complete,
        )
