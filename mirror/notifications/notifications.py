"""Implements `mirror.events.Events`: gives each event to the receivers that want it. Each process tells of what happens in it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence

from mirror.events import Action, Event
from mirror.notifications.delivery import Delivery, Trust
from mirror.notifications.envelope import envelope
from mirror.notifications.receiver import Receiver

_ONCE = 3600.0
"""Seconds for which an event with the same `once` is not told again."""
_MOST_REMEMBERED = 10_000
_FLUSH = 5.0
"""Seconds at the end for what still waits."""


class Notifications:
    """Made in an event loop, which sends what any thread gives it."""

    def __init__(self, address: str, public_url: str | None, trust: Trust) -> None:
        """`address` is the mirror's host and port, for receivers that have several; `public_url` is what URLs in events begin with."""
        self._source = {"addr": address, "instanceID": str(uuid.uuid4())}
        self._public_url = public_url
        self._trust = trust
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._deliveries: list[Delivery] = []
        self._wanted: frozenset[Action] = frozenset()
        self._told: OrderedDict[str, float] = OrderedDict()
        self._removed: list[Delivery] = []

    def take(self, receivers: Sequence[Receiver]) -> None:
        """Tells these from now on. What waits for one whose name is still there is not lost."""
        before = {delivery.receiver.name: delivery for delivery in self._deliveries}
        self._deliveries = []
        for receiver in receivers:
            delivery = before.pop(receiver.name, None) or Delivery(receiver, self._trust)
            delivery.receiver = receiver
            delivery.start()
            self._deliveries.append(delivery)
        for delivery in before.values():
            delivery.remove()
            self._removed.append(delivery)
        self._wanted = frozenset(action for receiver in receivers for action in receiver.actions)

    async def aclose(self) -> None:
        """Sends what waits, for a few seconds at most."""
        await asyncio.gather(
            *(delivery.aclose(_FLUSH) for delivery in self._deliveries), *(delivery.aclose(0.0) for delivery in self._removed)
        )

    def wants(self, action: Action) -> bool:
        return action in self._wanted

    def send(self, event: Event) -> None:
        moment = time.time()
        if threading.get_ident() == self._thread:
            self._add(event, moment)
        else:
            with contextlib.suppress(RuntimeError):
                # The loop may be closed, at the very end.
                self._loop.call_soon_threadsafe(self._add, event, moment)

    def _add(self, event: Event, moment: float) -> None:
        wanting = [delivery for delivery in self._deliveries if delivery.receiver.wants(event)]
        if not wanting or (event.once and self._was_told(event.once)):
            return
        body = envelope(event, moment, self._public_url, self._source)
        for delivery in wanting:
            delivery.add(body)

    def _was_told(self, once: str) -> bool:
        """Returns whether an event was told within the hour, and remembers that it is now."""
        now = time.monotonic()
        if now - self._told.get(once, float("-inf")) < _ONCE:
            return True
        self._told[once] = now
        self._told.move_to_end(once)
        if len(self._told) > _MOST_REMEMBERED:
            self._told.popitem(last=False)
        return False
