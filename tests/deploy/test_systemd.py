"""The unit, by systemd's own tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import aiohttp

from tests.support import refusing
from tests.support.mirrors import MirrorProcess, until
from tests.support.programs import missing, require, run
from tests.support.scripted import Scripted

UNIT = Path(__file__).parents[2] / "deploy" / "mirror.service"
PROGRAM = "/opt/mirror/bin/mirror"


def test_the_unit_is_valid_and_locked_down(tmp_path: Path) -> None:
    """systemd finds no fault, and puts its exposure at 1.2 of 10 at most: what is left is the network and the file system that it is there for."""
    require("systemd-analyze")
    unit = tmp_path / "mirror.service"
    # Its program need not be installed here.
    assert PROGRAM in UNIT.read_text()
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))
    run("systemd-analyze", "verify", "--man=no", str(unit))
    run("systemd-analyze", "security", "--offline=true", "--threshold=12", "--no-pager", str(unit))
    allowed = json.loads(run("systemd-analyze", "security", "--offline=true", "--json=short", "--no-pager", str(unit)))
    exposed = {entry["json_field"] for entry in allowed if entry["set"] is False and float(entry["exposure"] or 0) >= 0.3}
    # In a dynamic user's /var/lib/private no command would work that root runs: it becomes the cache's owner, who does not come there.
    assert "DynamicUser=" not in UNIT.read_text()
    assert exposed <= {"PrivateNetwork", "RestrictAddressFamilies_AF_INET_INET6"}


async def test_the_mirror_lives_with_the_system_calls_that_the_unit_allows(upstream: Scripted, tmp_path: Path) -> None:
    """With workers, a pull, the dashboard, a scrub that finds rot, and its end: any call that the unit refuses would kill it here."""
    require("systemd-analyze")
    layer = upstream.add_blob(os.urandom(100_000))
    settings = {"SERVER__WORKERS": "2", "CACHE__SCRUB_INTERVAL": "100ms", "CACHE__SCRUB_RATE": "1GB"}
    mirror = MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, **settings)
    mirror._command = [*nobody(), sys.executable, refusing.__file__, str(UNIT), *mirror._command]
    with mirror:
        async with aiohttp.ClientSession(mirror.url) as session:
            for path in (f"/v2/library/app/blobs/{layer}", "/", "/setup", "/metrics", "/readyz"):
                async with session.get(path) as response:
                    assert response.status == 200
                    await response.read()
        file = mirror.directory / "blobs" / "sha256" / layer.hex
        await until(file.exists)
        file.write_bytes(os.urandom(100_000))
        await until(lambda: mirror.metric("mirror_scrub_damaged_total") == 1)
        assert mirror.terminate() == 0
    assert "Traceback" not in mirror.log


def nobody() -> list[str]:
    """What a command begins with that is not to run as root, which the unit's user is not: SQLite asks for more there."""
    namespace = ["unshare", "--user"] if os.geteuid() == 0 else []
    if subprocess.run([*namespace, "true"], check=False).returncode:
        missing("no user namespace can be made here")
    return namespace
