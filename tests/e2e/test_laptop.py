"""``mirror export --laptop``: real clients pull from the tar, on a machine that has Python and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.test_bundles import INDEX, OCI, SINGLE, Source
from tests.e2e.test_containerd import Containerd
from tests.e2e.test_dockerd import Dockerd
from tests.e2e.test_podman import policy
from tests.support.images import digest_of, make_image
from tests.support.laptops import PYTHON, Laptop
from tests.support.patience import PATIENCE
from tests.support.programs import require, run

LARGE = "quay.io/owner/large:3"
"""An image that no piece of 1 MiB holds whole."""
NAMES = (SINGLE, INDEX, OCI, LARGE)
PULLS = 40


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    made.add(LARGE, make_image(14, "oci", size=2_500_000))
    yield made
    made.registry.stop()


@pytest.fixture
def serve() -> Iterator[Callable[..., Laptop]]:
    """Starts laptops, which are stopped at the end."""
    started: list[Laptop] = []

    def start(folder: Path, command: list[str] | None = None) -> Laptop:
        started.append(Laptop(folder, command))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def carried(source: Source, tmp_path: Path, *arguments: str) -> Path:
    """A folder with a bundle and what serves it, on a stick, away from where it was made. The registry is gone."""
    source.export(*NAMES, "--laptop", *arguments, tar="lab/lab.tar")
    source.registry.stop()
    stick = tmp_path / "a stick" / "lab 3"
    stick.parent.mkdir()
    return Path(shutil.move(tmp_path / "lab", stick))


def pulled(source: Source, laptop: Laptop, name: str, target: Path, rules: Path) -> None:
    """Pulls with skopeo, and compares every byte."""
    address = f"docker://{laptop.address}/{name}"
    run(
        "skopeo",
        "--policy",
        str(rules),
        "copy",
        "--override-arch",
        "amd64",
        "--src-tls-verify=false",
        address,
        f"dir:{target}",
        seconds=170,
    )
    image = source.of_platform(name)
    assert digest_of((target / "manifest.json").read_bytes()) == digest_of(image.manifests[-1][1])
    for digest, data in image.blobs.items():
        assert (target / digest.partition(":")[2]).read_bytes() == data
    shutil.rmtree(target)


@pytest.mark.parametrize("split", [False, True], ids=["one file", "pieces"])
def test_forty_pulls_at_once_out_of_the_tar(source: Source, serve: Callable[..., Laptop], tmp_path: Path, split: bool) -> None:
    """Every one of them whole, byte for byte, from a path with spaces, and from pieces as well; nothing is written to the stick."""
    require("skopeo")
    stick = carried(source, tmp_path, *(["--split", "1MiB"] if split else []))
    before = {path.name: path.stat().st_mtime_ns for path in stick.iterdir()}
    assert len([name for name in before if name.startswith("lab.tar.00")]) == (4 if split else 0)
    laptop = serve(stick)
    rules = policy(tmp_path)
    with ThreadPoolExecutor(PULLS) as pool:
        pulls = [
            pool.submit(pulled, source, laptop, NAMES[number % len(NAMES)], tmp_path / f"copy-{number}", rules)
            for number in range(PULLS)
        ]
    for one in pulls:
        one.result()
    assert {path.name: path.stat().st_mtime_ns for path in stick.iterdir()} == before
    assert "Traceback" not in laptop.log


def test_python_alone_is_enough(source: Source, serve: Callable[..., Laptop], tmp_path: Path) -> None:
    """Without any installed package, its own settings or the folder it is in: ``python3 -I -S``."""
    require("skopeo")
    stick = carried(source, tmp_path)
    laptop = serve(stick, [PYTHON, "-I", "-S", str(stick / "mirror.pyz")])
    pulled(source, laptop, INDEX, tmp_path / "copy", policy(tmp_path))


def test_docker_and_containerd_pull_from_a_laptop(source: Source, serve: Callable[..., Laptop], tmp_path: Path) -> None:
    """dockerd by a short name through registry-mirrors and by the laptop's name, containerd through hosts.toml: with the registry's digests."""
    laptop = serve(carried(source, tmp_path))
    dockerd = Dockerd(laptop.url)
    try:
        for name, asked in (
            (SINGLE, "single:1"),
            (INDEX, "both:1"),
            (OCI, f"{laptop.address}/{OCI}"),
            (LARGE, f"{laptop.address}/{LARGE}"),
        ):
            dockerd.docker("pull", asked)
            inspected = json.loads(dockerd.docker("image", "inspect", asked))[0]
            assert inspected["Id"] in source.of_platform(name).blobs
            assert inspected["RepoDigests"] == [f"{asked.rpartition(':')[0]}@{source.images[name].digest}"]
        with pytest.raises(AssertionError, match="not in the bundle"):
            dockerd.docker("pull", f"{laptop.address}/{OCI}9")
        dockerd.docker("tag", "single:1", f"{laptop.address}/mine:1")
        with pytest.raises(AssertionError, match="nothing can be pushed"):
            dockerd.docker("push", f"{laptop.address}/mine:1")
    finally:
        dockerd.stop()
    containerd = Containerd(tmp_path / "containerd", laptop.url)
    try:
        for name in (SINGLE, INDEX, OCI):
            containerd.pull(name)
            for digest, data in source.of_platform(name).blobs.items():
                assert containerd.content(digest) == data
        listed = {line.split()[0]: line.split()[2] for line in containerd.ctr("images", "ls").splitlines()[1:]}
        assert listed == {name: source.images[name].digest for name in (SINGLE, INDEX, OCI)}
    finally:
        containerd.stop()


def test_a_damaged_layer_is_never_handed_out(source: Source, serve: Callable[..., Laptop], tmp_path: Path) -> None:
    """The pull of its image fails, naming it and what to do; the other images are served."""
    require("skopeo")
    stick = carried(source, tmp_path)
    tar = stick / "lab.tar"
    content = tar.read_bytes()
    layers = json.loads(source.of_platform(OCI).manifests[-1][1])["layers"]
    layer = source.of_platform(OCI).blobs[layers[-1]["digest"]]
    at = content.index(layer) + len(layer) // 2
    tar.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    laptop = serve(stick)
    target, rules = tmp_path / "copy", policy(tmp_path)
    with pytest.raises(AssertionError, match="500"):
        pulled(source, laptop, OCI, target, rules)
    assert layer[: len(layer) // 2] not in b"".join(path.read_bytes() for path in target.rglob("*") if path.is_file())
    shutil.rmtree(target, ignore_errors=True)
    pulled(source, laptop, INDEX, target, rules)
    assert f"{layers[-1]['digest']} is damaged in lab.tar: copy lab.tar again" in laptop.log


UNUSABLE = {
    "cut": "lab.tar is damaged, cut off, or no tar",
    "no tar": "lab.tar is damaged, cut off, or no tar",
    "first piece": "lab.tar: the piece lab.tar.000 is missing",
    "middle piece": "lab.tar: the piece lab.tar.001 is missing",
    "last piece": "lab.tar is damaged, cut off, or no tar",
    "cut piece": "lab.tar: its pieces are not all of one size",
    "nothing": "put lab.tar beside this program",
}


@pytest.mark.parametrize("shape", UNUSABLE)
def test_what_cannot_be_served_is_said_at_the_start(source: Source, tmp_path: Path, shape: str) -> None:
    """A line that names the file and what to do, and exit status 1."""
    split = "piece" in shape
    stick = carried(source, tmp_path, *(["--split", "1MiB"] if split else []))
    tar, pieces = stick / "lab.tar", sorted(stick.glob("lab.tar.*"))
    if shape == "no tar":
        tar.write_bytes(b"\x1f\x8b" * 10_000)
    elif shape.startswith("cut"):
        cut = pieces[1] if split else tar
        with open(cut, "r+b") as file:
            file.truncate(cut.stat().st_size * 2 // 3)
    else:
        {"first piece": pieces[:1], "middle piece": pieces[1:2], "last piece": pieces[-1:], "nothing": [tar]}[shape][0].unlink()
    command = ["sh", str(stick / "start.sh"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert UNUSABLE[shape] in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
