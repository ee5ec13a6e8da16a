"""Real clients push to hosted repositories, and pull what they pushed."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_bundles import Buildkitd
from tests.e2e.test_dockerd import Dockerd
from tests.e2e.test_podman import policy
from tests.support.images import Image, make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.programs import DockerRegistry, require, require_root, run

BASE = "library/base"


@dataclass
class Office:
    """A mirror with hosted repositories in front of a registry that has a base image."""

    mirror: MirrorProcess
    registry: DockerRegistry
    base: Image
    folder: Path

    @property
    def address(self) -> str:
        """The mirror's host and port."""
        return self.mirror.url.removeprefix("http://")

    def get(self, path: str) -> Any:
        """A JSON document of the mirror."""
        with urllib.request.urlopen(f"{self.mirror.url}{path}") as response:
            return json.load(response)

    def check_posts(self, repository: str, *statuses: int) -> None:
        """Checks how the requests that begin an upload or mount a blob were answered, by the access log, which is written from time to time."""
        deadline = time.monotonic() + PATIENCE
        while (found := self._posts(repository)) != sorted(statuses):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def _posts(self, repository: str) -> list[int]:
        lines = [json.loads(line) for line in self.mirror.log.splitlines() if line.startswith("{") and line.endswith("}")]
        return sorted(
            line["status"] for line in lines if line["method"] == "POST" and line["repository"] == f"docker.io/{repository}"
        )

    def layout(self) -> Path:
        """An OCI layout with an image of its own, tagged ``one``."""
        require("umoci")
        path = self.folder / "layout"
        run("umoci", "init", "--layout", str(path))
        run("umoci", "new", "--image", f"{path}:one")
        file = self.folder / "file"
        file.write_bytes(b"content" * 100_000)
        run("umoci", "insert", "--image", f"{path}:one", str(file), "/file")
        return path


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    registry = DockerRegistry(folder / "registry")
    base = make_image(71, "docker")
    push(registry.url, BASE, "1", base)
    config = folder / "mirror.toml"
    config.write_text('[hosted]\nrepositories = ["team/**"]\n')
    with MirrorProcess(folder / "cache", {"docker.io": registry.url}, "--config", str(config)) as mirror:
        yield Office(mirror, registry, base, folder)
        assert "Traceback" not in mirror.log
        # No registry was ever asked for what lives here.
        assert registry.asked("GET", "team/") == registry.asked("HEAD", "team/") == 0
        assert mirror.terminate() == 0
    registry.stop()


def test_docker_29_pushes(office: Office) -> None:
    """From its containerd, where an image has the digest that it was pulled with, and still has when it comes back from here."""
    daemon = Dockerd(office.mirror.url, program="dockerd-29")
    base, mine = f"{office.address}/{BASE}:1", f"{office.address}/team/docker-29:1"
    try:
        daemon.docker("pull", "-q", base)
        daemon.docker("tag", base, mine)
        daemon.docker("push", mine)
        daemon.docker("rmi", base, mine)
        daemon.docker("pull", "-q", mine)
        assert json.loads(daemon.docker("image", "inspect", mine))[0]["Id"] == office.base.digest
        assert office.get("/v2/team/docker-29/tags/list")["tags"] == ["1"]
    finally:
        daemon.stop()


def test_docker_pushes_and_never_sends_a_cached_layer(office: Office) -> None:
    """The layers of a base image that came by the mirror are mounted; a container's own layer is sent. Docker pulls both back."""
    daemon = Dockerd(office.mirror.url)
    base, mine = f"{office.address}/{BASE}:1", f"{office.address}/team/docker:1"
    try:
        daemon.docker("pull", "-q", base)
        daemon.docker("tag", base, mine)
        daemon.docker("push", mine)
        # The configuration alone was sent.
        office.check_posts("team/docker", *[201] * (len(office.base.blobs) - 1), 202)
        made = daemon.docker("create", base, "/nothing").strip()
        (office.folder / "own").write_text("own")
        daemon.docker("cp", str(office.folder / "own"), f"{made}:/own")
        daemon.docker("commit", made, f"{office.address}/team/docker:2")
        daemon.docker("push", f"{office.address}/team/docker:2")
        pushed = json.loads(daemon.docker("image", "inspect", f"{office.address}/team/docker:2"))[0]
        for tag in ("1", "2"):
            daemon.docker("rmi", "-f", f"{office.address}/team/docker:{tag}")
        daemon.docker("rm", made)
        daemon.docker("pull", "-q", f"{office.address}/team/docker:2")
        # Behind registry-mirrors it has its short name.
        daemon.docker("pull", "-q", "team/docker:1")
        assert json.loads(daemon.docker("image", "inspect", f"{office.address}/team/docker:2"))[0]["Id"] == pushed["Id"]
        assert office.get("/v2/team/docker/tags/list")["tags"] == ["1", "2"]
    finally:
        daemon.stop()


