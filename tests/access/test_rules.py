"""Who may do what: the function that decides, by tables."""

from __future__ import annotations

import ipaddress
from itertools import product

import pytest

from mirror.access.rules import USERS, Action, Identity, Rule, Scope, decide, may_pull_everything
from mirror.config.access import network
from mirror.names import Repository
from mirror.patterns import RepositoryPattern


def repository(name: str) -> Repository:
    registry, _, path = name.partition("/")
    return Repository.parse(registry, path)


def rule(name: str, may: str = "pull", repositories: str = "**", **who: object) -> Rule:
    patterns = tuple(map(RepositoryPattern.parse, repositories.split()))
    return Rule(name, frozenset(map(Action, may.split())), patterns, **who)  # type: ignore[arg-type]


PULL, PUSH, DELETE, ADMIN = Action.PULL, Action.PUSH, Action.DELETE, Action.ADMIN
NOBODY = Identity(address=ipaddress.ip_address("203.0.113.9"))
INSIDE = Identity(address=ipaddress.ip_address("10.1.2.3"))
INSIDE_6 = Identity(address=ipaddress.ip_address("2001:db8::5"))
ALICE = Identity("alice", frozenset({"staff"}), address=ipaddress.ip_address("203.0.113.9"))
BOB = Identity("bob")
CI = Identity(
    "alice", frozenset({"staff"}), "ci", scopes=(Scope(frozenset({PULL, PUSH}), (RepositoryPattern.parse("class/ci/*"),)),)
)
ROBOT = Identity(None, token="robot")
LAPTOP = Identity(certificate="laptop", address=ipaddress.ip_address("203.0.113.9"))
JOB = Identity(issuers=frozenset({"github"}), subject="repo:acme/app")
ASKING = {
    "nobody": NOBODY,
    "inside": INSIDE,
    "inside6": INSIDE_6,
    "alice": ALICE,
    "bob": BOB,
    "ci": CI,
    "robot": ROBOT,
    "laptop": LAPTOP,
    "job": JOB,
}

RULES = (
    rule("1", "", "docker.io/evil/**", anyone=True),
    rule("2", "pull push delete admin", users=frozenset({"root"})),
    rule("3", "pull push", "class/**", groups=frozenset({"staff"})),
    rule("4", "pull", "class/**", groups=frozenset({USERS})),
    rule("5", "pull push", "ghcr.io/acme/*", tokens=frozenset({"robot"})),
    rule(
        "6",
        "pull",
        "quay.io/**",
        networks=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/64")),
    ),
    rule("7", "pull push delete", "docker.io/lab/**", certificates=frozenset({"laptop"})),
    rule("8", "push", "docker.io/build/**", issuers=frozenset({"github"})),
    rule("9", "pull push", "docker.io/build/*", issuers=frozenset({"github", "gitlab"})),
    rule("10", "pull", "docker.io/library/*", anyone=True),
)
TABLE = {
    # what is asked about: who may do what with it; everybody else may do nothing.
    "docker.io/evil/miner": {},
    "docker.io/class/app": {"alice": "pull push", "bob": "pull"},
    "docker.io/class/ci/app": {"alice": "pull push", "bob": "pull", "ci": "pull push"},
    "ghcr.io/acme/app": {"robot": "pull push"},
    "ghcr.io/acme/deep/app": {},
    "ghcr.io/class/app": {},
    "quay.io/any/thing": {"inside": "pull", "inside6": "pull"},
    "docker.io/lab/app": {"laptop": "pull push delete"},
    # Of several rules the first one counts.
    "docker.io/build/app": {"job": "push"},
    "docker.io/library/alpine": {name: "pull" for name in ASKING if name != "ci"},
    "docker.io/library": {},
}


@pytest.mark.parametrize(("name", "who", "action"), list(product(TABLE, ASKING, Action)))
def test_every_question_has_the_answer_of_the_table(name: str, who: str, action: Action) -> None:
    """The first rule that names who asks and the repository counts, within what a token is limited to. One that may not pull may not know of it."""
    verdict = decide(RULES, ASKING[who], action, repository(name))
    may = TABLE[name].get(who, "").split()
    assert verdict.allowed is (action.value in may)
    assert verdict.visible is ("pull" in may)
    assert bool(verdict.reason) is not verdict.allowed


