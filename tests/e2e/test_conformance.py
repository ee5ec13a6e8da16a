"""The OCI conformance suite, all of it, against a real mirror.

What it checks, tests/hosted/test_pushing.py checks too.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.programs import require

SUITE = "oci-conformance"
OPTIONAL = ("BLOBS_DIGEST_HEADER", "BLOBS_UPLOAD_CANCEL", "MANIFESTS_DIGEST_HEADER", "MANIFESTS_TAG_PARAM")
"""Features of the specification that the suite tests if it is told to."""


def test_the_conformance_suite_passes(tmp_path: Path) -> None:
    """Push, pull, content discovery and content management: every test passes, none fails, none is skipped."""
    require(SUITE)
    config = tmp_path / "mirror.toml"
    config.write_text('[hosted]\nrepositories = ["conformance/**"]\n')
    upstreams: dict[str, str | list[str]] = {"docker.io": "http://127.0.0.1:1"}
    with MirrorProcess(tmp_path / "cache", upstreams, "--config", str(config)) as mirror:
        environment = {
            "OCI_REGISTRY": mirror.url.removeprefix("http://"),
            "OCI_TLS": "disabled",
            "OCI_RESULTS_DIR": str(tmp_path / "results"),
            **{f"OCI_API_{name}": "true" for name in OPTIONAL},
        }
        done = subprocess.run(
            [SUITE], capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, **environment}
        )
        assert mirror.terminate() == 0
    counts = {name: int(count) for name, count in re.findall(r"^  (\w+)\.+: +(\d+)$", done.stdout, re.MULTILINE)}
    assert done.returncode == 0, done.stdout
    assert (counts["FAIL"], counts["Error"], counts["Skip"], counts["Disabled"]) == (0, 0, 0, 0), done.stdout
    assert counts["Pass"] == counts["Total"] > 900
