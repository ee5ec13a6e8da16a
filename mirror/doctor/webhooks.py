"""Checks ``[[webhook]]`` tables: whether their hosts have addresses. Nothing is sent to them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from mirror.config import Settings, Webhook
from mirror.doctor.findings import Finding, ok, problem
from mirror.doctor.waiting import within

_PATIENCE = 5.0


async def examine(settings: Settings) -> Sequence[Finding]:
    """Returns a finding for each table. Raises only CancelledError."""
    return await asyncio.gather(*map(_examine, settings.webhook))


async def _examine(webhook: Webhook) -> Finding:
    check, host = f"webhook {webhook.name}", webhook.host
    cure = "correct the name in its url, or the name server; until then its events wait, and the oldest are dropped"
    try:
        found = await within(_PATIENCE, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except TimeoutError:
        return problem(check, f"no name server says within {_PATIENCE:g} s which address {host} has", cure)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no host name"
        return problem(check, f"{host} has no address: {why}", cure)
    return ok(check, f"{host} has the address {found[0][4][0]}; nothing was sent to it")
