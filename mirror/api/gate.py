"""Asks `mirror.access` about each request, and answers what it does not allow as registries do.

- 404, as for a name that does not exist, where pulling is not allowed: whoever asks may not know of the repository.
- 403 with the reason where pulling is allowed, and what was asked for is not.
- The same for a registry with ``credentials = "client"``, where the registry itself does not allow it to the client.
- 401 with a challenge only at the addresses and under the host names that are for logging in. Everywhere else a challenge would make dockerd send the user's
  Docker Hub password here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import web

from mirror import metrics
from mirror.access.access import Access
from mirror.access.bearer import Grant
from mirror.access.identities import Login
from mirror.access.rules import Action, Identity, Rule, Verdict
from mirror.access.upstream_checks import UpstreamChecks
from mirror.api.audit_entry import audit_entry, is_push, why_refused
from mirror.api.client_network import client_network
from mirror.api.connected_client import connected_client
from mirror.api.context import RequestContext, whose
from mirror.api.events import request_event
from mirror.api.login_places import FOR_BROWSERS, LoginPlaces, challenge
from mirror.api.shortcuts import Permit
from mirror.api.targets import Resource, Target
from mirror.cache.possession import Possession
from mirror.client_login import act_for
from mirror.errors import (
    AdminNeeded,
    BlobUnknown,
    Denied,
    LimitReached,
    LoginNeeded,
    LoginWrong,
    ManifestUnknown,
    MirrorError,
    NameUnknown,
    NotAllowed,
    QuotaReached,
    RegionBlocked,
    TooManyGuesses,
)
from mirror.events import NOBODY, Events
from mirror.events import Action as What
from mirror.names import Digest, Reference, Repository, short_name

ADMIN_USER = web.RequestKey("admin", str)
"""The key of a request by which the dashboard knows that a user sends it who may administer the mirror."""
_DIGEST = "Docker-Content-Digest"


class Gate:
    """Lets requests through, or raises the error that they are answered with."""

    def __init__(
        self,
        access: Access,
        possession: Possession,
        login_places: LoginPlaces,
        upstream_checks: UpstreamChecks,
        events: Events = NOBODY,
        *,
        behind_proxy: bool = False,
    ) -> None:
        """`behind_proxy` is as for `connected_client`."""
        self._access = access
        self._possession = possession
        self._login_places = login_places
        self._upstream_checks = upstream_checks
        self._events = events
        self._behind_proxy = behind_proxy

    def client(self, request: web.BaseRequest) -> Identity:
        """What the connection of a request proves of who sends it."""
        return connected_client(request, behind_proxy=self._behind_proxy)

    @property
    def is_closed(self) -> bool:
        """True if there is anything that not everybody may pull."""
        return self._access.rules is not None or self._upstream_checks.active

    @property
    def notes_pulls(self) -> bool:
        """True if pulls are counted and noted."""
        return self.is_closed or self._access.audit is not None

    async def admit(self, context: RequestContext, target: Target) -> None:
        """Finds out who reads, and whether it may have what it asks for. Raises LoginNeeded, NameUnknown, NotAllowed, LimitReached, TooManyGuesses, or what a
        registry is known to answer."""
        request = context.request
        context.access_version = self._access.version
        challenges = self._login_places.has(request)
        if context.is_trusted_mirror:
            context.is_public = not self.is_closed
            if self._upstream_checks.active and target.repository is not None:
                # It sends no client's password, so to a registry that checks each client it is one that has none.
                await self._check_cached(context, target, target.repository)
            return
        if not self.is_closed and not challenges:
            return
        context.is_public = not self.is_closed
        await self.identify(context, target)
        if target.resource is Resource.BASE and challenges and context.identity.is_anonymous and not context.has_login:
            # Clients take the challenge from here, and classic dockerd from nowhere else.
            raise LoginNeeded("log in: docker login asks for the user and the password", challenge(request))
        if target.resource is Resource.BASE and context.granted is None:
            await self.check_login(context)
        repository = target.repository
        if repository is None or target.resource in (Resource.EXPORT, Resource.UPLOAD, Resource.OTHER):
            return
        self.check(context, Action.PULL, repository)
        await self._check_cached(context, target, repository)

    async def _check_cached(self, context: RequestContext, target: Target, repository: Repository) -> None:
        reference, is_blob = target.reference, target.resource is Resource.BLOB
        await self.check_upstream(context, repository, reference, is_blob=is_blob)
        if isinstance(reference, Digest) and target.resource in (Resource.MANIFEST, Resource.BLOB):
            check = partial(self.check_content, context, repository, reference, is_manifest=not is_blob)
            some = not self._may_pull_everything(context.identity)
            if some and await self._possession.is_left_to_upstream(repository, reference):
                # Others may bring it meanwhile.
                context.prove = check
            else:
                await check()

    async def identify(self, context: RequestContext, target: Target) -> None:
        """Sets who asks, by what the request carries. Raises LoginNeeded, LoginWrong, TooManyGuesses."""
        request, identities = context.request, self._access.identities
        client, network = self.client(request), client_network(request.remote)
        if target.secret is not None:
            await self._log_in(context, identities.of_token(target.secret, client, network))
        else:
            given, registry = request.headers.get("Authorization"), self._registry_of(request, client)
            await self._log_in(context, identities.of_header(given, client, network, registry))

    async def identify_password(self, context: RequestContext, user: str, password: str) -> None:
        """The same by a user and a password, or a token in its place, that are in a form."""
        client, network = self.client(context.request), client_network(context.request.remote)
        registry = self._registry_of(context.request, client)
        await self._log_in(context, self._access.identities.of_password(user, password, client, network, registry))

    async def sign(self, context: RequestContext, granted: tuple[Grant, ...]) -> tuple[str, int]:
        """Returns a bearer token for whoever has logged in, or for nobody, and its life in seconds."""
        # In a thread, since the library is loaded by the first one, and the key read.
        return await asyncio.to_thread(self._access.identities.sign, context.identity, granted)

    async def _log_in(self, context: RequestContext, checking: Awaitable[Login]) -> None:
        request, target = context.request, context.target
        try:
            login = await checking
        except (LoginWrong, TooManyGuesses) as error:
            self._note(context, self.client(request), None, "", "wrong login", error.message)
            if (registry := self._login_places.registry_of(request)) and not _is_safe(request, self.client(request)):
                error.message += f"; users of {registry} can log in over https only"
            by_path = target is not None and target.secret is not None
            if isinstance(error, LoginWrong) and not by_path and self._login_places.has(request):
                raise LoginNeeded(error.message, challenge(request)) from None
            raise
        context.identity = login.identity
        act_for(login.identity.login)
        context.login_until = login.until
        context.has_login = login.granted is not None or not login.identity.is_anonymous
        context.granted = login.granted

    def _registry_of(self, request: web.BaseRequest, client: Identity) -> str | None:
        """The registry whose users may log in here with their password there; None for a request that did not come by https, unless from this machine."""
        return self._login_places.registry_of(request) if _is_safe(request, client) else None

    async def check_login(self, context: RequestContext) -> None:
        """Returns unless the client has sent a user and a password that the registry which they are for does not take. Raises LoginNeeded, LoginWrong,
        TooManyGuesses, UpstreamError."""
        request, login = context.request, context.identity.login
        if login is None:
            return
        network = client_network(request.remote)
        try:
            await self._upstream_checks.check_login(login, network)
        except Denied as error:
            self._note(context, context.identity, None, "", "wrong login", error.message)
            if self._login_places.has(request):
                raise LoginNeeded(error.message, challenge(request)) from None
            raise LoginWrong(error.message) from None

    async def check_upstream(
        self, context: RequestContext, repository: Repository, reference: Reference | None, *, is_blob: bool = False
    ) -> None:
        """Returns if the registry lets the client pull from a repository, where it has to be asked. Raises LoginNeeded, Unknown, TooManyGuesses, UpstreamError."""
        request, login = context.request, context.identity.login
        network = client_network(request.remote)
        try:
            await self._upstream_checks.check(login, repository, reference, network, is_blob=is_blob)
        except RegionBlocked:
            raise
        except Denied as error:
            self._note(context, context.identity, context.rule, Action.PULL.value, "denied", error.message)
            if self._login_places.has(request):
                raise LoginNeeded(error.message, challenge(request, repository)) from None
            raise NameUnknown(
                f"there is no {short_name(repository)} here for you: {error.message} (docs/access.md says how to log in)"
            ) from None

    def check(self, context: RequestContext, action: Action, repository: Repository) -> None:
        """Returns if whoever asks may do this. To be called after `identify`. Raises LoginNeeded, NameUnknown, NotAllowed, LimitReached."""
        request, identity = context.request, context.identity
        challenges = self._login_places.has(request)
        if (
            context.granted is not None
            and not identity.is_anonymous
            and not any(g.covers(repository, action.value) for g in context.granted)
        ):
            message = f"the bearer token was not asked for {action.value} of {short_name(repository)}"
            if challenges:
                raise LoginNeeded(message, challenge(request, repository, action, insufficient=True))
            raise NotAllowed(message)
        verdict = self._access.decide(identity, action, repository)
        target = context.target
        context.pushes_manifest = (
            verdict.allowed and action is Action.PUSH and target is not None and target.resource is Resource.MANIFEST
        )
        if not verdict.allowed or not (action is Action.PULL or context.pushes_manifest):
            # What was pulled or pushed is noted when it is known which digest that was.
            self._note(context, identity, verdict.rule, action.value, "allowed" if verdict.allowed else "denied", verdict.reason)
        if not verdict.allowed:
            raise self._refusal(context, verdict, action, repository)
        self._count(context, verdict, action)

    async def check_content(
        self, context: RequestContext, repository: Repository, digest: Digest, *, is_manifest: bool = False, ask: bool = True
    ) -> None:
        """Returns if whoever asks may have this content by way of `repository`, from which it may pull: where the repository, or another one from which it may pull,
        has it. That a manifest names content does not count: anybody may name any digest. What is not known is asked upstream, unless not `ask`. Raises
        BlobUnknown, ManifestUnknown; with `ask`, also what upstream answers.
        """
        identity = context.identity
        if self._may_pull_everything(identity) or self._possession.is_known(repository, digest):
            return
        holders = await self._possession.holders(digest)
        if repository in holders or any(self._may_pull(identity, one) for one in holders):
            return
        if ask and await self._possession.has(repository, digest, is_manifest):
            return
        self._note(context, identity, None, Action.PULL.value, "denied", f"{repository} is not known to have this content")
        kind = "manifest" if is_manifest else "blob"
        raise (ManifestUnknown if is_manifest else BlobUnknown)(f"{short_name(repository)} has no {kind} {digest}")

    async def recognise_admin(self, context: RequestContext, target: Target) -> None:
        """Marks a request for a change on the dashboard that a user sends who may administer the mirror. Raises as `identify` does."""
        if self.is_closed and context.request.headers.get("Authorization", "").lower().startswith("basic "):
            await self.identify(context, target)
            if self._access.decide(context.identity, Action.ADMIN, None).allowed:
                context.request[ADMIN_USER] = context.identity.user or ""
                self._note(context, context.identity, None, Action.ADMIN.value, "allowed")

    def check_everything(self, context: RequestContext) -> None:
        """Returns if whoever asks may see what is cached, all of it, as the dashboard shows it. Raises AdminNeeded, LoginNeeded."""
        if self.filter(context) is None or self._access.decide(context.identity, Action.ADMIN, None).allowed:
            return
        message = "this page names images that are not for everybody: log in at /login"
        if self._login_places.has(context.request) and context.identity.is_anonymous:
            # Browsers ask for user and password.
            raise LoginNeeded(message, FOR_BROWSERS)
        raise AdminNeeded(message)

    def filter(self, context: RequestContext) -> Callable[[Repository], bool] | None:
        """Returns which repositories may be named to whoever asks; None for all."""
        identity = context.identity
        if not self.is_closed or self._may_pull_everything(identity):
            return None
        return lambda repository: self._may_pull(identity, repository)

    def _may_pull_everything(self, identity: Identity) -> bool:
        return not self._upstream_checks.active and self._access.may_pull_everything(identity)

    def _may_pull(self, identity: Identity, repository: Repository) -> bool:
        """True if it is known without asking a registry that a repository may be named, and its content given out."""
        return self._access.may_pull(identity, repository) and self._upstream_checks.allows(identity.login, repository)

    def is_current(self, context: RequestContext) -> bool:
        """True if the answer may be remembered by the bytes of the request: nothing has changed since it was admitted, and all that proves who asks is in them."""
        if self._upstream_checks.active and (target := context.target) is not None:
            repository, reference = target.repository, target.reference
            if repository and isinstance(reference, Digest) and not self._possession.is_known(repository, reference):
                # It has come by way of another repository, and counts only for as long as that one may be pulled from.
                return False
        return context.identity.certificate is None and context.access_version == self._access.version

    def permit(self, context: RequestContext, response: web.StreamResponse) -> Permit | None:
        """What an equal request needs to be answered with the same manifest; None where nothing is checked or noted."""
        if context.rule is None and not self.notes_pulls:
            return None
        access, checks, identity, rule = self._access, self._upstream_checks, context.identity, context.rule
        assert context.target is not None
        repository = context.target.repository
        key, digest = whose(context), response.headers.get(_DIGEST, "")

        def allow() -> bool:
            if repository is not None and not checks.allows(identity.login, repository):
                return False
            if rule is not None:
                try:
                    access.limits.ask(rule, key)
                except (LimitReached, QuotaReached):
                    return False
            return True

        entry = audit_entry(context, identity, rule, Action.PULL.value, "allowed", digest=digest)
        decisions = metrics.access_decisions.labels(Action.PULL.value, "allowed")

        def note(size: int) -> None:
            decisions.inc()
            if rule is not None:
                access.limits.sent(rule, key, size)
            if access.audit is not None:
                access.audit.note(*entry)

        return Permit(context.login_until, allow, note)

    def begin_download(self, context: RequestContext) -> Callable[[], None] | None:
        """Counts a blob that is about to be sent; returns what to call when it was. Raises LimitReached."""
        if context.rule is None or context.rule.allowance.downloads is None:
            return None
        try:
            return self._access.limits.begin(context.rule, whose(context))
        except LimitReached as error:
            self._tell(context, context.rule, error)
            raise

    def answered(self, context: RequestContext, response: web.StreamResponse) -> None:
        """Counts the bytes that a request was answered with, and notes which manifest or bundle was pulled or pushed, and what a guard refused."""
        if context.rule is not None:
            self._access.limits.sent(context.rule, whose(context), context.sent)
        target, refused = context.target, context.refused
        digest = response.headers.get(_DIGEST, "") if response.status < 400 else ""
        if refused is not None and is_push(context):
            self._note(context, context.identity, context.rule, Action.PUSH.value, "denied", *why_refused(refused))
        elif context.pushes_manifest:
            self._note(context, context.identity, context.rule, Action.PUSH.value, "allowed", digest=digest)
        if target is None or not self.notes_pulls or context.request.method not in ("GET", "HEAD"):
            return
        if target.resource in (Resource.MANIFEST, Resource.EXPORT) and response.status < 400:
            self._note(context, context.identity, context.rule, Action.PULL.value, "allowed", digest=digest)
        elif refused is not None:
            self._note(context, context.identity, context.rule, Action.PULL.value, "denied", *why_refused(refused))

    def _count(self, context: RequestContext, verdict: Verdict, action: Action) -> None:
        context.rule = verdict.rule
        if verdict.rule is not None:
            try:
                self._access.limits.ask(verdict.rule, whose(context))
            except (LimitReached, QuotaReached) as error:
                self._note(context, context.identity, verdict.rule, action.value, "limited", error.message)
                if isinstance(error, LimitReached):
                    # Of a month's, `mirror.access.months` tells, once.
                    self._tell(context, verdict.rule, error)
                raise

    def _tell(self, context: RequestContext, rule: Rule, error: LimitReached) -> None:
        """Tells that somebody has reached a limit."""
        if self._events.wants(What.QUOTA):
            key = whose(context)
            details = {"limit": rule.name, "of": key, "reason": error.message}
            repository = None if context.target is None else context.target.repository
            self._events.send(request_event(context, What.QUOTA, repository, details=details, once=f"limit {rule.name} {key}"))

    def _refusal(self, context: RequestContext, verdict: Verdict, action: Action, repository: Repository) -> MirrorError:
        request = context.request
        if context.identity.is_anonymous:
            if self._login_places.has(request):
                return LoginNeeded(f"log in: {verdict.reason}", challenge(request, repository, action))
            hint = "; whoever may have it logs in (docs/access.md)"
        else:
            hint = ""
        if verdict.visible:
            return NotAllowed(f"{verdict.reason}{hint}")
        return NameUnknown(f"there is no {short_name(repository)} here for you: {verdict.reason}{hint}")

    def _note(
        self,
        context: RequestContext,
        identity: Identity,
        rule: Rule | None,
        action: str,
        verdict: str,
        reason: str = "",
        digest: str = "",
    ) -> None:
        metrics.access_decisions.labels(action, verdict).inc()
        if self._access.audit is not None:
            self._access.audit.note(*audit_entry(context, identity, rule, action, verdict, reason, digest))


def _is_safe(request: web.BaseRequest, client: Identity) -> bool:
    """True if nobody on the way can have read a request."""
    return request.secure or client.is_local
