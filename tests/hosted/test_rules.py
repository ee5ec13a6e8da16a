"""Who may push, delete and mount, by the tables of [[access]]."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.access.tokens import add_token
from mirror.names import Digest
from tests.api.test_gate import basic, users_file  # noqa: F401
from tests.support.mirrors import Mirror, StartMirror
from tests.support.pushes import HOSTED, manifest_of, push_image, put_manifest, say
from tests.support.scripted import Scripted

UPLOADS = "/v2/team/app/blobs/uploads/"
SECRET = b"a layer that only alice may pull" * 10
LAYER = b"layer"


@pytest.fixture
async def office(start: StartMirror, upstream: Scripted, users_file: Path) -> Mirror:  # noqa: F811
    """alice may do everything, bob pull and push below team/, anyone pull below team/open/. The private image is alice's, and cached."""
    image = upstream.add_image("private/app", "1", layers=[SECRET])
    mirror = await start(
        settings={
            "hosted": HOSTED,
            "server": {"users_file": str(users_file)},
            "access": [
                {"who": ["alice"], "may": ["pull", "push", "delete"], "repositories": ["**"]},
                {"who": ["bob"], "may": ["pull", "push"], "repositories": ["team/**"]},
                {"who": ["anyone"], "may": ["pull"], "repositories": ["team/open/**"]},
            ],
        }
    )
    for path in ("manifests/1", f"blobs/{image.config}", f"blobs/{Digest.of(SECRET)}"):
        assert (await mirror.get(f"/v2/private/app/{path}", Authorization=basic("alice"))).status == 200
    await mirror.until_cached(Digest.of(SECRET))
    mirror.session.headers["Authorization"] = basic("alice")
    await push_image(mirror.session, "team/open/app", "1", LAYER)
    await push_image(mirror.session, "team/closed/app", "1", LAYER)
    del mirror.session.headers["Authorization"]
    return mirror


@pytest.mark.parametrize(
    ("user", "repository", "pull", "push", "delete"),
    [
        ("alice", "team/closed/app", 200, 202, 202),
        ("bob", "team/closed/app", 200, 202, 403),
        ("bob", "team/open/app", 200, 202, 403),
        ("bob", "class/app", 404, 404, 404),
        (None, "team/open/app", 200, 403, 403),
        (None, "team/closed/app", 404, 404, 404),
    ],
)
async def test_what_each_may_do(office: Mirror, user: str | None, repository: str, pull: int, push: int, delete: int) -> None:
    """404 where they may not even pull, 403 where they may; nothing is begun or deleted then. A request from this machine is no exception."""
    headers = {} if user is None else {"Authorization": basic(user)}
    for method, path, status in (
        ("GET", "manifests/1", pull),
        ("POST", "blobs/uploads/", push),
        ("DELETE", "manifests/1", delete),
    ):
        said = await say(office.session, method, f"/v2/{repository}/{path}", **headers)
        assert said.status == status, (method, said)
    if delete != 202 and repository != "class/app":
        assert (await office.get(f"/v2/{repository}/manifests/1", Authorization=basic("alice"))).status == 200


async def test_nobody_mounts_what_they_may_not_pull(office: Mirror) -> None:
    """Neither from the repository that has it, nor from any, and not by naming its digest in a manifest: its being here is not told."""
    digest = Digest.of(SECRET)
    for query in (f"?mount={digest}&from=private/app", f"?mount={digest}"):
        said = await say(office.session, "POST", f"/v2/team/bob/blobs/uploads/{query}", Authorization=basic("bob"))
        assert said.status == 202
        assert (await office.get(f"/v2/team/bob/blobs/{digest}", Authorization=basic("bob"))).status == 404
    office.session.headers["Authorization"] = basic("bob")
    said = await say(office.session, "POST", f"/v2/team/bob/blobs/uploads/?digest={Digest.of(b'{}')}", b"{}")
    assert said.status == 201
    said = await put_manifest(office.session, "team/bob", "1", manifest_of(b"{}", SECRET))
    assert (said.status, said.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    office.session.headers["Authorization"] = basic("alice")
    said = await say(office.session, "POST", f"/v2/team/alice/blobs/uploads/?mount={digest}&from=private/app")
    assert said.status == 201


async def test_a_secret_path_is_in_each_location(office: Mirror) -> None:
    """A client that has the mirror's URL with a token in its path pushes through it to the end."""
    token = add_token(office.directory / "access" / "tokens", "ci", "alice", ("push:team/**", "pull:team/**"), None)
    said = await say(office.session, "POST", f"/t/{token}/v2/team/ci/blobs/uploads/")
    while said.status == 403:
        # Tokens are read anew within a second.
        said = await say(office.session, "POST", f"/t/{token}/v2/team/ci/blobs/uploads/")
    assert said.headers["Location"].startswith(f"/t/{token}/v2/team/ci/blobs/uploads/")
    done = await say(office.session, "PUT", f"{said.headers['Location']}?digest={Digest.of(LAYER)}", LAYER)
    assert (done.status, done.headers["Location"]) == (201, f"/t/{token}/v2/team/ci/blobs/{Digest.of(LAYER)}")
    assert (await office.get(done.headers["Location"])).body == LAYER


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Host": "localhost:5000"}, 202),
        ({"Host": "[::1]:5000"}, 202),
        ({"Host": "laptop"}, 202),
        ({"Host": "registry.example.com"}, 403),
        ({"Host": "registry.example.com."}, 403),
        ({"Host": "192.0.2.7:5000"}, 403),
        ({"Host": "[2001:db8::1]"}, 403),
        ({"X-Forwarded-For": "192.0.2.7"}, 403),
        ({"X-Forwarded-For": ""}, 403),
        ({"Host": "localhost", "X-Forwarded-Proto": "https"}, 403),
        ({"Host": "localhost", "X-Forwarded-Host": "localhost"}, 403),
        ({"Host": "localhost", "X-Forwarded-Port": "443"}, 403),
        ({"Via": "1.1 proxy"}, 403),
    ],
)
async def test_what_a_proxy_passes_on_is_not_from_this_machine(start: StartMirror, headers: dict[str, str], status: int) -> None:
    """Without tables, this machine may push. What a proxy on it passes on for others may not, whether the proxy names them or only the host that they asked for."""
    mirror = await start(settings={"hosted": HOSTED, "server": {"hosts": ["registry.example.com"]}})
    assert (await say(mirror.session, "POST", UPLOADS, **headers)).status == status


@pytest.mark.parametrize(
    ("server", "status"),
    [
        ({"public_url": "http://127.0.0.1:5000"}, 202),
        ({"public_url": "http://localhost:5000"}, 202),
        ({"public_url": "https://registry.example.com"}, 403),
        ({"public_url": "http://laptop:5000"}, 403),
        ({"trusted_proxies": ["10.0.0.0/8"]}, 403),
        ({"trusted_proxies": ["127.0.0.1/32"]}, 403),
    ],
)
async def test_with_a_proxy_nothing_is_known_to_be_from_this_machine(
    start: StartMirror, server: dict[str, object], status: int
) -> None:
    """Some proxies add no header at all, and name this machine as the host, or let the client name it: where the settings speak of one, nobody pushes without a
    password, whatever the request says."""
    mirror = await start(settings={"hosted": HOSTED, "server": server})
    for headers in ({}, {"Host": "localhost"}, {"Host": "127.0.0.1:5000"}):
        said = await say(mirror.session, "POST", UPLOADS, **headers)
        assert said.status == status
        assert status == 202 or "mirror user add" in said.message
