"""A network of its own for a process, from which only a proxy can be reached, and in which every DNS query is written down. For root."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.patience import PATIENCE
from tests.support.programs import Program, require_root, run

_RECORDER = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    print(server.recvfrom(4096)[0], flush=True)
"""


@dataclass
class Confined:
    """`outer` is this machine's address in the network, `inner` the process's."""

    name: str
    outer: str
    inner: str
    recorder: Program

    def command(self, *command: str) -> list[str]:
        """A command as it is run inside."""
        return ["ip", "netns", "exec", self.name, *command]

    @property
    def queries(self) -> list[str]:
        """DNS queries that were sent inside so far."""
        return [line for line in self.recorder.log.splitlines() if line != "ready"]

    @property
    def unrouted(self) -> int:
        """Packets and connections inside that had another destination than this machine (IpOutNoRoutes, proc_net_snmp)."""
        names, values = (
            line.split() for line in run(*self.command("cat", "/proc/net/snmp")).splitlines() if line.startswith("Ip:")
        )
        return int(values[names.index("OutNoRoutes")])

    def check_recorder(self) -> None:
        """A query is written down, and a connection elsewhere is counted: it is no accident that there was none."""
        queries, unrouted = len(self.queries), self.unrouted
        subprocess.run(self.command("getent", "ahosts", "probe.test"), check=False, timeout=PATIENCE)
        assert len(self.queries) > queries
        # An address of documentation (RFC 5737), to which the network has no route.
        connect = 'import socket; socket.socket().connect_ex(("192.0.2.1", 80))'
        subprocess.run(self.command(sys.executable, "-c", connect), check=True, timeout=PATIENCE)
        assert self.unrouted > unrouted


@contextlib.contextmanager
def confined(folder: Path, hosts: str = "") -> Iterator[Confined]:
    """A network namespace; `hosts` is added to its /etc/hosts."""
    require_root("a network namespace")
    number = os.getpid() % 200 + 20
    name, outer, inner = f"mirror{os.getpid()}", f"10.231.{number}.1", f"10.231.{number}.2"
    files = Path("/etc/netns") / name
    files.mkdir(parents=True)
    # The mirror looks its own machine's name up: for its clients, not for registries.
    (files / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n{hosts}")
    (files / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    (files / "nsswitch.conf").write_text("hosts: files dns\n")
    near, far = f"vo{os.getpid()}"[:15], f"vi{os.getpid()}"[:15]
    recorder = None
    try:
        run("ip", "netns", "add", name)
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        run("ip", "address", "add", f"{outer}/30", "dev", near)
        run("ip", "link", "set", near, "up")
        for command in (("address", "add", f"{inner}/30", "dev", far), ("link", "set", far, "up"), ("link", "set", "lo", "up")):
            run("ip", "-n", name, *command)
        program = ["ip", "netns", "exec", name, sys.executable, "-c", _RECORDER]
        recorder = Program(program, folder / "queries.log")
        recorder.wait_until(lambda: "ready" in recorder.log)
        yield Confined(name, outer, inner, recorder)
    finally:
        if recorder is not None:
            recorder.stop()
        subprocess.run(["ip", "link", "del", near], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(files, ignore_errors=True)
