"""Users and tokens that are changed at one mirror are changed at all, by their hashes; and which mirror has others, or other tables, is told."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import encode_basic_auth

from mirror.access.access import TOKENS
from mirror.access.accounts import Accounts
from mirror.access.tokens import Tokens, add_token, kept_token, read_tokens
from mirror.access.users import read_users, remove_user, set_hash, set_password
from mirror.config import load
from mirror.fleet_documents import FIGURES, Change, Outcome, State, Told, differing
from mirror.upstream.members import Members as Asking
from tests.fleet.test_changes import TOKEN, Setting
from tests.support.commands import Commands
from tests.support.dashboard import HTML, log_in
from tests.support.members import StartMembers, directory
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted, Status

ACCESS = [{"who": ["alice", "token:ci"]}, {"who": ["anyone"], "may": []}]
PASSWORD = "correct horse battery"
HASH, OTHER = (f"$2b$04${letter * 53}" for letter in "ab")
KEPT = {"sha256": "0" * 64, "user": None, "scopes": ["pull"], "created": 1.0, "expires": None}


def basic(user: str, password: str) -> str:
    return encode_basic_auth(user, password)


def users_of(mirror: Mirror) -> dict[str, bytes]:
    return dict(read_users(mirror.directory / "access" / "users").hashes)


def tokens_of(mirror: Mirror) -> Tokens:
    return read_tokens(mirror.directory / "access" / TOKENS)


@pytest.fixture
async def setting(members: StartMembers, upstream: Scripted, tmp_path: Path) -> Setting:
    """Two mirrors that let in whom they know."""
    (tmp_path / "token").write_text(TOKEN)
    fleet = await members(2, settings={"fleet": {"token_file": str(tmp_path / "token")}, "access": ACCESS})
    return Setting(fleet, upstream, tmp_path / "token")


def asking(setting: Setting, at: int = 0) -> Asking:
    """One of the mirrors, as it tells the others."""
    table = {
        "mirrors": list(setting.fleet.mirrors),
        "own": setting.mirrors[at].url,
        "token_file": str(setting.token_file),
    }
    return Asking(load(None, {}, {"fleet": table}).fleet)


async def test_commands_change_users_and_tokens_of_all(
    setting: Setting, start: StartMirror, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is added at one mirror is let in at all, and who is removed at none, once all were told: a mirror that was down is named, and learns of it by the same command, or by send. Nothing
    but hashes goes to another one, and none into a log."""
    caplog.set_level(logging.DEBUG)
    first, second = setting.mirrors
    at_first = Commands(first.directory)
    image = setting.upstream.add_image("library/app", "1")
    path = f"/v2/library/app/manifests/{image.digest}"

    added = await at_first.run("user", "add", "alice", "--password-stdin", stdin=f"{PASSWORD}\n", **setting.environment)
    assert (added.returncode, added.stderr) == (0, "")
    assert users_of(first) == users_of(second) != {}
    secret = json.loads((await setting.command("token", "add", "ci", "--json"))[1])["secret"]
    for headers in ({"Authorization": basic("alice", PASSWORD)}, {"Authorization": f"Bearer {secret}"}):
        # Files are read within a second.
        async with asyncio.timeout(PATIENCE):
            while (await second.get(path, **headers)).status != 200:
                await asyncio.sleep(0.05)
    shown = "\n".join(record.getMessage() for record in caplog.records)
    assert not any(one in shown for one in (PASSWORD, secret, TOKEN, users_of(first)["alice"].decode()))

    assert (await setting.command("token", "rm", "ci", "--here", at=second))[0] == 0
    assert (tokens_of(first).by_digest != {}, tokens_of(second)) == (True, Tokens())
    assert (await setting.command("token", "send"))[0] == 0
    assert tokens_of(first) == tokens_of(second) != Tokens()

    await second.stop()
    status, _, errors = await setting.command("user", "rm", "alice")
    assert (status, second.url in errors, "do it again" in errors) == (1, True, True)
    fleet = {"mirrors": list(setting.fleet.mirrors), "own": second.url, "token_file": str(setting.token_file)}
    server = {"listen": second.url.removeprefix("http://")}
    await start(directory(tmp_path, second.url), settings={"server": server, "fleet": fleet, "access": ACCESS})

    async def differs() -> dict[str, list[str]]:
        output = (await setting.command("stats", "--fleet", "--json"))[1]
        return {one["mirror"]: one["differs"] for one in json.loads(output)["mirrors"]}

    await until_differs(differs, {first.url: [], second.url: ["users"]})
    assert (await setting.command("stats", "--fleet"))[0] == 1
    assert "alice" in users_of(second)
    assert (await setting.command("user", "rm", "alice"))[0] == 0, "that it is not here any more is no fault"
    assert users_of(second) == {}
    assert (await setting.command("user", "rm", "alice"))[0] == 1, "it is nowhere"


