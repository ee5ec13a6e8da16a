"""Several workers: as one mirror in all that matters, and never less than one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from mirror.config import ConfigError, load
from tests.api.test_tls import shown_serial
from tests.support.certificates import Authority
from tests.support.mirrors import MirrorProcess, noted, until
from tests.support.patience import PATIENCE, patiently
from tests.support.ports import free_port
from tests.support.scripted import Hold, Scripted

MIB = 1024 * 1024


def alive(pid: int) -> bool:
    """True for a process that runs, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def folders(mirror: MirrorProcess) -> list[Path]:
    """What lies about of the folder that its workers share."""
    return list(Path(tempfile.gettempdir()).glob(f"mirror-workers-{mirror.pid}-*"))


async def fetch(url: str) -> bytes:
    """By a connection of its own, so that any worker may get it."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        return await response.read()


async def held_by(mirror: MirrorProcess, blob: str, hold: Hold) -> tuple[int, list[asyncio.Task[bytes]]]:
    """Twelve clients or more that wait for a blob that upstream holds back: which worker downloads it, and the clients.

    At least one of them is another worker's: one that is quicker than the others, on a busy machine, may take the first twelve.
    """
    url = f"{mirror.url}/v2/app/blobs/{blob}"
    clients = [asyncio.create_task(fetch(url)) for _ in range(12)]
    await hold.reached.wait()
    leader = _leader(mirror.directory / "spool" / f"{blob.replace(':', '-')}.part")
    port = int(mirror.url.rpartition(":")[2])
    while True:
        served = {pid: sum(ours == port for ours, _ in _connections(pid)) for pid in mirror.workers}
        if sum(served.values()) == len(clients):
            if served[leader] < len(clients):
                return leader, clients
            assert len(clients) < 100, "one worker takes all"
            clients.append(asyncio.create_task(fetch(url)))
        await asyncio.sleep(0.01)


def _leader(part: Path) -> int:
    """The process that holds the lease on a download (proc(5), /proc/locks). One that follows may have asked upstream something too."""
    inode = part.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and int(fields[5].rpartition(":")[2]) == inode:
            return int(fields[4])
    raise AssertionError(f"nobody downloads {part}")


def _connections(pid: int) -> set[tuple[int, int]]:
    """The ports of a process's connections, here and there (proc(5), /proc/net/tcp)."""
    mine = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            mine.add(os.readlink(link))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in mine and fields[3] == "01":
            here, there = (int(field.partition(":")[2], 16) for field in fields[1:3])
            found.add((here, there))
    return found


async def test_a_crowd_over_four_workers_is_one_download(upstream: Scripted, tmp_path: Path) -> None:
    """Sixty clients on a cold image: upstream sees the manifest and each blob once, what is fetched ahead too, and /metrics tells the whole,
    whichever worker is asked."""
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(3 * MIB) for _ in range(4)])
    sizes = {digest: len(upstream.blobs[str(digest)]) for digest in (image.config, *image.layers)}

    async def client(mirror: MirrorProcess) -> None:
        assert await fetch(f"{mirror.url}/v2/app/manifests/latest") == image.body
        for digest in sizes:
            assert await fetch(f"{mirror.url}/v2/app/blobs/{digest}") == upstream.blobs[str(digest)]

    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, SERVER__WORKERS="4") as mirror:
        assert len(mirror.workers) == 4
        await asyncio.gather(*(client(mirror) for _ in range(60)))
        for digest in sizes:
            assert upstream.count("GET", str(digest)) == 1
        assert upstream.count("GET", "/manifests/") == 1
        requests = 60 * (1 + len(sizes))
        for _ in range(20):
            assert await asyncio.to_thread(mirror.metric, "registry_proxy_requests_total") == requests
        total = sum(sizes.values()) + len(image.body)
        for name, value in (
            ("registry_proxy_pulled_bytes_total", total),
            ("registry_proxy_pushed_bytes_total", 60 * total),
            ("mirror_request_seconds_count", requests),
            ("mirror_cache_bytes", total),
            ("mirror_cache_blobs", len(sizes) + 1),
            ("mirror_flights", 0),
            ("mirror_readers", 0),
        ):
            await _until_metric(mirror, name, value)
        hits, misses = mirror.metric("registry_proxy_hits_total"), mirror.metric("registry_proxy_misses_total")
        assert hits + misses == requests
        assert mirror.metric("process_cpu_seconds_total") > 0
        assert mirror.metric("process_resident_memory_bytes") > 4 * 20 * MIB
        assert mirror.terminate() == 0
        assert folders(mirror) == []
        lines = [json.loads(line) for line in mirror.log.splitlines() if line.startswith("{")]
        assert len([line for line in lines if line["repository"] == "docker.io/library/app"]) == requests
        assert mirror.log.count("listening on ") == 1
        assert "Traceback" not in mirror.log


