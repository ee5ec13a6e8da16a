"""Log-in by an issuer in a browser: the authorization code flow of OpenID Connect Core 1.0 (section 3.1) with PKCE (RFC 7636), state and nonce."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

from mirror.access.oidc import Issuer, Issuers, discover, fetch_json
from mirror.access.rules import Identity
from mirror.access.users import check_user_name
from mirror.errors import LoginWrong, RouteUnknown, TooManyGuesses
from mirror.regular_files import LARGEST_SECRET, read_file

LASTS = 600
"""Seconds for which a log-in that was begun can be ended."""
_AUDIENCE = "mirror log-in"
_MOST_GROUPS = 500


@dataclass(frozen=True, slots=True)
class Begun:
    """Where the browser is sent, and what it keeps in a cookie meanwhile."""

    url: str
    cookie: str


class OidcLogins:
    """Begins and ends log-ins."""

    def __init__(self, issuers: Issuers, key: Callable[[], bytes], clock: Callable[[], float] = time.time) -> None:
        self._issuers = issuers
        self._key = key
        self._clock = clock

    @property
    def names(self) -> list[str]:
        """The issuers by which people can log in."""
        return [issuer.name for issuer in self._issuers.all if issuer.client_id is not None]

    def _issuer(self, name: str) -> Issuer:
        found = next((one for one in self._issuers.all if one.name == name and one.client_id is not None), None)
        if found is None:
            raise RouteUnknown("there is no issuer of that name to log in by")
        return found

    async def begin(self, name: str, redirect_uri: str, to: str) -> Begun:
        """`to` is the page that the browser is led to in the end. Raises RouteUnknown, TooManyGuesses."""
        issuer = self._issuer(name)
        begun: Begun = await self._run(issuer, lambda: self._begin(issuer, redirect_uri, to))
        return begun

    def _begin(self, issuer: Issuer, redirect_uri: str, to: str) -> Begun:
        import jwt

        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": issuer.client_id or "",
            "redirect_uri": redirect_uri,
            "scope": issuer.scope,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        kept = {"name": issuer.name, "state": state, "nonce": nonce, "verifier": verifier, "to": to, "uri": redirect_uri}
        cookie = jwt.encode({**kept, "aud": _AUDIENCE, "exp": int(self._clock()) + LASTS}, self._key(), algorithm="HS256")
        endpoint = discover(issuer, "authorization_endpoint")
        return Begun(f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}", cookie)

    async def end(self, name: str, cookie: str, query: dict[str, str], client: Identity) -> tuple[Identity, str]:
        """Returns who has logged in, and the page to lead to. Raises LoginWrong, RouteUnknown, TooManyGuesses."""
        issuer = self._issuer(name)
        kept = await asyncio.to_thread(self._read, cookie)
        if (
            kept is None
            or kept["name"] != name
            or not hmac.compare_digest(kept["state"].encode(), query.get("state", "").encode())
        ):
            raise LoginWrong("this log-in was not begun in this browser, or more than ten minutes ago: begin again")
        if query.get("iss", issuer.url) != issuer.url:
            # RFC 9207.
            raise LoginWrong("the answer is of another issuer")
        if "code" not in query:
            raise LoginWrong(f"{issuer.name} has not let you in: {query.get('error', 'no code')[:100]}")
        given = await self._run(issuer, lambda: _exchange(issuer, query["code"], kept))
        said = await self._issuers.claims_of(issuer, given["id_token"], issuer.client_id or "")
        if not hmac.compare_digest(str(said.get("nonce", "")).encode(), kept["nonce"].encode()):
            raise LoginWrong("the identity token is not of this log-in")
        if not issuer.names_all(said):
            # Many issuers give such claims here only (section 5.4).
            more = await self._run(issuer, lambda: _user_info(issuer, given))
            if more.get("sub") != said["sub"]:
                raise LoginWrong("what the issuer says of the user is of another one")
            said = {**more, **said}
        return _identity(issuer, said, client), str(kept["to"])

    def _read(self, cookie: str) -> dict[str, Any] | None:
        import jwt

        try:
            return jwt.decode(cookie, self._key(), algorithms=["HS256"], audience=_AUDIENCE, options={"require": ["exp", "aud"]})
        except jwt.PyJWTError:
            return None

    async def _run(self, issuer: Issuer, ask: Callable[[], Any]) -> Any:
        try:
            return await asyncio.to_thread(ask)
        except urllib.request.HTTPError as error:
            if error.code in (400, 401, 403):
                raise LoginWrong(f"{issuer.name} has not taken the code, or the mirror's client_id and secret") from None
            raise TooManyGuesses(f"{issuer.name} cannot be asked now: it answered {error.code}", 5.0) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TooManyGuesses(f"{issuer.name} cannot be asked now: {type(error).__name__}", 5.0) from None


def _exchange(issuer: Issuer, code: str, kept: dict[str, Any]) -> dict[str, Any]:
    """Changes a code into tokens. Blocks. Raises OSError, ValueError, KeyError, TypeError, AttributeError."""
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": kept["uri"], "code_verifier": kept["verifier"]}
    headers, secret = {"Accept": "application/json"}, _secret(issuer)
    if secret is None:
        form["client_id"] = issuer.client_id or ""
    else:
        # RFC 6749, section 2.3.1: both are form-encoded first.
        pair = f"{quote_plus(issuer.client_id or '')}:{quote_plus(secret)}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    found = fetch_json(issuer, discover(issuer, "token_endpoint"), headers, urlencode(form).encode())
    if not isinstance(found["id_token"], str):
        raise TypeError("id_token")
    return found


def _user_info(issuer: Issuer, given: dict[str, Any]) -> dict[str, Any]:
    return fetch_json(issuer, discover(issuer, "userinfo_endpoint"), {"Authorization": f"Bearer {given['access_token']}"})


def _secret(issuer: Issuer) -> str | None:
    if issuer.client_secret_file is None:
        return None
    return read_file(Path(issuer.client_secret_file), LARGEST_SECRET, follow=True).decode().strip()


def _identity(issuer: Issuer, said: dict[str, Any], client: Identity) -> Identity:
    """Raises LoginWrong."""
    if not issuer.wants(said):
        raise LoginWrong("you do not have the claims that the settings of the mirror want")
    user, groups = None, frozenset[str]()
    if issuer.user_claim is not None:
        named = said.get(issuer.user_claim)
        user = named if isinstance(named, str) else ""
        try:
            check_user_name(user)
        except ValueError:
            raise LoginWrong(f"the claim {issuer.user_claim} of the issuer {issuer.name} is no user's name here") from None
    if issuer.groups_claim is not None:
        found = said.get(issuer.groups_claim, [])
        several = found if isinstance(found, list) else [found]
        groups = frozenset(one for one in several[:_MOST_GROUPS] if isinstance(one, str))
    subject = said.get("sub")
    return Identity(
        user,
        groups,
        issuers=frozenset({issuer.name}),
        subject=(subject if isinstance(subject, str) else json.dumps(subject))[:200],
        address=client.address,
        certificate=client.certificate,
        is_local=client.is_local,
    )
