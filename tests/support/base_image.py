"""A base image for ``docker build`` where no registry has one: this machine's own Python, a shell and a few commands, with the libraries that they need."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

from tests.support.programs import missing, run

PYTHON = Path("/usr/bin/python3")
_COMMANDS = ("sh", "env", "mkdir", "chown", "rm", "sleep", "cat", "id", "ls")
_ETC = ("ssl/certs/ca-certificates.crt", "ssl/openssl.cnf", "pip.conf", "nsswitch.conf")
_BY_NAME = (
    # When hosts are looked up.
    *("libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"),
    # What wheels may count on (PEP 513, "manylinux1").
    *("libgcc_s.so.1", "libstdc++.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libc.so.6", "libpthread.so.0", "libutil.so.1"),
)


def write_base_image(tar: Path) -> None:
    """A root file system as ``docker import`` takes it. Skips the test where the system's own Python cannot make environments."""
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", "import ensurepip, ssl, sqlite3"], check=False).returncode:
        missing("the system's Python with its venv module is not installed (Debian's package python3-venv)")
    library = Path(run(str(PYTHON), "-c", "import os; print(os.path.dirname(os.__file__))").strip())
    programs = [PYTHON.resolve(), *(Path("/usr/bin") / name for name in _COMMANDS)]
    shared = set(re.findall(r"(?:=> )?(/\S+) \(0x", run("ldd", *map(str, (*programs, *library.glob("lib-dynload/*.so"))))))
    shared |= {str(path) for name in _BY_NAME for path in Path("/usr/lib").glob(f"*/{name}")}
    # By their names in the image: where the loader looks, which may be links on this machine.
    files = {re.sub(r"^/(?=lib)", "usr/", path).lstrip("/"): Path(path).resolve() for path in shared}
    files |= {str(path).lstrip("/"): path.resolve() for path in (*programs, PYTHON)}
    files |= {f"etc/{name}": (Path("/etc") / name).resolve() for name in _ETC if (Path("/etc") / name).exists()}
    folders = {str(folder) for name in (*files, str(library).lstrip("/")) for folder in Path(name).parents} - {"."}
    with tarfile.open(tar, "w") as image:
        for name in sorted(folders | {"tmp", "root", "var", "var/lib", "proc", "sys", "dev"}):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            image.addfile(entry)
        for link in ("bin", "lib", "lib64", "sbin"):
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{link}"
            image.addfile(entry)
        for name, path in files.items():
            image.add(path, name)
        image.add(library, str(library).lstrip("/"), filter=_without_caches)
        wheels = Path("/usr/share/python-wheels")
        if wheels.exists():
            # Where Debian's venv module has its pip.
            image.add(wheels, str(wheels).lstrip("/"))


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = entry.name.split("/")
    return (
        None if {"__pycache__", "test", "tests", "idlelib", "tkinter", "dist-packages", "site-packages"} & set(parts) else entry
    )
