"""`mirror export` while its blobs change, and to targets that fail: the right bytes, or a status that is not 0 and nothing that looks whole."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.test_export import PLATFORMS, blobs, checked
from tests.support.commands import Commands
from tests.support.disks import small_disk
from tests.support.mirrors import StartMirror
from tests.support.programs import require_root, run
from tests.support.scripted import Hold, Image, Scripted

MIB = 1024 * 1024
LAYERS = 4
IN_THE_SECOND = 4 * MIB
"""Bytes of a bundle that are read before its blobs change: the second layer is being sent then, and a pipe holds no more than a part of it."""


@pytest.fixture
def commands(upstream: Scripted, tmp_path: Path) -> Commands:
    return Commands(tmp_path / "cache", upstream)


class Lab:
    """An image of large layers that is cached, the mirror's commands, and its files."""

    def __init__(self, commands: Commands, upstream: Scripted, start: StartMirror, folder: Path) -> None:
        self.commands = commands
        self.upstream = upstream
        self.start = start
        self.folder = folder
        layers = [bytes([number]) * 100 + os.urandom(4 * MIB) for number in range(LAYERS)]
        self.image: Image = upstream.add_image("library/app", "1", layers=layers)

    def blob(self, number: int) -> Path:
        return self.folder / "cache" / "blobs" / "sha256" / self.image.layers[number].hex

    def overwrite(self, number: int, *, keep_times: bool) -> None:
        """Flips bytes near the end of a layer, in place."""
        status = self.blob(number).stat()
        with open(self.blob(number), "r+b") as file:
            file.seek(2 * MIB)
            file.write(b"damage")
        if keep_times:
            os.utime(self.blob(number), ns=(status.st_atime_ns, status.st_mtime_ns))


async def unlink_sent(lab: Lab) -> None:
    lab.blob(1).unlink()


async def unlink_later(lab: Lab) -> None:
    lab.blob(3).unlink()


async def rm_and_gc(lab: Lab) -> None:
    await lab.commands("rm", "app:1")
    await lab.commands("gc")


async def evict(lab: Lab) -> None:
    """Another image needs the room."""
    other = lab.upstream.add_image("library/other", "1", layers=[os.urandom(2 * MIB)])
    mirror = await lab.start(directory=lab.folder / "cache", max_size="3MiB")
    assert (await mirror.get(f"/v2/other/blobs/{other.layers[0]}")).status == 200
    await mirror.stop()
    assert not lab.blob(3).exists()


async def move_the_tag(lab: Lab) -> None:
    moved = lab.upstream.add_image("library/app", "1", layers=[os.urandom(1000)])
    await lab.commands("pull", "app:1", *PLATFORMS)
    assert (lab.folder / "cache" / "blobs" / "sha256" / moved.layers[0].hex).exists()


async def damage_sent(lab: Lab) -> None:
    lab.overwrite(1, keep_times=False)


async def damage_later(lab: Lab) -> None:
    lab.overwrite(3, keep_times=False)


async def rot_later(lab: Lab) -> None:
    lab.overwrite(3, keep_times=True)


async def truncate_sent(lab: Lab) -> None:
    os.truncate(lab.blob(1), MIB)


async def truncate_later(lab: Lab) -> None:
    os.truncate(lab.blob(3), MIB)


async def grow_later(lab: Lab) -> None:
    with open(lab.blob(3), "ab") as file:
        file.write(b"more")


async def put_a_folder_there(lab: Lab) -> None:
    lab.blob(3).unlink()
    lab.blob(3).mkdir()


CHANGES: list[tuple[Callable[[Lab], Awaitable[None]], str]] = [
    (unlink_sent, ""),
    (move_the_tag, ""),
    (unlink_later, "has been removed from the cache meanwhile"),
    (rm_and_gc, "has been removed from the cache meanwhile"),
    (evict, "has been removed from the cache meanwhile"),
    (damage_sent, "was written to while it was read"),
    (damage_later, "has been removed from the cache meanwhile"),
    (rot_later, "is damaged on the cache's disk"),
    (truncate_sent, "shorter"),
    (truncate_later, "removed from the cache meanwhile"),
    (grow_later, "removed from the cache meanwhile"),
    (put_a_folder_there, "has been removed from the cache meanwhile"),
]


