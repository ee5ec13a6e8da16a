"""The shape of the program: data goes one way, and each folder knows only the one to its right."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mirror"
SHARED = {
    "names",
    "errors",
    "manifests",
    "metrics",
    "tasks",
    "backoff",
    "locks",
    "patterns",
    "regular_files",
    "durable",
    "threads",
    "events",
    "cdn_loop",
    "client_login",
    "local_hosts",
    "redaction",
    "fleet_documents",
}
MAY_IMPORT = {
    "client_login": set(),
    "fleet_documents": {"errors"},
    "local_hosts": set(),
    "redaction": set(),
    "errors": set(),
    "names": {"errors"},
    "manifests": {"names", "errors"},
    "patterns": {"names"},
    "events": {"manifests", "names"},
    "metrics": set(),
    "tasks": set(),
    "backoff": set(),
    "threads": set(),
    "regular_files": set(),
    "locks": {"regular_files"},
    "cdn_loop": {"errors"},
    "durable": {"regular_files"},
    "certificate": {"regular_files", "tasks"},
    "units": set(),
    "config": {
        "names",
        "errors",
        "patterns",
        "manifests",
        "regular_files",
        "certificate",
        "disk_room",
        "units",
        "local_hosts",
        "redaction",
        "config",
    },
    "clients": {"clients", "local_hosts", "redaction", ""},
    "upstream": SHARED | {"upstream", ""},
    "disk_room": {"units"},
    "file_systems": set(),
    "storage": SHARED | {"units", "disk_room", "storage"},
    "downloads": SHARED | {"storage", "downloads"},
    "bucket": SHARED | {"hosted", "storage", "upstream", "bucket"},
    "access": SHARED | {"units", "access"},
    "cache": SHARED | {"units", "storage", "downloads", "cache"},
    "guards": SHARED | {"cache", "downloads", "storage", "guards"},
    "hosted": SHARED | {"storage", "hosted"},
    "scans": SHARED | {"bundles", "storage", "scans"},
    "notifications": SHARED | {"notifications"},
    "bundles": SHARED | {"units", "cache", "hosted", "storage", "bundles"},
    "laptop": {"laptop"},
    "api": SHARED | {"units", "access", "api", "bundles", "cache", "downloads", "hosted", "storage"},
    "web": SHARED | {"units", "access", "clients", "api", "bundles", "cache", "storage", "downloads", "web"},
    "doctor": SHARED | {"units", "disk_room", "file_systems", "config", "clients", "storage", "upstream", "doctor"},
    "workers": {"backoff", "config", "metrics", "locks", "workers"},
    "disk_probe": {"disk_room"},
    "readiness": {"certificate", "disk_probe", "config", "durable", "regular_files", "upstream", "workers"},
    "wiring": {
        "access",
        "bucket",
        "patterns",
        "config",
        "guard_tables",
        "scan_tables",
        "webhook_tables",
        "scans",
        "guards",
        "notifications",
        "events",
        "metrics",
        "errors",
        "cache",
        "storage",
        "tasks",
        "upstream",
    },
    "fleet_tables": {"access", "config", "wiring"},
    "guard_tables": {"config", "guards"},
    "scan_tables": {"config", "guards", "names", "scans"},
    "webhook_tables": {"config", "events", "notifications", "patterns"},
    "app": {
        "disk_probe",
        "workers",
        "readiness",
        "config",
        "certificate",
        "metrics",
        "tasks",
        "upstream",
        "api",
        "web",
        "fleet_tables",
        "wiring",
        "",
    },
    "cli": SHARED
    | {
        "units",
        "config",
        "disk_room",
        "file_systems",
        "app",
        "access",
        "fleet_tables",
        "wiring",
        "workers",
        "bundles",
        "cache",
        "storage",
        "upstream",
        "cli",
        "clients",
        "doctor",
        "",
    },
    "__main__": {"cli"},
    "__init__": set(),
}
"""Part to the parts that it may know; the empty one is the package itself, for its version."""


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names, of modules or of what is in them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def names_module(names: set[str], module: str) -> bool:
    """True where one of the names is a module, or something in it."""
    return any(name == module or name.rpartition(".")[0] == module for name in names)


def imports(path: Path) -> set[str]:
    parts = set()
    for name in imported(path):
        if name.split(".")[0] == "mirror":
            part = name.split(".")[1] if "." in name else ""
            parts.add(part if (ROOT / part).is_dir() or (ROOT / f"{part}.py").exists() else "")
    return parts


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_part_knows_only_what_it_may(path: Path) -> None:
    """The import graph is the one that docs/design.md shows."""
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert imports(path) <= MAY_IMPORT[part]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_wiring_knows_the_disk(path: Path) -> None:
    """Everything else goes by the interface of a store; nothing outside of it knows SQLite either, but for the file of the access part, which keeps its own."""
    place = path.relative_to(ROOT)
    names = imported(path)
    if place.parts[0] != "storage":
        assert not {name for name in names if name.startswith("mirror.storage.disk")} or place.name == "wiring.py"
        assert "DiskStore(" not in path.read_text() or place.name == "wiring.py"
    elif "disk" not in place.parts and place.name != "cache_directory.py":
        assert not {name for name in names if name.startswith("mirror.storage.disk")}
    if "disk" not in place.parts:
        assert not {name for name in names if name.startswith(("sqlite3", "diskcache"))} or place.name in (
            "cache_directory.py",
            "month_file.py",
        )
    if place.parts[0] in ("cache", "downloads"):
        assert not {name for name in names if name.split(".")[0] in ("pathlib", "tempfile", "fcntl", "threading")}
        assert not re.search(r"os\.(open|stat|unlink|replace|scandir|listdir|path)\b|\.execute\(", path.read_text())


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))
def test_modules_of_a_package_have_no_cycles(folder: str) -> None:
    """Each can be read, and tested, after those that it imports. What only type checkers import counts as well."""
    graph = {
        ".".join(("mirror", *path.relative_to(ROOT).with_suffix("").parts)): imported(path)
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    left = {name: {other for other in graph if other != name and names_module(names, other)} for name, names in graph.items()}
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


ONE_MODULE = {
    r"from fcntl|fcntl\.(?!ioctl\b|fcntl\(|F_[GS]ETPIPE_SZ\b)|lockf\(": {"locks.py"},
    r"os\.replace\(|os\.rename\(|mkstemp|os\.link\(": {"durable.py"},
    # Those that try whether a disk can be written are about nothing else.
    r"fsync\(": {"durable.py", "disk_probe.py", "doctor/disk.py", "storage/disk/files.py"},
    r"O_NONBLOCK": {"regular_files.py"},
    r"random\.|\b2(\.0)? ?\*\* ?\w*\(?\w*fail": {"backoff.py"},
    r"asyncio\.shield\(": {"tasks.py", "threads.py", "upstream/receiver.py", "web/pages.py"},
}
"""What one module does for all others: an expression that is found in it alone."""


@pytest.mark.parametrize("expression", ONE_MODULE)
def test_one_module_does_it_for_all(expression: str) -> None:
    """Locks on files, durable writes, opening what is no regular file, backoff."""
    found = {str(path.relative_to(ROOT)) for path in modules() if re.search(expression, path.read_text())}
    assert found == ONE_MODULE[expression]


def closes(statement: ast.stmt) -> bool:
    """True for ``await x.aclose()``, also in a loop."""
    if isinstance(statement, ast.For):
        return any(map(closes, statement.body))
    match statement:
        case ast.Expr(ast.Await(ast.Call(ast.Attribute(attr="aclose" | "close")))):
            return True
    return False


def test_no_close_depends_on_another() -> None:
    """Where one raises the rest must be closed all the same: `close_all` or an exit stack, never one after the other, nor a loop."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            for body in (value for _, value in ast.iter_fields(node) if isinstance(value, list)):
                closing = [statement for statement in body if isinstance(statement, ast.stmt) and closes(statement)]
                assert len(closing) < 2, f"{path}:{closing[0].lineno}"
                assert not any(isinstance(statement, ast.For) for statement in closing), f"{path}:{closing[0].lineno}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short_and_say_what_they_are(path: Path) -> None:
    """At most 400 lines, and a docstring at the top."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


def test_every_test_says_what_it_holds() -> None:
    """In its docstring."""
    for path in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"


def test_the_cache_and_the_api_know_no_http_client() -> None:
    """aiohttp is the api's and the upstream's affair."""
    for part in ("config", "storage", "downloads", "cache"):
        for path in (ROOT / part).rglob("*.py"):
            assert "aiohttp" not in path.read_text(), path
    for name in ("names", "errors", "manifests"):
        assert "aiohttp" not in (ROOT / f"{name}.py").read_text()
