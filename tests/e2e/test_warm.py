"""A list that the mirror pulls by schedule from a real registry; then, offline, a real dockerd that pulls it."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Stage
from tests.e2e.test_dockerd import Dockerd, check
from tests.support.patience import PATIENCE

_LISTED = ("docker", "oci-index")


def test_dockerd_pulls_a_list_from_a_mirror_that_is_offline(stage: Stage, tmp_path: Path) -> None:
    """SIGHUP brings the list, and takes the mirror off line: what is listed is served, the error for the rest says why, and upstream, which is there, hears nothing."""
    config = tmp_path / "mirror.toml"
    images = json.dumps([f"{REPOSITORY}:{tag}" for tag in _LISTED])
    settings = config.read_text() + f'[[warm]]\nname = "lab"\nimages = {images}\nplatforms = ["linux/amd64"]\nat = "02:00"\n'
    config.write_text(settings.replace('at = "02:00"', 'every = "1h"'))
    os.kill(stage.mirror.pid, signal.SIGHUP)
    _until(lambda: "lab: 2 of 2 images pulled" in stage.mirror.log)
    for tag in _LISTED:
        stage.check_upstream_was_asked_once(tag)
    config.write_text(f"{settings}[upstream]\noffline = true\n")
    os.kill(stage.mirror.pid, signal.SIGHUP)
    _until(lambda: _is_offline(stage))

    def asked() -> int:
        return sum(stage.registry.asked(method, "/") for method in ("GET", "HEAD"))

    before = asked()
    assert before
    dockerd = Dockerd(stage.mirror.url)
    try:
        for tag in _LISTED:
            dockerd.docker("pull", f"app:{tag}")
            check(dockerd, stage, tag, tmp_path)
        with pytest.raises(
            AssertionError, match=rf"offline .*not in the cache: docker.io/{REPOSITORY}:oci; cached of docker.io/{REPOSITORY}: "
        ):
            dockerd.docker("pull", f"{stage.address}/{REPOSITORY}:oci")
    finally:
        dockerd.stop()
    assert asked() == before


def _is_offline(stage: Stage) -> bool:
    with urllib.request.urlopen(f"{stage.mirror.url}/readyz") as response:
        return json.load(response)["offline"] is True


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