@pytest.mark.parametrize(
    ("who", "action", "allowed"),
    [
        (Identity("root"), ADMIN, True),
        (Identity("root"), PULL, True),
        (ALICE, ADMIN, False),
        (ALICE, PULL, False),
        (NOBODY, PULL, False),
        (Identity("root", token="small", scopes=(Scope(frozenset({PULL}), (RepositoryPattern.parse("**"),)),)), ADMIN, False),
        (Identity("root", token="small", scopes=(Scope(frozenset({PULL}), (RepositoryPattern.parse("**"),)),)), PULL, True),
    ],
)
def test_a_question_about_everything_fits_only_rules_about_everything(who: Identity, action: Action, allowed: bool) -> None:
    """What is for all repositories, as to administer, is not allowed by a rule for some of them."""
    assert decide(RULES, who, action, None).allowed is allowed


@pytest.mark.parametrize(
    ("rules", "who", "everything"),
    [
        (None, NOBODY, True),
        ((), NOBODY, False),
        ((rule("1", anyone=True),), NOBODY, True),
        ((rule("1", "push", anyone=True),), NOBODY, False),
        ((rule("1", "push", "class/**", anyone=True), rule("2", anyone=True)), NOBODY, False),
        ((rule("1", "", "class/**", users=frozenset({"bob"})), rule("2", anyone=True)), ALICE, True),
        ((rule("1", "", "class/**", users=frozenset({"bob"})), rule("2", anyone=True)), BOB, False),
        ((rule("1", "pull", "class/**", anyone=True), rule("2", anyone=True)), NOBODY, True),
        ((rule("1", anyone=True),), CI, False),
    ],
)
def test_who_may_pull_everything(rules: tuple[Rule, ...] | None, who: Identity, everything: bool) -> None:
    """Only where no rule in between refuses anything: these are not asked about content one by one."""
    assert may_pull_everything(rules, who) is everything
    if everything:
        assert all(decide(rules, who, PULL, repository(name)).allowed for name in TABLE)


@pytest.mark.parametrize(
    ("who", "allowed"),
    [
        (NOBODY, "pull"),
        (Identity(is_local=True), "pull push delete"),
        (ALICE, "pull push delete"),
        (ROBOT, "pull"),
        (CI, "pull"),
    ],
)
def test_without_tables(who: Identity, allowed: str) -> None:
    """Pulling is open, as it always was. Changes need a user, or come from this machine; a token is good for what it is limited to."""
    for action in Action:
        assert decide(None, who, action, repository("docker.io/team/app")).allowed is (action.value in allowed.split())


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("**", "ghcr.io/a/b/c", True),
        ("class/**", "docker.io/class/a", True),
        ("class/**", "docker.io/class/a/b", True),
        ("class/**", "docker.io/class", False),
        ("class/**", "docker.io/classes/a", False),
        ("class/**", "ghcr.io/class/a", False),
        ("class/*", "docker.io/class/a/b", False),
        ("alpine", "docker.io/library/alpine", True),
        ("alpine", "docker.io/alpine/alpine", False),
        ("library/*", "docker.io/library/alpine", True),
        ("alp*", "docker.io/library/alpine", True),
        ("?lpine", "docker.io/library/alpine", True),
        ("*", "docker.io/library/alpine", True),
        ("*", "docker.io/class/alpine", False),
        ("ghcr.io/**", "ghcr.io/a/b", True),
        ("ghcr.io/**", "ghcr.io.evil/a/b", False),
        ("ghcr.io/a?/b", "ghcr.io/ax/b", True),
        ("ghcr.io/a?/b", "ghcr.io/a/b", False),
        ("**/secret", "ghcr.io/a/secret", True),
        ("**/secret", "ghcr.io/a/secret/b", False),
        ("a/**/z", "docker.io/a/z", False),
        ("a/**/z", "docker.io/a/b/c/z", True),
        ("registry.lan:5000/*", "registry.lan:5000/a", True),
        ("*.io/**", "quay.io/a", True),
        ("a.b/**", "aXb/c", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    """``*`` stays within a part, ``**`` does not, and a name without a registry is one of the default registry's."""
    registry, _, path = name.partition("/")
    assert RepositoryPattern.parse(pattern).matches(Repository(registry, path)) is matches


@pytest.mark.parametrize("pattern", ["", "/", "a//b", "A/b", "a/**b", "a b", "a/b:1@sha", "../a/~"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    """And not taken for one that matches nothing."""
    with pytest.raises(ValueError, match="pattern"):
        RepositoryPattern.parse(pattern)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_ranges_of_mapped_addresses_are_those_that_they_map(text: str, found: str) -> None:
    """As the address of a client is that comes by an IPv6 socket (RFC 4291, section 2.5.5.2): else such a table fits nobody."""
    assert str(network(text)) == found
