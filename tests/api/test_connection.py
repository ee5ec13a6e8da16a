"""A connection is composed of ours and aiohttp's: the fast path engages, and needs nothing of aiohttp but its public interface."""

from __future__ import annotations

import ast
import asyncio
import inspect
from pathlib import Path

import pytest
from aiohttp import web

import mirror.api
from mirror.api import connection as connection_module
from mirror.api.connection import Connection, PendingRequests
from mirror.api.server import Api
from mirror.api.shortcuts import Shortcuts
from mirror.api.unread import Hold
from tests.api.test_shortcuts import LATEST, answer, connection
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets of the requests that came by way of aiohttp."""
    targets: list[str] = []
    handle = Api.handle

    async def noted(api: Api, request: web.BaseRequest, hold: Hold) -> web.StreamResponse:
        targets.append(request.raw_path)
        return await handle(api, request, hold)

    monkeypatch.setattr(Api, "handle", noted)
    return targets


async def ask(mirror: Mirror, times: int) -> list[bytes]:
    """Asks for LATEST on one connection, each time when the answer before has come; the bodies."""
    bodies = []
    async with connection(mirror) as (reader, writer):
        for _ in range(times):
            writer.write(LATEST)
            bodies.append((await answer(reader))[2])
    return bodies


async def test_the_fast_path_engages(mirror: Mirror, upstream: Scripted, handled: list[str]) -> None:
    """Of a hot manifest's requests, aiohttp sees the first two alone: the one that fetches it, and the one whose bytes are remembered."""
    image = upstream.add_image("library/app", "latest")
    assert await ask(mirror, 5) + await ask(mirror, 1) == [image.body] * 6
    assert len(handled) == 2


async def test_it_engages_again_after_other_requests(mirror: Mirror, upstream: Scripted, handled: list[str]) -> None:
    """A blob, an error and a HEAD on the same connection do not end it."""
    image = upstream.add_image("library/app", "latest")
    await ask(mirror, 2)
    requests = [f"/v2/app/blobs/{image.config}", "/v2/app/manifests/none", "/v2/"]
    async with connection(mirror) as (reader, writer):
        for path in requests:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: m\r\n\r\n".encode())
            await answer(reader)
            writer.write(LATEST)
            assert (await answer(reader))[2] == image.body
    assert handled[2:] == requests


async def test_aiohttp_sees_a_request_before_it_takes_the_connection_for_idle(
    mirror: Mirror, upstream: Scripted, handled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp closes a connection that is idle, and knows of nothing that the fast path answers: from time to time a request is passed on to it."""
    upstream.add_image("library/app", "latest")
    await ask(mirror, 2)
    monkeypatch.setattr(connection_module, "IDLE", 0.0)
    await ask(mirror, 3)
    assert len(handled) == 5


async def test_an_aiohttp_that_makes_its_handlers_otherwise_still_serves(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, handled: list[str]
) -> None:
    """Where the handler's constructor takes other arguments, the server's own way of making one is used; the fast path stays."""

    class Other(web.RequestHandler):
        def __init__(self) -> None:
            raise AssertionError

    monkeypatch.setattr(connection_module, "_RequestHandler", Other)
    mirror: Mirror = await start()
    image = upstream.add_image("library/app", "latest")
    assert await ask(mirror, 4) == [image.body] * 4
    assert len(handled) == 2


class Inner(asyncio.Protocol):
    """A server that is not aiohttp: answers nothing, and notes what it is given."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.seen.append(data)


class Known(Shortcuts):
    """Knows an answer to LATEST."""

    def __init__(self) -> None:
        pass

    def answer(self, data: bytes, loopback: bool, client: str) -> bytes | None:
        return b"answer" if data == LATEST else None


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


OTHER = b"GET /other HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize(
    ("received", "passed_on"),
    [
        ([LATEST, LATEST], []),
        ([OTHER, LATEST], [OTHER, LATEST]),
        ([LATEST, OTHER, LATEST], [OTHER, LATEST]),
        ([OTHER[:5], OTHER[5:], LATEST], [OTHER[:5], OTHER[5:], LATEST]),
        ([LATEST + LATEST, LATEST], [LATEST + LATEST, LATEST]),
    ],
)
async def test_any_protocol_can_be_inside(received: list[bytes], passed_on: list[bytes]) -> None:
    """What is known is answered while nothing else is; everything else is passed on as it came. No more is asked of aiohttp than of this protocol."""
    inner, transport = Inner(), Transport()
    made = Connection(inner, Known(), PendingRequests())
    made.connection_made(transport)
    for data in received:
        made.data_received(data)
    assert inner.seen == passed_on
    assert transport.written == b"answer" * (len(received) - len(passed_on))


def test_no_private_name_of_another_object_is_used() -> None:
    """Whatever aiohttp, or any other library, calls its own affairs: no module of the mirror names an attribute with an underscore that is neither its own nor
    that of a class of the mirror which it extends."""
    top = Path(inspect.getfile(mirror.api)).parents[2]
    trees = {
        ".".join(file.relative_to(top).with_suffix("").parts): ast.parse(file.read_text())
        for file in sorted((top / "mirror").rglob("*.py"))
    }
    found = []
    for module, tree in trees.items():
        own = _private_names(tree).union(*(_private_names(trees[base]) for base in _extended(tree) if base in trees))
        found += [
            f"{module}: {node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and node.attr not in own
        ]
    # os._exit; and what the old form of keyless signatures needs of sigstore, which is pinned for it (see _old_bundle): without these names none of them would count.
    assert found == ["mirror.guards.keyless: _inner", "mirror.guards.keyless: _verify_set", "mirror.workers.parent: _exit"]


def _private_names(tree: ast.Module) -> set[str]:
    """The attributes and functions that a module defines."""
    return {
        name
        for node in ast.walk(tree)
        for name in (
            [node.attr] if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            else [node.name] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            else [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            else []
        )
    }  # fmt: skip


def _extended(tree: ast.Module) -> set[str]:
    """The modules that the base classes of a module's classes come from."""
    bases = {
        base.id for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases if isinstance(base, ast.Name)
    }
    return {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and any(alias.name in bases for alias in node.names)
    }