def test_podman_and_buildah_push(office: Office, tmp_path: Path) -> None:
    """What buildah builds, podman pulls, pushes under another name, and pulls again."""
    require("podman", "buildah")
    require_root("podman, as it is run here,")
    run_root = tempfile.mkdtemp(prefix="podman-")
    storage = f"--root {tmp_path}/storage --runroot {run_root} --storage-driver vfs".split()
    environment = {"HOME": str(tmp_path), "BUILDAH_ISOLATION": "chroot"}
    signatures = ("--signature-policy", str(policy(tmp_path)))

    def buildah(*arguments: str) -> str:
        return run("buildah", *storage, *arguments, environment=environment).strip()

    def podman(*arguments: str) -> str:
        return run("podman", *storage, "--cgroup-manager", "cgroupfs", *arguments, environment=environment)

    (tmp_path / "file").write_bytes(b"buildah" * 10_000)
    name, other = f"{office.address}/team/buildah:1", f"{office.address}/team/podman:1"
    container = buildah("from", "scratch")
    buildah("copy", "-q", container, str(tmp_path / "file"), "/file")
    buildah("commit", "-q", *signatures, container, "built")
    buildah("push", "--tls-verify=false", *signatures, "built", f"docker://{name}")
    buildah("rm", container)
    podman("pull", "-q", "--tls-verify=false", *signatures, name)
    podman("tag", name, other)
    podman("push", "--tls-verify=false", *signatures, other)
    podman("rmi", "-f", "built", name, other)
    podman("pull", "-q", "--tls-verify=false", *signatures, other)
    assert json.loads(podman("image", "inspect", other))[0]["RepoTags"] == [other]
    shutil.rmtree(run_root, ignore_errors=True)


def test_skopeo_and_crane_push_copy_list_and_delete(office: Office, tmp_path: Path) -> None:
    """An image is copied in, mounted to another name, listed, and deleted by tag and by digest."""
    require("skopeo", "crane")
    layout = office.layout()
    one, two = f"{office.address}/team/skopeo:1", f"{office.address}/team/crane:1"
    run(
        "skopeo",
        "--policy",
        str(policy(tmp_path)),
        "copy",
        "-q",
        "--dest-tls-verify=false",
        f"oci:{layout}:one",
        f"docker://{one}",
    )
    digest = run("crane", "digest", "--insecure", one).strip()
    run("crane", "copy", "--insecure", one, two)
    office.check_posts("team/crane", 201, 201)
    assert run("crane", "digest", "--insecure", two).strip() == digest
    run("crane", "validate", "--insecure", "--remote", two)
    run("crane", "tag", "--insecure", two, "2")
    assert run("crane", "ls", "--insecure", f"{office.address}/team/crane").split() == ["1", "2"]
    assert {"team/crane", "team/skopeo"} <= set(run("crane", "catalog", "--insecure", office.address).split())
    run("crane", "delete", "--insecure", two)
    assert run("crane", "ls", "--insecure", f"{office.address}/team/crane").split() == ["2"]
    run("crane", "delete", "--insecure", f"{office.address}/team/crane@{digest}")
    assert run("crane", "ls", "--insecure", f"{office.address}/team/crane").split() == []
    run("skopeo", "delete", "--tls-verify=false", f"docker://{one}")
    assert office.get("/v2/team/skopeo/tags/list")["tags"] == []


def test_helm_pushes_a_chart(office: Office, tmp_path: Path) -> None:
    """And pulls it."""
    require("helm")
    run("helm", "create", str(tmp_path / "app"))
    run("helm", "package", str(tmp_path / "app"), "-d", str(tmp_path))
    [chart] = tmp_path.glob("app-*.tgz")
    run("helm", "push", str(chart), f"oci://{office.address}/team/charts", "--plain-http")
    (tmp_path / "pulled").mkdir()
    run("helm", "pull", f"oci://{office.address}/team/charts/app", "--plain-http", "-d", str(tmp_path / "pulled"))
    assert (tmp_path / "pulled" / chart.name).read_bytes() == chart.read_bytes()


