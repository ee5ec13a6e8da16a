"""How often a registry is asked about a client, and what its answers are worth, without a registry: with a clock and answers of the test's own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from mirror.access.upstream_checks import UpstreamChecks
from mirror.client_login import ClientLogin, acting_for
from mirror.errors import Denied, ManifestUnknown, MirrorError, Offline, UpstreamTimeout, UpstreamUnreachable
from mirror.names import Digest, Reference, Repository, Tag
from tests.support.mirrors import until

APP, OTHER, HOSTED = (Repository("ghcr.io", path) for path in ("acme/app", "acme/other", "team/app"))
ALICE, BOB = ClientLogin("ghcr.io", "alice", "correct horse"), ClientLogin("ghcr.io", "bob", "battery staple")
TAG, NEXT = Tag("1"), Tag("2")


@dataclass
class Registry:
    """Answers as `says` has it, by user, and records whom it was asked about."""

    says: dict[str, MirrorError] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    now: float = 1000.0
    hold: asyncio.Event | None = None
    wrong: list[tuple[str, str]] = field(default_factory=list)

    async def check_login(self) -> None:
        await self._answer("login", None)

    async def check_pull(self, repository: Repository, reference: Reference | None, *, is_blob: bool) -> None:
        await self._answer(repository.path, reference)

    async def _answer(self, what: str, reference: Reference | None) -> None:
        login = acting_for()
        user = "" if login is None else login.user
        self.asked.append((user, what, str(reference or "")))
        if self.hold is not None:
            await self.hold.wait()
        for key in (f"{user} {reference}", user):
            if key in self.says:
                raise self.says[key]

    def checks(self, grace: float = 0.0) -> UpstreamChecks:
        async def note(network: str, user: str) -> None:
            self.wrong.append((network, user))

        return UpstreamChecks(
            {"ghcr.io": grace, "quay.io": 0.0}, lambda name: self, lambda repository: repository == HOSTED, note, lambda: self.now
        )


async def ask(
    checks: UpstreamChecks, login: ClientLogin | None, repository: Repository = APP, reference: Reference | None = TAG
) -> None:
    await checks.check(login, repository, reference, "192.0.2.1", is_blob=False)


async def test_a_client_is_checked_once_a_minute_and_each_client_for_itself() -> None:
    """However many hits; another client, another repository and another password are asked about at once, and so is the same client a minute later."""
    registry = Registry()
    checks = registry.checks()
    for _ in range(5):
        await ask(checks, ALICE)
        await ask(checks, ALICE, reference=NEXT)
    assert registry.asked == [("alice", "acme/app", "1")]
    await ask(checks, BOB)
    await ask(checks, None)
    await ask(checks, ALICE, OTHER)
    await ask(checks, ClientLogin("ghcr.io", "alice", "another password"))
    assert len(registry.asked) == 5
    registry.now += 59
    await ask(checks, ALICE)
    assert len(registry.asked) == 5
    registry.now += 1
    await ask(checks, ALICE)
    assert len(registry.asked) == 6
    assert acting_for() is None


async def test_who_asks_at_once_shares_one_question() -> None:
    """Twenty requests of a client for one repository cost one; what one of them asks for decides for that alone where the registry does not have it."""
    registry = Registry(says={"alice 2": ManifestUnknown("no 2")}, hold=asyncio.Event())
    checks = registry.checks()
    asking = [asyncio.create_task(ask(checks, ALICE, reference=NEXT))]
    asking += [asyncio.create_task(ask(checks, ALICE)) for _ in range(20)]
    while not registry.asked:
        await asyncio.sleep(0)
    assert registry.hold is not None
    registry.hold.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ManifestUnknown, *([type(None)] * 20)]
    assert registry.asked == [("alice", "acme/app", "2"), ("alice", "acme/app", "1")]


@pytest.mark.parametrize(
    ("error", "holds", "elsewhere"), [(Denied("no"), 60, True), (ManifestUnknown("no"), 5, False)], ids=["denied", "unknown"]
)
async def test_a_refusal_is_remembered_and_there_is_a_way_back(error: MirrorError, holds: float, elsewhere: bool) -> None:
    """A refused client asks upstream nothing until the refusal is old; then what the registry says now counts. Others are not concerned."""
    registry = Registry(says={"alice": error})
    checks = registry.checks()
    for _ in range(3):
        with pytest.raises(type(error)):
            await ask(checks, ALICE)
    assert len(registry.asked) == 1
    assert registry.wrong == ([("192.0.2.1", "alice")] if elsewhere else []), "once, not for each request"
    with pytest.raises(type(error)):
        await ask(checks, ALICE, reference=NEXT)
    assert len(registry.asked) == (1 if elsewhere else 2)
    await ask(checks, BOB)
    before = len(registry.asked)
    registry.says.clear()
    registry.now += holds
    await ask(checks, ALICE)
    assert len(registry.asked) == before + 1


@pytest.mark.parametrize("away", [UpstreamTimeout("slow"), Offline("offline")], ids=["away", "offline"])
@pytest.mark.parametrize("grace", [0.0, 600.0])
async def test_while_the_registry_is_away_only_those_pull_whom_it_allowed_lately(away: MirrorError, grace: float) -> None:
    """By default nobody, once the minute is over; with `client_grace` those who were allowed within it, of that repository alone, and nobody for longer."""
    registry = Registry()
    checks = registry.checks(grace)
    await ask(checks, ALICE)
    registry.says = dict.fromkeys(("", "alice", "bob"), away)
    registry.now += 59
    await ask(checks, ALICE)
    registry.now += 1
    cases: list[tuple[ClientLogin | None, Repository, bool]] = [
        (ALICE, APP, grace > 0),
        (ALICE, OTHER, False),
        (BOB, APP, False),
        (None, APP, False),
    ]
    for login, repository, allowed in cases:
        if allowed:
            await ask(checks, login, repository)
        else:
            with pytest.raises(UpstreamUnreachable, match="cannot be asked now"):
                await ask(checks, login, repository)
        assert not checks.allows(login, repository), "it may not be named in lists"
    registry.now += 600
    with pytest.raises(UpstreamUnreachable):
        await ask(checks, ALICE)


async def test_who_was_refused_has_no_grace() -> None:
    """A client whom the registry has refused since, as after a change of the password, gets nothing once the registry is away."""
    registry = Registry()
    checks = registry.checks(600)
    await ask(checks, ALICE)
    registry.now += 60
    registry.says = {"alice": Denied("the password was changed")}
    with pytest.raises(Denied):
        await ask(checks, ALICE)
    registry.now += 60
    registry.says = {"alice": UpstreamTimeout("slow")}
    with pytest.raises(UpstreamUnreachable):
        await ask(checks, ALICE)


async def test_what_may_be_named_is_what_was_allowed_in_the_last_minute() -> None:
    """Lists ask no registry; repositories of other registries, and those that live here, are none of its business."""
    registry = Registry()
    checks = registry.checks()
    assert not checks.allows(ALICE, APP)
    await ask(checks, ALICE)
    assert checks.allows(ALICE, APP)
    assert not checks.allows(BOB, APP)
    assert not checks.allows(None, APP)
    assert checks.allows(None, HOSTED)
    assert checks.allows(None, Repository("docker.io", "library/alpine"))
    registry.now += 60
    assert not checks.allows(ALICE, APP)
    registry.now -= 120
    assert not checks.allows(ALICE, APP), "a clock that was set back proves nothing"
    await ask(checks, None, HOSTED)
    await ask(checks, None, Repository("docker.io", "library/alpine"), Digest.of(b""))
    assert len(registry.asked) == 1


async def test_an_answer_holds_from_when_it_was_asked_for() -> None:
    """However long a client had to wait for its turn among others of its address: it is not asked about again, and waits once."""
    registry = Registry(hold=asyncio.Event())
    checks = registry.checks()
    others = [asyncio.create_task(ask(checks, ClientLogin("ghcr.io", f"user{number}", "x"))) for number in range(8)]
    await until(lambda: len(registry.asked) == 8)
    last = asyncio.create_task(ask(checks, ALICE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    registry.now += 100
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    assert registry.hold is not None
    registry.hold.set()
    await last
    await checks.aclose()
    assert [user for user, *_ in registry.asked].count("alice") == 1


async def test_no_password_is_kept_or_shown() -> None:
    """Neither what is remembered nor what a login looks like in a log has it; the keys of two logins differ."""
    registry = Registry(says={"bob": Denied("no")})
    checks = registry.checks()
    await ask(checks, ALICE)
    with pytest.raises(Denied):
        await ask(checks, BOB)
    kept = repr((checks._allowed, checks._refused)) + repr(ALICE) + str(ALICE) + f"{BOB}"
    assert ALICE.password not in kept
    assert BOB.password not in kept
    assert ALICE.key != BOB.key
    assert ALICE.key != ClientLogin("ghcr.io", "alice", "other").key
