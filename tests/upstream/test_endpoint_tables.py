"""Endpoints that are tables: `path` is put before each repository's name, as projects of Harbor and Nexus need it."""

from __future__ import annotations

import json

import pytest

from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted


@pytest.mark.parametrize("path", ["dockerhub", "/team/dockerhub/"])
@pytest.mark.parametrize("auth", [None, "bearer"])
async def test_path_is_put_before_every_repository(start: StartMirror, upstream: Scripted, path: str, auth: str | None) -> None:
    """Manifests, blobs, all pages of tags and referrers are asked for below it, tokens have its scope, and no name of a registry is added."""
    project = path.strip("/")
    image = upstream.add_image(f"{project}/library/app", "latest")
    upstream.add_image(f"{project}/library/app", "older")
    signature = upstream.add_image(f"{project}/library/app", None, subject={"digest": str(image.digest)})
    upstream.auth, upstream.page_size = auth, 1
    settings = {"registries": {"docker.io": {"endpoints": [{"url": upstream.url, "path": path}]}}}
    mirror: Mirror = await start(settings=settings)
    assert (await mirror.get("/v2/app/manifests/latest")).body == image.body
    assert (await mirror.get(f"/v2/app/blobs/{image.layers[0]}")).status == 200
    assert json.loads((await mirror.get("/v2/app/tags/list")).body)["tags"] == ["latest", "older"]
    referrers = json.loads((await mirror.get(f"/v2/app/referrers/{image.digest}")).body)["manifests"]
    assert [entry["digest"] for entry in referrers] == [str(signature.digest)]
    asked = [one for one in upstream.asked if one.path != "/token"]
    assert all(one.path.startswith(f"/v2/{project}/library/app/") for one in asked), asked
    assert not any("ns=" in one.query for one in asked)
    scopes = {one.query for one in upstream.asked if one.path == "/token"}
    assert len(scopes) == (auth is not None)
    assert all(
        f"scope=repository:{project}/library/app:pull" in scope.replace("%3A", ":").replace("%2F", "/") for scope in scopes
    )


async def test_a_redirect_of_a_path_keeps_it(start: StartMirror, upstream: Scripted) -> None:
    """A blob that is elsewhere is asked for there by the name that the redirect has."""
    async with Scripted() as store:
        image = upstream.add_image("hub/library/app", "latest")
        store.blobs |= upstream.blobs
        upstream.auth, upstream.redirect_blobs_to = "bearer", store
        mirror: Mirror = await start(
            settings={"registries": {"docker.io": {"endpoints": [{"url": upstream.url, "path": "hub"}]}}}
        )
        assert (await mirror.get(f"/v2/app/blobs/{image.layers[0]}")).body == store.blobs[str(image.layers[0])]
        assert {one.path for one in store.asked} == {f"/v2/hub/library/app/blobs/{image.layers[0]}"}


async def test_two_projects_of_one_host_are_two_endpoints(start: StartMirror, upstream: Scripted) -> None:
    """What the first does not have, the second is asked for; each has a state and metrics of its own."""
    image = upstream.add_image("second/library/app", "latest")
    tables = [{"url": upstream.url, "path": path} for path in ("first", "second")]
    mirror: Mirror = await start(settings={"registries": {"docker.io": {"endpoints": tables}}})
    assert (await mirror.get("/v2/app/manifests/latest")).body == image.body
    assert upstream.count("HEAD", "/first/") + upstream.count("GET", "/first/") > 0
    report = json.loads((await mirror.get("/readyz")).body)["registries"]["docker.io"]
    assert [endpoint["endpoint"] for endpoint in report] == [f"{upstream.url}/v2/{path}" for path in ("first", "second")]
    metrics = (await mirror.get("/metrics")).body.decode()
    authority = upstream.url.removeprefix("http://")
    assert all(f'endpoint="{authority}/{path}"' in metrics for path in ("first", "second"))
