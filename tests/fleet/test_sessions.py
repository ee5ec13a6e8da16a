"""Who has logged in at one mirror of a fleet has at all, and whoever may no longer, may at none."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import jwt
import pytest

from mirror.access import users
from mirror.access.access import signing_key
from mirror.access.identities import Identities
from mirror.access.rules import Identity
from mirror.access.signing import Signer, fleet_key
from mirror.api.browser_logins import SESSION_COOKIE
from mirror.client_login import ClientLogin
from mirror.errors import LoginWrong
from tests.fleet.test_accounts import ACCESS, PASSWORD, basic
from tests.fleet.test_changes import TOKEN
from tests.support.dashboard import HTML, post
from tests.support.members import StartMembers
from tests.support.mirrors import Mirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Image, Scripted

SCOPE = "/token?service=mirror&scope=repository:library/app:pull"


async def comes(condition: Callable[[], Awaitable[bool]]) -> None:
    """Files are read within a second."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.05)


async def bearer(mirror: Mirror) -> str:
    """As a client gets one, by its password."""
    got = await mirror.get(SCOPE, Authorization=basic("alice", PASSWORD))
    assert got.status == 200, got.body
    return str(json.loads(got.body)["token"])


async def pulls(mirror: Mirror, token: str, image: Image) -> int:
    return (await mirror.get(f"/v2/library/app/manifests/{image.digest}", Authorization=f"Bearer {token}")).status


async def logged_in(mirror: Mirror) -> str:
    """A session of the dashboard, as its cookie."""
    status, _, headers = await post(mirror, "/login", {"username": "alice", "token": PASSWORD, "to": "/"}, **HTML)
    assert status == 303
    (cookie,) = (one for one in headers.getall("Set-Cookie") if one.startswith(SESSION_COOKIE))
    return str(cookie.partition(";")[0])


async def sees(mirror: Mirror, cookie: str) -> bool:
    return (await mirror.get("/account", Cookie=cookie)).status == 200


@pytest.fixture
async def fleet(members: StartMembers, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mirror]:
    """Two mirrors with the same user."""
    monkeypatch.setattr(users, "_ROUNDS", 4)
    (tmp_path / "token").write_text(TOKEN)
    users.set_password(tmp_path / "users", "alice", PASSWORD)
    settings = {
        "fleet": {"token_file": str(tmp_path / "token")},
        "server": {"users_file": str(tmp_path / "users")},
        "access": ACCESS,
    }
    return list((await members(2, settings=settings)).mirrors.values())


async def test_what_one_has_signed_counts_at_all_until_it_is_revoked(
    fleet: list[Mirror], upstream: Scripted, tmp_path: Path
) -> None:
    """Clients that go on to another mirror in mid-pull need no other token. A password that was changed ends it at each mirror that knows of it, and another token of the fleet at all."""
    first, second = fleet
    image = upstream.add_image("library/app", "1")
    token, cookie = await bearer(first), await logged_in(first)
    assert [await pulls(mirror, token, image) for mirror in fleet] == [200, 200]
    assert [await sees(mirror, cookie) for mirror in fleet] == [True, True]
    # Not with the mirror's own key, which others do not know.
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, signing_key(first.directory / "access"), algorithms=["HS256"], audience="mirror")

    (tmp_path / "token").write_text(f"another-{TOKEN}")

    async def refused() -> bool:
        return [await pulls(mirror, token, image) for mirror in fleet] == [403, 403] and not await sees(second, cookie)

    await comes(refused)
    token, cookie = await bearer(second), await logged_in(second)

    async def taken() -> bool:
        return [await pulls(mirror, token, image) for mirror in fleet] == [200, 200]

    await comes(taken)
    users.set_password(tmp_path / "users", "alice", f"another {PASSWORD}")
    await comes(refused)


async def test_who_logs_out_at_one_is_logged_out_at_all(fleet: list[Mirror]) -> None:
    """Of the dashboard: copies of the cookie are worth nothing anywhere. Names that are none of a session's are not taken: they become files."""
    first, second = fleet
    cookie = await logged_in(first)
    assert await sees(second, cookie)
    status, _, _ = await post(first, "/logout", {}, Cookie=cookie, Origin=first.url, Host=first.url.removeprefix("http://"))
    assert (status, await sees(first, cookie), await sees(second, cookie)) == (303, False, False)
    headers = {"CDN-Loop": "x; mirror=peer", "Authorization": f"Bearer {TOKEN}"}
    far = f"{int(time.time()) + 10 * 86400}.{'0' * 16}"
    body = {"action": "end-session", "names": ["../key", "1.x", "", far, f"{'9' * 12}.{'0' * 16}"]}
    async with second.session.post("/fleet/changes", json=body, headers=headers) as response:
        assert all(one["fault"] for one in (await response.json())["outcomes"])
    assert len(list((second.directory / "ended-sessions").iterdir())) == 1


async def test_the_key_of_a_fleet_takes_the_place_of_the_mirrors_own() -> None:
    """What was signed before counts on, at the mirror that has signed it only; a clock that is ahead a little does no harm; and what a client has sent for a registry goes along."""
    own, other = Identities(lambda: b"k" * 32), Identities(lambda: b"o" * 32, lambda: time.time() + 4)
    before, _ = own.sign(Identity(), ())
    for one in (own, other):
        one.signer.shared = fleet_key(TOKEN)
    login = ClientLogin("ghcr.io", "alice", PASSWORD)
    signed, _ = other.sign(Identity(login=login), ())
    assert PASSWORD not in signed
    assert (await own.of_bearer(signed, Identity(), "here", "ghcr.io")).identity.login == login
    await own.of_bearer(before, Identity(), "here")
    with pytest.raises(LoginWrong):
        await other.of_bearer(before, Identity(), "here")
    stranger = Signer(lambda: b"k" * 32)
    stranger.shared = fleet_key(f"{TOKEN}x")
    forged = stranger.sign("mirror", 60, Identity(), "", {"access": []})
    with pytest.raises(LoginWrong):
        await own.of_bearer(forged, Identity(), "here")
