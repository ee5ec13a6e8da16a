"""Archives that real tools write, imported into a mirror without upstream, and pulled from it by real clients: the same image, by its configuration's digest."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_dockerd import Dockerd
from tests.e2e.test_podman import policy
from tests.support.commands import mirror
from tests.support.images import Image, digest_of, make_image, make_index, push
from tests.support.mirrors import MirrorProcess
from tests.support.programs import DockerRegistry, require, require_root, run

UNREACHABLE: dict[str, str | list[str]] = {"docker.io": "http://127.0.0.1:1"}


class Workshop:
    """A registry with an image, tools that write archives of it, and a mirror that imports them."""

    def __init__(self, folder: Path, image: Image) -> None:
        self.folder = folder
        self.image = image
        self.registry = DockerRegistry(folder / "registry")
        push(self.registry.url, "library/app", "1", image)
        self.address = self.registry.url.removeprefix("http://")
        self.tar = folder / "image.tar"
        self._run_root = tempfile.mkdtemp(prefix="podman-")  # podman takes 50 characters at most
        self._environment = {"HOME": str(folder)}

    def stop(self) -> None:
        self.registry.stop()
        shutil.rmtree(self._run_root, ignore_errors=True)

    @property
    def config(self) -> str:
        """The digest of the linux/amd64 image's configuration."""
        return next(digest for digest, blob in self.image.blobs.items() if blob.startswith(b"{") and b'"amd64"' in blob)

    def skopeo(self, *arguments: str) -> str:
        require("skopeo")
        return run("skopeo", "--policy", str(policy(self.folder)), *arguments, environment=self._environment)

    def containers(self, program: str, *arguments: str) -> str:
        """podman or buildah, with a storage of their own."""
        require(program)
        require_root(f"{program}, as it is run here,")
        storage = f"--root {self.folder}/storage --runroot {self._run_root} --storage-driver vfs".split()
        return run(program, *storage, *arguments, environment=self._environment)

    def import_(self, *arguments: str) -> dict[str, Any]:
        """Imports the archive, without upstream. Returns the image's part of the report."""
        flags = ["--cache-dir", str(self.folder / "cache"), "--upstream", "docker.io=http://127.0.0.1:1"]
        done = mirror("import", str(self.tar), "--json", *flags, *arguments)
        assert done.returncode == 0, done.stderr
        images = json.loads(done.stdout)["images"]
        # buildah writes the name that it pulled as well.
        (found,) = [image for image in images if len(images) == 1 or image["image"].startswith("docker.io/")]
        assert isinstance(found, dict)
        return found

    def check_pulls(self, digest: str, dockerd: bool = False) -> None:
        """skopeo, and where wanted dockerd, gets the image from a mirror without upstream: by the digest that the import said, with the configuration that it was made with."""
        with MirrorProcess(self.folder / "cache", UNREACHABLE) as served:
            address = served.url.removeprefix("http://")
            name = f"docker://{address}/library/app:1"
            raw = self.skopeo("inspect", "--raw", "--tls-verify=false", name)
            assert digest_of(raw.encode()) == digest
            self.skopeo("copy", "--override-arch=amd64", "--src-tls-verify=false", name, f"dir:{self.folder}/copy")
            copied = json.loads((self.folder / "copy" / "manifest.json").read_text())
            assert copied["config"]["digest"] == self.config
            if dockerd:
                daemon = Dockerd(served.url)
                try:
                    daemon.docker("pull", "app:1")
                    assert json.loads(daemon.docker("image", "inspect", "app:1"))[0]["Id"] == self.config
                finally:
                    daemon.stop()


@pytest.fixture
def workshop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workshop]:
    """With a Docker image for one platform, or what a test asks for by `image`."""
    made = Workshop(
        tmp_path, getattr(request, "param", make_image)(31) if hasattr(request, "param") else make_image(31, "docker")
    )
    yield made
    made.stop()


def test_docker_save(workshop: Workshop) -> None:
    """The installed dockerd's tar, whose layers are not compressed: dockerd and skopeo pull it. The manifest is the mirror's own, and says so."""
    daemon = Dockerd(workshop.registry.url)
    try:
        daemon.docker("pull", "app:1")
        daemon.docker("save", "-o", str(workshop.tar), "app:1")
    finally:
        daemon.stop()
    found = workshop.import_()
    assert found["image"] == "docker.io/library/app:1"
    workshop.check_pulls(found["digest"], dockerd=True)


