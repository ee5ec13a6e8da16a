"""Runs one scanner on one image: a program without a shell, with a low priority, bounded in time and output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mirror.bundles.contents import Gatherer
from mirror.bundles.layout import Layout
from mirror.bundles.writing import Output, write
from mirror.errors import MirrorError
from mirror.names import Digest, Repository
from mirror.scans.counting import count_findings
from mirror.storage.store import Store

ARCHIVE, LAYOUT, DIGEST, NAME = "{archive}", "{layout}", "{digest}", "{name}"
_MOST_OUTPUT = 64 * 1024 * 1024
"""Bytes of a report. It is kept on the disk, never in memory."""
_MOST_ERRORS = 64 * 1024
"""Bytes of standard error that are read; the last ones are told."""
_TOLD = 300
_PIECE = 64 * 1024
_NICE = 10
"""As nice(2) has it. With 19, a machine that is busy for minutes gives it nothing in that time."""
_ENDING = 10.0
"""Seconds in which what was killed is to be gone. A program that has left its process group may still hold the output."""


class ScanFailed(Exception):
    """Why there is no report, for people."""


async def run_scanner(
    command: Sequence[str], timeout: float, folder: Path, store: Store, repository: Repository, digest: Digest
) -> Mapping[str, int]:
    """Returns how many findings of each severity a scanner has in an image that is cached whole. `command` has places for what it looks at: ``{archive}``, a tar that is an OCI layout and
    loads into Docker, ``{layout}``, the same as a folder; ``{digest}`` and ``{name}`` of the image. They are made in `folder`, and removed.

    Raises ScanFailed.
    """
    place = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="scan-", dir=folder))
    try:
        archive, layout = place / "image.tar", place / "layout"
        await _write_archive(archive, store, repository, digest)
        if any(LAYOUT in word for word in command):
            await asyncio.to_thread(_unpack, archive, layout)
        values = {ARCHIVE: str(archive), LAYOUT: str(layout), DIGEST: str(digest), NAME: f"{repository}@{digest}"}
        words = list(command)
        for name, value in values.items():
            words = [word.replace(name, value) for word in words]
        return await count_findings(await _run(words, place, timeout))
    except ValueError as error:
        raise ScanFailed(str(error)) from None
    except (MirrorError, OSError, tarfile.TarError) as error:
        raise ScanFailed(f"its image cannot be had: {error}") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


async def _write_archive(path: Path, store: Store, repository: Repository, digest: Digest) -> None:
    """Raises MirrorError, OSError."""
    gatherer = Gatherer(store, None, referrers=False)
    await gatherer.add(repository, digest)
    layout = Layout(await gatherer.contents())
    # The folder that is unpacked takes as much once more.
    if (free := shutil.disk_usage(path.parent).free) < 3 * layout.size:
        raise OSError(f"the disk of {path.parent.parent} has {free} bytes left, and the image {layout.size}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        await write(layout, store, Output(fd), lambda _: None, verify=False)
    finally:
        os.close(fd)


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


async def _run(command: Sequence[str], place: Path, timeout: float) -> Path:
    """Returns a file with what a scanner prints. Raises ScanFailed, OSError."""
    report = place / "report"
    # The settings of this mirror may have passwords.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIRROR_")}
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=place,
            env={**environment, "TMPDIR": str(place)},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise ScanFailed(f"{command[0]} cannot be run: {getattr(error, 'strerror', None) or error}") from error
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, process.pid, _NICE)
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_last(process.stderr, _MOST_ERRORS))
    try:
        async with asyncio.timeout(timeout):
            printed = await _keep(process.stdout, report)
            status = await process.wait()
            said = await errors
    except TimeoutError:
        raise ScanFailed(f"it did not end in {timeout:g} s") from None
    finally:
        # It may have started others, which a scanner that ends leaves behind, too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING):
                # asyncio knows of a process' end once its pipes are read to theirs.
                while await process.stdout.read(_PIECE):
                    pass
                await process.wait()
        errors.cancel()
        await asyncio.wait([errors])
    # Many end with another status than 0 if they find something.
    if not printed:
        told = " ".join(said.decode(errors="replace").split())[-_TOLD:]
        raise ScanFailed(f"it printed nothing, and ended with status {status}{f': {told}' if told else ''}")
    return report


async def _keep(stream: asyncio.StreamReader, file: Path) -> bool:
    """Writes a stream into a new file. Returns whether there is anything in it but white space. Raises ScanFailed if it is too long, OSError."""
    size, something = 0, False
    with await asyncio.to_thread(open, file, "xb") as opened:
        while piece := await stream.read(_PIECE):
            size += len(piece)
            if size > _MOST_OUTPUT:
                raise ScanFailed(f"it printed more than {_MOST_OUTPUT >> 20} MiB")
            something = something or bool(piece.strip())
            await asyncio.to_thread(opened.write, piece)
    return something


async def _last(stream: asyncio.StreamReader, most: int) -> bytes:
    """Reads a stream to its end. Returns its last bytes."""
    data = bytearray()
    while piece := await stream.read(_PIECE):
        data += piece
        del data[:-most]
    return bytes(data)
