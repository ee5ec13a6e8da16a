"""What a start imports, and what only the requests import that need it: each package costs every start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE

LATER = {
    "/": ("jinja2", "mirror.clients", "mirror.web.pages", "mirror.web.site", "mirror.web.templating", "mirror.web.translations"),
    "/export/docker.io/library/none:latest.tar": ("mirror.api.export", "mirror.bundles", "tarfile"),
}
"""Paths, and the modules that the first request to one imports."""
NEVER = (
    "cryptography",
    "dotenv",
    "mirror.bundles.importing",
    "mirror.bundles.signing",
    "mirror.doctor",
    "pydantic_settings",
    "python_socks",
    "rich",
    "ruamel",
    "tomlkit",
    "zstandard",
)
"""Modules that a mirror does not import for any request, unless its settings ask for them."""
PROGRAM = """
import asyncio, json, sys, urllib.error, urllib.request
import mirror.cli.serve
from mirror import app
from mirror.config import load
from mirror.web import dashboard

dashboard._OPEN_AFTER = 3600.0

def get(url):
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": "text/html"})).read()
    except urllib.error.HTTPError as error:
        error.close()

async def main():
    folder, *paths = sys.argv[1:]
    flags = {"cache": {"dir": folder}, "server": {"listen": "127.0.0.1:0", "access_log": False}, "upstream": {"offline": True}}
    async with app.running(load(None, {}, flags)) as url:
        print(json.dumps(sorted(sys.modules)))
        for path in paths:
            await asyncio.to_thread(get, url + path)
            print(json.dumps(sorted(sys.modules)))

asyncio.run(main())
"""

COMMANDS = {
    "help": ["--help"],
    "help of serve": ["serve", "--help"],
    "help of doctor": ["doctor", "--help"],
    "pin": ["pin", "app:1"],
    "ls": ["ls"],
    "have": ["have"],
    "gc": ["gc"],
    "export": ["export", "--all", "-o", "lab.tar"],
    "import": ["import", "none.tar"],
}
"""Commands that ask no registry."""
NOT_FOR_COMMANDS = (
    "aiocache",
    "aiohttp",
    "mirror.app",
    "mirror.cache.cache",
    "mirror.doctor",
    "mirror.downloads",
    "mirror.upstream",
)
COMMAND = """
import atexit, json, sys
from mirror.cli import main
atexit.register(lambda: print("imported", json.dumps(sorted(sys.modules)), file=sys.stderr))
main(sys.argv[1:], prog_name="mirror")
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> list[set[str]]:
    """The modules that a mirror has imported when it is ready, after a pull's requests, and after each path of LATER."""
    requests = ["/v2/", "/v2/library/none/manifests/latest", "/v2/library/none/tags/list", "/metrics", "/readyz"]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("start") / "cache"), *requests, *LATER],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    at_start, *after = [set(json.loads(line)) for line in ran.stdout.splitlines()]
    return [at_start, *after[len(requests) - 1 :]]


def test_a_start_imports_nothing_that_no_pull_needs(imported: list[set[str]]) -> None:
    """Neither before the mirror is ready nor for the requests of a pull."""
    at_start, after_pulls = imported[:2]
    later = {module for modules in LATER.values() for module in modules}
    assert not later & at_start
    assert not later & after_pulls


def test_what_a_pull_needs_is_imported_at_the_start(imported: list[set[str]]) -> None:
    """No client waits for an import: the requests of a pull import nothing of the mirror's own, nor of a package."""
    at_start, after_pulls = imported[:2]
    assert {name for name in after_pulls - at_start if name.partition(".")[0] in ("mirror", "aiohttp", "h11", "yarl")} == set()


def test_each_is_imported_by_the_first_request_that_needs_it(imported: list[set[str]]) -> None:
    """So the list above is of modules that exist, at the requests that it says."""
    before = imported[1]
    for modules, after in zip(LATER.values(), imported[2:], strict=True):
        assert set(modules) <= after - before
        before = after


def test_a_mirror_imports_none_of_what_only_commands_need(imported: list[set[str]]) -> None:
    """Whatever it was asked for."""
    assert not set(NEVER) & imported[-1]


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_command_that_asks_no_registry_imports_no_http_client(arguments: list[str], tmp_path: Path) -> None:
    """Nor what downloads and serves: each is a good part of a second."""
    root = Path(__file__).parent.parent
    environ = {**os.environ, "PYTHONPATH": str(root), "MIRROR_CACHE__DIR": str(tmp_path / "cache")}

    def run(*command: str) -> str:
        program = [sys.executable, "-c", COMMAND, *command]
        done = subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
        return done.stderr

    # Makes the cache, which some commands expect.
    run("pin", "library/other:1")
    found = set(json.loads(run(*arguments).rpartition("imported ")[2]))
    assert "mirror.cli" in found
    assert not set(NOT_FOR_COMMANDS) & found
