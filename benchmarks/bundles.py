"""``python -m benchmarks.bundles``: export beside ``tar cf - blobs | cat`` on the same files, its memory, and the time to its first byte; import beside sha256sum.

The layers are made here, of random bytes (throughput) or holes (memory). All is in the page cache. Commands run as installed ones do: from compiled modules.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from tests.support.mirrors import MirrorProcess

MIB = 1024 * 1024
_SPARE = 8
"""GiB that stay free on the disk."""
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"


def fill(directory: Path, images: int, layers: int, size: int, *, holes: bool) -> None:
    """Makes a cache of ``library/app-N:1``, each with `layers` of `size` bytes."""
    store = BlobStore(directory)
    Catalog(directory / "catalog").close()
    db = sqlite3.connect(directory / "catalog" / "content.sqlite")
    block = os.urandom(16 * MIB)

    def keep(digest: Digest, length: int, media_type: str | None) -> None:
        db.execute(
            "INSERT OR IGNORE INTO content (digest, size, media_type, used) VALUES (?, ?, ?, ?)",
            (str(digest), length, media_type, time.time()),
        )

    def put(body: bytes, media_type: str | None) -> Digest:
        digest = Digest.of(body)
        store.put(digest, body)
        keep(digest, len(body), media_type)
        return digest

    zeros = hashlib.sha256()
    for start in range(0, size if holes else 0, len(block)):
        zeros.update(bytes(min(len(block), size - start)))

    def make_layer(number: int) -> tuple[Digest, int]:
        """Each of other content: zeros are one byte longer every time."""
        beside = directory / "layer"
        with open(beside, "wb") as file:
            if holes:
                hasher = zeros.copy()
                hasher.update(bytes(number))
                file.truncate(size + number)
            else:
                hasher = hashlib.sha256()
                for start in range(0, size, len(block)):
                    part = (number.to_bytes(8, "big") + block)[: min(len(block), size - start)]
                    hasher.update(part)
                    file.write(part)
            file.flush()
            digest, length = Digest("sha256", hasher.hexdigest()), os.fstat(file.fileno()).st_size
            store.seal(file.fileno(), digest)
        os.rename(beside, store.path(digest))
        keep(digest, length, None)
        return digest, length

    with db:
        for number in range(images):
            config = json.dumps({"os": "linux", "architecture": "amd64", "name": number}).encode()
            made = [make_layer(number * layers + layer) for layer in range(layers)]
            described = [{"mediaType": _LAYER, "digest": str(digest), "size": length} for digest, length in made]
            named = {"mediaType": _CONFIG, "digest": str(put(config, None)), "size": len(config)}
            body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": named, "layers": described}).encode()
            manifest = put(body, OCI_MANIFEST)
            db.executemany(
                "INSERT OR IGNORE INTO child VALUES (?, ?)", [(str(manifest), one["digest"]) for one in (named, *described)]
            )
            path = f"library/app-{number}"
            db.execute("INSERT OR IGNORE INTO holding VALUES ('docker.io', ?, ?)", (path, str(manifest)))
            row = (path, str(manifest), OCI_MANIFEST, len(body), time.time())
            db.execute("INSERT INTO tag VALUES ('docker.io', ?, '1', ?, ?, ?, ?)", row)
    db.close()


def timed(command: str) -> float:
    """Seconds that a shell command takes."""
    began = time.perf_counter()
    subprocess.run(["sh", "-c", command], check=True)
    return time.perf_counter() - began


def export_command(directory: Path) -> str:
    return f"{sys.executable} -m mirror export --all -o - --cache-dir {directory} 2>/dev/null"


def throughput(folder: Path, gib: int, rounds: int) -> None:
    directory = folder / "bytes"
    fill(directory, 4, gib * 16 // 4, 64 * MIB, holes=False)
    with MirrorProcess(directory, {"docker.io": "http://127.0.0.1:1"}) as mirror:
        commands = {
            "tar": f"cd {directory} && tar cf - blobs | cat > /dev/null",
            "export": f"{export_command(directory)} | cat > /dev/null",
            # curl is at the other end of the socket, as cat is of the pipe.
            "http": f"curl -sf -o /dev/null '{mirror.url}/export/lab.tar?images=*'",
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for command in commands.values():
            timed(command)
        for _ in range(rounds):
            for name, command in commands.items():
                seconds[name].append(timed(command))
    compare(seconds, "tar", gib)


def compare(seconds: dict[str, list[float]], base: str, gib: float) -> None:
    for name, found in seconds.items():
        ratio = median(seconds[base]) / median(found)
        times = ", ".join(f"{one:.2f}" for one in found)
        print(f"{name:10} {gib / median(found):6.2f} GiB/s   {ratio:5.2f} x {base}   ({times} s)")


def imports(folder: Path, gib: int, rounds: int) -> None:
    """Import of a bundle into an empty cache, on one core, beside sha256sum of the same bytes."""
    source, tar, target = folder / "source", folder / "lab.tar", folder / "target"
    fill(source, 4, gib * 16 // 4, 64 * MIB, holes=False)
    timed(f"{export_command(source)} > {tar}")
    shutil.rmtree(source)
    one_core = "taskset -c 0"
    commands = {
        "sha256sum": f"{one_core} sha256sum {tar} > /dev/null",
        "openssl": f"{one_core} openssl dgst -sha256 {tar} > /dev/null",
        "file": f"{one_core} {sys.executable} -m mirror import {tar} --cache-dir {target} > /dev/null",
        "pipe": f"{one_core} {sys.executable} -m mirror import - --cache-dir {target} < {tar} > /dev/null",
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(target, ignore_errors=True)
            os.sync()
            seconds[name].append(timed(command))
    compare(seconds, "sha256sum", gib)
    tar.unlink()
    shutil.rmtree(target, ignore_errors=True)


def memory(folder: Path, gib: int) -> None:
    directory = folder / "holes"
    fill(directory, 4, gib // 4, 1024 * MIB, holes=True)
    kinds = {"pipe": " | cat > /dev/null"}
    # A file gets real bytes for the holes.
    if shutil.disk_usage(folder).free > (gib + _SPARE) * 1024 * MIB:
        kinds["file"] = f" > {folder / 'lab.tar'}"
    else:
        print(f"export of {gib} GiB to a file is left out: there is no room for it")
    for kind, end in kinds.items():
        # What `time` of GNU does: the most that one of the children had. cat has less.
        with subprocess.Popen(["sh", "-c", f"{export_command(directory)}{end}"]) as process:
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        print(f"export of {gib} GiB to a {kind}: {usage.ru_maxrss / 1024:.0f} MiB")
        (folder / "lab.tar").unlink(missing_ok=True)
    with MirrorProcess(directory, {"docker.io": "http://127.0.0.1:1"}) as mirror:
        before = _peak(mirror.pid)
        timed(f"curl -sf '{mirror.url}/export/lab.tar?images=*' > /dev/null")
        print(f"http of {gib} GiB: {_peak(mirror.pid)} MiB, {before} MiB before")


def _peak(pid: int) -> int:
    """The most memory that a process had, in MiB (proc(5), VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def _first_byte_of_command(directory: Path) -> float:
    """Seconds from the start of an export to its first byte."""
    began = time.perf_counter()
    with subprocess.Popen(["sh", "-c", export_command(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        while process.stdout.read(MIB):
            pass
    return seconds


def first_byte(folder: Path, images: int, rounds: int) -> None:
    directory = folder / "many"
    fill(directory, images, 6, 100_000, holes=True)
    # The first one also reads what images consist of, which a mirror that runs has read before.
    seconds = [_first_byte_of_command(directory) for _ in range(rounds + 1)]
    print(f"export of {images} images, first byte: {seconds[0]:.2f} s; again, the median: {median(seconds[1:]):.2f} s")
    with MirrorProcess(directory, {"docker.io": "http://127.0.0.1:1"}) as mirror:
        for attempt in ("first", "second"):
            began = time.perf_counter()
            with urllib.request.urlopen(f"{mirror.url}/export/lab.tar?images=*") as answer:
                answer.read(1)
            print(f"http of {images} images, first byte, {attempt}: {time.perf_counter() - began:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, default=4, help="how much is exported to measure throughput  [4]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=20, metavar="GIB", help="how much is exported to measure memory  [20]")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--only", action="append", choices=("first-byte", "export", "import", "memory"), help="repeatable  [all]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bundles-") as name:
        # As those of an installed program are. Modules of a checkout may not be.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{name}/compiled"
        fill(Path(name) / "one", 1, 1, 1000, holes=False)
        timed(f"{export_command(Path(name) / 'one')} > /dev/null")
        measured = {
            "first-byte": lambda: first_byte(Path(name), options.images, options.rounds),
            "export": lambda: throughput(Path(name), options.gib, options.rounds),
            "import": lambda: imports(Path(name), options.gib, options.rounds),
            "memory": lambda: memory(Path(name), options.memory),
        }
        for what in options.only or measured:
            measured[what]()


if __name__ == "__main__":
    main()
