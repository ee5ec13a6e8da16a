"""``mirror export`` and ``mirror have``."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mirror.bundles.signing import SignatureWrong, verify
from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest
from tests.support.commands import Commands
from tests.support.programs import run
from tests.support.scripted import Hold, Image, Scripted, Status

PLATFORMS = ("--platform", "linux/amd64")


def members(tar: Path | bytes) -> dict[str, bytes]:
    """What a bundle holds, in order; each name once, no links, no directories."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(tar if isinstance(tar, bytes) else tar.read_bytes())) as opened:
        for member in opened:
            assert member.isreg() and (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert member.name not in found
            file = opened.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def blobs(found: dict[str, bytes]) -> set[str]:
    """The digests in a bundle, each compared with the bytes under it."""
    digests = set()
    for name, content in found.items():
        if name.startswith("blobs/"):
            _, algorithm, hex_ = name.split("/")
            assert hashlib.new(algorithm, content).hexdigest() == hex_
            digests.add(f"{algorithm}:{hex_}")
    return digests


def checked(tar: Path | bytes) -> tuple[dict[str, bytes], Any]:
    """A bundle's members and its bundle.json, with SHA256SUMS compared with all of them."""
    found = members(tar)
    sums = {line[66:]: line[:64] for line in found["SHA256SUMS"].decode().splitlines()}
    for name, content in found.items():
        if name not in ("SHA256SUMS", "bundle.sig") and not name.startswith("blobs/sha512/"):
            assert sums.pop(name) == hashlib.sha256(content).hexdigest()
    assert not sums
    return found, json.loads(found["bundle.json"])


@pytest.fixture
def commands(upstream: Scripted, tmp_path: Path) -> Commands:
    return Commands(tmp_path / "cache", upstream)


async def test_a_bundle_holds_what_was_asked_for_byte_for_byte(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """What is missing is fetched, each blob once; of an index only the wanted platform; both are exact. A second run asks upstream for no content and writes the same bytes."""
    one = upstream.add_image("library/one", "1", layers=[os.urandom(70_000), os.urandom(513)])
    amd = upstream.add_image("library/two", layers=[os.urandom(30_000)])
    arm = upstream.add_image("library/two", layers=[os.urandom(30_000)])
    index, body = upstream.add_index("library/two", "2", [amd, arm])
    tar = tmp_path / "lab.tar"
    await commands("export", "one:1", "two:2", *PLATFORMS, "-o", str(tar))
    found, described = checked(tar)
    wanted = {one.digest, one.config, *one.layers, index, amd.digest, amd.config, *amd.layers}
    assert blobs(found) == {str(digest) for digest in wanted}
    assert found[f"blobs/sha256/{index.hex}"] == body
    assert [image["name"] for image in described["images"]] == ["docker.io/library/one:1", "docker.io/library/two:2"]
    assert described["images"][1]["digest"] == str(index)
    assert [entry["RepoTags"] for entry in json.loads(found["manifest.json"])] == [
        ["docker.io/library/one:1"],
        ["docker.io/library/two:2"],
    ]
    assert not list(tmp_path.glob(".writing-*"))
    for digest in wanted:
        assert upstream.count("GET", f"/blobs/{digest}") + upstream.count("GET", f"/manifests/{digest}") <= 1
    asked = upstream.count("GET", "/blobs/")
    again = tmp_path / "again.tar"
    await commands("export", "one:1", "two:2", *PLATFORMS, "-o", str(again))
    assert upstream.count("GET", "/blobs/") == asked
    assert again.read_bytes() == tar.read_bytes()


async def test_an_earlier_bundle_or_a_list_is_left_out(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """By `mirror have` of the receiver, or by `--since`, whose own omissions count too; manifests and configurations are always in."""
    base, second, third = (os.urandom(50_000) for _ in range(3))
    upstream.add_image("library/app", "1", layers=[base])
    newer = upstream.add_image("library/app", "2", layers=[base, second])
    newest = upstream.add_image("library/app", "3", layers=[base, second, third])

    async def export(tag: str, *arguments: str) -> tuple[Path, set[str], Any]:
        tar = tmp_path / f"{tag}.tar"
        await commands("export", f"app:{tag}", *PLATFORMS, *arguments, "-o", str(tar))
        found, described = checked(tar)
        return tar, blobs(found), described

    first, _, _ = await export("1")
    receiver = Commands(tmp_path / "receiver", upstream)
    await receiver("pull", "app:1", *PLATFORMS)
    have = tmp_path / "have.txt"
    have.write_text(await receiver("have"))
    delta, in_it, described = await export("2", "--have", str(have))
    assert in_it == {str(one) for one in (newer.digest, newer.config, newer.layers[1])}
    assert described["omitted"] == [{"digest": str(newer.layers[0]), "size": len(base)}]
    same, _, _ = await export("2", "--since", str(first))
    assert same.read_bytes() == delta.read_bytes()
    _, in_it, described = await export("3", "--since", str(delta))
    assert in_it == {str(one) for one in (newest.digest, newest.config, newest.layers[2])}
    assert [entry["digest"] for entry in described["omitted"]] == [str(layer) for layer in newest.layers[:2]]


async def test_a_file_that_is_no_list_and_no_bundle_is_refused(commands: Commands, tmp_path: Path) -> None:
    """By its name, and the line where a list is wrong; nothing is written."""
    wrong = tmp_path / "wrong"
    for content, option, words in (
        (b"sha256:abc\n", "--have", "line 1: 'sha256:abc' is not a digest"),
        (b"\xff\xfe", "--have", "is no text"),
        (b"sha256:abc\n", "--since", "is no bundle"),
        (b"", "--since", "is no bundle"),
    ):
        wrong.write_bytes(content)
        done = await commands.run("export", "app:1", option, str(wrong), "-o", str(tmp_path / "lab.tar"))
        assert done.returncode == 2
        assert words in done.stderr
        assert str(wrong) in done.stderr
    missing = await commands.run("export", "app:1", "--have", str(tmp_path / "none"), "-o", str(tmp_path / "lab.tar"))
    assert "No such file" in missing.stderr
    assert not (tmp_path / "lab.tar").exists()


async def test_what_refers_to_an_image_comes_with_it(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """Attestations of the chosen platform, referrers, referrers of those, and cosign's tags; in no index.json; not with --no-referrers. Offline too, once they are cached."""
    amd, arm = (upstream.add_image("library/app", layers=[os.urandom(1000)]) for _ in range(2))

    def attest(image: Image) -> tuple[Image, dict[str, Any]]:
        made = upstream.add_image("library/app", layers=[os.urandom(300)])
        annotations = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": str(image.digest)}
        platform = {"os": "unknown", "architecture": "unknown"}
        described = {"mediaType": OCI_MANIFEST, "digest": str(made.digest), "size": len(made.body)}
        return made, {**described, "platform": platform, "annotations": annotations}

    (mine, one), (_, two) = attest(amd), attest(arm)
    _, plain = upstream.add_index("library/app", "plain", [amd, arm])
    listed = json.loads(plain)
    listed["manifests"] += [one, two]
    index = upstream.add_manifest("library/app", "1", json.dumps(listed).encode(), OCI_INDEX)

    def subject(digest: Digest, size: int) -> dict[str, Any]:
        return {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": size}

    sbom = upstream.add_image("library/app", layers=[b"sbom"], subject=subject(amd.digest, len(amd.body)))
    nested = upstream.add_image("library/app", layers=[b"of the sbom"], subject=subject(sbom.digest, len(sbom.body)))
    signature = upstream.add_image("library/app", f"sha256-{index.hex}.sig", layers=[b"signature"])
    tar = tmp_path / "lab.tar"
    await commands("export", "app:1", *PLATFORMS, "-o", str(tar))
    found, described = checked(tar)

    def all_of(*images: Image) -> set[str]:
        return {str(index)} | {str(one) for image in images for one in (image.digest, image.config, *image.layers)}

    assert blobs(found) == all_of(amd, mine, sbom, nested, signature)
    assert len(json.loads(found["index.json"])["manifests"]) == len(json.loads(found["manifest.json"])) == 1
    assert {(entry["name"].removeprefix("docker.io/library/app"), entry["subject"]) for entry in described["referrers"]} == {
        (f":sha256-{index.hex}.sig", str(index)),
        (f"@{sbom.digest}", str(amd.digest)),
        (f"@{nested.digest}", str(sbom.digest)),
    }
    await commands("export", "app:1", *PLATFORMS, "--no-referrers", "-o", str(tmp_path / "without.tar"))
    assert blobs(checked(tmp_path / "without.tar")[0]) == all_of(amd)
    await upstream.stop()
    await commands("export", "app:1", *PLATFORMS, "--offline", "-o", str(tmp_path / "again.tar"))
    assert (tmp_path / "again.tar").read_bytes() == tar.read_bytes()


async def test_what_is_missing_is_named_and_nothing_is_written(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """Offline and where upstream fails: the image and its blobs are named, the status is 1, an older file stays. --all writes the others."""
    whole = upstream.add_image("library/whole", "1")
    broken = upstream.add_image("library/broken", "1")
    await commands("pull", "whole:1", "broken:1", *PLATFORMS)
    (tmp_path / "cache" / "blobs" / "sha256" / broken.layers[0].hex).unlink()
    tar = tmp_path / "lab.tar"
    tar.write_bytes(b"older")
    upstream.fail(str(broken.layers[0]), Status(500), times=100)
    asked = len(upstream.asked)
    for arguments in (["--offline"], []):
        done = await commands.run("export", "whole:1", "broken:1", "none:1", *PLATFORMS, *arguments, "-o", str(tar))
        assert done.returncode == 1
        assert (
            f"docker.io/library/broken:1 is not cached whole; 1 of its blobs and manifests (1000 B) are missing: {broken.layers[0]}"
            in done.stderr
        )
        assert "docker.io/library/none:1 is not cached" in done.stderr
        # What to do is only said where it has not just been tried.
        assert ("mirror pull docker.io/library/none:1" in done.stderr) == bool(arguments)
        if not arguments:
            assert "none:1 is not cached, and could not be fetched: docker.io has no manifest 1 in library/none" in done.stderr
            assert (
                f"and could not be fetched: {upstream.url}/v2/library/broken/blobs/{broken.layers[0]} answered 500" in done.stderr
            )
        assert "whole:1 is" not in done.stderr
        assert "nothing was written" in done.stderr
        assert (tar.read_bytes(), list(tmp_path.glob(".writing-*"))) == (b"older", [])
        if arguments:
            assert len(upstream.asked) == asked
    done = await commands.run("export", "--all", "-o", str(tar))
    assert done.returncode == 0
    assert "docker.io/library/broken:1 is not cached whole" in done.stderr
    assert blobs(checked(tar)[0]) == {str(one) for one in (whole.digest, whole.config, *whole.layers)}


async def test_pieces_are_whole_or_not_there_and_together_the_bundle(
    commands: Commands, upstream: Scripted, tmp_path: Path
) -> None:
    """`cat lab.tar.*` is what --output alone writes; each piece but the last has the size, of 1 MB at least."""
    upstream.add_image("library/app", "1", layers=[os.urandom(2_500_000), os.urandom(2_000_000)])
    tar = tmp_path / "lab.tar"
    await commands("export", "app:1", *PLATFORMS, "-o", str(tar))
    await commands("export", "app:1", *PLATFORMS, "--split", "1MiB", "-o", str(tmp_path / "split" / "lab.tar"), status=1)
    (tmp_path / "split").mkdir()
    await commands("export", "app:1", *PLATFORMS, "--split", "1MiB", "-o", str(tmp_path / "split" / "lab.tar"))
    pieces = sorted((tmp_path / "split").iterdir())
    assert [piece.name for piece in pieces] == [f"lab.tar.{number:03}" for number in range(5)]
    assert {piece.stat().st_size for piece in pieces[:-1]} == {1024 * 1024}
    assert b"".join(piece.read_bytes() for piece in pieces) == tar.read_bytes()
    (tmp_path / "split" / "lab.tar.005").write_bytes(b"of a larger bundle")
    await commands("export", "app:1", *PLATFORMS, "--split", "3MiB", "-o", str(tmp_path / "split" / "lab.tar"))
    assert b"".join(piece.read_bytes() for piece in sorted((tmp_path / "split").iterdir())) == tar.read_bytes()
    await commands("export", "app:1", *PLATFORMS, "--split", "1MB", "-o", str(tmp_path / "split" / "lab.tar"))
    assert (tmp_path / "split" / "lab.tar.000").stat().st_size == 1_000_000
    refused = await commands.run("export", "app:1", "--split", "999999", "-o", str(tar))
    assert (refused.returncode, "at least 1MB" in refused.stderr) == (2, True)


async def test_a_signed_bundle_is_verified_by_the_public_key_alone(
    commands: Commands, upstream: Scripted, tmp_path: Path
) -> None:
    """bundle.sig is over SHA256SUMS, whose members it names; another key, and other bytes, do not fit. Everything else is as without it."""
    upstream.add_image("library/app", "1")
    keys = {}
    for name in ("lab", "other"):
        private, public = tmp_path / f"{name}.key", tmp_path / f"{name}.pub"
        run("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(private))
        run("openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public))
        keys[name] = public.read_bytes()
    tar = tmp_path / "lab.tar"
    await commands("export", "app:1", *PLATFORMS, "--sign", str(tmp_path / "lab.key"), "-o", str(tar))
    found, _ = checked(tar)
    verify(found["SHA256SUMS"], found["bundle.sig"], keys["lab"])
    for sums, key, words in (
        (found["SHA256SUMS"] + b"x", keys["lab"], "changed after"),
        (found["SHA256SUMS"], keys["other"], "is required"),
    ):
        with pytest.raises(SignatureWrong, match=words):
            verify(sums, found["bundle.sig"], key)
    await commands("export", "app:1", *PLATFORMS, "-o", str(tmp_path / "plain.tar"))
    assert {**members(tmp_path / "plain.tar"), "bundle.sig": found["bundle.sig"]} == found
    rsa = tmp_path / "rsa.key"
    run("openssl", "genpkey", "-algorithm", "rsa", "-out", str(rsa))
    assert "not an Ed25519 key" in (await commands.run("export", "app:1", "--sign", str(rsa), "-o", str(tar))).stderr


async def test_only_a_regular_file_is_replaced(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """A device, a FIFO or a folder of that name stays what it is, and nothing is fetched."""
    upstream.add_image("library/app", "1")
    fifo, folder = tmp_path / "fifo", tmp_path / "folder"
    os.mkfifo(fifo)
    folder.mkdir()
    for target in (fifo, folder):
        done = await commands.run("export", "app:1", *PLATFORMS, "-o", str(target))
        assert done.returncode == 1
        assert "not a regular file" in done.stderr
    assert fifo.is_fifo()
    assert folder.is_dir()
    assert not upstream.asked


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
async def test_root_exports_from_another_users_cache_to_where_only_root_may_write(
    commands: Commands, upstream: Scripted, tmp_path: Path
) -> None:
    """The tar is the person's, what is in the cache stays the mirror's."""
    upstream.add_image("library/app", "1")
    await commands("pull", "app:1", *PLATFORMS)
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    for path in (tmp_path / "cache", *(tmp_path / "cache").rglob("*")):
        os.chown(path, 12345, 12345)
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    await commands("export", "app:1", *PLATFORMS, "--offline", "-o", str(private / "lab.tar"))
    assert (private / "lab.tar").stat().st_uid == 0
    assert {path.stat().st_uid for path in (tmp_path / "cache").rglob("*")} == {12345}


async def test_a_pipe_gets_the_bundle_and_a_closed_one_ends_it(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """`-o -` writes to the pipe what a file would hold; where its reader leaves, one sentence says so."""
    upstream.add_image("library/app", "1", layers=[os.urandom(3_000_000)])
    tar = tmp_path / "lab.tar"
    await commands("export", "app:1", *PLATFORMS, "-o", str(tar))
    flags = " ".join(commands.flags)
    command = f"{sys.executable} -m mirror export app:1 {' '.join(PLATFORMS)} -o - {flags}"
    for shell, expected in ((f"{command} | cat", tar.read_bytes()), (f"{command} | head -c 1000", tar.read_bytes()[:1000])):
        done = await asyncio.to_thread(subprocess.run, ["sh", "-c", shell], capture_output=True, check=False)
        assert done.stdout == expected
        assert b"Traceback" not in done.stderr
    assert b"closed the pipe" in done.stderr


async def test_ctrl_c_leaves_no_file_behind(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """Status 130 and a sentence; what was fetched is kept, and the next run writes the bundle."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(2_000_000)])
    hold = Hold(1_000_000)
    upstream.fail(f"/blobs/{image.layers[0]}", hold)
    tar = tmp_path / "lab.tar"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mirror", "export", "app:1", *PLATFORMS, "-o", str(tar), *commands.flags),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    await hold.reached.wait()
    assert list(tmp_path.glob(".writing-*"))
    process.send_signal(signal.SIGINT)
    _, stderr = await process.communicate()
    assert process.returncode == 130
    assert b"interrupted; run it again to go on" in stderr
    assert not list(tmp_path.glob("*.tar")) + list(tmp_path.glob(".writing-*"))
    hold.release.set()
    await commands("export", "app:1", *PLATFORMS, "-o", str(tar))
    assert str(image.layers[0]) in blobs(checked(tar)[0])


async def test_laptop_puts_the_mirror_beside_the_tar(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """In a folder that is made; the tar is as without it. A second time they are replaced; a file of that name that is somebody's own is not, and nothing is fetched then."""
    upstream.add_image("library/one", "1")
    await commands("export", "one:1", *PLATFORMS, "-o", str(tmp_path / "plain.tar"))
    lab = tmp_path / "lab"
    names = {"lab.tar", "mirror.pyz", "start.sh", "start.command", "start.bat", "README.txt"}
    for _ in range(2):
        done = await commands.run("export", "one:1", *PLATFORMS, "--laptop", "-o", str(lab / "lab.tar"))
        assert f"to serve them: sh {lab}/start.sh" in done.stderr
        assert {path.name for path in lab.iterdir()} == names
    assert (lab / "lab.tar").read_bytes() == (tmp_path / "plain.tar").read_bytes()
    assert os.access(lab / "start.sh", os.X_OK)
    for other in ("README.txt", "start.sh"):
        folder = tmp_path / f"with {other}"
        folder.mkdir()
        (folder / other).write_text("mine")
        upstream.add_image("library/two", "1")
        done = await commands.run("export", "two:1", *PLATFORMS, "--laptop", "-o", str(folder / "lab.tar"))
        assert done.returncode == 1
        assert f"{other} beside it was not written by `mirror export --laptop`: give another folder" in done.stderr
        assert [path.name for path in folder.iterdir()] == [other] and (folder / other).read_text() == "mine"
    assert upstream.count("GET", "/library/two/") == 0


@pytest.mark.parametrize("output", ["-", "lab", "lab.tar.gz"])
async def test_laptop_needs_a_file_that_it_can_find(commands: Commands, output: str) -> None:
    """A pipe has no folder, and mirror.pyz serves what ends in .tar."""
    assert "such as lab/lab.tar" in (await commands.run("export", "one:1", "--laptop", "-o", output)).stderr


@pytest.mark.parametrize("command", ["export", "pull"])
async def test_a_dead_endpoint_in_the_list_is_no_doubt_about_signatures(upstream: Scripted, tmp_path: Path, command: str) -> None:
    """As long as another one answers that there are none. If none answers, or one says to come again, they may be missing, and that is said."""
    image = upstream.add_image("library/app", "1")
    commands = Commands(tmp_path / "cache")
    commands.flags += ["--upstream", "docker.io=http://127.0.0.1:1", "--upstream", f"docker.io={upstream.url}"]
    arguments = ["--referrers"] if command == "pull" else ["-o", str(tmp_path / "lab.tar")]
    done = await commands.run(command, "app:1", *PLATFORMS, *arguments)
    assert (done.returncode, "may be missing" in done.stderr) == (0, False), done.stderr
    assert upstream.count("GET", f"/manifests/sha256-{image.digest.hex}.sig") >= 1
    upstream.fail("/manifests/sha256-", Status(429, {"Retry-After": "3600"}), times=100, method="*")
    done = await commands.run(command, "app:1", *PLATFORMS, *arguments)
    assert "may be missing: none of docker.io's endpoints gave it: " in done.stderr
    await upstream.stop()
    done = await commands.run(command, "app:1", *PLATFORMS, *arguments)
    assert "may be missing: " in done.stderr
