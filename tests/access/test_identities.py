"""Who asks: passwords, tokens, and those who guess."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import stat
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirror.access import guesses, identities, users
from mirror.access.bearer import Grant
from mirror.access.identities import Identities
from mirror.access.rules import Identity
from mirror.access.tokens import Tokens, add_token, read_tokens, remove_token
from mirror.access.users import Users, read_users, remove_user, set_password
from mirror.client_login import ClientLogin
from mirror.errors import LoginWrong, TooManyGuesses

CLIENT = Identity()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Bcrypt:
    """Counts what is checked."""

    def __init__(self) -> None:
        self.checked: list[str] = []

    def __call__(self, password: str, hashed: bytes) -> bool:
        self.checked.append(password)
        return hashed == b"hash of " + password.encode()


@pytest.fixture
def bcrypt(monkeypatch: pytest.MonkeyPatch) -> Bcrypt:
    counting = Bcrypt()
    monkeypatch.setattr(identities, "is_right", counting)
    return counting


@pytest.fixture
async def known(bcrypt: Bcrypt) -> AsyncIterator[Identities]:
    found = Identities(lambda: b"k" * 32)
    found.users = Users({"alice": b"hash of right", "bob": b"hash of other"})
    found.groups = {"alice": frozenset({"staff"})}
    yield found
    await found.aclose()


async def test_bcrypt_runs_once_for_each_password(known: Identities, bcrypt: Bcrypt) -> None:
    """Not for each request, nor for each of those that come together; a wrong one is remembered too; another stored hash is checked at once."""
    for _ in range(3):
        logins = await asyncio.gather(*(known.of_header(basic("alice", "right"), CLIENT, "192.0.2.1") for _ in range(20)))
        assert {login.identity for login in logins} == {Identity("alice", frozenset({"staff"}))}
    assert bcrypt.checked == ["right"]
    for _ in range(3):
        with pytest.raises(LoginWrong):
            await known.of_header(basic("alice", "wrong"), CLIENT, "192.0.2.1")
    assert bcrypt.checked == ["right", "wrong"]
    with pytest.raises(LoginWrong):
        await known.of_header(basic("bob", "right"), CLIENT, "192.0.2.1")
    known.users = Users({"alice": b"hash of wrong"})
    with pytest.raises(LoginWrong):
        await known.of_header(basic("alice", "right"), CLIENT, "192.0.2.1")
    assert (await known.of_header(basic("alice", "wrong"), CLIENT, "192.0.2.1")).identity.user == "alice"


async def test_nobody_can_tell_which_names_there_are(known: Identities, bcrypt: Bcrypt) -> None:
    """A user that does not exist is answered as one with a wrong password, after as much work."""
    messages = set()
    for user in ("alice", "nobody"):
        with pytest.raises(LoginWrong) as raised:
            await known.of_header(basic(user, "x"), CLIENT, "192.0.2.1")
        messages.add(raised.value.message)
    assert len(messages) == 1
    assert bcrypt.checked == ["x", "x"]


async def test_guesses_are_slowed_and_the_right_password_is_not(known: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the sixth wrong one on, by address and by user, also where each comes from another address. The right one is answered while they wait, from the same address
    too; of those that wait there is a bound."""
    release = asyncio.Event()

    class Paused:
        @staticmethod
        async def sleep(_: float) -> None:
            await release.wait()

    monkeypatch.setattr(guesses, "asyncio", Paused)

    def guess(number: int, address: str, user: str = "alice") -> asyncio.Task[Any]:
        return asyncio.create_task(known.of_header(basic(user, f"guess {number}"), CLIENT, address))

    first = [guess(number, f"192.0.2.{number}") for number in range(5)]
    assert [type(one) for one in await asyncio.gather(*first, return_exceptions=True)] == [LoginWrong] * 5
    slow = [guess(number, f"192.0.2.{number}") for number in range(5, 13)]
    await asyncio.sleep(0.2)
    assert not any(one.done() for one in slow)
    with pytest.raises(TooManyGuesses):
        await guess(99, "192.0.2.99")
    right = await known.of_header(basic("alice", "right"), CLIENT, "192.0.2.5")
    assert right.identity.user == "alice"
    with pytest.raises(LoginWrong):
        await guess(1, "198.51.100.1", "bob")
    release.set()
    assert [type(one) for one in await asyncio.gather(*slow, return_exceptions=True)] == [LoginWrong] * 8


