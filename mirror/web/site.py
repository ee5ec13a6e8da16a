"""The dashboard's URLs.

::

    GET   /                       overview: downloads, figures, upstreams, images (?q= &order= &page= &view=images)
    GET   /images                 only the list of images
    POST  /images                 action=pin|unpin|refresh|delete, image=NAME once for each image
    GET   /image/NAME             an image; NAME is registry/path:tag or registry/path@digest (?platform=)
    POST  /image/NAME             action=pin|unpin|refresh|delete|fetch; for fetch, platform=PLATFORM|all
    GET   /search                 cached images, and repositories that a registry's search finds (?q= &order= &page=)
    GET   /repository/NAME        the images of a repository; NAME is registry/path (?order= &page=)
    GET   /repository/NAME?view=tags   the tags that upstream has (&filter= &page=)
    POST  /fetch                  image=NAME, platform=PLATFORM|all once for each platform
    GET   /import                 a form to upload an archive of images
    POST  /import                 takes that form; answers 422 if an image is not complete
    PUT   /import, /import/FILE   the same with the archive as the body (?as= &platform= &pin=)
    GET   /fleet                  the mirrors of the fleet, and how each of them is
    GET   /guards                 what is held, what moved, what was refused
    POST  /guards                 action=release, image=NAME, digest=DIGEST, why=TEXT; action=block|unblock, digest=DIGEST
    GET   /class                  the images, with commands for a class to copy (?q= &page=)
    GET   /settings               the settings in force, with the admin token
    GET   /setup, /setup/CLIENT.sh
    GET   /events                 live updates of the overview, as server-sent events
    GET, POST  /login;  POST /logout
    GET   /account                who has logged in, and what they were sent this month
    GET   /web/…                  script, style, picture

``?lang=`` and ``?theme=`` on a page are stored in a cookie.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

from aiohttp import web

from mirror.api.browser_logins import LOGGED_IN, SESSION_COOKIE, BrowserLogins
from mirror.api.gate import ADMIN_USER
from mirror.api.responses import error_response
from mirror.api.targets import Target
from mirror.cache.cache import Cache
from mirror.clients import CLIENTS
from mirror.errors import (
    AdminNeeded,
    LoginWrong,
    ManifestUnknown,
    MirrorError,
    RequestInvalid,
    RouteUnknown,
    TooManyGuesses,
    Unsupported,
)
from mirror.names import Reference, Repository, is_registry_name, parse_reference
from mirror.tasks import close_all
from mirror.web.actions import EVERY, Actions
from mirror.web.admin import COOKIE, LASTS, Admin, check_origin
from mirror.web.context import LANGUAGE_COOKIE, THEME_COOKIE, THEMES, PageContext, recognise
from mirror.web.fleet import tell_ended
from mirror.web.forms import read_fields, read_form
from mirror.web.live import Live
from mirror.web.oidc import by_issuer
from mirror.web.pages import Pages, State
from mirror.web.site_info import SiteInfo
from mirror.web.templating import Templates
from mirror.web.translations import LANGUAGES
from mirror.web.uploads import Uploads

_HTML = "text/html; charset=utf-8"
_FOR_EVER = "public, max-age=31536000, immutable"
_YEAR = 365 * 86400
_LONGEST_NAME = 64
ADMIN_NAME = "admin"
"""The user of the form whose password is the admin token."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_SAFETY = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer", with which browsers would not say where a form comes from.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "private, no-cache",
}


