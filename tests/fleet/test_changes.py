"""Changes by hand go to all mirrors of a fleet, whichever of them is asked, and those that did not take them are named."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.test_fleet import pull
from tests.support.commands import Commands
from tests.support.dashboard import HTML, post, token
from tests.support.members import Members, StartMembers, directory
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Image, Scripted

NAME = "docker.io/library/app:1"
TOKEN = "a token that only this fleet has".replace(" ", "-")


@dataclass
class Setting:
    """A fleet with a token, of which one mirror is asked."""

    fleet: Members
    upstream: Scripted
    token_file: Path

    @property
    def mirrors(self) -> list[Mirror]:
        return list(self.fleet.mirrors.values())

    @property
    def environment(self) -> dict[str, str]:
        return {
            "MIRROR_FLEET__MIRRORS": json.dumps(list(self.fleet.mirrors)),
            "MIRROR_FLEET__OWN": self.mirrors[0].url,
            "MIRROR_FLEET__TOKEN_FILE": str(self.token_file),
        }

    async def command(self, *arguments: str, at: Mirror | None = None, **environment: str) -> tuple[int, str, str]:
        """At the first mirror by default. Returns status, output, errors."""
        at = at or self.mirrors[0]
        own = {"MIRROR_FLEET__OWN": at.url}
        done = await Commands(at.directory, self.upstream).run(*arguments, **{**self.environment, **own, **environment})
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
async def setting(members: StartMembers, upstream: Scripted, tmp_path: Path) -> Setting:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    return Setting(await members(settings={"fleet": {"token_file": str(token_file)}}), upstream, token_file)


async def cached(mirror: Mirror) -> dict[str, Any]:
    """Its images by name, as it tells another one."""
    got = await mirror.get("/fleet/images", CDN_Loop="test; mirror=peer", Authorization=f"Bearer {TOKEN}")
    assert got.status == 200, got.body
    return {image["image"]: image for image in json.loads(got.body)["images"]}


async def pull_at(mirrors: Sequence[Mirror], image: Image) -> None:
    for mirror in mirrors:
        await pull(mirror, image)


async def test_a_command_at_one_mirror_changes_all(setting: Setting) -> None:
    """Pins, what is deleted, and blocks: also of what the mirror that is asked does not have itself."""
    image = setting.upstream.add_image("library/app", "1")
    await pull_at(setting.mirrors, image)
    assert (await setting.command("pin", "app:1"))[0] == 0
    assert [(await cached(mirror))[NAME]["pinned"] for mirror in setting.mirrors] == [True] * 3
    status, _, errors = await setting.command("rm", "app:1")
    assert status == 1
    assert "pinned" in errors
    assert [NAME in await cached(mirror) for mirror in setting.mirrors] == [True] * 3, "what is refused here goes nowhere"
    assert (await setting.command("unpin", "app:1"))[0] == 0
    assert [(await cached(mirror))[NAME]["pinned"] for mirror in setting.mirrors] == [False] * 3
    assert (await setting.command("rm", "app:1", "--here"))[0] == 0
    assert [NAME in await cached(mirror) for mirror in setting.mirrors] == [False, True, True]
    status, output, _ = await setting.command("rm", "app:1")
    assert (status, "not cached here" in output) == (0, True)
    assert [NAME in await cached(mirror) for mirror in setting.mirrors] == [False] * 3
    await pull_at(setting.mirrors, image)
    assert (await setting.command("block", str(image.digest), "--reason", "bad"))[0] == 0
    path = f"/v2/library/app/manifests/{image.digest}"
    assert [(await mirror.get(path)).status for mirror in setting.mirrors[1:]] == [403, 403]
    assert (await setting.command("unblock", str(image.digest)))[0] == 0
    assert [(await mirror.get(path)).status for mirror in setting.mirrors[1:]] == [200, 200]


async def test_a_mirror_that_is_down_is_named_and_the_others_are_changed(
    setting: Setting, start: StartMirror, tmp_path: Path
) -> None:
    """The exit status tells scripts. Once it is back, the same command does the rest."""
    await pull_at(setting.mirrors, setting.upstream.add_image("library/app", "1"))
    down = setting.mirrors[2]
    await down.stop()
    status, output, errors = await setting.command("pin", "app:1")
    assert (status, "is pinned" in output, down.url in errors, setting.mirrors[1].url in errors) == (1, True, True, False)
    assert "do it again" in errors
    assert [(await cached(mirror))[NAME]["pinned"] for mirror in setting.mirrors[:2]] == [True] * 2
    fleet = {"mirrors": list(setting.fleet.mirrors), "own": down.url, "token_file": str(setting.token_file)}
    settings = {"server": {"listen": down.url.removeprefix("http://")}, "fleet": fleet}
    back = await start(directory(tmp_path, down.url), settings=settings)
    assert (await cached(back))[NAME]["pinned"] is False, "it does not learn of it by itself"
    assert (await setting.command("pin", "app:1"))[0] == 0
    assert (await cached(back))[NAME]["pinned"] is True
    await Commands(setting.mirrors[0].directory)("unpin", "app:1", "--here")
    assert (await setting.command("unpin", "app:1"))[0] == 0, "what is done here already is no fault"
    assert (await cached(back))[NAME]["pinned"] is False


async def test_the_dashboard_of_one_changes_all_and_names_those_that_are_down(setting: Setting) -> None:
    """Each action of it, by the admin token of the mirror that is asked: the others take it by the fleet's."""
    image = setting.upstream.add_image("library/app", "1")
    await pull_at(setting.mirrors, image)
    first, second, third = setting.mirrors
    admin = {"Authorization": f"Bearer {token(first)}"}
    for action, pinned in (("pin", True), ("unpin", False)):
        assert (await post(first, f"/image/{NAME}", {"action": action}, **admin))[0] == 200
        assert [(await cached(mirror))[NAME]["pinned"] for mirror in setting.mirrors] == [pinned] * 3
    setting.upstream.asked.clear()
    assert (await post(first, f"/image/{NAME}", {"action": "refresh"}, **admin))[0] == 200
    assert setting.upstream.count("HEAD", "/manifests/1") == 3, "each by the registry's own word"
    for form in (
        {"action": "block", "digest": str(image.digest), "why": "bad"},
        {"action": "unblock", "digest": str(image.digest)},
    ):
        assert (await post(first, "/guards", form, **admin))[0] == 200
        statuses = [(await mirror.get(f"/v2/library/app/manifests/{image.digest}")).status for mirror in setting.mirrors]
        assert statuses == [403 if form["action"] == "block" else 200] * 3
    await third.stop()
    status, body, _ = await post(first, f"/image/{NAME}", {"action": "delete"}, **admin)
    assert (status, third.url in body, second.url in body) == (502, True, False)
    assert [NAME in await cached(mirror) for mirror in (first, second)] == [False, False]
    status, body, _ = await post(first, f"/image/{NAME}", {"action": "pin"}, **admin, **HTML, Accept_Language="zh")
    assert (status, third.url in body) == (502, True)


