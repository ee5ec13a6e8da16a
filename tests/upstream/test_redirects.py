"""Redirects of every kind of resource: to another registry with challenges of its own, relative, in circles; and what never goes along."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from tests.support.mirrors import Mirror, StartMirror
from tests.support.resources import RESOURCES, request
from tests.support.scripted import Fault, Redirect, Scripted, Silence, Status


@pytest.fixture
async def other() -> AsyncIterator[Scripted]:
    """Another registry, with accounts of its own: anybody may have a token."""
    async with Scripted() as scripted:
        scripted.auth = "bearer"
        yield scripted


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("resource", RESOURCES)
async def test_another_registrys_challenge_is_answered_with_its_own_token(
    start: StartMirror, upstream: Scripted, other: Scripted, resource: str, status: int
) -> None:
    """As lscr.io redirects to ghcr.io: with a token made there for the name there, and without the first one's credentials or tokens."""
    upstream.auth, upstream.accounts = "bearer", {"robot": "secret-pw"}
    other.page_size = 1
    image = other.add_image("owner/app", "latest")
    other.add_image("owner/app", "next")
    method, path = request(resource, image)
    query = "?last=latest" if resource == "tags" else ""
    upstream.fail("library/app", Redirect(f"{other.url}/v2/owner/app/{path}", status), method="*")
    upstream.fail("library/app", Redirect(f"{other.url}/v2/owner/app/{path}{query}", status), times=20, method="*")
    registry = {"endpoints": [upstream.url], "username": "robot", "password": "secret-pw"}
    mirror: Mirror = await start(settings={"registries": {"docker.io": registry}})
    answer = await mirror.get(f"/v2/app/{path}", method)
    assert answer.status == 200, answer.body
    if resource == "tags":
        assert json.loads(answer.body)["tags"] == ["latest", "next"]
    tokens = [asked for asked in other.asked if asked.path == "/token"]
    assert {(asked.query, asked.authorization) for asked in tokens} == {
        ("service=scripted&scope=repository:owner/app:pull", None)
    }
    first = {asked.authorization for asked in upstream.asked} - {None}
    assert first
    assert not first & {asked.authorization for asked in other.asked}


@pytest.mark.parametrize("realm", ["basic", "the first one's", "none"])
@pytest.mark.parametrize("resource", RESOURCES)
async def test_no_password_is_made_use_of_by_another_registry(
    start: StartMirror, upstream: Scripted, other: Scripted, resource: str, realm: str
) -> None:
    """One that asks for a password, or names the first one's token service, gets nothing that was made with it."""
    upstream.auth, upstream.accounts = "bearer", {"robot": "secret-pw"}
    image = other.add_image("owner/app", "latest")
    if realm == "basic":
        other.auth, other.accounts = "basic", {"robot": "secret-pw"}
    else:
        other.realm = f"{upstream.url}/token" if realm == "the first one's" else "http://127.0.0.1:1/token"
    method, path = request(resource, image)
    upstream.fail("library/app", Redirect(f"{other.url}/v2/owner/app/{path}"), times=20, method="*")
    registry = {"endpoints": [upstream.url], "username": "robot", "password": "secret-pw"}
    mirror: Mirror = await start(settings={"registries": {"docker.io": registry}})
    assert (await mirror.get(f"/v2/app/{path}", method)).status in (403, 503)
    assert {asked.authorization for asked in other.asked} == {None}


@pytest.mark.parametrize("resource", RESOURCES)
async def test_redirects_in_a_circle_end(start: StartMirror, upstream: Scripted, other: Scripted, resource: str) -> None:
    """Between two registries, or within one: after a few requests, as upstream's error."""
    other.auth = None
    image = other.add_image("library/app", "latest")
    method, path = request(resource, image)
    upstream.fail("library/app", Redirect(f"{other.url}/v2/library/app/{path}"), times=50, method="*")
    other.fail("library/app", Redirect(f"{upstream.url}/v2/library/app/{path}"), times=50, method="*")
    mirror: Mirror = await start()
    assert (await mirror.get(f"/v2/app/{path}", method)).status == 503
    assert len(upstream.asked) + len(other.asked) <= 8


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize(
    "location", ["./{last}", "../../other/{path}", "/v2/library/other/{path}", "//{host}/v2/library/other/{path}"]
)
async def test_a_relative_redirect_is_resolved(start: StartMirror, upstream: Scripted, resource: str, location: str) -> None:
    """Against the URL that was asked for (RFC 3986, section 5), with the endpoint's own token: it is the same origin."""
    upstream.auth = "bearer"
    image = upstream.add_image("library/other", "latest")
    upstream.add_image("library/app", "latest")
    upstream.manifests["library/app", str(image.digest)] = upstream.manifests["library/other", str(image.digest)]
    method, path = request(resource, image)
    last = path.rpartition("/")[2]
    target = location.format(last=f"{last}?once", path=path, host=upstream.url.removeprefix("http://"))
    upstream.fail("library/app", Redirect(target), method="*")
    mirror: Mirror = await start()
    assert (await mirror.get(f"/v2/app/{path}", method)).status == 200


@pytest.mark.parametrize("fault", [Status(500), Status(404), Silence()], ids=str)
async def test_a_target_that_fails_is_not_the_registrys_failure(
    start: StartMirror, upstream: Scripted, other: Scripted, fault: Fault
) -> None:
    """A cached tag is served stale, and the registry is asked on for everything else."""
    image = upstream.add_image("library/app", "latest")
    other.auth = None
    mirror: Mirror = await start(tag_ttl=0, settings={"upstream": {"header_timeout": 1}})
    assert (await mirror.get("/v2/app/manifests/latest")).status == 200
    upstream.fail("library/app", Redirect(f"{other.url}/v2/library/app/manifests/latest"), times=50, method="*")
    other.fail("library/app", fault, times=50, method="*")
    stale = await mirror.get("/v2/app/manifests/latest")
    assert (stale.status, stale.body) == (200, image.body)
    upstream.add_image("library/healthy", "latest")
    assert (await mirror.get("/v2/healthy/manifests/latest")).status == 200