@pytest.mark.parametrize("users", [[f"nobody {number}" for number in range(300)], ["bob"] * 300], ids=["made up", "one user"])
async def test_a_flood_of_guesses_does_not_keep_others_of_the_same_address_out(
    known: Identities, monkeypatch: pytest.MonkeyPatch, users: list[str]
) -> None:
    """Clients of one proxy have one address. While hundreds of wrong passwords come from it, for a user or for names that are made up, whoever has logged in before
    is let in without a check, and who logs in for the first time is checked next."""
    held, checked, release = threading.Event(), [], threading.Event()

    def check(password: str, hashed: bytes) -> bool:
        checked.append(password)
        if password.startswith("guess"):
            held.set()
            release.wait()
        return hashed == b"hash of " + password.encode()

    monkeypatch.setattr(identities, "is_right", check)
    monkeypatch.setattr(guesses, "DELAY", 0.0)
    known.users = Users({"alice": b"hash of right", "bob": b"hash of other", "carol": b"hash of hers"})
    await known.of_header(basic("alice", "right"), CLIENT, "192.0.2.1")
    flood = [
        asyncio.create_task(known.of_header(basic(user, f"guess {number}"), CLIENT, "192.0.2.1"))
        for number, user in enumerate(users)
    ]
    try:
        await asyncio.to_thread(held.wait)
        before = len(checked)
        assert (await known.of_header(basic("alice", "right"), CLIENT, "192.0.2.1")).identity.user == "alice"
        assert (await known.of_header(basic("carol", "hers"), CLIENT, "192.0.2.1")).identity.user == "carol"
        assert checked[before:] in (["hers"], ["guess 1", "hers"])
    finally:
        release.set()
    answers = {type(one) for one in await asyncio.gather(*flood, return_exceptions=True)}
    assert answers <= {LoginWrong, TooManyGuesses}
    assert len(checked) < 30