async def test_only_mirrors_with_the_token_are_answered(setting: Setting) -> None:
    """Nobody else changes or learns anything, an admin of the mirror neither: its own pages are for that."""
    mirror = setting.mirrors[0]
    wrong: list[dict[str, str]] = [
        {},
        {"Authorization": f"Bearer {TOKEN}"},
        {"CDN_Loop": "x; mirror=peer"},
        {"CDN_Loop": "x; mirror=peer", "Authorization": f"Basic {TOKEN}"},
    ]
    paths = {"changes": "POST", "state": "GET", "images": "GET", "pulls": "GET", "other": "GET"}
    for (path, method), headers in zip(paths.items(), (*wrong, {"Authorization": f"Bearer {token(mirror)}"}), strict=True):
        assert (await mirror.get(f"/fleet/{path}", method, **headers)).status == 403, path
    right = {"CDN_Loop": "x; mirror=peer", "Authorization": f"Bearer {TOKEN}"}
    statuses = {path: (await mirror.get(f"/fleet/{path}", **right)).status for path in paths}
    assert statuses == {"changes": 405, "state": 200, "images": 200, "pulls": 400, "other": 404}


async def test_a_change_that_is_none_changes_nothing(setting: Setting) -> None:
    """It is answered with what was wrong, for each name."""
    mirror = setting.mirrors[0]
    headers = {"CDN-Loop": "x; mirror=peer", "Authorization": f"Bearer {TOKEN}"}
    for body, status in (
        ("{", 400),
        ("[]", 400),
        ("[" * 100_000, 400),
        ('{"action": "explode", "names": []}', 400),
        ('{"action": "pin", "names": "docker.io/library/app:1"}', 400),
        ('{"action": "pin", "names": [1]}', 400),
        ('{"action": "pin", "names": ["", "../..", "a b", "docker.io/library/app@sha256:1"]}', 200),
        ('{"action": "block", "names": ["sha256:1", "x"]}', 200),
        ('{"action": "release", "names": ["app:1"]}', 200),
        ('{"action": "release", "names": ["app:1"], "digest": "x"}', 200),
        (" " * (4 * 1024 * 1024 + 1), 400),
    ):
        async with mirror.session.post("/fleet/changes", data=io.BytesIO(body.encode()), headers=headers) as response:
            assert response.status == status, body[:80]
            answer = await response.json()
        assert status == 400 or all(one["fault"] for one in answer["outcomes"])
    assert await cached(mirror) == {}


