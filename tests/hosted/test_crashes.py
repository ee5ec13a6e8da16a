"""Pushes while the mirror is killed, while others push the same, and while what nothing names is collected."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from tests.support.commands import mirror as command
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.pushes import manifest_of
from tests.support.tracing import Trace

KILLS = int(os.environ.get("MIRROR_TEST_KILLS", "10"))
SETTINGS = '[hosted]\nrepositories = ["team/**"]\n'


def hosting(folder: Path, config: Path, *options: str) -> MirrorProcess:
    """A mirror that asks no registry."""
    return MirrorProcess(folder, {"docker.io": "http://127.0.0.1:1"}, "--offline", "--config", str(config), *options)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mirror.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture
def process(tmp_path: Path, config: Path) -> Iterator[MirrorProcess]:
    with hosting(tmp_path / "cache", config) as mirror:
        yield mirror


class Pusher:
    """A client that pushes images, one request after the other. It knows what was answered 201."""

    def __init__(self, url: str, seed: int) -> None:
        self._host = url.removeprefix("http://")
        self._random = random.Random(seed)
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, bytes] = {}
        """The manifests that were answered 201 last."""
        self.unsure: dict[str, bytes] = {}
        """Those that were sent after them."""

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, str]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection(self._host, timeout=PATIENCE)) as connection:
            connection.request(method, path, body, sent)
            with connection.getresponse() as response:
                return response.status, response.read(), response.headers.get("Location", "")

    def push(self, repository: str, tag: str, data: bytes | None = None) -> None:
        """Pushes an image with one layer of some kilobytes to a megabyte. Raises OSError, HTTPException if the mirror dies."""
        layer = data if data is not None else self._random.randbytes(self._random.choice((1_000, 100_000, 1_000_000)))
        for blob in (b"{}", layer):
            status, _, location = self.ask("POST", f"/v2/{repository}/blobs/uploads/")
            assert status == 202
            status, _, location = self.ask("PATCH", location, blob)
            assert status == 202
            digest = Digest.of(blob)
            status, answer, _ = self.ask("PUT", f"{location}?digest={digest}")
            assert status == 201, answer
            self.blobs[f"/v2/{repository}/blobs/{digest}"] = blob
        body = manifest_of(b"{}", layer)
        place = f"/v2/{repository}/manifests/{tag}"
        self.unsure[place] = body
        status, answer, _ = self.ask("PUT", place, body, Content_Type=OCI_MANIFEST)
        assert status == 201, answer
        self.tags[place] = body
        del self.unsure[place]

    def check(self) -> None:
        """All that was answered 201 is there, byte for byte; a tag means what was pushed last, or what was being pushed."""
        for path, data in self.blobs.items():
            assert self.ask("GET", path)[:2] == (200, data), path
        for path, body in self.tags.items():
            assert self.ask("GET", path)[1] in (body, self.unsure.get(path)), path


def test_nothing_that_was_answered_201_is_lost_by_a_kill(process: MirrorProcess) -> None:
    """Killed at random moments of pushes, again and again; and what is there is whole."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    pushers = [Pusher(process.url, chance.randrange(2**32)) for _ in range(3)]
    for round_ in range(KILLS):

        def work(pusher: Pusher, place: str) -> None:
            try:
                for number in range(1000):
                    pusher.push(f"team/{place}", str(number % 5))
            except (OSError, http.client.HTTPException):
                return

        threads = [threading.Thread(target=work, args=(pusher, str(index))) for index, pusher in enumerate(pushers)]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.0, 0.4))
        process.kill()
        for thread in threads:
            thread.join(PATIENCE)
        process.start()
        fresh = []
        for pusher in pushers:
            after = Pusher(process.url, chance.randrange(2**32))
            after.blobs, after.tags, after.unsure = pusher.blobs, pusher.tags, pusher.unsure
            after.check()
            after.blobs = dict(list(pusher.blobs.items())[-20:])
            # Which of the two it means is certain now.
            after.tags = {path: after.ask("GET", path)[1] for path in pusher.tags}
            after.unsure = {}
            fresh.append(after)
        pushers = fresh
        for index, pusher in enumerate(pushers):
            check_whole(pusher, f"team/{index}", round_)


_SYNCED = {
    "upload": r"f(?:data)?sync\(\d+<[^>]*/spool/[^>]*\.upload>",
    "file": r"f(?:data)?sync\(\d+<[^>]*/blobs/sha256/\.writing-[^>]*>",
    "renamed": r"rename\w*\(.*/blobs/sha256",
    "folder": r"f(?:data)?sync\(\d+<[^>]*/blobs/sha256>",
    "catalog": r"f(?:data)?sync\(\d+<[^>]*/catalog/[^>]*-wal>",
}
"""What the kernel is asked for, as strace shows it."""


