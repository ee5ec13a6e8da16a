"""``mirror pull -f`` of a list, upstream stopped, and a real dockerd that pulls every one of them."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import REPOSITORY, Stage
from tests.e2e.test_dockerd import Dockerd, check
from tests.support.commands import mirror


def test_a_list_pulled_ahead_is_enough_for_dockerd_without_upstream(stage: Stage, tmp_path: Path) -> None:
    """Of every kind of image, from a registry that is open and from one that wants a token: through a mirror that had run all along."""
    file = tmp_path / "images.txt"
    file.write_text("# for the site without a network\n" + "".join(f"{REPOSITORY}:{tag}\n" for tag in stage.images))
    flags = ["--config", str(tmp_path / "mirror.toml"), "--cache-dir", str(stage.mirror.directory)]
    flags += ["--upstream", f"docker.io={stage.registry.url}", "--platform", "linux/amd64"]
    done = mirror("pull", "-f", str(file), *flags)
    assert done.returncode == 0, done.stderr
    assert f"{len(stage.images)} images: {len(stage.images)} fetched" in done.stdout
    stage.registry.stop()
    dockerd = Dockerd(stage.mirror.url)
    try:
        for tag in stage.images:
            dockerd.docker("pull", f"app:{tag}")
            check(dockerd, stage, tag, tmp_path)
            stage.check_upstream_was_asked_once(tag)
    finally:
        dockerd.stop()
