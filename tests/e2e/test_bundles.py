"""Bundles that the mirror exports, loaded by the real tools: digests are kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.manifests import OCI_INDEX
from tests.e2e.test_containerd import Containerd
from tests.e2e.test_dockerd import Dockerd
from tests.e2e.test_podman import policy
from tests.support.commands import mirror
from tests.support.images import Image, digest_of, make_image, make_index, push
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.programs import DockerRegistry, Program, require, require_root, run

SINGLE, INDEX, OCI = "docker.io/library/single:1", "docker.io/library/both:1", "ghcr.io/owner/oci:2"


class Source:
    """A registry with three images, and a cache directory to export from."""

    def __init__(self, folder: Path) -> None:
        self._cache = folder / "cache"
        self._folder = folder
        self.registry = DockerRegistry(folder / "registry")
        self.images: dict[str, Image] = {}
        for name, image in ((SINGLE, make_image(11, "docker")), (INDEX, make_index(12, "oci")), (OCI, make_image(13, "oci"))):
            self.add(name, image)

    def add(self, name: str, image: Image) -> None:
        self.images[name] = image
        repository, tag = name.partition("/")[2].split(":")
        push(self.registry.url, repository, tag, image)

    @property
    def flags(self) -> list[str]:
        upstreams = [f"--upstream={registry}={self.registry.url}" for registry in ("docker.io", "ghcr.io", "quay.io")]
        return ["--cache-dir", str(self._cache), *upstreams]

    def export(self, *arguments: str, tar: str = "lab.tar") -> Path:
        target = self._folder / tar
        done = mirror("export", *arguments, "--platform", "linux/amd64", "-o", str(target), *self.flags)
        assert done.returncode == 0, done.stderr
        return target

    def of_platform(self, name: str) -> Image:
        return make_image(12, "oci") if name == INDEX else self.images[name]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.registry.stop()


@pytest.fixture
def dockerd() -> Iterator[Dockerd]:
    daemon = Dockerd("http://127.0.0.1:1")
    yield daemon
    daemon.stop()


def check_docker(dockerd: Dockerd, source: Source, name: str, folder: Path) -> None:
    """Its configuration has the registry's digest, and its layers unpack to what they were."""
    image = source.of_platform(name)
    config = json.loads(dockerd.docker("image", "inspect", name))[0]
    assert config["Id"] in image.blobs
    files = dockerd.save(name, folder / "saved.tar")
    manifest = json.loads(files["manifest.json"])[0]
    assert files[manifest["Config"]] == image.blobs[config["Id"]]
    layers = [digest_of(files[layer]) for layer in manifest["Layers"]]
    assert layers == json.loads(image.blobs[config["Id"]])["rootfs"]["diff_ids"]


def test_docker_loads_a_bundle_a_pipe_and_pieces(source: Source, dockerd: Dockerd, tmp_path: Path) -> None:
    """All images under their names, from the file, from standard output, and from pieces that `cat` joins."""
    names = [SINGLE, INDEX, OCI]
    tar = source.export(*names)

    def wiped() -> None:
        dockerd.docker("image", "rm", "-f", *names)
        assert not dockerd.docker("image", "ls", "-q")

    assert "Loaded image: single:1" in dockerd.docker("load", "-i", str(tar))
    for name in names:
        check_docker(dockerd, source, name, tmp_path)
    wiped()
    exported = [*names, "--platform", "linux/amd64", "-o", "-", *source.flags]
    piped = subprocess.run([sys.executable, "-m", "mirror", "export", *exported], capture_output=True, check=True)
    assert piped.stdout == tar.read_bytes()
    source.export(*names, "--split", "1MiB", tar="pieces.tar")
    pieces = sorted(tmp_path.glob("pieces.tar.*"))
    assert {piece.stat().st_size for piece in pieces[:-1]} in (set(), {1024 * 1024})
    assert b"".join(piece.read_bytes() for piece in pieces) == tar.read_bytes()
    environment = {**os.environ, "DOCKER_HOST": dockerd.host}
    subprocess.run(["sh", "-c", f"cat {tmp_path}/pieces.tar.* | docker load"], env=environment, check=True)
    for name in names:
        check_docker(dockerd, source, name, tmp_path)