async def _until_metric(mirror: MirrorProcess, name: str, value: float) -> None:
    for _ in patiently():
        seen = await asyncio.to_thread(mirror.metric, name)
        if seen == value:
            return
        await asyncio.sleep(0.1)


async def test_connections_are_spread_over_the_workers(tmp_path: Path) -> None:
    """Who has more holds back: before one has taken a hundred, all have some."""
    with MirrorProcess(tmp_path / "cache", {}, "--workers", "3") as mirror:
        port = int(mirror.url.rpartition(":")[2])
        async with contextlib.AsyncExitStack() as sessions:
            for _ in range(100):
                session = await sessions.enter_async_context(aiohttp.ClientSession())
                async with session.get(f"{mirror.url}/v2/") as response:
                    assert response.status == 200
                if all(_has_connection(pid, port) for pid in mirror.workers):
                    break
            else:
                pytest.fail("one worker got none")


def _has_connection(pid: int, port: int) -> bool:
    return any(ours == port for ours, _ in _connections(pid))


async def test_a_worker_that_is_killed_loses_nothing(upstream: Scripted, tmp_path: Path) -> None:
    """``kill -9`` of the worker that downloads: another one goes on where it was, nothing is fetched twice, the clients of the others notice nothing,
    a new worker takes its place, and no counter goes backwards."""
    data = os.urandom(12 * MIB)
    digest = upstream.add_blob(data)
    blob = str(digest)
    hold = Hold(5 * MIB)
    upstream.fail(blob, hold)
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, SERVER__WORKERS="3") as mirror:
        victim, clients = await held_by(mirror, blob, hold)
        await until(lambda: mirror.metric("mirror_readers") == len(clients))
        await until(lambda: noted(tmp_path / "cache", digest) == 5 * MIB)
        # A client is counted when its answer begins, which is just after it has become a reader.
        before = len(clients)
        await until(lambda: mirror.metric("registry_proxy_requests_total") == before)
        os.kill(victim, signal.SIGKILL)
        bodies = [
            body for body in await asyncio.gather(*clients, return_exceptions=True) if not isinstance(body, aiohttp.ClientError)
        ]
        assert bodies
        assert all(body == data for body in bodies)
        # The workers that followed have the size from the one that led.
        asked = [(asked.method, asked.range) for asked in upstream.asked if blob in asked.path]
        assert asked == [("GET", None), ("GET", f"bytes={5 * MIB}-{len(data) - 1}")]
        await until(lambda: len(mirror.workers) == 3 and victim not in mirror.workers)
        for _ in range(12):
            assert await fetch(f"{mirror.url}/v2/app/blobs/{blob}") == data
        assert upstream.count("GET", blob) == 2
        await _until_metric(mirror, "registry_proxy_requests_total", before + 12)
        await _until_metric(mirror, "mirror_readers", 0)
        await _until_metric(mirror, "mirror_flights", 0)
        assert mirror.terminate() == 0
    hold.release.set()


async def test_a_worker_that_hangs_is_killed_and_another_goes_on(upstream: Scripted, tmp_path: Path) -> None:
    """It holds the download that others wait for. Those that only work for long keep on living."""
    data = os.urandom(12 * MIB)
    digest = upstream.add_blob(data)
    hold = Hold(5 * MIB)
    upstream.fail(str(digest), hold)
    impatient = "from mirror import cli; from mirror.workers import parent; parent._HUNG = 6.0; parent._WATCH = 0.5; cli.main(prog_name='mirror')"
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, SERVER__WORKERS="3") as mirror:
        mirror.terminate()
        mirror._command[1:3] = ["-c", impatient]
        mirror.start()
        victim, clients = await held_by(mirror, str(digest), hold)
        others = [pid for pid in mirror.workers if pid != victim]
        await until(lambda: noted(tmp_path / "cache", digest) == 5 * MIB)
        os.kill(victim, signal.SIGSTOP)
        bodies = [
            body for body in await asyncio.gather(*clients, return_exceptions=True) if not isinstance(body, aiohttp.ClientError)
        ]
        assert bodies
        assert all(body == data for body in bodies)
        assert "has given no sign of life" in mirror.log
        await until(lambda: len(mirror.workers) == 3)
        assert set(others) < set(mirror.workers)
        assert mirror.terminate() == 0
    hold.release.set()


