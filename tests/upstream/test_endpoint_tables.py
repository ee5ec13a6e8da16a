"""Endpoints that are tables: `path` is put before each repository's name, as projects of Harbor and Nexus need it."""

from __future__ import annotations

import json

import pytest

from mirror.config import ConfigError, load
from tests.support.mirrors import Mirror, StartMirror
from tests.support.proxying import ScriptedProxy
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


async def test_one_url_by_two_ways_is_two_endpoints(start: StartMirror, upstream: Scripted) -> None:
    """While the proxy serves all goes through it; while it does not, all goes directly. Each way has a state and metrics of its own, and each blob is asked for once."""
    first, second, third = (upstream.add_image("library/app", tag, [tag.encode() * 9999]) for tag in ("1", "2", "3"))

    async def pull(tag: str) -> None:
        image = {"1": first, "2": second, "3": third}[tag]
        assert (await mirror.get(f"/v2/app/manifests/{tag}")).body == image.body
        (layer,) = image.layers
        assert (await mirror.get(f"/v2/app/blobs/{layer}")).body == upstream.blobs[str(layer)]
        assert upstream.count("GET", str(layer)) == 1

    async def states() -> dict[str, str]:
        report = json.loads((await mirror.get("/readyz")).body)["registries"]["docker.io"]
        return {endpoint["endpoint"]: endpoint["state"] for endpoint in report}

    async with ScriptedProxy("http") as proxy:
        tables = [{"url": upstream.url, "proxy": proxy.url}, {"url": upstream.url, "proxy": "none"}]
        by_proxy, directly = f"{upstream.url} (proxy {proxy.url})", f"{upstream.url} (proxy none)"
        mirror: Mirror = await start(settings={"registries": {"docker.io": {"endpoints": tables}}})
        await pull("1")
        assert await states() == {by_proxy: "ok", directly: "ok"}
        through = len(proxy.targets)
        assert through > 0
        await proxy.stop()
        await pull("2")
        assert (await states())[directly] == "ok"
        assert len(proxy.targets) == through
        await proxy.start()
        await pull("3")
    metrics = (await mirror.get("/metrics")).body.decode()
    authority = upstream.url.removeprefix("http://")
    assert all(f'endpoint="{authority} (proxy {name})"' in metrics for name in (proxy.url, "none"))


async def test_a_name_that_only_the_proxy_knows_comes_by_the_second_way(start: StartMirror, upstream: Scripted) -> None:
    """Directly its name cannot be resolved. A missing image is still a 404, as the registry says through the proxy."""
    image = upstream.add_image("library/app", "latest")
    url = f"http://registry.invalid:{upstream.port}"
    async with ScriptedProxy("socks5h") as proxy:
        tables = [url, {"url": url, "proxy": proxy.url}]
        mirror: Mirror = await start(settings={"upstream": {"proxy": "none"}, "registries": {"docker.io": {"endpoints": tables}}})
        assert (await mirror.get("/v2/app/manifests/latest")).body == image.body
        assert (await mirror.get("/v2/app/manifests/absent")).status == 404
        assert {host for host, _ in proxy.targets} == {"registry.invalid"}


@pytest.mark.parametrize("way", [{}, {"proxy": "none"}, {"proxy": "socks5h://outside.lan:1080"}], ids=str)
def test_one_url_by_one_way_is_listed_once(way: dict[str, str]) -> None:
    """The error says which, and what to do."""
    tables = [{"url": "https://a/x", **way}, {"url": "https://A/x/", **way}]
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {"registries": {"docker.io": {"endpoints": tables}}})
    name = f"https://A/x (proxy {way['proxy']})" if way else "https://A/x"
    words = f"each endpoint is expected once: {name} is listed again; remove it, or give one of them another path or proxy"
    assert words in caught.value.faults[0]


_PROXY = "socks5h://outside.lan:1080"


@pytest.mark.parametrize(
    ("everywhere", "registry", "own", "one"),
    [
        ({}, {}, "environment", True),
        ({}, {}, "none", False),
        ({"proxy": _PROXY}, {}, _PROXY, True),
        ({"proxy": _PROXY}, {}, "none", False),
        ({"proxy": _PROXY}, {}, "environment", False),
        ({"proxy": _PROXY}, {"proxy": "none"}, "none", True),
        ({"proxy": _PROXY}, {"proxy": "none"}, _PROXY, False),
        ({"proxy": "none"}, {"proxy": _PROXY}, _PROXY, True),
    ],
)
def test_the_proxy_that_counts_anyway_makes_no_second_endpoint(
    everywhere: dict[str, str], registry: dict[str, str], own: str, one: bool
) -> None:
    """An endpoint that names the proxy it would have without it is the same as one that names none."""
    tables = {"registries": {"ghcr.io": {"endpoints": ["https://a", {"url": "https://a", "proxy": own}], **registry}}}
    if not one:
        load(None, {}, {"upstream": everywhere, **tables})
        return
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {"upstream": everywhere, **tables})
    (fault,) = caught.value.faults
    assert fault.count('registries."ghcr.io".endpoints') == 1
    assert f"each endpoint is expected once: https://a (proxy {own}) is listed again" in fault