def test_a_mix_of_two_bundles_is_loaded_by_nobody(source: Source, dockerd: Dockerd, tmp_path: Path) -> None:
    """What `curl -C -` without If-Range makes of a tag that has moved: wherever the layers of the one end and the rest of the other begins, dockerd and `mirror import` refuse it."""
    before = source.export(SINGLE).read_bytes()
    source.add(SINGLE, make_image(14, "docker"))
    arguments = ["export", SINGLE, "--platform", "linux/amd64", "-o", str(tmp_path / "newer.tar")]
    done = mirror(*arguments, "--cache-dir", str(tmp_path / "newer"), f"--upstream=docker.io={source.registry.url}")
    assert done.returncode == 0, done.stderr
    after = (tmp_path / "newer.tar").read_bytes()
    assert after != before
    mixed = tmp_path / "mixed.tar"
    shorter = min(len(before), len(after))
    for cut in (shorter // 4, shorter // 2, shorter - 20_000):
        mixed.write_bytes(before[:cut] + after[cut:])
        assert mixed.read_bytes() not in (before, after)
        with pytest.raises(AssertionError):
            dockerd.docker("load", "-i", str(mixed))
        assert dockerd.docker("image", "ls", "-q") == ""
        target = tmp_path / f"target-{cut}"
        assert mirror("import", str(mixed), "--cache-dir", str(target)).returncode == 1
        assert json.loads(mirror("ls", "--json", "--cache-dir", str(target)).stdout)["images"] == []


def test_docker_loads_a_delta_where_the_base_is_and_refuses_it_by_name_elsewhere(
    source: Source, dockerd: Dockerd, tmp_path: Path
) -> None:
    """Layers of an earlier bundle are left out; Docker has them already, or says which blob is missing."""
    base = source.export(SINGLE)
    image = source.images[SINGLE]
    newer = Image(dict(image.blobs), list(image.manifests))
    config = json.loads(image.blobs[json.loads(image.manifests[0][1])["config"]["digest"]])
    config["config"]["Cmd"] = ["/bin/false"]
    body = json.loads(image.manifests[0][1])
    changed = json.dumps(config).encode()
    newer.blobs[digest_of(changed)] = changed
    body["config"].update(digest=digest_of(changed), size=len(changed))
    newer.manifests = [(image.manifests[0][0], json.dumps(body).encode())]
    push(source.registry.url, "library/single", "2", newer)
    delta = source.export("single:2", "--since", str(base), tar="delta.tar")
    assert delta.stat().st_size < 20_000 < base.stat().st_size
    with pytest.raises(AssertionError, match=body["layers"][0]["digest"].partition(":")[2]):
        dockerd.docker("load", "-i", str(delta))
    dockerd.docker("load", "-i", str(base))
    dockerd.docker("load", "-i", str(delta))
    loaded = json.loads(dockerd.docker("image", "inspect", "single:2"))[0]
    assert loaded["Id"] == digest_of(changed)


def test_containerd_imports_a_bundle(source: Source, tmp_path: Path) -> None:
    """Every image under its full name and with the registry's digest; every blob byte for byte."""
    tar = source.export(SINGLE, INDEX, OCI)
    containerd = Containerd(tmp_path / "containerd", "http://127.0.0.1:1")
    try:
        containerd.ctr("images", "import", "--snapshotter", "native", str(tar))
        listed = {line.split()[0]: line.split()[2] for line in containerd.ctr("images", "ls").splitlines()[1:]}
        assert listed == {name: image.digest for name, image in source.images.items()}
        for name in source.images:
            for digest, data in source.of_platform(name).blobs.items():
                assert containerd.content(digest) == data
    finally:
        containerd.stop()


def test_podman_loads_a_bundle(source: Source, tmp_path: Path) -> None:
    """All images, under their full names, each with the registry's configuration."""
    require("podman")
    require_root("podman, as it is run here,")
    tar = source.export(SINGLE, INDEX, OCI)
    run_root = tempfile.mkdtemp(prefix="podman-")
    storage = f"--root {tmp_path}/storage --runroot {run_root} --storage-driver vfs --cgroup-manager cgroupfs".split()
    environment = {"HOME": str(tmp_path)}
    run("podman", *storage, "load", "--signature-policy", str(policy(tmp_path)), "-i", str(tar), environment=environment)
    for name in source.images:
        inspected = json.loads(run("podman", *storage, "image", "inspect", name, environment=environment))[0]
        assert f"sha256:{inspected['Id']}" in source.of_platform(name).blobs
    shutil.rmtree(run_root)


def test_skopeo_copies_out_of_a_bundle(source: Source, tmp_path: Path) -> None:
    """Each image by its full name, with the registry's manifest and blobs. skopeo finds images in Docker's format only as a Docker archive: then the configuration is."""
    require("skopeo")
    tar = source.export(SINGLE, INDEX, OCI)
    target = tmp_path / "copy"
    skopeo = ["skopeo", "--policy", str(policy(tmp_path)), "copy"]
    for name in (INDEX, OCI):
        run(*skopeo, "--override-arch", "amd64", f"oci-archive:{tar}:{name}", f"dir:{target}")
        image = source.of_platform(name)
        assert digest_of((target / "manifest.json").read_bytes()) == digest_of(image.manifests[-1][1])
        for digest, data in image.blobs.items():
            assert (target / digest.partition(":")[2]).read_bytes() == data
        shutil.rmtree(target)
    run(*skopeo, f"docker-archive:{tar}:{SINGLE}", f"dir:{target}")
    config = json.loads((target / "manifest.json").read_bytes())["config"]["digest"]
    assert config in source.images[SINGLE].blobs


def test_crane_pushes_the_unpacked_layout_and_the_tar(source: Source, tmp_path: Path) -> None:
    """The tar as Docker's to a registry; its digest is what crane computes from the registry's own blobs."""
    require("crane")
    tar = source.export(OCI)
    target = DockerRegistry(tmp_path / "target")
    try:
        reference = f"{target.url.removeprefix('http://')}/owner/oci:2"
        run("crane", "push", "--insecure", str(tar), reference)
        pushed = json.loads(run("crane", "manifest", "--insecure", reference))
        own = json.loads(source.images[OCI].manifests[-1][1])
        assert pushed["config"]["digest"] == own["config"]["digest"]
        layout = tmp_path / "layout"
        layout.mkdir()
        run("tar", "-xf", str(tar), "-C", str(layout))
        run("sh", "-c", f"cd {layout} && sha256sum --check --quiet SHA256SUMS")
        run("crane", "push", "--insecure", str(layout), reference)
        assert run("crane", "digest", "--insecure", reference).strip() == source.images[OCI].digest
    finally:
        target.stop()


def test_a_mirror_without_a_network_imports_a_signed_bundle_and_serves_it(source: Source, tmp_path: Path) -> None:
    """Export, import with the key, pull from the other mirror: the digest is the registry's; the import's own list makes the next bundle small."""
    require("skopeo", "openssl")
    private, public = tmp_path / "lab.key", tmp_path / "lab.pub"
    run("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(private))
    run("openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public))
    names = (SINGLE, INDEX, OCI)
    tar = source.export(*names, "--sign", str(private))
    lab = tmp_path / "lab"
    done = mirror("import", str(tar), "--require-key", str(public), "--cache-dir", str(lab))
    assert done.returncode == 0, done.stderr
    plain = source.export(*names, tar="plain.tar")
    assert mirror("import", str(plain), "--require-key", str(public), "--cache-dir", str(tmp_path / "none")).returncode == 1
    nowhere: dict[str, str | list[str]] = {"docker.io": "http://127.0.0.1:1", "ghcr.io": "http://127.0.0.1:1"}
    with MirrorProcess(lab, nowhere) as served:
        for name in names:
            target = tmp_path / "copy"
            address = f"docker://{served.url.removeprefix('http://')}/{name}"
            command = ["skopeo", "--policy", str(policy(tmp_path)), "copy", "--override-arch", "amd64", "--src-tls-verify=false"]
            run(*command, address, f"dir:{target}")
            image = source.of_platform(name)
            for digest, data in image.blobs.items():
                assert (target / digest.partition(":")[2]).read_bytes() == data
            shutil.rmtree(target)
    have = tmp_path / "have.txt"
    have.write_text(mirror("have", "--cache-dir", str(lab)).stdout)
    assert source.export(*names, "--have", str(have), tar="next.tar").stat().st_size < 40_000 < tar.stat().st_size


def test_an_image_by_digest_is_loaded_with_the_others(source: Source, dockerd: Dockerd, tmp_path: Path) -> None:
    """It has no name for Docker and podman, which refuse such names; containerd has it by its digest."""
    digest = source.images[OCI].digest
    by_digest = f"ghcr.io/owner/oci@{digest}"
    tar = source.export(SINGLE, by_digest)
    (config,) = (json.loads(body)["config"]["digest"] for _, body in source.images[OCI].manifests)
    dockerd.docker("load", "-i", str(tar))
    assert json.loads(dockerd.docker("image", "inspect", config))[0]["RepoTags"] == []
    check_docker(dockerd, source, SINGLE, tmp_path)
    require("podman")
    run_root = tempfile.mkdtemp(prefix="podman-")
    storage = f"--root {tmp_path}/storage --runroot {run_root} --storage-driver vfs --cgroup-manager cgroupfs".split()
    environment = {"HOME": str(tmp_path)}
    run("podman", *storage, "load", "--signature-policy", str(policy(tmp_path)), "-i", str(tar), environment=environment)
    assert json.loads(run("podman", *storage, "image", "inspect", config, environment=environment))
    assert json.loads(run("podman", *storage, "image", "inspect", SINGLE, environment=environment))
    shutil.rmtree(run_root)
    containerd = Containerd(tmp_path / "containerd", "http://127.0.0.1:1")
    try:
        containerd.ctr("images", "import", "--snapshotter", "native", str(tar))
        listed = {line.split()[0]: line.split()[2] for line in containerd.ctr("images", "ls").splitlines()[1:]}
        assert listed == {SINGLE: source.images[SINGLE].digest, by_digest: digest}
    finally:
        containerd.stop()


class Buildkitd:
    """A builder that knows how one registry is reached, by default by plain HTTP."""

    def __init__(self, folder: Path, registry: str, settings: str = "http = true\n") -> None:
        """`settings` are TOML, of the registry's table."""
        require("buildkitd", "buildctl")
        require_root("buildkitd, as it is run here,")
        self._folder = Path(tempfile.mkdtemp(prefix="buildkit-"))  # the path of a socket has 108 bytes at most
        self._context = folder / "build"
        self._context.mkdir()
        config = folder / "buildkitd.toml"
        config.write_text(f'[worker.oci]\nsnapshotter = "native"\n[registry."{registry}"]\n{settings}')
        command = ["buildkitd", "--config", str(config), "--root", f"{self._folder}/root", "--addr", self._address]
        self._daemon = Program(command, folder / "buildkitd.log")
        self._daemon.wait_until(lambda: "running server on" in self._daemon.log)

    @property
    def _address(self) -> str:
        return f"unix://{self._folder}/socket"

    def build(self, dockerfile: str, *options: str, **environment: str) -> str:
        """Builds without a result. Returns the output that tells which steps came from a cache."""
        (self._context / "Dockerfile").write_text(dockerfile)
        source = ["--local", f"context={self._context}", "--local", f"dockerfile={self._context}"]
        command = ["buildctl", "--addr", self._address, "build", "--progress", "plain", "--frontend", "dockerfile.v0", *source]
        done = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def prune(self) -> None:
        run("buildctl", "--addr", self._address, "prune", "--all")

    def stop(self) -> None:
        self._daemon.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def test_a_build_cache_that_buildkit_made_is_carried(source: Source, tmp_path: Path) -> None:
    """An index of layers, pushed by buildctl, exported, imported without a network: every blob is answered, and a build uses it."""
    builder = Buildkitd(tmp_path, f"127.0.0.1:{source.registry.port}")
    try:
        address = f"127.0.0.1:{source.registry.port}/library/app:cache"
        dockerfile = "FROM scratch\nCOPY Dockerfile /one\nCOPY Dockerfile /two\n"
        builder.build(dockerfile, "--export-cache", f"type=registry,ref={address},mode=max,image-manifest=false")
        tar = source.export("app:cache")
        url = f"{source.registry.url}/v2/library/app/manifests/cache"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": OCI_INDEX})) as answer:
            listed = json.load(answer)["manifests"]
        assert "application/vnd.buildkit.cacheconfig.v0" in {entry["mediaType"] for entry in listed}
        assert len(listed) == 3
        lab = tmp_path / "lab"
        done = mirror("import", str(tar), "--cache-dir", str(lab))
        assert done.returncode == 0, done.stderr
        source.registry.stop()
        with MirrorProcess(lab, {"docker.io": "http://127.0.0.1:1"}, "--offline") as served:
            for entry in listed:
                with urllib.request.urlopen(f"{served.url}/v2/library/app/blobs/{entry['digest']}") as answer:
                    assert digest_of(answer.read()) == entry["digest"]
            builder.prune()
            cache = f"type=registry,ref={served.url.removeprefix('http://')}/library/app:cache,registry.insecure=true"
            assert "CACHED" in builder.build(dockerfile, "--import-cache", cache)
    finally:
        builder.stop()