async def test_sigterm_drains_all_workers(upstream: Scripted, tmp_path: Path) -> None:
    """Requests in every worker end well, no connection is taken any more, the exit status is 0, and nobody is left."""
    data = os.urandom(4 * MIB)
    blob = str(upstream.add_blob(data))
    hold = Hold(MIB)
    upstream.fail(blob, hold)
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, SERVER__WORKERS="3") as mirror:
        _, clients = await held_by(mirror, blob, hold)
        await until(lambda: mirror.metric("mirror_readers") == len(clients))
        workers = mirror.workers
        stopped = asyncio.create_task(asyncio.to_thread(mirror.terminate))
        await _until_refused(mirror.url)
        assert not stopped.done()
        hold.release.set()
        assert all(body == data for body in await asyncio.gather(*clients))
        assert await stopped == 0
        assert not any(map(alive, workers))
        assert folders(mirror) == []


async def _until_refused(url: str) -> None:
    for _ in patiently():
        try:
            await fetch(f"{url}/v2/")
        except aiohttp.ClientConnectorError:
            return
        await asyncio.sleep(0.01)


async def test_workers_do_not_outlive_their_parent(upstream: Scripted, tmp_path: Path) -> None:
    """``kill -9`` of the parent: the workers end too, and the address and the folder that they shared are free for the next start."""
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, SERVER__WORKERS="2") as mirror:
        workers, left = mirror.workers, folders(mirror)
        assert len(left) == 1
        mirror.kill()
        await until(lambda: not any(map(alive, workers)))
        mirror.start()
        assert not left[0].exists()
        assert mirror.terminate() == 0


async def test_a_worker_that_dies_again_and_again_is_replaced_more_and_more_slowly(upstream: Scripted, tmp_path: Path) -> None:
    """And serving goes on meanwhile."""
    blob = str(upstream.add_blob(os.urandom(MIB)))
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, SERVER__WORKERS="2") as mirror:
        spared, victim = mirror.workers
        for _ in range(4):
            os.kill(victim, signal.SIGKILL)
            await fetch(f"{mirror.url}/v2/app/blobs/{blob}")
            await until(lambda gone=victim: {spared} < set(mirror.workers) - {gone})
            (victim,) = set(mirror.workers) - {spared}
        assert mirror.log.count("was ended by signal 9") == 4
        assert upstream.count("GET", blob) == 1
        assert mirror.terminate() == 0


def test_a_start_that_cannot_be_is_told_once(tmp_path: Path) -> None:
    """An address that is taken, a cache directory that cannot be made: status 1, one sentence, and nothing is left behind."""
    shared = tmp_path / "tmp"
    shared.mkdir()

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mirror", "serve", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "MIRROR_SERVER__WORKERS": "3", "TMPDIR": str(shared)},
        )

    with MirrorProcess(tmp_path / "cache", {}, SERVER__WORKERS="2") as running:
        address = running.url.removeprefix("http://")
        taken = start("--listen", address, "--cache-dir", str(tmp_path / "other"))
        assert (taken.returncode, taken.stderr.count("cannot start")) == (1, 1)
        assert address in taken.stderr
    (tmp_path / "file").write_text("")
    unusable = start("--listen", f"127.0.0.1:{free_port()}", "--cache-dir", str(tmp_path / "file" / "cache"))
    assert (unusable.returncode, unusable.stderr.count("cannot start")) == (1, 1)
    assert "Traceback" not in taken.stderr + unusable.stderr
    assert not list(shared.iterdir())


