"""Three mirrors that are processes, as a fleet: one of them is killed or stopped at any time, and no client of the others notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from mirror.names import Digest
from mirror.upstream.fleet import ranked
from tests.support.certificates import Authority
from tests.support.mirrors import MirrorProcess, until
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.scripted import Hold, Scripted

MIB = 1024 * 1024
SIZE = 8 * MIB


@contextlib.contextmanager
def processes(
    tmp_path: Path, upstreams: dict[str, str | list[str]], scheme: str = "http", *arguments: str, **environment: str
) -> Iterator[dict[str, MirrorProcess]]:
    """A fleet of three, by the URLs of its mirrors."""
    urls = [f"{scheme}://127.0.0.1:{free_port()}" for _ in range(3)]
    with contextlib.ExitStack() as stack:
        found = {}
        for url in urls:
            process = MirrorProcess(
                tmp_path / url.rpartition(":")[2],
                upstreams,
                "--listen",
                url.partition("://")[2],
                *arguments,
                **environment,
                FLEET__MIRRORS=json.dumps(urls),
                FLEET__OWN=url,
            )
            found[url] = stack.enter_context(process)
        yield found
        for process in found.values():
            assert "Traceback" not in process.log
            # One that was stopped goes on, so that it can be ended.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)


def with_home(fleet: dict[str, MirrorProcess], upstream: Scripted) -> tuple[Digest, bytes, MirrorProcess, list[str]]:
    """A blob, its home, and the URLs of the others."""
    digest = upstream.add_blob(data := os.urandom(SIZE))
    home, *others = ranked(tuple(fleet), str(digest))
    return digest, data, fleet[home], others


async def fetch(url: str, digest: Digest, tls: ssl.SSLContext | None = None) -> bytes:
    """By a connection of its own. Fails where the mirror answers an error, or cuts the body short."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/v2/library/app/blobs/{digest}", ssl=tls or True) as response,
    ):
        assert response.status == 200, await response.text()
        return await response.read()


KILL, STOP = signal.SIGKILL, signal.SIGSTOP


@pytest.mark.parametrize("how", [KILL, STOP], ids=["killed", "stopped"])
async def test_a_home_that_is_gone_before_costs_nothing(upstream: Scripted, tmp_path: Path, how: signal.Signals) -> None:
    """The next one acts as the home for all: ten clients at each of the two others get the blob, and upstream sends it once."""
    with processes(tmp_path, {"docker.io": upstream.url}) as fleet:
        digest, data, home, others = with_home(fleet, upstream)
        os.kill(home.pid, how)
        bodies = await asyncio.wait_for(asyncio.gather(*(fetch(url, digest) for url in others for _ in range(10))), PATIENCE)
        assert bodies == [data] * 20
        assert upstream.sent[str(digest)] <= 1.05 * SIZE


