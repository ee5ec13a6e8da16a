"""Registries that need no table: those whose address is known, and no others."""

from __future__ import annotations

import json

import pytest

from mirror.config import KNOWN_ENDPOINTS, load
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted


async def test_a_known_registry_needs_no_table(start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is served in every way of naming it, and /readyz has its state from its first use on."""
    async with Scripted() as nvidia:
        monkeypatch.setitem(KNOWN_ENDPOINTS, "nvcr.io", nvidia.url)
        image = nvidia.add_image("nvidia/cuda", "12")
        mirror: Mirror = await start()
        assert "nvcr.io" not in json.loads((await mirror.get("/readyz")).body)["registries"]
        for path in (
            "/v2/nvcr.io/nvidia/cuda/manifests/12",
            "/v2/nvidia/cuda/manifests/12?ns=nvcr.io",
            "/nvcr.io/v2/nvidia/cuda/manifests/12",
        ):
            assert (await mirror.get(path)).body == image.body
        assert nvidia.count("GET", "/manifests/12") == 1
        assert not upstream.asked
        assert "nvcr.io" in json.loads((await mirror.get("/readyz")).body)["registries"]


async def test_only_listed_registries_where_that_is_set(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked for another one, and the error says which table adds it."""
    async with Scripted() as nvidia:
        monkeypatch.setitem(KNOWN_ENDPOINTS, "nvcr.io", nvidia.url)
        nvidia.add_image("nvidia/cuda", "12")
        mirror: Mirror = await start(settings={"upstream": {"registries": "listed"}})
        answer = await mirror.get("/v2/nvcr.io/nvidia/cuda/manifests/12")
        assert answer.status == 404
        assert '[registries.\\"nvcr.io\\"]' in answer.body.decode()
        assert not nvidia.asked
        assert not upstream.asked


async def test_a_host_that_is_not_known_is_never_asked(start: StartMirror, upstream: Scripted) -> None:
    """Though a client names it, in any of the ways."""
    async with Scripted() as other:
        other.add_image("library/app", "1")
        host = other.url.removeprefix("http://")
        mirror: Mirror = await start()
        for path in (f"/v2/{host}/library/app/manifests/1", f"/v2/library/app/manifests/1?ns={host}"):
            answer = await mirror.get(path)
            assert (answer.status, f'[registries.\\"{host}\\"]' in answer.body.decode()) == (404, True)
        assert not other.asked
        assert not upstream.asked


def test_an_empty_table_of_a_known_registry_has_its_address() -> None:
    """It is then one of the registries that `mirror configure` and `mirror doctor` look at."""
    settings = load(None, {}, {"registries": {"nvcr.io": {}}})
    assert str(settings.registries["nvcr.io"].endpoints[0]) == "https://nvcr.io"
    assert "nvcr.io" not in settings.unlisted
    assert "lscr.io" in settings.unlisted