@pytest.mark.parametrize(("change", "fault"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
async def test_blobs_that_change_while_they_are_exported(
    commands: Commands,
    upstream: Scripted,
    start: StartMirror,
    tmp_path: Path,
    change: Callable[[Lab], Awaitable[None]],
    fault: str,
) -> None:
    """What is open is sent to its end, and a tag that moves changes nothing. Everything else ends the export with status 1, the cause, and a tar without its end.

    Damage that leaves a file's times as they were takes --verify to be found; what is found is removed, to be fetched again.
    """
    lab = Lab(commands, upstream, start, tmp_path)
    tar = tmp_path / "lab.tar"
    await commands("export", "app:1", *PLATFORMS, "-o", str(tar))
    expected = tar.read_bytes()
    verify = ["--verify"] if change is rot_later else []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mirror", "export", "app:1", *PLATFORMS, "--offline", *verify, "-o", "-", *commands.flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        limit=1024,
    )
    assert process.stdout is not None and process.stderr is not None
    got = await process.stdout.readexactly(IN_THE_SECOND + MIB)
    await change(lab)
    got += await process.stdout.read()
    told = (await process.stderr.read()).decode()
    assert "Traceback" not in told
    if not fault:
        assert (await process.wait(), got) == (0, expected)
        return
    assert (await process.wait(), len(got) < len(expected) - 1024) == (1, True)
    assert fault in told, told


async def test_verified_bundles_are_the_same(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """--verify changes no byte, also of blobs that are larger than what is hashed at once, and of empty ones."""
    upstream.add_image("library/app", "1", layers=[os.urandom(9 * MIB + 1), b"", os.urandom(4 * MIB)])
    await commands("export", "app:1", *PLATFORMS, "-o", str(tmp_path / "1.tar"))
    await commands("export", "app:1", *PLATFORMS, "--verify", "-o", str(tmp_path / "2.tar"))
    checked(tmp_path / "1.tar")
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


class Target(NamedTuple):
    """Where a bundle of some 8 MiB is written to, and what comes of it."""

    output: str
    fault: str
    status: int = 1
    options: tuple[str, ...] = ()
    shell: str = "{command}"


TARGETS = {
    "full disk": Target("disk/lab.tar", "disk/lab.tar cannot be written: No space left on device"),
    "full disk, pieces": Target("disk/lab.tar", "cannot be written: No space left on device", 1, ("--split", "1MiB")),
    "read-only disk": Target("readonly/lab.tar", "readonly/lab.tar cannot be written: Read-only file system"),
    "read-only disk, pieces": Target("readonly/lab.tar", "cannot be written: Read-only file", 1, ("--split", "1MiB")),
    "folder": Target("folder", "folder cannot be written: it is not a regular file"),
    "no folder": Target("none/lab.tar", "cannot be written: "),
    "below a file": Target("older.tar/lab.tar", "a file is where a folder is needed"),
    "largest file": Target("lab.tar", "lab.tar cannot be written: File too large", shell="ulimit -f 4000; {command}"),
    "full device": Target("-", "standard output cannot be written: No space left on device", shell="{command} > /dev/full"),
    "closed": Target("-", "standard output is closed", 2, shell="{command} >&-"),
    "reader leaves": Target("-", "the reader of the bundle has closed the pipe", shell="{command} | head -c 1000 > /dev/null"),
    "reader was never there": Target("-", "the reader of the bundle has closed the pipe", shell="{command} | true"),
}


@pytest.mark.parametrize("case", TARGETS)
async def test_targets_that_fail(commands: Commands, upstream: Scripted, start: StartMirror, tmp_path: Path, case: str) -> None:
    """The status says so, one line says why; nothing is left under the target's name or a temporary one, and an older file stays."""
    Lab(commands, upstream, start, tmp_path)
    await commands("pull", "app:1", *PLATFORMS)
    target = TARGETS[case]
    work = tmp_path / "work"
    (work / "folder").mkdir(parents=True)
    (work / "older.tar").write_bytes(b"older")
    with small_disk(work / "disk", "3m"), small_disk(work / "readonly", "1m"):
        await asyncio.to_thread(run, "mount", "-o", "remount,ro", str(work / "readonly"))
        (work / "disk" / "lab.tar").write_bytes(b"older")
        before = sorted(work.rglob("*"))
        options = ["app:1", *PLATFORMS, *target.options, "--offline", "-o", target.output, *commands.flags]
        command = " ".join([sys.executable, "-m", "mirror", "export", *options])
        shell = f"set -o pipefail; {target.shell.format(command=command)}"
        done = await asyncio.to_thread(
            subprocess.run, ["bash", "-c", shell], cwd=work, capture_output=True, text=True, check=False
        )
        assert done.returncode == target.status, done.stderr
        assert target.fault in " ".join(done.stderr.split()), done.stderr
        assert "Traceback" not in done.stderr
        assert sorted(work.rglob("*")) == before
        assert (work / "disk" / "lab.tar").read_bytes() == b"older"
    assert (work / "older.tar").read_bytes() == b"older"


@pytest.mark.parametrize("options", [(), ("--split", "1MiB")], ids=["file", "pieces"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_leave_no_file_behind(
    commands: Commands, upstream: Scripted, tmp_path: Path, signum: signal.Signals, options: tuple[str, ...]
) -> None:
    """Neither the target nor a temporary file; an older file stays, what was fetched is kept, and the next run starts the tar over."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(2_000_000)])
    hold = Hold(1_000_000)
    upstream.fail(f"/blobs/{image.layers[0]}", hold)
    tar = tmp_path / "lab.tar"
    if not options:
        tar.write_bytes(b"older")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mirror", "export", "app:1", *PLATFORMS, *options, "-o", str(tar), *commands.flags),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    await hold.reached.wait()
    assert list(tmp_path.glob(".writing-*"))
    process.send_signal(signum)
    await process.communicate()
    assert process.returncode == (130 if signum is signal.SIGINT else -signum)
    assert not list(tmp_path.glob(".writing-*"))
    assert [path.name for path in tmp_path.glob("lab.tar*")] == ([] if options else ["lab.tar"])
    assert options or tar.read_bytes() == b"older"
    hold.release.set()
    await commands("export", "app:1", *PLATFORMS, *options, "-o", str(tar))
    whole = tmp_path / "whole.tar"
    whole.write_bytes(b"".join(path.read_bytes() for path in sorted(tmp_path.glob("lab.tar*"))))
    assert str(image.layers[0]) in blobs(checked(whole)[0])


async def test_two_exports_to_one_file(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """The second is refused while the first writes, and the first one's bytes are whole; what a killed one has left is written over."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(2_000_000)])
    upstream.add_image("library/other", "1")
    tar = tmp_path / "lab.tar"
    (tmp_path / ".writing-lab.tar").write_bytes(os.urandom(9_000_000))
    hold = Hold(1_000_000)
    upstream.fail(f"/blobs/{image.layers[0]}", hold)
    first = asyncio.create_task(commands("export", "app:1", *PLATFORMS, "-o", str(tar)))
    await hold.reached.wait()
    second = await commands.run("export", "other:1", *PLATFORMS, "-o", str(tar))
    assert second.returncode == 1
    assert "another `mirror export` is writing it" in second.stderr
    hold.release.set()
    await first
    assert [entry["name"] for entry in checked(tar)[1]["images"]] == ["docker.io/library/app:1"]
    assert not list(tmp_path.glob(".writing-*"))


async def test_a_link_stays_a_link(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """The file that it points to is replaced, also by way of /dev/stdout."""
    upstream.add_image("library/app", "1")
    target, link, redirected = tmp_path / "target.tar", tmp_path / "link.tar", tmp_path / "redirected.tar"
    link.symlink_to(target)
    for _ in range(2):
        await commands("export", "app:1", *PLATFORMS, "-o", str(link))
        assert link.is_symlink()
        assert not target.is_symlink()
    checked(target)
    require_root("writing to /dev")
    command = [sys.executable, "-m", "mirror", "export", "app:1", *PLATFORMS, "-o", "/dev/stdout", *commands.flags]
    with open(redirected, "wb") as output:
        await asyncio.to_thread(subprocess.run, command, stdout=output, check=True)
    assert redirected.read_bytes() == target.read_bytes()
    assert Path("/dev/stdout").is_symlink()
    assert not list(Path("/dev").glob(".writing-*"))


@pytest.mark.parametrize("stream", ["closed", "non-blocking"])
async def test_standard_streams_that_are_not_as_usual(
    commands: Commands, upstream: Scripted, tmp_path: Path, stream: str
) -> None:
    """Import of a standard input that is closed is refused, and no other file taken for it; a pipe that somebody made non-blocking is written to at its pace."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(2 * MIB)])
    tar = tmp_path / "lab.tar"
    await commands("export", "app:1", *PLATFORMS, "-o", str(tar))
    if stream == "closed":
        command = " ".join([sys.executable, "-m", "mirror", "import", "-", *commands.flags])
        done = await asyncio.to_thread(subprocess.run, ["sh", "-c", f"{command} <&-"], capture_output=True, check=False)
        assert done.returncode == 2
        assert b"standard input is closed" in done.stderr
        return
    receive, send = os.pipe()
    os.set_blocking(send, False)
    command_ = [sys.executable, "-m", "mirror", "export", "app:1", *PLATFORMS, "-o", "-", *commands.flags]
    process = await asyncio.create_subprocess_exec(*command_, stdout=send)
    os.close(send)
    with open(receive, "rb") as pipe:
        got = await asyncio.to_thread(pipe.read)
    assert (await process.wait(), got) == (0, tar.read_bytes())
    assert str(image.layers[0]) in blobs(checked(got)[0])
