"""Users who may administer the mirror: the dashboard's pages and changes by user and password."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from mirror.access import users
from tests.support.mirrors import StartMirror
from tests.support.scripted import Scripted


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_a_user_who_may_administer_sees_and_changes(
    start: StartMirror, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Basic: pages and changes for one who has `admin`, neither for another. A form that another site makes the browser send changes nothing."""
    monkeypatch.setattr(users, "_ROUNDS", 4)
    for user in ("root", "bob"):
        users.set_password(tmp_path / "users", user, f"{user}'s password")
    upstream.add_image("library/app", "1")
    mirror = await start(
        settings={
            "server": {"users_file": str(tmp_path / "users")},
            "access": [{"who": ["root"], "may": ["pull", "admin"]}, {"who": ["@users"], "repositories": ["library/*"]}],
        }
    )
    root, bob = basic("root", "root's password"), basic("bob", "bob's password")
    assert (await mirror.get("/v2/library/app/manifests/1", Authorization=bob)).status == 200
    for path in (
        "/",
        "/images",
        "/image/docker.io/library/app:1",
        "/class",
        "/search?q=app",
        "/repository/docker.io/library/app",
    ):
        assert (await mirror.get(path, Authorization=root)).status == 200, path
        assert (await mirror.get(path, Authorization=bob)).status == 401
        assert (await mirror.get(path)).status == 401

    async def pin(**headers: str) -> int:
        async with mirror.session.post(
            "/image/docker.io/library/app:1", data={"action": "pin"}, headers=headers, allow_redirects=False
        ) as answer:
            return answer.status

    assert await pin(Authorization=bob) == 401
    assert await pin() == 401
    assert await pin(Authorization=basic("root", "wrong")) == 403
    assert await pin(Authorization=root, Origin="http://evil.example") == 403
    assert await pin(Authorization=root, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert await pin(Authorization=root) == 200
