"""The limits for clients are those that docs/operations.md gives."""

from __future__ import annotations

from pathlib import Path

from mirror.api import connection, framing, sending, unread
from mirror.web import live

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_documented_limits_are_those_in_force() -> None:
    """Each row of the table has the numbers of the code."""
    section = OPERATIONS.read_text().partition("## Limits for clients")[2].partition("\n## ")[0]
    rows = [
        f"| a request line, a header field | {connection.LONGEST_LINE >> 10} KiB |",
        f"| the header fields of a request | {connection.MOST_HEADERS} |",
        f"| a request line with all header fields | {framing.LONGEST_HEAD >> 10} KiB |",
        f"| requests that are not answered yet | {connection._MOST_PENDING >> 10} KiB a connection |",
        f"| | {connection._PENDING_PER_CLIENT >> 20} MiB an address, {connection._PENDING_IN_ALL >> 20} MiB in all |"
        f" 503 for a connection that holds more than {connection._SMALL >> 10} KiB |",
        f"| {unread._PER_CLIENT >> 20} MiB an address, {unread._IN_ALL >> 20} MiB in all; equal ones count once"
        f" | the request waits for {unread._LONGEST_WAIT:g} s, then 503 |",
        f"| {sending._PIECE_TIMEOUT:g} s for an answer in memory, {connection._STUCK_AFTER:g} s for anything else |",
        f"| a connection without a request | {connection.IDLE:g} s |",
        f"| event streams of the dashboard | {live._MOST_FROM_ONE} an address, {live._MOST} in all |",
    ]
    assert [row for row in rows if row not in section] == []
    assert sending._STUCK_AFTER == connection._STUCK_AFTER