async def test_what_was_not_looked_at_is_not_released(members: StartMembers, upstream: Scripted, tmp_path: Path) -> None:
    """Where a tag has moved once more at another mirror's last look, that mirror holds it back still, and is named."""
    (tmp_path / "token").write_text(TOKEN)
    guard = [{"name": "cooling", "images": ["docker.io/**"], "cooldown": "30d"}]
    fleet = await members(settings={"fleet": {"token_file": str(tmp_path / "token")}, "guard": guard}, tag_ttl="0s")
    setting = Setting(fleet, upstream, tmp_path / "token")
    first = upstream.add_image("library/app", "1")
    await pull_at(setting.mirrors, first)
    second = upstream.add_image("library/app", "1")
    # The others ask the home, and it asks none of them.
    home, asked, other = fleet.in_order_of_tag("library/app", "1")
    for mirror in setting.mirrors:
        assert (await mirror.head("/v2/library/app/manifests/1")).headers["Docker-Content-Digest"] == str(first.digest)
    upstream.add_image("library/app", "1")
    await home.head("/v2/library/app/manifests/1")
    status, _, errors = await setting.command("release", "app:1", "--why", "seen", at=asked, MIRROR_GUARD=json.dumps(guard))
    assert (status, other.url in errors, home.url in errors) == (1, False, True)
    assert str(second.digest) not in errors


async def test_without_a_token_only_this_mirror_changes(members: StartMembers, upstream: Scripted, tmp_path: Path) -> None:
    """The command says so, and what would change that; the dashboard works as at a single mirror."""
    setting = Setting(await members(2), upstream, tmp_path / "none")
    await pull_at(setting.mirrors, upstream.add_image("library/app", "1"))
    environment = {name: value for name, value in setting.environment.items() if "TOKEN" not in name}
    done = await Commands(setting.mirrors[0].directory, upstream).run("pin", "app:1", **environment)
    assert (done.returncode, "fleet.token_file" in done.stderr) == (0, True)
    first = setting.mirrors[0]
    status, _, _ = await post(first, f"/image/{NAME}", {"action": "unpin"}, Authorization=f"Bearer {token(first)}")
    assert status == 200
    assert (await first.get("/fleet/state", CDN_Loop="x; mirror=peer", Authorization="Bearer None")).status == 403


async def test_a_change_at_a_mirror_that_lists_itself_twice_ends(
    members: StartMembers, upstream: Scripted, tmp_path: Path
) -> None:
    """What one is told it does not tell on: no list can make a change go around in a circle."""
    (tmp_path / "token").write_text(TOKEN)
    fleet = await members(2, settings={"fleet": {"token_file": str(tmp_path / "token")}})
    setting = Setting(fleet, upstream, tmp_path / "token")
    await pull_at(setting.mirrors, upstream.add_image("library/app", "1"))
    alias = setting.mirrors[0].url.replace("127.0.0.1", "localhost")
    listed = json.dumps([*fleet.mirrors, alias])
    assert (await setting.command("pin", "app:1", MIRROR_FLEET__MIRRORS=listed))[0] == 0
    assert [(await cached(mirror))[NAME]["pinned"] for mirror in setting.mirrors] == [True, True]