def test_oras_pushes_attaches_and_discovers(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact of files, an SBOM attached to it, which the referrers API lists, all copied with it to another name, pulled, and deleted."""
    require("oras")
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("notes of the lesson")
    Path("sbom.json").write_text("{}")
    one, two = f"{office.address}/team/oras:1", f"{office.address}/team/copied:1"
    plain, kind = "--plain-http", "application/vnd.example.sbom"
    run("oras", "push", plain, "--artifact-type", "application/vnd.example.lesson", one, "notes.txt:text/plain")
    run("oras", "attach", plain, "--artifact-type", kind, one, "sbom.json:application/json")
    run("oras", "cp", "-r", "--from-plain-http", "--to-plain-http", one, two)
    for name in (one, two):
        found = json.loads(run("oras", "discover", plain, "--format", "json", name))
        assert [referrer["artifactType"] for referrer in found["referrers"]] == [kind]
    run("oras", "pull", plain, "-o", "pulled", two)
    assert Path("pulled/notes.txt").read_text() == "notes of the lesson"
    assert run("oras", "repo", "tags", plain, f"{office.address}/team/oras").split() == ["1"]
    run("oras", "manifest", "delete", plain, "-f", one)
    assert office.get("/v2/team/oras/tags/list")["tags"] == []


@pytest.mark.parametrize("form", ["bundle", "tag"])
def test_cosign_signs_what_is_hosted(office: Office, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By key, in the new form (a bundle that refers to the image) and in the old (a tag); cosign verifies it there, and not by another key."""
    require("cosign", "crane")
    monkeypatch.setenv("COSIGN_PASSWORD", "")
    repository = f"{office.address}/team/signed-{form}"
    run("crane", "copy", "--insecure", f"{office.address}/{BASE}:1", f"{repository}:1")
    image = f"{repository}@{run('crane', 'digest', '--insecure', f'{repository}:1').strip()}"
    for name in ("key", "other"):
        run("cosign", "generate-key-pair", f"--output-key-prefix={tmp_path}/{name}")
    new = f"--new-bundle-format={'true' if form == 'bundle' else 'false'}"
    options = ("--allow-http-registry", "--tlog-upload=false", "--use-signing-config=false", new)
    run("cosign", "sign", "--yes", *options, f"--key={tmp_path}/key.key", image)
    verify = ("cosign", "verify", "--allow-http-registry", "--insecure-ignore-tlog=true", new)
    run(*verify, f"--key={tmp_path}/key.pub", image)
    with pytest.raises(AssertionError):
        run(*verify, f"--key={tmp_path}/other.pub", image)
    assert any(tag.startswith("sha256-") for tag in office.get(f"/v2/team/signed-{form}/tags/list")["tags"]) is (form == "tag")


def test_buildkit_pushes_an_image_and_a_build_cache(office: Office, tmp_path: Path) -> None:
    """With --push semantics, and a cache in both forms, which the next build uses."""
    builder = Buildkitd(tmp_path, office.address)
    image = f"type=image,name={office.address}/team/buildkit:1,push=true"
    dockerfile = "FROM scratch\nCOPY Dockerfile /one\nCOPY Dockerfile /two\n"
    try:
        for form in ("true", "false"):
            cache = f"type=registry,ref={office.address}/team/buildkit:cache-{form}"
            builder.build(
                dockerfile, "--output", image, "--export-cache", f"{cache},mode=max,image-manifest={form},oci-mediatypes=true"
            )
            builder.prune()
            assert "CACHED" in builder.build(dockerfile, "--import-cache", cache)
            builder.prune()
    finally:
        builder.stop()
    assert office.get("/v2/team/buildkit/tags/list")["tags"] == ["1", "cache-false", "cache-true"]


@pytest.mark.parametrize(
    "push_to",
    [
        lambda address, folder: ("crane", "copy", "--insecure", f"{address}/{BASE}:1", f"{address}/other/app:1"),
        lambda address, folder: (
            *("skopeo", "--policy", str(policy(folder)), "copy", "--src-tls-verify=false", "--dest-tls-verify=false"),
            *(f"docker://{address}/{BASE}:1", f"docker://{address}/app:1"),
        ),
    ],
    ids=["crane", "skopeo"],
)
def test_clients_show_why_a_push_is_refused(
    office: Office, tmp_path: Path, push_to: Callable[[str, Path], tuple[str, ...]]
) -> None:
    """The mirror's own words, with the setting that would allow it."""
    command = push_to(office.address, tmp_path)
    require(command[0])
    with pytest.raises(AssertionError, match=r"hosted\.repositories"):
        run(*command)
