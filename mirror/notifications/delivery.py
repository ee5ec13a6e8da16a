"""Sends the events of one receiver, one after the other, until each has arrived. What waits is bounded; when there is too much, the oldest is given up.

A body is signed as GitHub signs those of its webhooks: ``X-Hub-Signature-256`` has its HMAC-SHA256.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror import metrics
from mirror.backoff import pause
from mirror.notifications.envelope import MEDIA_TYPE
from mirror.notifications.receiver import Receiver
from mirror.regular_files import LARGEST_SECRET, read_file
from mirror.tasks import BackgroundTask

if TYPE_CHECKING:
    from aiohttp import ClientSession

log = logging.getLogger(__name__)

MOST = 1000
MOST_BYTES = 4 * 1024 * 1024
_OF_THE_BODY = (400, 413, 422)
"""Statuses of a receiver that does not take this event, however often it is sent."""

Trust = Callable[[Path | None], ssl.SSLContext]
"""Returns a context that trusts the system's certificates and those in a file. Blocks. Raises OSError."""


class NotDelivered(Exception):
    """Why a try failed, and what the receiver asks to wait, in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Delivery:
    """The queue of one receiver, and what empties it."""

    def __init__(self, receiver: Receiver, trust: Trust) -> None:
        self.receiver = receiver
        """Another one of the same name may be set at any time, for the tries from then on."""
        self._trust = trust
        self._context: tuple[Receiver, ssl.SSLContext] | None = None
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._sending: bytes | None = None
        self._some = asyncio.Event()
        self._closing = asyncio.Event()
        self._ended = asyncio.Event()
        self._fault = ""
        """Why the last try failed."""
        self._overflows = False
        self._removed = False
        self._task = BackgroundTask(self._run)
        self._counted = {
            result: metrics.webhook_events.labels(receiver.name, result) for result in ("delivered", "refused", "dropped")
        }
        self._failing = metrics.webhook_failing.labels(receiver.name)
        self._failing.set(0)
        self._show()

    def start(self) -> None:
        self._task.start()

    def add(self, body: bytes) -> None:
        """Takes a body to be sent."""
        self._waiting.append(body)
        self._bytes += len(body)
        while len(self._waiting) > MOST or self._bytes > MOST_BYTES:
            self._bytes -= len(self._waiting.popleft())
            self._counted["dropped"].inc()
            if not self._overflows:
                log.warning("webhook %s: too many events wait for it: the oldest are given up", self.receiver.name)
            self._overflows = True
        self._show()
        self._some.set()

    def remove(self) -> None:
        """Ends after the try that is under way: nobody is to be told any more."""
        self._removed = True
        self._drop()
        self._closing.set()

    async def aclose(self, patience: float) -> None:
        """Sends what waits, for so many seconds at most, and only as long as the receiver takes it."""
        self._closing.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._ended.wait()
        await self._task.aclose()
        if left := len(self._waiting):
            log.warning("webhook %s: %d events were not delivered before the end", self.receiver.name, left)
        self._drop()

    def _drop(self) -> None:
        self._counted["dropped"].inc(len(self._waiting))
        self._waiting.clear()
        self._bytes = 0
        self._failing.set(0)
        self._show()

    # ------------------------------------------------------------------ sending

    async def _run(self) -> None:
        from aiohttp import ClientSession, DummyCookieJar, TCPConnector

        try:
            # One connection, which stays open; no cookies, no proxy, nothing from a .netrc.
            async with ClientSession(
                connector=TCPConnector(limit=1), cookie_jar=DummyCookieJar(), auto_decompress=False
            ) as session:
                while await self._next():
                    if not await self._delivered(session):
                        return
        finally:
            if self._sending is not None:
                self._waiting.appendleft(self._sending)
                self._sending = None
            if self._removed:
                self._drop()
            self._ended.set()

    async def _next(self) -> bool:
        """Takes the oldest body; returns False if there is none, and none will come."""
        while not self._waiting:
            self._overflows = False
            if self._closing.is_set():
                return False
            self._some.clear()
            await _first(self._some.wait(), self._closing.wait())
        self._sending = self._waiting.popleft()
        self._bytes -= len(self._sending)
        return True

    async def _delivered(self, session: ClientSession) -> bool:
        """Sends the body that was taken until it has arrived, or is refused. Returns False if that cannot be waited for any more."""
        assert self._sending is not None
        failures = 0
        while True:
            try:
                taken = await self._post(session, self._sending)
            except NotDelivered as error:
                self._failed(str(error))
                if self._closing.is_set():
                    return False
                await _first(asyncio.sleep(pause(failures, error.retry_after)), self._closing.wait())
                failures += 1
            else:
                break
        self._sending = None
        self._counted["delivered" if taken else "refused"].inc()
        if taken and self._fault:
            log.info("webhook %s: events arrive again", self.receiver.name)
            self._fault = ""
        self._failing.set(0)
        self._show()
        return True

    async def _post(self, session: ClientSession, body: bytes) -> bool:
        """Returns False if the receiver refuses this body. Raises NotDelivered."""
        from aiohttp import ClientConnectorError, ClientError, ClientTimeout

        receiver = self.receiver
        timeout = ClientTimeout(receiver.timeout)
        try:
            headers, context = await asyncio.to_thread(self._prepared, receiver, body)
            async with session.post(
                receiver.url, data=body, headers=headers, ssl=context, timeout=timeout, allow_redirects=False
            ) as answer:
                status, wait = answer.status, answer.headers.get("Retry-After", "")
        except TimeoutError:
            raise NotDelivered(f"it does not answer within {receiver.timeout:g} s") from None
        except ClientConnectorError as error:
            raise NotDelivered(f"it cannot be reached: {_reason(error.os_error)}") from None
        except (ClientError, OSError, ValueError) as error:
            # Their texts may have the URL, or what is in a file.
            why = _reason(error) if isinstance(error, OSError) else type(error).__name__
            raise NotDelivered(f"the request failed: {why}") from None
        if 200 <= status < 300:
            return True
        if status in _OF_THE_BODY:
            self._failed(f"it answers {status}: the event is given up")
            return False
        redirect = ", and redirects are not followed" if 300 <= status < 400 else ""
        raise NotDelivered(f"it answers {status}{redirect}", float(wait) if wait.isdecimal() else None)

    def _prepared(self, receiver: Receiver, body: bytes) -> tuple[dict[str, str], ssl.SSLContext | bool]:
        """Reads what a request needs from files, which may have changed. Blocks. Raises NotDelivered."""
        headers = {"Content-Type": MEDIA_TYPE, "User-Agent": "mirror"}
        if receiver.secret_file is not None:
            secret = _read(receiver.secret_file)
            headers["X-Hub-Signature-256"] = f"sha256={hmac.new(secret, body, 'sha256').hexdigest()}"
        if receiver.authorization_file is not None:
            headers["Authorization"] = _read(receiver.authorization_file).decode("latin-1")
        if not receiver.url.startswith("https:"):
            return headers, True
        if self._context is None or self._context[0] != receiver:
            try:
                self._context = receiver, self._trust(receiver.ca_file)
            except OSError as error:
                raise NotDelivered(f"the file {receiver.ca_file} cannot be used: {error.strerror or error}") from None
        return headers, self._context[1]

    def _failed(self, why: str) -> None:
        # The authorities may have changed too.
        self._context = None
        self._failing.set(1)
        if why != self._fault:
            log.warning("webhook %s: %s", self.receiver.name, why)
        self._fault = why

    def _show(self) -> None:
        metrics.webhook_pending.labels(self.receiver.name).set(len(self._waiting) + (self._sending is not None))


def _read(file: Path) -> bytes:
    try:
        found = read_file(file, LARGEST_SECRET, follow=True).strip()
    except OSError as error:
        raise NotDelivered(f"the file {file} cannot be read: {error.strerror}") from None
    if not found:
        raise NotDelivered(f"the file {file} is empty")
    return found


def _reason(error: OSError) -> str:
    """Of a connection that cannot be made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS failed"
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns when one of them does, and cancels the others."""
    tasks = [asyncio.create_task(one) for one in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