def test_what_a_killed_parent_of_the_same_number_left_is_swept_away(tmp_path: Path) -> None:
    """In a container every start is process 1."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    begin = f"import os, sys; os.mkdir(f'{shared}/mirror-workers-{{os.getpid()}}-old'); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", begin, "-m", "mirror", "serve", "--listen", "127.0.0.1:0", "--workers", "2"]
    command += ["--cache-dir", str(tmp_path / "cache")]
    environment = {**os.environ, "TMPDIR": str(shared)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stderr is not None
        while not running.stderr.readline().startswith("listening on"):
            assert running.poll() is None
        (folder,) = shared.iterdir()
        assert not folder.name.endswith("-old")
        running.terminate()
        assert running.wait(40) == 0
    assert not list(shared.iterdir())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_amid_the_start_ends_nothing(workers: str, tmp_path: Path) -> None:
    """SIGHUP again and again, from when it is blocked until it listens."""
    authority = Authority(tmp_path)
    environment = {**os.environ, "MIRROR_SERVER__TLS_CERTIFICATE": str(authority.certificate)}
    environment["MIRROR_SERVER__TLS_KEY"] = str(authority.key)
    command = [sys.executable, "-m", "mirror", "serve", "--listen", "127.0.0.1:0", "--workers", workers]
    command += ["--cache-dir", str(tmp_path / "cache")]
    log = tmp_path / "log"
    with open(log, "wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as running:
        status, deadline = Path(f"/proc/{running.pid}/status"), time.monotonic() + PATIENCE
        try:
            while not int(status.read_text().split("SigBlk:")[1].split()[0], 16) & 1:
                assert running.poll() is None and time.monotonic() < deadline
            while b"listening on" not in log.read_bytes():
                running.send_signal(signal.SIGHUP)
                time.sleep(0.005)
                assert running.poll() is None and time.monotonic() < deadline, log.read_text()
            running.terminate()
            assert running.wait(40) == 0
        finally:
            running.kill()


async def test_what_one_worker_learns_of_an_endpoint_all_tell(upstream: Scripted, tmp_path: Path) -> None:
    """/readyz and /metrics of any worker: an endpoint that one of them has left alone, and that it came back."""
    await upstream.stop()
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, SERVER__WORKERS="3", UPSTREAM__ATTEMPTS="1") as mirror:
        async with aiohttp.ClientSession() as one_worker:
            for number in range(4):
                async with one_worker.get(f"{mirror.url}/v2/app/manifests/{number}") as response:
                    assert response.status >= 500

        async def told() -> set[str]:
            reports = [json.loads(await fetch(f"{mirror.url}/readyz")) for _ in range(12)]
            return {report["registries"]["docker.io"][0]["state"] for report in reports}

        await _until_async(told, {"down"})
        assert mirror.metric("mirror_upstream_up") == 6
        assert mirror.terminate() == 0


async def _until_async(question: Callable[[], Awaitable[object]], answer: object) -> None:
    for _ in patiently():
        if await question() == answer:
            return
        await asyncio.sleep(0.1)


async def test_a_new_certificate_reaches_all_workers_and_a_broken_one_hurts_none_that_serves(tmp_path: Path) -> None:
    """SIGHUP to the parent is enough. Where the certificate has become unusable, workers go on with the one before; only when none of them serves any more, and
    none can start, does the parent give up, with status 1."""
    authority = Authority(tmp_path / "tls")
    context = ssl.create_default_context(cafile=authority.ca)
    tls = {"SERVER__TLS_CERTIFICATE": str(authority.certificate), "SERVER__TLS_KEY": str(authority.key)}
    with MirrorProcess(tmp_path / "cache", {}, SERVER__WORKERS="2", **tls) as mirror:
        second = authority.issue()
        os.kill(mirror.pid, signal.SIGHUP)
        await until(lambda: mirror.log.count("loaded a new TLS certificate") == 2)
        for _ in range(8):
            assert await asyncio.to_thread(shown_serial, mirror.url, context) == second
        authority.certificate.write_text("no certificate")
        os.kill(mirror.pid, signal.SIGHUP)
        await until(lambda: mirror.log.count("the previous one stays") == 2)
        for _ in range(8):
            assert await asyncio.to_thread(shown_serial, mirror.url, context) == second
        for pid in mirror.workers:
            os.kill(pid, signal.SIGKILL)
        assert await asyncio.to_thread(mirror.wait) == 1
        assert "giving up" in mirror.log
        assert folders(mirror) == []


@pytest.mark.parametrize("wrong", ["0", "65", "many", "true", "-1"])
def test_a_wrong_number_of_workers_is_told(wrong: str) -> None:
    """By its key, with what is expected."""
    with pytest.raises(ConfigError, match=r"server\.workers .*a number from 1 to 64 or \"auto\""):
        load(None, {"MIRROR_SERVER__WORKERS": wrong}, {})
    assert load(None, {"MIRROR_SERVER__WORKERS": "auto"}, {}).server.workers == min(len(os.sched_getaffinity(0)), 8)