_DOCKER_AND_OCI = pytest.mark.parametrize(
    ("workshop", "form"),
    [(lambda seed: make_image(seed, "docker"), "docker-archive"), (lambda seed: make_image(seed, "oci"), "oci-archive")],
    indirect=["workshop"],
)
"""Each with an image of its own kind: podman and buildah make a new configuration where they convert one to the other."""


@_DOCKER_AND_OCI
def test_podman_save(workshop: Workshop, form: str) -> None:
    """Both of its formats."""
    source = f"{workshop.address}/library/app:1"
    workshop.containers("podman", "pull", "-q", "--tls-verify=false", "--signature-policy", str(policy(workshop.folder)), source)
    workshop.containers("podman", "tag", source, "docker.io/library/app:1")
    workshop.containers("podman", "save", "-q", "--format", form, "-o", str(workshop.tar), "docker.io/library/app:1")
    found = workshop.import_()
    assert found["image"] == "docker.io/library/app:1"
    assert found["rebuilt"] == (form == "docker-archive")
    workshop.check_pulls(found["digest"])


@pytest.mark.parametrize(("form", "keeps"), [("oci-archive", True), ("docker-archive", False)])
@pytest.mark.parametrize("workshop", [lambda seed: make_image(seed, "oci")], indirect=True)
def test_skopeo_copy(workshop: Workshop, form: str, keeps: bool) -> None:
    """An OCI archive keeps the registry's digest; a docker-archive cannot."""
    workshop.skopeo(
        "copy",
        "--src-tls-verify=false",
        f"docker://{workshop.address}/library/app:1",
        f"{form}:{workshop.tar}:docker.io/library/app:1",
    )
    found = workshop.import_()
    assert (found["digest"] == workshop.image.digest, found["rebuilt"]) == (keeps, not keeps)
    workshop.check_pulls(found["digest"], dockerd=keeps)


@pytest.mark.parametrize("workshop", [lambda seed: make_index(seed, "oci")], indirect=True)
def test_skopeo_copy_of_all_platforms(workshop: Workshop) -> None:
    """An index with both platforms, under its own digest; a name that the archive does not have is given."""
    workshop.skopeo(
        "copy", "--all", "--src-tls-verify=false", f"docker://{workshop.address}/library/app:1", f"oci-archive:{workshop.tar}"
    )
    found = workshop.import_("--as", "app:1")
    assert found["digest"] == workshop.image.digest
    assert found["platforms"] == ["linux/amd64", "linux/arm64"]
    workshop.check_pulls(found["digest"], dockerd=True)


@_DOCKER_AND_OCI
def test_buildah_push(workshop: Workshop, form: str) -> None:
    """buildah's archives of a pulled image."""
    source = f"{workshop.address}/library/app:1"
    trust = str(policy(workshop.folder))
    workshop.containers("buildah", "pull", "-q", "--tls-verify=false", "--signature-policy", trust, source)
    target = f"{form}:{workshop.tar}:docker.io/library/app:1"
    workshop.containers("buildah", "push", "-q", "--signature-policy", trust, source, target)
    found = workshop.import_()
    assert found["image"] == "docker.io/library/app:1"
    workshop.check_pulls(found["digest"])


def _crane_tarball(folder: Path, source: str, tar: Path) -> list[str]:
    run("crane", "pull", "--insecure", source, str(tar))
    return []


def _crane_layout(folder: Path, source: str, tar: Path) -> list[str]:
    run("crane", "pull", "--insecure", "--format", "oci", source, str(folder / "layout"))
    run("tar", "-czf", str(tar), "-C", str(folder / "layout"), ".")
    return ["--as", "app:1"]


@pytest.mark.parametrize(("write", "keeps"), [(_crane_tarball, False), (_crane_layout, True)])
def test_crane_pull(workshop: Workshop, write: Callable[[Path, str, Path], list[str]], keeps: bool) -> None:
    """Its tarball has compressed layers and docker's manifest.json; its layout, packed with gzip, keeps the digest."""
    require("crane")
    named = write(workshop.folder, f"{workshop.address}/library/app:1", workshop.tar)
    if not named:
        found = workshop.import_()
        assert found["image"] == f"{workshop.address}/library/app:1"
        assert found["rebuilt"]
        layers = json.loads(workshop.image.manifests[-1][1])["layers"]
        blobs = workshop.folder / "cache" / "blobs" / "sha256"
        made = json.loads((blobs / found["digest"].removeprefix("sha256:")).read_text())
        assert [layer["digest"] for layer in made["layers"]] == [layer["digest"] for layer in layers]
        return
    found = workshop.import_(*named)
    assert (found["digest"] == workshop.image.digest) == keeps
    workshop.check_pulls(found["digest"])
