"""Every endpoint of a registry that has several is measured by a pull, and the fastest comes first."""

from __future__ import annotations

import os
from typing import Any

from mirror.doctor import upstreams
from mirror.doctor.findings import Level
from tests.doctor.conftest import of, settings
from tests.support.scripted import Delay, Scripted, Status


async def test_endpoints_are_ranked_by_a_pull(tree: dict[str, Any], upstream: Scripted) -> None:
    """With each step's time and the rate; those that refuse, are dead or have nothing come last, with the reason and what to do."""
    image = upstream.add_image("library/debian", "stable-slim", layers=[os.urandom(200_000)])
    upstream.add_index("library/debian", "stable-slim", [image])
    upstream.fail("/manifests/", Delay(0.5), times=5, method="*")
    async with Scripted() as fast, Scripted() as refusing:
        fast.manifests, fast.blobs = upstream.manifests, upstream.blobs
        refusing.fail("/manifests/", Status(403, body=b"not in the whitelist"), times=20, method="*")
        urls = [upstream.url, refusing.url, "http://127.0.0.1:1", fast.url]
        found = of(await upstreams.examine(settings(tree, hub={"endpoints": urls})), "docker.io")
        ranked = [one for one in found if one.message.startswith(("1. ", "2. "))]
        assert [one.message.split(" ")[1] for one in ranked] == [f"{fast.url}:", f"{upstream.url}:"]
        assert all(step in one.message for one in ranked for step in ("name ", "TCP ", "manifest ", "layer ", "/s"))
        unusable = [one for one in found if one.message.startswith("not usable: ")]
        assert {refusing.url in one.message or "127.0.0.1:1:" in one.message for one in unusable} == {True}
        assert len(unusable) == 2
        assert all(one.level == Level.ADVICE and one.cure for one in unusable)
        assert any("list of the images" in one.message for one in unusable)
        assert fast.count("GET", f"/blobs/{image.layers[0]}") == 1


async def test_a_single_endpoint_is_not_pulled_from(tree: dict[str, Any], upstream: Scripted) -> None:
    """A pull counts at Docker Hub, and there is nothing to rank."""
    upstream.add_image("library/debian", "stable-slim")
    await upstreams.examine(settings(tree, hub={"endpoints": [upstream.url]}))
    assert upstream.count("GET", "/library/debian/") == 0
