"""What a process says to the network, which names it looks up, and what it has on the disk before it answers, as the kernel sees it: by strace."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import require

_PEER = re.compile(r"sa_family=AF_INET6?, sin6?_port=htons\((\d+)\).*?\"([0-9a-f.:]+)\"")
_LOOKUPS = ("/etc/resolv.conf", "/var/run/nscd/socket")
"""What the C library opens to look up a name, before anything else; for an address it opens none of them."""


@dataclass
class Trace:
    """A trace of a process and all that it starts, in a file."""

    file: Path
    calls: str = "connect,sendto,sendmsg,sendmmsg,openat"

    @property
    def command(self) -> list[str]:
        """The command that traces another. The other is a child of whoever runs this; strace is not in between."""
        require("strace")
        options = ["-f", "-D", "-y", "--seccomp-bpf", "-qq", "-s", "200", "-e", f"trace={self.calls}", "-e", "signal=none"]
        return ["strace", *options, "-o", str(self.file)]

    def read(self) -> str:
        """The trace of a process that has ended, once all of it is written."""
        deadline = time.monotonic() + 20
        while True:
            text = self.file.read_text(errors="replace")
            writers = [
                link for link in Path("/proc").glob("[0-9]*/fd/*") if link.is_symlink() and _target(link) == str(self.file)
            ]
            if not writers:
                return self.file.read_text(errors="replace")
            assert time.monotonic() < deadline, f"strace does not end:\n{text[-2000:]}"
            time.sleep(0.05)

    def ended(self) -> Iterator[str]:
        """Yields the calls with their arguments, each when it has ended: those of other threads may come between its beginning and that."""
        begun: dict[str, str] = {}
        for line in self.read().splitlines():
            thread, _, call = line.partition(" ")
            call = call.strip()
            if call.endswith("<unfinished ...>"):
                begun[thread] = call
            elif call.startswith("<... "):
                yield begun.pop(thread, "")
            else:
                yield call

    def peers(self) -> list[tuple[str, int]]:
        """Addresses and ports that it connected to, or sent a datagram to."""
        return [(match[2], int(match[1])) for match in _PEER.finditer(self.read())]

    def peers_elsewhere(self) -> list[tuple[str, int]]:
        """Those that are not loopback."""
        return [peer for peer in self.peers() if not ipaddress.ip_address(peer[0]).is_loopback]

    def lookups(self) -> list[str]:
        """Lines of the trace that belong to the look-up of a name."""
        return [line for line in self.read().splitlines() if any(f'"{path}"' in line for path in _LOOKUPS)]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