def test_what_is_not_taken_is_said_and_changes_nothing(tmp_path: Path) -> None:
    """Another user or token of the name, unless it is to be replaced; what is no hash; names that could be a path, or mean something else; a token of nobody. The same again is done already."""
    accounts = Accounts(tmp_path / "users", tmp_path / "tokens")

    def told(action: str, name: str, kept: Any = "", *, force: bool = False) -> str:
        kept = kept if isinstance(kept, str) else json.dumps(kept)
        change = Change(action, (name,), kept=kept, force=force)
        assert kept == "" or kept not in repr(change)
        outcome = accounts.take(Change.parse(change.document()), name)
        return "" if outcome.absent else outcome.fault

    def known() -> tuple[dict[str, str], list[str]]:
        return accounts.users(), list(read_tokens(accounts.tokens).by_digest)

    assert [told("set-user", "alice", HASH) for _ in range(2)] == ["", ""]
    assert [told("set-token", "ci", KEPT) for _ in range(2)] == ["", ""]
    assert "another user alice" in told("set-user", "alice", OTHER)
    assert "another token ci" in told("set-token", "ci", {**KEPT, "sha256": "1" * 64})
    for name, kept in (
        ("bob", PASSWORD),
        ("bob", f"{HASH}\nroot:{HASH}"),
        ("bob\nroot", HASH),
        ("bob:x", HASH),
        ("anyone", HASH),
        ("10.0.0.1", HASH),
        ("", HASH),
    ):
        assert told("set-user", name, kept) != "", (name, kept)
    for name, wrong in (
        ("../key", KEPT),
        ("", KEPT),
        ("x", "{"),
        ("x", "[" * 60_000),
        ("x", []),
        ("x", {**KEPT, "sha256": "secret"}),
        ("x", {**KEPT, "user": ["alice"]}),
        ("x", {**KEPT, "scopes": ["everything"]}),
        ("x", {**KEPT, "expires": float("nan")}),
        ("x", {**KEPT, "created": 10**400}),
    ):
        assert told("set-token", name, wrong) != "", (name, wrong)
    assert "no user carol" in told("set-token", "x", {**KEPT, "user": "carol"})
    assert known() == ({"alice": HASH}, ["0" * 64])
    assert told("set-user", "alice", OTHER, force=True) == ""
    assert told("set-token", "ci", {**KEPT, "sha256": "1" * 64}, force=True) == ""
    assert known() == ({"alice": OTHER}, ["1" * 64])
    assert [told(f"remove-{kind}", name) for kind, name in (("user", "alice"), ("token", "ci")) for _ in range(2)] == [""] * 4
    assert known() == ({}, [])


async def test_changes_at_once_lose_nothing(setting: Setting) -> None:
    """By several mirrors, in one file: what is not theirs stays as it is."""
    first, second = setting.mirrors
    file = second.directory / "access" / "users"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"# by hand\nroot:{OTHER}\n")
    names = [f"user{number}" for number in range(12)]
    changes = [Change("set-user", (name,), kept=HASH) for name in names]
    tell = asking(setting).tell
    told = await asyncio.gather(
        *map(tell, changes), *(asyncio.to_thread(set_password, file, f"here{n}", PASSWORD) for n in range(2))
    )
    assert not any(one.faults for one in told if one is not None)
    assert set(users_of(second)) == {"root", "here0", "here1", *names}
    assert file.read_text().startswith(f"# by hand\nroot:{OTHER}\n")
    assert users_of(first) == {}, "who tells has changed its own before"


