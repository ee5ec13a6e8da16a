"""Finds out who asks: by a password, a token, or a bearer token that the mirror has signed itself.

bcrypt is slow by design. So it runs in threads, a few at a time, and what it has found is remembered under a keyed hash of user, password and stored hash: a
password that was changed is asked for at once. Requests that ask the same wait for one answer.

Whoever floods the mirror with wrong passwords must not keep out others, who may have the same address, that of a proxy: right passwords are remembered apart and for
hours, each user of each address waits in a queue of its own, and names that do not exist wait in none.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from mirror.access.bearer import Bearer, Grant
from mirror.access.guesses import Guesses
from mirror.access.oidc import Issuers
from mirror.access.rules import Identity
from mirror.access.sessions import Sessions
from mirror.access.signing import Signer
from mirror.access.tokens import PREFIX, Token, Tokens
from mirror.access.users import Users, is_right
from mirror.client_login import ClientLogin
from mirror.errors import LoginWrong, TooManyGuesses
from mirror.events import NOBODY, Action, Event, Events
from mirror.tasks import SingleFlight, close_all

_REMEMBERED = 300.0
"""Seconds for which a wrong password is remembered, and for which a request with a right one need not be looked at again."""
_RIGHT_FOR = 12 * 3600.0
"""Seconds for which a right password is remembered."""
_MOST_REMEMBERED = 10_000
_AT_ONCE = 2
"""Passwords that are checked at the same time: each takes a core for an eighth of a second."""
_MOST_WAITING = 16
"""Passwords of one user from one address that wait to be checked."""
_LONGEST_NAME = 64
"""Characters of a user's name that are remembered of a wrong login."""
_USER = "user "
"""How a user begins where wrong logins are counted."""
_NOBODY = b"$2b$11$" + b"." * 53
"""A hash that no password has: a name that does not exist takes as long as one that does."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who asks, and how long that holds, in seconds of `time.time`."""

    identity: Identity
    until: float
    granted: tuple[Grant, ...] | None = None
    """What a bearer token was asked for; None where there was none."""


