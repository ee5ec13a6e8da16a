"""The unit, by systemd's own tools."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.programs import require, run

UNIT = Path(__file__).parents[2] / "deploy" / "mirror.service"
PROGRAM = "/opt/mirror/bin/mirror"


def test_the_unit_is_valid_and_locked_down(tmp_path: Path) -> None:
    """systemd finds no fault, and puts its exposure at 1.1 of 10 at most: what is left is the network and the file system that it is there for."""
    require("systemd-analyze")
    unit = tmp_path / "mirror.service"
    # Its program need not be installed here.
    assert PROGRAM in UNIT.read_text()
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))
    run("systemd-analyze", "verify", "--man=no", str(unit))
    run("systemd-analyze", "security", "--offline=true", "--threshold=11", "--no-pager", str(unit))
    allowed = json.loads(run("systemd-analyze", "security", "--offline=true", "--json=short", "--no-pager", str(unit)))
    exposed = {entry["json_field"] for entry in allowed if entry["set"] is False and float(entry["exposure"] or 0) >= 0.3}
    assert exposed <= {"PrivateNetwork", "RestrictAddressFamilies_AF_INET_INET6"}
