"""Real cosign signs keyless, with certificates of a real Fulcio and entries in real logs; the mirror verifies that offline."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_containerd import Containerd
from tests.e2e.test_dockerd import Dockerd
from tests.support.images import make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.programs import DockerRegistry
from tests.support.sigstore_programs import SigstorePrograms


@pytest.fixture(scope="module")
def sigstore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SigstorePrograms]:
    programs = SigstorePrograms(tmp_path_factory.mktemp("sigstore") / "programs")
    yield programs
    programs.stop()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    registry = DockerRegistry(tmp_path / "registry")
    yield registry
    registry.stop()


@pytest.mark.parametrize("old", [False, True], ids=["bundle", "tag"])
def test_what_the_right_person_has_signed_is_served_and_nothing_else(
    tmp_path: Path, sigstore: SigstorePrograms, registry: DockerRegistry, old: bool
) -> None:
    """In both forms, to dockerd and containerd too; by a person whom the same issuer knows, or by nobody, is not enough."""
    config = tmp_path / "mirror.toml"
    config.write_text(
        f'[[guard]]\nname = "signed"\n[guard.signed]\ntrusted_root = "{sigstore.trusted_root}"\n'
        f'[[guard.signed.identities]]\nissuer = "{sigstore.issuer}"\nsubject = "*@ours.example"\n'
    )
    # The first entry of a log has no index in a bundle, since protobuf leaves out a nought, and then sigstore's library refuses it.
    signers = {"first": "eve@theirs.example", "ours": "ann@ours.example", "theirs": "eve@theirs.example", "nobodys": ""}
    for number, (repository, email) in enumerate(signers.items()):
        image = make_image(30 + number)
        push(registry.url, f"library/{repository}", "1", image, None)
        if email:
            sigstore.sign(f"{registry.url.removeprefix('http://')}/library/{repository}@{image.digest}", email, old=old)
    with MirrorProcess(tmp_path / "cache", {"docker.io": registry.url}, "--config", str(config)) as mirror:

        def status(repository: str) -> int:
            try:
                with urllib.request.urlopen(f"{mirror.url}/v2/library/{repository}/manifests/1") as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                error.close()
                return error.code

        with urllib.request.urlopen(f"{registry.url}/v2/library/ours/tags/list") as answer:
            assert any(tag.endswith(".sig") for tag in json.load(answer)["tags"]) == old
        found = {name: status(name) for name in ("ours", "theirs", "nobodys")}
        assert found == {"ours": 200, "theirs": 403, "nobodys": 403}, mirror.log
        assert "eve@theirs.example, whom" in mirror.log
        with contextlib.ExitStack() as stack:
            daemon = Dockerd(mirror.url)
            stack.callback(daemon.stop)
            containerd = Containerd(tmp_path / "containerd", mirror.url)
            stack.callback(containerd.stop)
            daemon.docker("pull", "ours:1")
            containerd.pull("docker.io/library/ours:1")
            for name in ("theirs", "nobodys"):
                assert not daemon.succeeds("pull", f"{name}:1")
                with pytest.raises(AssertionError, match="403 Forbidden"):
                    containerd.pull(f"docker.io/library/{name}:1")