class Identities:
    """Checks what clients send to prove who they are."""

    def __init__(self, key: Callable[[], bytes], clock: Callable[[], float] = time.time, events: Events = NOBODY) -> None:
        """`key` returns what signs bearer tokens, when one is needed; it is the same for all processes on a cache directory. Raises OSError."""
        self._clock = clock
        self._events = events
        self._cache_key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, float] = OrderedDict()
        self._wrong: OrderedDict[bytes, float] = OrderedDict()
        """Both with the time until which they are remembered."""
        self._checking: SingleFlight[bool] = SingleFlight()
        self._threads = asyncio.Semaphore(_AT_ONCE)
        self._for_nobody = asyncio.Semaphore(_AT_ONCE)
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._usual = 0.1
        """Seconds that the last check has taken."""
        self._guesses = Guesses(self._locked)
        self.signer = Signer(key, clock)
        self._bearer = Bearer(self.signer)
        self.sessions = Sessions(self.signer)
        self.users = Users()
        self.tokens = Tokens()
        self.issuers = Issuers()
        self.groups: Mapping[str, frozenset[str]] = {}
        """By user."""

    async def aclose(self) -> None:
        await close_all(self._checking.aclose, self.issuers.aclose)

    async def of_header(self, value: str | None, client: Identity, network: str, registry: str | None = None) -> Login:
        """Who a request's Authorization header proves that it is from; `client` is what is known without it.

        `registry` is the one that a user and a password may be for that are not the mirror's own. Raises LoginWrong, TooManyGuesses.
        """
        if value is None:
            return Login(client, float("inf"))
        scheme, _, given = value.strip().partition(" ")
        given = given.strip()
        if scheme.lower() == "basic":
            user, password = _basic(given)
            return await self.of_password(user, password, client, network, registry)
        if scheme.lower() == "bearer":
            return await self.of_bearer(given, client, network, registry)
        # What was sent is not repeated: it may be a token without its scheme.
        raise LoginWrong("the Authorization header begins with neither Basic nor Bearer, the schemes that the mirror knows")

    async def of_password(self, user: str, password: str, client: Identity, network: str, registry: str | None = None) -> Login:
        """By a user and a password, or a token in its place, with whatever user; `registry` as in `of_header`. Raises LoginWrong, TooManyGuesses."""
        if password.startswith(PREFIX):
            return await self.of_token(password, client, network)
        if self.issuers.concerns(password):
            return await self._of_issuer(password, client, network)
        if registry is not None and user and password and user not in self.users:
            # The registry says whether it is right, each time that something is asked for.
            return Login(replace(client, login=ClientLogin(registry, user, password)), self._clock() + _REMEMBERED)
        if not await self._is_right(user, password, network):
            await self._guesses.wrong(network, f"{_USER}{user[:_LONGEST_NAME]}")
            raise LoginWrong("the user or the password is wrong")
        return Login(self._as_user(client, user), self._clock() + _REMEMBERED)

    async def of_token(self, secret: str, client: Identity, network: str) -> Login:
        """Raises LoginWrong, TooManyGuesses."""
        token = self.tokens.find(secret, self._clock())
        if token is None or not self._has_user(token):
            await self._guesses.wrong(network)
            raise LoginWrong("this token is not known, or over: mirror token list shows those that there are")
        return Login(self._as_token(client, token), token.expires or float("inf"))

    async def wrong(self, network: str, user: str) -> None:
        """Counts a wrong password that was sent for a registry. Raises TooManyGuesses."""
        await self._guesses.wrong(network, f"user {user[:_LONGEST_NAME]}")

    async def of_bearer(self, given: str, client: Identity, network: str, registry: str | None = None) -> Login:
        """`registry` as in `of_header`. Raises LoginWrong, TooManyGuesses."""
        if given.startswith(PREFIX):
            return await self.of_token(given, client, network)
        if self.issuers.concerns(given):
            return await self._of_issuer(given, client, network)
        claims = self._bearer.read(given)
        if claims is None:
            if given.count(".") != 2:
                # Clients go on with one that is over until they notice; and nobody guesses a signature.
                await self._guesses.wrong(network)
            raise LoginWrong("this bearer token is not one of this mirror's, or over")
        who = claims.who
        if who.token is not None:
            token = self.tokens.named(who.token, self._clock())
            if token is None or not self._has_user(token) or not self.signer.is_of(who, token.digest):
                raise LoginWrong("the token is not known any more, or over")
            identity = self._as_token(client, token)
        elif who.user is not None:
            hashed = self.users.hashes.get(who.user)
            if hashed is None or not self.signer.is_of(who, hashed.decode()):
                raise LoginWrong("the user's password was changed, or the user removed: log in again")
            identity = self._as_user(client, who.user)
        elif who.issuers:
            identity = replace(client, issuers=who.issuers & self.issuers.names, subject=who.subject)
        elif claims.login is not None:
            if claims.login.registry != registry:
                raise LoginWrong("this bearer token is for a registry whose passwords are not taken here")
            identity = replace(client, login=claims.login)
        else:
            identity = client
        return Login(identity, who.expires, claims.granted)

    async def _of_issuer(self, given: str, client: Identity, network: str) -> Login:
        try:
            found = await self.issuers.verify(given)
        except LoginWrong:
            await self._guesses.wrong(network)
            raise
        return Login(replace(client, issuers=found.names, subject=found.subject), found.until)

    def of_session(self, given: str, client: Identity) -> tuple[Login, str]:
        """Who a session of the dashboard is of, and its name. Blocks for the key. Raises LoginWrong, OSError."""
        found = self.sessions.read(given)
        if found is None:
            raise LoginWrong("this session is over")
        who = found.who
        if who.token is not None:
            token = self.tokens.named(who.token, self._clock())
            if token is None or not self._has_user(token):
                raise LoginWrong("the token is not known any more, or over")
            identity, of = self._as_token(client, token), token.digest
        elif who.issuers:
            issuers = who.issuers & self.issuers.names
            if not issuers:
                raise LoginWrong("the issuer is not in the settings any more")
            own = frozenset[str]() if who.user is None else self.groups.get(who.user, frozenset())
            identity = replace(client, user=who.user, groups=found.groups | own, issuers=issuers, subject=who.subject)
            of = ""
        else:
            hashed = self.users.hashes.get(who.user or "")
            if hashed is None or who.user is None:
                raise LoginWrong("the user was removed")
            identity, of = self._as_user(client, who.user), hashed.decode()
        if not self.signer.is_of(who, of):
            raise LoginWrong("the password was changed: log in again")
        return Login(identity, who.expires), found.name

    def sign_session(self, identity: Identity) -> str:
        """Returns a session for whoever has logged in. Blocks for the key. Raises OSError."""
        return self.sessions.sign(identity, self._proof(identity))

    def sign(self, identity: Identity, granted: tuple[Grant, ...]) -> tuple[str, int]:
        """Returns a bearer token for whoever has logged in, or for nobody, and its life in seconds."""
        return self._bearer.sign(identity, self._proof(identity), granted)

    def _proof(self, identity: Identity) -> str:
        """The hash of the token or the password by which somebody has logged in; empty for neither."""
        if identity.token is not None:
            token = self.tokens.named(identity.token, self._clock())
            return token.digest if token is not None else ""
        if identity.user is not None and not identity.issuers:
            return self.users.hashes.get(identity.user, b"").decode()
        return ""

    def _locked(self, key: str) -> None:
        """Tells that answers to wrong logins from an address, or as a user, are delayed now."""
        user = key.removeprefix(_USER)
        if user == key:
            details = {"address": key}
        elif user in self.users:
            details = {"user": user}
        else:
            # It may be a password in the wrong field.
            return
        self._events.send(Event(Action.LOGIN_LOCKED, details=details, once=f"locked {key}"))

    def _as_user(self, client: Identity, user: str) -> Identity:
        return replace(client, user=user, groups=self.groups.get(user, frozenset()))

    def _as_token(self, client: Identity, token: Token) -> Identity:
        named = client if token.user is None else self._as_user(client, token.user)
        return replace(named, token=token.name, scopes=token.limits())

    def _has_user(self, token: Token) -> bool:
        return token.user is None or token.user in self.users

    async def _is_right(self, user: str, password: str, network: str) -> bool:
        hashed = self.users.hashes.get(user)
        key, now = self._key(user, password, hashed or b""), self._clock()
        if self._right.get(key, now) > now:
            self._right.move_to_end(key)
            return True
        if self._wrong.get(key, now) > now:
            return False
        right, _ = await self._checking.do(key, lambda: self._check(user, password, hashed, network))
        memory, seconds = (self._right, _RIGHT_FOR) if right else (self._wrong, _REMEMBERED)
        memory[key] = self._clock() + seconds
        memory.move_to_end(key)
        if len(memory) > _MOST_REMEMBERED:
            memory.popitem(last=False)
        return right

    async def _check(self, user: str, password: str, hashed: bytes | None, network: str) -> bool:
        if hashed is None:
            if self._for_nobody.locked():
                # As long as for one that exists, and whoever makes names up takes no time from others.
                await asyncio.sleep(self._usual)
            else:
                async with self._for_nobody:
                    await self._run(password, _NOBODY)
            return False
        # One at a time for each user of each address, so that guesses do not delay the passwords of others.
        place = network, user
        turn = self._turns.get(place)
        if turn is None:
            turn = self._turns[place] = asyncio.Lock()
        if self._waiting[place] >= _MOST_WAITING:
            raise TooManyGuesses("too many passwords of this user, from this address, wait to be checked", 1.0)
        self._waiting[place] += 1
        try:
            async with turn, self._threads:
                return await self._run(password, hashed)
        finally:
            self._waiting[place] -= 1
            if not self._waiting[place]:
                del self._waiting[place]

    async def _run(self, password: str, hashed: bytes) -> bool:
        began = time.monotonic()
        right = await asyncio.to_thread(is_right, password, hashed)
        self._usual = time.monotonic() - began
        return right

    def _key(self, *parts: str | bytes) -> bytes:
        joined = b"\0".join(part if isinstance(part, bytes) else part.encode(errors="replace") for part in parts)
        return hmac.digest(self._cache_key, joined, "sha256")


def _basic(given: str) -> tuple[str, str]:
    """Splits the credentials of Basic (RFC 7617). Raises LoginWrong."""
    try:
        user, colon, password = base64.b64decode(given, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        colon = user = password = ""
    if not colon:
        raise LoginWrong("the Authorization header is not a user and a password as Basic has them (RFC 7617)")
    return user, password