@pytest.mark.parametrize("how", [KILL, STOP], ids=["killed", "stopped"])
async def test_a_home_that_goes_in_the_middle_costs_little(upstream: Scripted, tmp_path: Path, how: signal.Signals) -> None:
    """The next one goes on where the home has ended, and the third one reads from it. No client of theirs is cut short."""
    with processes(tmp_path, {"docker.io": upstream.url}) as fleet:
        digest, data, home, others = with_home(fleet, upstream)
        hold = Hold(SIZE // 2)
        upstream.fail(str(digest), hold)
        clients = [asyncio.create_task(fetch(url, digest)) for url in others for _ in range(5)]
        await hold.reached.wait()
        # They have read what there is.
        sent = [await asyncio.to_thread(fleet[url].metric, "registry_proxy_pushed_bytes_total") for url in others]
        while True:
            await asyncio.sleep(0.2)
            before, sent = (
                sent,
                [await asyncio.to_thread(fleet[url].metric, "registry_proxy_pushed_bytes_total") for url in others],
            )
            if sent == before and min(sent) > SIZE:
                break
        os.kill(home.pid, how)
        assert await asyncio.wait_for(asyncio.gather(*clients), PATIENCE) == [data] * 10
        hold.release.set()
        assert upstream.sent[str(digest)] <= 1.35 * SIZE


async def test_a_home_that_comes_back_is_the_home_again(upstream: Scripted, tmp_path: Path) -> None:
    """What it has is not fetched from upstream once more, nor what it gets after that."""
    with processes(tmp_path, {"docker.io": upstream.url}) as fleet:
        digest, data, home, others = with_home(fleet, upstream)
        assert await fetch(home.url, digest) == data
        home.kill()
        other, other_data, other_home, _ = with_home(fleet, upstream)
        while other_home is not home:
            other, other_data, other_home, _ = with_home(fleet, upstream)
        assert await fetch(others[0], other) == other_data
        home.start()
        for url in others:
            await until(lambda url=url: fleet[url].metric("mirror_peer_up") == 2)
        for url in others:
            assert await fetch(url, digest) == data
        assert upstream.count("GET", str(digest)) == 1
        assert upstream.count("GET", str(other)) == 1


async def test_a_crowd_with_tls_and_workers(upstream: Scripted, tmp_path: Path) -> None:
    """Thirty clients of three mirrors of two workers each: upstream sends each blob once, whichever process is asked."""
    authority = Authority(tmp_path / "ca")
    environment = {
        "SERVER__WORKERS": "2",
        "SERVER__TLS_CERTIFICATE": str(authority.certificate),
        "SERVER__TLS_KEY": str(authority.key),
        "FLEET__CA_FILE": str(authority.ca),
    }
    tls = ssl.create_default_context(cafile=authority.ca)
    with processes(tmp_path, {"docker.io": upstream.url}, "https", **environment) as fleet:
        blobs = [upstream.add_blob(os.urandom(SIZE // 4)) for _ in range(4)]
        clients = [fetch(url, blob, tls) for url in fleet for blob in blobs for _ in range(10)]
        bodies = await asyncio.wait_for(asyncio.gather(*clients), PATIENCE)
        assert [Digest.of(body) for body in bodies] == [blob for _ in fleet for blob in blobs for _ in range(10)]
        for blob in blobs:
            assert upstream.count("GET", str(blob)) == 1


async def test_whatever_happens_to_one_of_three_no_client_of_the_others_notices(upstream: Scripted, tmp_path: Path) -> None:
    """Faults by a random schedule, whose seed is printed: a mirror is killed or stopped at some time, and comes back."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    upstream.rate = 8 * MIB
    with processes(tmp_path, {"docker.io": upstream.url}) as fleet:

        async def fault(victim: MirrorProcess, how: signal.Signals, after: float) -> None:
            await asyncio.sleep(after)
            os.kill(victim.pid, how)

        async def client(url: str, blob: Digest, after: float) -> bytes:
            await asyncio.sleep(after)
            return await fetch(url, blob)

        for _ in range(3):
            victim = chance.choice(list(fleet))
            blobs = [upstream.add_blob(chance.randbytes(chance.choice([1000, MIB, 4 * MIB]))) for _ in range(4)]
            how = chance.choice([KILL, STOP])
            work = [client(url, blob, chance.random()) for url in fleet if url != victim for blob in blobs for _ in range(3)]
            happens = asyncio.create_task(fault(fleet[victim], how, chance.random()))
            bodies = await asyncio.wait_for(asyncio.gather(*work), PATIENCE)
            await happens
            assert [Digest.of(body) for body in bodies] == [
                blob for url in fleet if url != victim for blob in blobs for _ in range(3)
            ]
            # The third one asks upstream too, if it has found the home dead before the second one.
            assert all(upstream.count("GET", str(blob)) <= 3 for blob in blobs)
            if how is STOP:
                os.kill(fleet[victim].pid, signal.SIGCONT)
            else:
                await asyncio.to_thread(fleet[victim].kill)
                await asyncio.to_thread(fleet[victim].start)
