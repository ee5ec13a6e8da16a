"""Receivers of notifications, from the settings' tables."""

from __future__ import annotations

from mirror.config import Webhook
from mirror.events import Action
from mirror.notifications.receiver import Receiver
from mirror.patterns import RepositoryPattern


def receiver_of(table: Webhook) -> Receiver:
    return Receiver(
        table.name,
        table.url.get_secret_value(),
        frozenset(map(Action, table.events)),
        tuple(map(RepositoryPattern.parse, table.repositories)),
        table.timeout,
        table.secret_file,
        table.authorization_file,
        table.ca_file,
    )