class Site:
    """Answers requests for the dashboard."""

    def __init__(
        self,
        cache: Cache,
        admin: Admin,
        logins: BrowserLogins,
        site_info: SiteInfo,
        parse: Callable[[str], tuple[Repository, Reference]],
    ) -> None:
        """`parse` takes an image's name as people write it. Raises Invalid."""
        self._admin = admin
        self._logins = logins
        self._uploads = Uploads(cache.store, admin, parse, cache.manifests.forget, lambda: cache.guard)
        self._fleet = site_info.fleet
        self._actions = Actions(cache.images, cache.pulls, site_info.fleet)
        self._templates = Templates(site_info.version)
        self._pages = Pages(cache, self._actions, site_info, self._templates)
        self._live: Live[State] = Live(self._pages.state, self._pages.parts)

    async def warm(self) -> None:
        """Does what the first page would otherwise have to wait for."""
        await self._pages.warm()

    async def aclose(self) -> None:
        """Ends event streams, uploads and fetches, so that the mirror can stop."""
        await close_all(self._live.aclose, self._uploads.aclose, self._actions.aclose, self._pages.aclose)

    async def answer(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Answers with a page or, where an error occurs, a page about it. Raises MirrorError if the client does not accept HTML."""
        try:
            return await self._answer(request, target)
        except MirrorError as error:
            if not _wants_html(request):
                raise
            return self._error_page(request, target, error)

    async def _answer(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        first, _, rest = target.path[1:].partition("/")
        match request.method, first, rest:
            case "POST", "image", name if name:
                return await self._change(request, target, name)
            case "POST", "images", "":
                return await self._change_several(request)
            case "POST", "fetch", "":
                return await self._fetch(request)
            case "POST", "guards", "":
                return await self._rule(request)
            case ("POST", "import", "") | ("PUT", "import", _):
                return await self._upload(request, target)
            case "POST", "login", "":
                return await self._log_in(request, target)
            case "POST", "logout", "":
                check_origin(request)
                ended = self._admin.end(request), self._logins.end(request, time.time())
                await tell_ended(self._fleet, [name for name in ended if name is not None])
                return _redirect("/", {COOKIE: "", SESSION_COOKIE: ""}, 0)
            case "GET" | "HEAD", "web", _:
                return self._asset(target.path)
            case "GET" | "HEAD", _, _:
                return await self._get(request, target, first, rest)
            case _, ("" | "account" | "class" | "fleet" | "repository" | "search" | "settings" | "setup" | "events" | "web"), _:
                raise Unsupported(f"{request.method} is not supported here")
            case _, ("guards" | "image" | "images" | "login"), _:
                raise Unsupported(f"{request.method} is not supported here", "GET, HEAD, POST")
            case _, "import", "":
                raise Unsupported(f"{request.method} is not supported here", "GET, HEAD, POST, PUT")
        raise _no_route()

    async def _get(self, request: web.BaseRequest, target: Target, first: str, rest: str) -> web.StreamResponse:
        context = recognise(request, target, self._admin)
        if first == "setup" and rest.endswith(".sh"):
            return self._script(context, rest.removesuffix(".sh"))
        if first == "events" and not rest and request.method == "GET":
            return await self._live.serve(request, context.language, _SAFETY)
        if first == "oidc" and rest:
            to = _local(context.query.get("to", ""))
            return await by_issuer(request, rest, context.query, self._logins, context.address, to, _SAFETY)
        if (switched := _switched(request, context)) is not None:
            return switched
        match first, rest:
            case "", "":
                page = await self._pages.overview(context)
            case "images", "":
                page = await self._pages.images(context)
            case "image", name if name:
                page = await self._pages.image(context, *_image(name))
            case "repository", name if name:
                page = await self._pages.repository(context, _repository(name))
            case "search", "":
                page = await self._pages.search(context)
            case "import", "":
                if context.session is None:
                    await self._admin.allow(request, "")
                page = self._pages.upload(context)
            case "settings", "":
                if context.session is None:
                    raise AdminNeeded("the settings are shown to whoever has the admin token: log in")
                page = self._pages.settings(context)
            case "fleet", "":
                page = await self._pages.fleet(context)
            case "guards", "":
                page = await self._pages.guards(context)
            case "account", "":
                page = await self._pages.account(context)
            case "class", "":
                page = await self._pages.classroom(context)
            case "setup", "":
                page = self._pages.setup(context)
            case "login", "":
                page = self._pages.login(
                    context, _local(context.query.get("to", "")), offered=self._logins.offered, issuers=self._logins.issuers
                )
            case _:
                raise _no_route()
        return _html_response(page)

    async def _change(self, request: web.BaseRequest, target: Target, name: str) -> web.StreamResponse:
        form, image = await read_form(request), _image(name)
        await self._admin.allow(request, form.get("secret", ""))
        if form.get("action") == "fetch":
            done = await self._actions.fetch(image, [form.get("platform", EVERY)])
        else:
            done = await self._actions.apply(form.get("action", ""), [image])
        self._pages.changed()
        if not _wants_html(request):
            return web.json_response({"done": done, "image": name}, headers=_SAFETY)
        return _redirect(f"{'/' if done in ('deleted', 'fetching') else quote(target.path, safe='/:@')}?done={done}")

    async def _change_several(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = await read_fields(request)
        form = dict(fields)
        await self._admin.allow(request, form.get("secret", ""))
        names = list(dict.fromkeys(value for key, value in fields if key == "image"))
        done = await self._actions.apply(form.get("action", ""), [_image(name) for name in names])
        self._pages.changed()
        if not _wants_html(request):
            return web.json_response({"done": done, "images": names}, headers=_SAFETY)
        back = _local(form.get("to", ""))
        return _redirect(f"{back}{'&' if '?' in back else '?'}done={done}")

    async def _fetch(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = await read_fields(request)
        form = dict(fields)
        await self._admin.allow(request, form.get("secret", ""))
        name = form.get("image", "")
        done = await self._actions.fetch(_image(name), [value for key, value in fields if key == "platform"])
        self._pages.changed()
        if not _wants_html(request):
            return web.json_response({"done": done, "image": name}, headers=_SAFETY)
        back = _local(form.get("to", ""))
        return _redirect(f"{back}{'&' if '?' in back else '?'}done={done}")

    async def _rule(self, request: web.BaseRequest) -> web.StreamResponse:
        form = await read_form(request)
        await self._admin.allow(request, form.get("secret", ""))
        try:
            done = await self._actions.rule(form, _image, _user(request) or f"the dashboard, from {request.remote}")
        finally:
            # A fleet may have taken it in part.
            self._pages.changed()
        if not _wants_html(request):
            return web.json_response({"done": done}, headers=_SAFETY)
        return _redirect(f"/guards?done={done}")

    async def _upload(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        done = await self._uploads.take(request, target.query)
        self._pages.changed()
        status = 422 if any(image.fault for image in done.images) else 200
        if not _wants_html(request):
            return web.json_response(done.document(), status=status, headers=_SAFETY)
        response = _html_response(self._pages.upload(recognise(request, target, self._admin), done))
        response.set_status(status)
        return response

    async def _log_in(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        check_origin(request)
        form = await read_form(request)
        to = _local(form.get("to", ""))
        user, password = form.get("username", ""), form.get("token", "").strip()
        try:
            if self._logins.offered and user not in ("", ADMIN_NAME):
                cookie, session = SESSION_COOKIE, await self._logins.begin(request, user, form.get("token", ""))
            else:
                cookie, session = COOKIE, await self._admin.begin(request, password)
        except (AdminNeeded, LoginWrong, TooManyGuesses) as error:
            if not _wants_html(request):
                raise
            page = self._pages.login(
                recognise(request, target, self._admin),
                to,
                error,
                offered=self._logins.offered,
                issuers=self._logins.issuers,
                user=user[:_LONGEST_NAME],
            )
            return _html_response(page, error)
        secure = request.secure or request.headers.get("Origin", "").startswith("https://")
        return _redirect(to, {COOKIE: "", SESSION_COOKIE: "", cookie: session}, LASTS, secure)

    def _script(self, context: PageContext, name: str) -> web.Response:
        client = CLIENTS.get(name)
        if client is None:
            raise _no_route()
        if context.address is None:
            raise RequestInvalid("the Host header is not an address that could be put into a configuration")
        script = self._pages.script(client, context.address)
        return web.Response(text=script, headers={**_SAFETY, "Content-Type": "text/x-shellscript; charset=utf-8"})

    def _asset(self, path: str) -> web.Response:
        asset = self._templates.assets.get(path)
        if asset is None:
            raise _no_route()
        headers = {**_SAFETY, "Cache-Control": _FOR_EVER, "Content-Type": asset.content_type}
        return web.Response(body=asset.body, headers=headers)

    def _error_page(self, request: web.BaseRequest, target: Target, error: MirrorError) -> web.Response:
        context = recognise(request, target, self._admin)
        image = (
            target.path.removeprefix("/image/")
            if isinstance(error, ManifestUnknown) and target.path.startswith("/image/")
            else ""
        )
        return _html_response(self._pages.error(context, error, image), error)


def _html_response(page: str, error: MirrorError | None = None) -> web.Response:
    headers = {**_SAFETY, "Content-Type": _HTML, "Vary": "Accept-Language, Cookie"}
    # Images may say what JSON can and UTF-8 cannot: half a surrogate pair (RFC 8259, section 8.2).
    body = page.encode(errors="replace")
    if error is None:
        return web.Response(body=body, headers=headers)
    of_error = {
        name: value
        for name, value in error_response(error).headers.items()
        if name in ("Allow", "Retry-After", "WWW-Authenticate")
    }
    return web.Response(status=error.status, body=body, headers={**headers, **of_error})


def _redirect(to: str, cookies: Mapping[str, str] | None = None, lasts: int = _YEAR, secure: bool = False) -> web.Response:
    response = web.Response(status=303, headers={**_SAFETY, "Location": to})
    for name, value in (cookies or {}).items():
        response.set_cookie(name, value, max_age=lasts if value else 0, path="/", httponly=True, samesite="Strict", secure=secure)
    return response


def _switched(request: web.BaseRequest, context: PageContext) -> web.Response | None:
    """Stores the language or theme that a link asks for, and redirects to the page itself; None if the link asks for none."""
    wanted = {LANGUAGE_COOKIE: context.query.get("lang"), THEME_COOKIE: context.query.get("theme")}
    cookies = {name: value for name, value in wanted.items() if value is not None and value in (*LANGUAGES, *THEMES)}
    return _redirect(context.here(lang=None, theme=None), cookies) if cookies else None


def _user(request: web.BaseRequest) -> str | None:
    """The user who sends a request that changes something; None for the admin token."""
    found = request.get(LOGGED_IN)
    return request.get(ADMIN_USER) or (found.name if found is not None else None)


def _repository(name: str) -> Repository:
    """Parses registry/path. Raises Invalid."""
    registry, _, path = name.partition("/")
    if not is_registry_name(registry):
        raise RequestInvalid("a repository's name begins with its registry, such as docker.io/")
    return Repository.parse(registry, path)


def _image(name: str) -> tuple[Repository, Reference]:
    """Parses registry/path:tag or registry/path@digest. Raises Invalid."""
    at = "@" if "@" in name else ":"
    repository, _, reference = name.rpartition(at)
    return _repository(repository), parse_reference(reference)


def _wants_html(request: web.BaseRequest) -> bool:
    return any("text/html" in line for line in request.headers.getall("Accept", ()))


def _local(path: str) -> str:
    """Returns `path` if it is a path of this site, else "/". After two slashes would come another host's name."""
    good = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and path.isascii()
    return path if good and len(path) < 1000 else "/"


def _no_route() -> RouteUnknown:
    return RouteUnknown(
        "there is nothing here: the registry's API is under /v2/, the dashboard is at /, and there are /healthz, /readyz and /metrics"
    )