async def test_wrong_passwords_do_not_push_right_ones_out_of_memory(
    known: Identities, bcrypt: Bcrypt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many come."""
    monkeypatch.setattr(identities, "_MOST_REMEMBERED", 3)
    monkeypatch.setattr(guesses, "DELAY", 0.0)
    await known.of_header(basic("alice", "right"), CLIENT, "192.0.2.1")
    for number in range(10):
        with pytest.raises(LoginWrong):
            await known.of_header(basic("bob", f"guess {number}"), CLIENT, "192.0.2.1")
    await known.of_header(basic("alice", "right"), CLIENT, "192.0.2.1")
    assert bcrypt.checked.count("right") == 1


async def test_what_a_bearer_token_is_bound_to(known: Identities, tmp_path: Path) -> None:
    """It is over with its time, the user, the password, or the token that it was got by; one of another mirror is none."""
    alice = (await known.of_header(basic("alice", "right"), CLIENT, "a")).identity
    granted = (Grant("library/app", frozenset({"pull"})),)
    signed, _ = known.sign(alice, granted)
    login = await known.of_bearer(signed, CLIENT, "a")
    assert (login.identity, login.granted) == (alice, granted)
    other = Identities(lambda: b"o" * 32)
    other.users = known.users
    with pytest.raises(LoginWrong):
        await other.of_bearer(signed, CLIENT, "a")
    known.users = Users({"alice": b"hash of new"})
    with pytest.raises(LoginWrong):
        await known.of_bearer(signed, CLIENT, "a")
    known.users = Users()
    with pytest.raises(LoginWrong):
        await known.of_bearer(signed, CLIENT, "a")
    secret = add_token(tmp_path, "ci", None, ("pull:class/**",), None)
    known.tokens = read_tokens(tmp_path)
    robot = (await known.of_token(secret, CLIENT, "a")).identity
    by_token, _ = known.sign(robot, granted)
    assert (await known.of_bearer(by_token, CLIENT, "a")).identity == robot
    assert robot.scopes is not None
    remove_token(tmp_path, "ci")
    add_token(tmp_path, "ci", None, (), None)
    known.tokens = read_tokens(tmp_path)
    with pytest.raises(LoginWrong):
        await known.of_bearer(by_token, CLIENT, "a")
    nobody, _ = known.sign(CLIENT, granted)
    assert (await known.of_bearer(nobody, CLIENT, "a")).identity.is_anonymous


async def test_a_bearer_token_ends(bcrypt: Bcrypt, tmp_path: Path) -> None:
    """By its own time, and a token by its end."""
    late = Identities(lambda: b"k" * 32, lambda: time.time() - 10_000)
    signed, life = late.sign(CLIENT, ())
    assert life < 10_000
    now = Identities(lambda: b"k" * 32)
    with pytest.raises(LoginWrong):
        await now.of_bearer(signed, CLIENT, "a")
    secret = add_token(tmp_path, "old", None, (), time.time() - 1)
    now.tokens = read_tokens(tmp_path)
    for given in (secret, secret + "x", secret.removeprefix("mirror_"), "", "mirror_"):
        with pytest.raises(LoginWrong):
            await now.of_bearer(given, CLIENT, given)
    await late.aclose()
    await now.aclose()


async def test_a_token_is_worth_nothing_without_its_user(known: Identities, tmp_path: Path) -> None:
    """Who is removed cannot go on with a token."""
    secret = add_token(tmp_path, "laptop", "alice", (), None)
    known.tokens = read_tokens(tmp_path)
    assert (await known.of_password("anybody", secret, CLIENT, "a")).identity == replace(
        CLIENT, user="alice", groups=frozenset({"staff"}), token="laptop"
    )
    known.users = Users({"bob": b"x"})
    with pytest.raises(LoginWrong):
        await known.of_password("anybody", secret, CLIENT, "a")


def test_the_file_of_a_token_holds_no_token(tmp_path: Path) -> None:
    """Only its hash, for its owner alone; a name is given once; what is no token's file is passed over."""
    secret = add_token(tmp_path / "tokens", "ci", "alice", ("pull,push:class/**",), None)
    [file] = (tmp_path / "tokens").iterdir()
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(ValueError, match="already"):
        add_token(tmp_path / "tokens", "ci", None, (), None)
    for name, scopes in (("../x", ()), ("", ()), ("x", ("fly",)), ("x", ("pull:A",)), ("x", ("",))):
        with pytest.raises(ValueError):
            add_token(tmp_path / "tokens", name, None, scopes, None)
    (tmp_path / "tokens" / "broken.json").write_text("{")
    (tmp_path / "tokens" / "other.json").write_text('{"sha256": 1}')
    assert [one.name for one in read_tokens(tmp_path / "tokens").by_digest.values()] == ["ci"]
    assert not remove_token(tmp_path / "tokens", "../tokens/ci")
    assert remove_token(tmp_path / "tokens", "ci")
    assert not remove_token(tmp_path / "tokens", "ci")
    assert read_tokens(tmp_path / "nothing") == Tokens()


def test_the_file_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``htpasswd -B`` writes it too. Comments, order and other lines stay; other hashes are not used; so do the file's owner and mode."""
    monkeypatch.setattr(users, "_ROUNDS", 4)
    file = tmp_path / "users"
    set_password(file, "alice", "correct horse")
    hashed = read_users(file).hashes["alice"].decode()
    file.write_text(
        f"# ours\nbob:$apr1$xxxxxxxx$yyyyyyyyyyyyyyyyyyyyyy\ncarol:{hashed.replace('$2b$', '$2y$')}\nalice:{hashed}\nplain:password\n"
    )
    file.chmod(0o640)
    found = read_users(file)
    assert set(found.hashes) == {"alice", "carol"}
    assert users.is_right("correct horse", found.hashes["carol"])
    assert not users.is_right("correct hors", found.hashes["carol"])
    assert not users.is_right("x" * 100, found.hashes["carol"])
    assert not users.is_right("a\0b", found.hashes["carol"])
    set_password(file, "carol", "battery staple")
    assert [line.partition(":")[0] for line in file.read_text().splitlines()] == ["# ours", "bob", "carol", "alice", "plain"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert users.is_right("battery staple", read_users(file).hashes["carol"])
    assert remove_user(file, "alice")
    assert not remove_user(file, "alice")
    assert set(read_users(file).hashes) == {"carol"}
    for name in ("", "a:b", "users", "anyone", "10.0.0.1", "a b", "-x"):
        with pytest.raises(ValueError, match="name"):
            set_password(file, name, "correct horse")
    with pytest.raises(ValueError, match="72"):
        set_password(file, "dave", "x" * 73)


@pytest.mark.parametrize(
    "header", ["mirror_secretsecretsecret", "mirror_secretsecretsecret x", "Negotiate mirror_secretsecretsecret", ""]
)
async def test_an_error_does_not_repeat_what_was_sent(known: Identities, header: str) -> None:
    """It goes to the client and to the audit log, and a token may have been sent without its scheme."""
    with pytest.raises(LoginWrong) as raised:
        await known.of_header(header, CLIENT, "192.0.2.1")
    assert "secret" not in raised.value.message
    assert "Basic" in raised.value.message


async def test_a_password_for_a_registry_goes_with_its_token_and_nobody_reads_it(known: Identities, bcrypt: Bcrypt) -> None:
    """Any worker, and the mirror after a restart, asks the registry with what the client has sent, which has only the token. The mirror's own users are never taken for
    the registry's, wrong passwords of theirs do not leave it, and where no registry's passwords are taken the token is worth nothing."""
    secret = "a password of the registry's"
    login = await known.of_header(basic("carol", secret), CLIENT, "192.0.2.1", "ghcr.io")
    assert login.identity == replace(CLIENT, login=ClientLogin("ghcr.io", "carol", secret))
    assert not login.identity.is_anonymous
    assert bcrypt.checked == []
    token, _ = known.sign(login.identity, (Grant("ghcr.io/acme/app", frozenset({"pull"})),))
    assert secret not in repr(login)
    for part in token.split(".")[:2]:
        assert secret.encode() not in base64.urlsafe_b64decode(part + "===")
    assert token != known.sign(login.identity, ())[0]
    async with contextlib.AsyncExitStack() as stack:
        other, stranger = Identities(lambda: b"k" * 32), Identities(lambda: b"o" * 32)
        for one in (other, stranger):
            stack.push_async_callback(one.aclose)
        assert (await other.of_header(f"Bearer {token}", CLIENT, "192.0.2.1", "ghcr.io")).identity == login.identity
        for who, registry in ((stranger, "ghcr.io"), (other, None), (other, "quay.io")):
            with pytest.raises(LoginWrong):
                await who.of_header(f"Bearer {token}", CLIENT, "192.0.2.1", registry)
    with pytest.raises(LoginWrong):
        await known.of_header(basic("alice", "wrong"), CLIENT, "192.0.2.1", "ghcr.io")
    assert (await known.of_header(basic("alice", "right"), CLIENT, "192.0.2.1", "ghcr.io")).identity.login is None
    for user, password in (("carol", ""), ("", secret), ("carol", secret)):
        with pytest.raises(LoginWrong):
            await known.of_header(basic(user, password), CLIENT, "192.0.2.1", None if user and password else "ghcr.io")
