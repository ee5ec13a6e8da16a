"""Fixtures for tests of several mirrors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.members import Members, StartMembers, directory
from tests.support.mirrors import StartMirror
from tests.support.ports import free_port


@pytest.fixture
def members(start: StartMirror, tmp_path: Path) -> StartMembers:
    async def start_all(count: int = 3, settings: dict[str, Any] | None = None, **cache: Any) -> Members:
        urls = [f"http://127.0.0.1:{free_port()}" for _ in range(count)]
        found = {}
        for url in urls:
            tree = {name: dict(table) if isinstance(table, dict) else table for name, table in (settings or {}).items()}
            tree.setdefault("server", {})["listen"] = url.removeprefix("http://")
            tree["fleet"] = {"mirrors": urls, "own": url, **tree.get("fleet", {})}
            found[url] = await start(directory(tmp_path, url), settings=tree, **cache)
        return Members(found)

    return start_all