def test_what_is_answered_is_on_the_disk(tmp_path: Path, config: Path) -> None:
    """The bytes, then the name of the file, then the row, and only then the answer: no power cut takes back what a client was told. The kernel sees it so."""
    trace = Trace(tmp_path / "trace", "fsync,fdatasync,rename,renameat,renameat2,link,linkat,write,writev,sendto,sendmsg")
    # An upload twice: first before the catalog is locked, so that nobody waits for a large one.
    blob, layer = ["upload", "upload", "renamed", "folder", "catalog"], b"layer" * 1000
    body = manifest_of(b"{}", layer)
    with hosting(tmp_path / "cache", config).run_under(*trace.command) as mirror:
        client = Pusher(mirror.url, 1)
        _, _, begun = client.ask("POST", "/v2/team/a/blobs/uploads/")
        client.ask("PATCH", begun, layer)
        asked: list[tuple[str, str, bytes, int, list[str]]] = [
            ("PUT", f"{begun}?digest={Digest.of(layer)}", b"", 201, blob),
            ("POST", f"/v2/team/a/blobs/uploads/?digest={Digest.of(b'{}')}", b"{}", 201, blob),
            ("POST", f"/v2/team/b/blobs/uploads/?mount={Digest.of(layer)}&from=team/a", b"", 201, ["catalog"]),
            ("PUT", "/v2/team/a/manifests/1", body, 201, ["file", "renamed", "folder", "catalog"]),
            ("DELETE", "/v2/team/a/manifests/1", b"", 202, ["catalog"]),
            ("DELETE", f"/v2/team/a/manifests/{Digest.of(body)}", b"", 202, ["catalog"]),
            ("DELETE", f"/v2/team/a/blobs/{Digest.of(layer)}", b"", 202, ["catalog"]),
        ]
        for method, path, data, status, _ in asked:
            assert client.ask(method, path, data, Content_Type=OCI_MANIFEST)[0] == status, (method, path)
        assert mirror.terminate() == 0
    calls = list(trace.ended())
    # Those that begin and continue the upload come first.
    answers = [number for number, call in enumerate(calls) if re.search(r"(?:send|write)\w*\(.*HTTP/1\.1 20[12] ", call)][1:]
    for (method, path, _, _, wanted), before, answer in zip(asked, answers[:-1], answers[1:], strict=True):
        done = iter(calls[before:answer])
        for what in wanted:
            assert any(re.match(_SYNCED[what], call) for call in done), (method, path, what, calls[before:answer])


def check_whole(client: Pusher, repository: str, round_: int) -> None:
    """Each tag that is listed can be pulled whole."""
    for tag in json.loads(client.ask("GET", f"/v2/{repository}/tags/list")[1])["tags"]:
        status, body, _ = client.ask("GET", f"/v2/{repository}/manifests/{tag}")
        assert status == 200, (round_, tag)
        document = json.loads(body)
        for blob in (document["config"], *document["layers"]):
            status, data, _ = client.ask("GET", f"/v2/{repository}/blobs/{blob['digest']}")
            assert (status, str(Digest.of(data))) == (200, blob["digest"]), (round_, tag)


def test_workers_share_uploads_and_tags(tmp_path: Path, config: Path) -> None:
    """Each request of a push may reach another worker, and another process beside them: it goes on all the same, and is read everywhere."""
    config.write_text(f"{SETTINGS}[server]\nworkers = 2\n")
    with hosting(tmp_path / "cache", config) as one, hosting(tmp_path / "cache", config, "--workers", "1") as two:
        data = os.urandom(300_000)

        def fresh(turn: int) -> Pusher:
            return Pusher((one, two)[turn % 2].url, turn)

        _, _, location = fresh(0).ask("POST", "/v2/team/app/blobs/uploads/")
        for turn, start in enumerate(range(0, len(data), 50_000)):
            status, _, location = fresh(turn).ask("PATCH", location, data[start : start + 50_000])
            assert status == 202
        assert fresh(1).ask("PUT", f"{location}?digest={Digest.of(data)}")[0] == 201
        for turn in range(8):
            assert fresh(turn).ask("GET", f"/v2/team/app/blobs/{Digest.of(data)}")[:2] == (200, data)


def test_two_processes_push_one_image(tmp_path: Path, config: Path) -> None:
    """At the same time, many times: both are answered 201, and what is there is whole and counts once."""
    with hosting(tmp_path / "cache", config) as one, hosting(tmp_path / "cache", config) as two:
        for number in range(10):
            layer = os.urandom(200_000)
            with ThreadPoolExecutor(4) as pool:
                pushers = [Pusher(process.url, number) for process in (one, two, one, two)]
                for done in [pool.submit(pusher.push, "team/app", str(number), layer) for pusher in pushers]:
                    done.result(PATIENCE)
        for process in (one, two):
            client = Pusher(process.url, 0)
            check_whole(client, "team/app", 0)
        assert list((tmp_path / "cache" / "spool").iterdir()) == []


def test_a_collection_takes_nothing_from_a_push(tmp_path: Path, config: Path) -> None:
    """`mirror gc` runs all the time while images are pushed, moved and deleted, some with layers that were unnamed for long: each 201 holds."""
    config.write_text(f'{SETTINGS}grace = "2s"\nuntagged = "1ms"\n')
    stop = threading.Event()
    with hosting(tmp_path / "cache", config) as process:

        def collect() -> None:
            while not stop.is_set():
                done = command("gc", "--cache-dir", str(tmp_path / "cache"), "--config", str(config))
                assert done.returncode == 0, done.stderr

        def work(index: int) -> None:
            pusher = Pusher(process.url, index)
            layers = [b"%d" % index * size for size in (1000, 50_000, 200_000)]
            end = time.monotonic() + 6
            number = 0
            while time.monotonic() < end:
                number += 1
                pusher.push(f"team/{index}", str(number % 3), layers[number % 3])
                check_whole(pusher, f"team/{index}", number)
                if number % 4 == 0:
                    assert pusher.ask("DELETE", f"/v2/team/{index}/manifests/{number % 3}")[0] == 202

        with ThreadPoolExecutor(4) as pool:
            collecting = pool.submit(collect)
            pushing = [pool.submit(work, index) for index in range(3)]
            try:
                for done in pushing:
                    done.result()
            finally:
                stop.set()
            collecting.result()
