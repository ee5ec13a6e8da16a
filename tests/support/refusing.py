"""Runs a program with the system calls that a unit allows; any other ends it: ``python refusing.py UNIT PROGRAM …``.

What systemd does for SystemCallFilter= (systemd.exec(5)), by the same library; groups of calls are what this machine's systemd takes for them.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

_KILL, _ALLOW = 0x80000000, 0x7FFF0000
"""seccomp.h: SCMP_ACT_KILL_PROCESS, SCMP_ACT_ALLOW."""


def calls(name: str) -> set[str]:
    """The calls of a group, or the one of that name."""
    if not name.startswith("@"):
        return {name}
    told = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True).stdout
    members = [line.strip() for line in told.splitlines()[1:] if line.strip() and "#" not in line]
    return set().union(*map(calls, members))


def allowed(unit: str) -> set[str]:
    """What is left when all lines have been read in their order. Without the first program nothing would begin."""
    found = calls("@default") | {"execve"}
    for names in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        meant = set().union(*map(calls, names.lstrip("~").split()))
        found = found - meant if names.startswith("~") else found | meant
    return found


def refuse_others(names: set[str]) -> None:
    """For this process, its threads and its children, for good."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(_KILL)))
    for name in names:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        # Those of other machines have none.
        if number >= 0:
            assert seccomp.seccomp_rule_add(rules, ctypes.c_uint32(_ALLOW), number, 0) == 0, name
    assert seccomp.seccomp_load(rules) == 0


if __name__ == "__main__":
    unit = Path(sys.argv[1]).read_text()
    if "\nMemoryDenyWriteExecute=yes\n" in unit:
        # prctl(2), PR_SET_MDWE: since Linux 6.3; what is older says no, and is passed over.
        ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
    refuse_others(allowed(unit))
    os.execv(sys.argv[2], sys.argv[2:])
