"""A network of its own in which each mirror has a network card, and the mirrors in it. For root: it needs `unshare`, `ip` and `tc`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.mirrors import MirrorProcess
from tests.support.ports import free_port

_FLOWS = 64
"""Queues of a card that is shared evenly. Connections are told apart by their client's port; two in one queue share what it gets."""


def inside(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module in a network that only its own processes are in. All of them end with it."""
    alone = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    return [*alone, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, "-m", module, *arguments]


def set_up(cards: Mapping[str, int], *, fifo: bool = False) -> None:
    """Gives what is sent by the servers at these URLs cards of so many bytes per second; call this inside. A card is shared evenly between connections, or is one queue."""
    subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], stderr=subprocess.DEVNULL, check=False)
    commands = "\n".join(" ".join(map(str, command)) for command in _commands(cards, fifo))
    # What it warns of are quanta, which are meant.
    subprocess.run(["tc", "-batch", "-"], input=commands, text=True, check=True, stderr=subprocess.DEVNULL)


def _commands(cards: Mapping[str, int], fifo: bool) -> Iterator[tuple[object, ...]]:
    filters = ("filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", "prio", 1)
    bursts = ("burst", "200k", "cburst", "200k")
    yield ("qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "99")
    yield ("class", "add", "dev", "lo", "parent", "1:", "classid", "1:99", "htb", "rate", "40gbit")
    yield (*filters, "u32")
    for number, (url, rate) in enumerate(cards.items(), 1):
        card, bits = f"1:{number}", f"{rate * 8}bit"
        is_card = ("match", "ip", "sport", urlsplit(url).port, "0xffff")
        yield ("class", "add", "dev", "lo", "parent", "1:", "classid", card, "htb", "rate", bits, *bursts)
        if fifo:
            yield ("qdisc", "add", "dev", "lo", "parent", card, "handle", f"{10 + number}:", "pfifo", "limit", 1000)
            yield (*filters, "u32", *is_card, "flowid", card)
            continue
        table = f"{number + 1}:"
        yield (*filters, "handle", table, "u32", "divisor", _FLOWS)
        for flow in range(_FLOWS):
            queue = f"1:{number}{flow:02x}"
            some = ("htb", "rate", "1mbit", "ceil", bits, "quantum", 65536, *bursts)
            yield ("class", "add", "dev", "lo", "parent", card, "classid", queue, *some)
            yield (*filters, "u32", "ht", f"{table}{flow:x}:", *is_card, "flowid", queue)
        # Of the four bytes of ports, the client's last.
        yield (*filters, "u32", *is_card, "hashkey", "mask", f"0x{_FLOWS - 1:08x}", "at", 20, "link", table)


def member(folder: Path, upstream: str, url: str, urls: Sequence[str], **environment: str) -> MirrorProcess:
    """Returns the mirror at a URL, which takes `urls` for its fleet, and is alone if they are its own only."""
    fleet = {"FLEET__MIRRORS": json.dumps(list(urls)), "FLEET__OWN": url} if len(urls) > 1 else {}
    listen = ("--listen", url.partition("://")[2])
    return MirrorProcess(folder / url.rpartition(":")[2], {"docker.io": upstream}, *listen, **fleet, **environment)


def free_urls(count: int) -> list[str]:
    """Returns URLs for mirrors."""
    return [f"http://127.0.0.1:{free_port()}" for _ in range(count)]


@contextlib.contextmanager
def mirrors(count: int, folder: Path, upstream: str) -> Iterator[list[MirrorProcess]]:
    """Starts them, equal ones of a fleet if there are several."""
    urls = free_urls(count)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(member(folder, upstream, url, urls)) for url in urls]