async def test_a_mirror_that_cannot_change_its_users_says_so(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of users may be read-only, as one of a cluster's settings is: it is named, with the reason. So is a mirror of an older version, which knows no such change."""

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("mirror.access.users.write_durably", read_only)
    second = setting.mirrors[1]
    told = await asking(setting).tell(Change("set-user", ("alice",), kept=HASH))
    assert f"{second.directory}/access/users cannot be changed" in told.faults[second.url]
    assert "Read-only" in told.faults[second.url]
    async with Scripted() as old:
        body = json.dumps({"errors": [{"message": "an object with an action is expected"}]}).encode()
        old.fail("/fleet/changes", Status(400, {"Content-Type": "application/json"}, body), method="POST")
        table = {"mirrors": [second.url, old.url], "own": second.url, "token_file": str(setting.token_file)}
        told = await Asking(load(None, {}, {"fleet": table}).fleet).tell(Change("remove-user", ("alice",)))
        assert "an action is expected" in told.faults[old.url]


async def test_which_mirror_has_other_tables_is_seen_from_any(
    start: StartMirror, setting: Setting, upstream: Scripted, tmp_path: Path
) -> None:
    """By digests, which tell nothing else; the order of names does not count. A token that one lacks is told too."""
    first, second = setting.mirrors
    members = asking(setting)
    add_token(second.directory / "access" / TOKENS, "ci", None, (), None)

    async def differs() -> dict[str, list[str]]:
        return differing(await members.states(), first.url)

    await until_differs(differs, {second.url: ["users"]})
    page = (await first.get("/fleet", Cookie=await log_in(first), **HTML)).body
    assert b"users or tokens" in page
    kept = kept_token(second.directory / "access" / TOKENS, "ci") or ""
    assert not (await asking(setting, 1).tell(Change("set-token", ("ci",), kept=kept))).faults
    await until_differs(differs, {})
    await second.stop()
    fleet = {"mirrors": list(setting.fleet.mirrors), "own": second.url, "token_file": str(setting.token_file)}
    server = {"listen": second.url.removeprefix("http://")}
    guard = [{"images": ["docker.io/**"], "cooldown": "3d"}]
    more = [{"who": ["bob"]}, *ACCESS]
    for access, others in (([{"who": ["token:ci", "alice"]}, ACCESS[1]], ["guards"]), (more, ["access", "guards"])):
        again = await start(
            directory(tmp_path, second.url), settings={"server": server, "fleet": fleet, "access": access, "guard": guard}
        )
        assert await differs() == {second.url: others}
        await again.stop()


async def until_differs(differs: Any, expected: dict[str, list[str]]) -> None:
    """Files are read within a second."""
    async with asyncio.timeout(PATIENCE):
        while await differs() != expected:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("before", "removed", "added", "sent"),
    [
        (f" alice:{HASH} \r\nbob:{HASH}\n", f"bob:{HASH}\n", None, f"alice:{OTHER}\nbob:{HASH}\n"),
        (f"alice:{OTHER}\nalice:{HASH}\n", "", None, f"alice:{OTHER}\n"),
        (f"alice:{HASH}\nalice:{OTHER}\n", "", "", ""),
        (f"# caf\xe9 \x0c\nalice:x\n#alice:{HASH}", f"# caf\xe9 \x0c\n#alice:{HASH}\n", None, f"# caf\xe9 \x0c\nalice:{OTHER}\n#alice:{HASH}\n"),
    ],
)  # fmt: skip
def test_a_user_is_who_is_let_in(tmp_path: Path, before: str, removed: str, added: str | None, sent: str) -> None:
    """Files of users are written by people, too: with spaces around a line, a user twice, of whom the last counts, and comments in any encoding. Who is removed is not let in, and who has got
    another password has just that; the rest of the file stays as it was."""
    file = tmp_path / "users"

    def done(work: Callable[[], bool]) -> str | None:
        """The file after `work`, empty if that left it; None if nothing was done."""
        file.write_bytes(before.encode("latin-1"))
        if not work():
            return None
        now = file.read_bytes().decode("latin-1")
        return "" if now == before else now

    assert done(lambda: remove_user(file, "alice")) == removed
    assert "alice" not in read_users(file)
    assert done(lambda: set_hash(file, "alice", OTHER, replaces=False)) == added
    assert done(lambda: set_hash(file, "alice", OTHER)) == sent
    assert read_users(file).hashes["alice"] == OTHER.encode()


@pytest.mark.parametrize("odd", [{"time": math.nan}, {"time": math.inf}, {"size": 10**400}, {"hits": -1}, {"tables": "access"}])
def test_a_mirror_that_says_what_cannot_be_is_told_so(odd: dict[str, Any]) -> None:
    """JSON of Python can say all of that, and neither the page nor the commands can show it: that mirror says nothing, then, and the others are shown."""
    state = State("http://a", "1", 1.0, (), (), (), dict.fromkeys(FIGURES, 0))
    assert State.parse(state.document()) == state
    with pytest.raises(ValueError, match="it"):
        State.parse(json.loads(json.dumps(state.document() | odd)))


@pytest.mark.parametrize(
    "answer", [None, {}, {"outcomes": []}, {"outcomes": [None, {"name": "other"}, {"fault": "", "name": 5}]}]
)
def test_a_mirror_that_does_not_say_what_came_of_a_change_has_not_made_it(answer: Any) -> None:
    """Whatever it answers with 200, it is named, and so is what has to be sent again."""
    told = Told()
    told.add(
        "http://a", ["alice", "bob"], {"outcomes": [Outcome("alice").document(), Outcome("bob", "no", absent=True).document()]}
    )
    assert (told.did, told.faults) == ({"alice": ["http://a"]}, {})
    told.add("http://b", ["alice", "bob"], answer)
    assert "alice, bob" in told.faults["http://b"]
    assert "http://b" not in told.did.get("alice", [])
