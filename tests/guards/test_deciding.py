"""The function that decides (mirror/guards/deciding.py): every rule by itself, and how several go together."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mirror.guards.deciding import Facts, decide
from mirror.guards.rules import Asked, Conditions, Image, Pattern, Rule
from mirror.manifests import OCI_MANIFEST, Descriptor
from mirror.names import Digest, Repository
from mirror.storage.sightings import Released, Sighting

APP = Repository("docker.io", "library/app")
DAY = 86400.0
NOW = 1_000 * DAY
A, B, C, LAYER = (Digest.of(name.encode()) for name in ("a", "b", "c", "layer"))


def seen(digest: Digest, first: float, served: float | None = None, **more: float | Released) -> Sighting:
    """A sighting; times in days before now."""
    since = None if served is None else NOW - served * DAY
    return Sighting(Descriptor(OCI_MANIFEST, digest, 5), NOW - first * DAY, NOW, since, **more)  # type: ignore[arg-type]


def by_tag(history: list[Sighting], *rules: Rule, **facts: object) -> tuple[Digest | None, str | None]:
    """What is served, and the rule that is the reason where it is not what was asked for."""
    found = decide(rules, Asked(APP, "1", history[-1].digest), Facts(history, **facts), NOW)  # type: ignore[arg-type]
    return None if found.serve is None else found.serve.digest, None if found.finding is None else found.finding.rule


def by_digest(digest: Digest, *rules: Rule, **facts: object) -> bool:
    """Whether it is served."""
    return decide(rules, Asked(APP, None, digest), Facts(**facts), NOW).serve is not None  # type: ignore[arg-type]


COOL = Rule("cool", cooldown=3 * DAY)
RELEASED = Released(NOW, "ann", "CVE")


@pytest.mark.parametrize(
    ("history", "rule", "served"),
    [
        ([seen(A, 0)], COOL, A),
        ([seen(A, 0)], replace(COOL, new_tags_wait=True), None),
        ([seen(A, 3)], replace(COOL, new_tags_wait=True), A),
        ([seen(A, 9, 9), seen(B, 0)], COOL, A),
        ([seen(A, 9, 9), seen(B, 2.99)], COOL, A),
        ([seen(A, 9, 9), seen(B, 3)], COOL, B),
        ([seen(A, 9, 9), seen(B, 4), seen(C, 1)], COOL, A),
        ([seen(A, 9, 9), seen(B, 4), seen(A, 1)], COOL, A),
        ([seen(A, 9, 9), seen(B, 8, 5), seen(A, 1)], COOL, B),
        ([seen(A, 9, 9), seen(B, 0, released=RELEASED)], COOL, B),
        ([seen(A, 9, 9), seen(B, 2, released=RELEASED), seen(C, 1)], COOL, A),
        ([seen(A, 9, 9), seen(B, 1, 1)], COOL, B),
        ([seen(A, 9, 9, gone=NOW - DAY), seen(B, 0)], COOL, A),
    ],
    ids=[
        "new",
        "new tags wait",
        "they have waited",
        "moved",
        "not yet",
        "in time",
        "never by what was held",
        "went back",
        "went back to what was replaced",
        "released",
        "moved on after a release",
        "served before the rule was",
        "removed and replaced",
    ],
)
def test_a_tag_that_moved_means_what_it_meant_for_a_time(history: list[Sighting], rule: Rule, served: Digest | None) -> None:
    """It counts how long the registry has named the new digest without a break, as far as the mirror has asked."""
    assert by_tag(history, rule)[0] == served


def test_a_hold_says_until_when() -> None:
    """The decision holds so long, and the reason names the day."""
    found = decide([COOL], Asked(APP, "1", B), Facts([seen(A, 9, 9), seen(B, 1)]), NOW)
    assert found.finding is not None
    assert (found.until, found.finding.until, found.finding.is_wait) == (NOW + 2 * DAY, NOW + 2 * DAY, True)
    assert "1972-" in found.finding.reason


def test_what_is_held_back_can_be_had_by_its_digest_unless_the_rule_is_strict() -> None:
    """So that whoever needs a fix at once can have it, by naming it."""
    assert by_digest(B, COOL, held=True)
    assert not by_digest(B, replace(COOL, strict=True), held=True)
    assert by_digest(B, replace(COOL, strict=True))


BLOCK = Rule("list", blocked={B.hex: "poisoned", LAYER.hex: "poisoned"})


@pytest.mark.parametrize(
    ("digest", "names", "served"),
    [(B, {}, False), (A, {A: {LAYER}}, False), (A, {A: {C}, B: {LAYER}}, True), (C, {}, True)],
    ids=["itself", "what it names", "names something else", "another"],
)
def test_what_is_blocked_is_refused_and_whatever_names_it(digest: Digest, names: dict[Digest, set[Digest]], served: bool) -> None:
    """Manifests, configurations, layers by themselves; indexes and manifests by what they name."""
    assert by_digest(digest, BLOCK, names=names) == served


def test_a_tag_that_means_something_blocked_means_the_last_good_image_instead() -> None:
    """The latest that was served and is not blocked itself; where there is none, it is refused with the list's reason."""
    history = [seen(A, 9, 9), seen(C, 8, 8), seen(B, 7, 7)]
    assert by_tag(history, BLOCK) == (C, "list")
    assert by_tag(history, BLOCK, names={C: {LAYER}}) == (A, "list")
    assert by_tag([seen(B, 9, 9)], BLOCK) == (None, "list")
    assert by_tag([seen(A, 9), seen(B, 9, 9)], BLOCK) == (None, "list")


def test_block_lists_add_up() -> None:
    """Of other checks the first table counts; a second list would be of no use then."""
    other = Rule("other", blocked={A.hex: ""})
    assert not by_digest(A, BLOCK, other)
    assert not by_digest(B, other, BLOCK)


EVERYTHING = Conditions()


@pytest.mark.parametrize(
    ("rules", "served"),
    [
        ([Rule("no", deny=EVERYTHING)], False),
        ([Rule("no", (Pattern.parse("other"),), deny=EVERYTHING)], True),
        ([Rule("yes", (Pattern.parse("library/*"),), allow=EVERYTHING), Rule("no", deny=EVERYTHING)], True),
        ([Rule("yes", (Pattern.parse("ghcr.io/*"),), allow=EVERYTHING), Rule("no", deny=EVERYTHING)], False),
        ([Rule("no", deny=EVERYTHING), Rule("yes", allow=EVERYTHING)], False),
        ([Rule("cool", cooldown=DAY), Rule("no", deny=EVERYTHING)], False),
        ([Rule("yes", allow=EVERYTHING), BLOCK], False),
    ],
    ids=["denied", "another", "allowed before", "not allowed", "denied before", "another check before", "allowed and blocked"],
)
def test_of_deny_and_allow_the_first_that_fits_counts(rules: list[Rule], served: bool) -> None:
    """A list of what is allowed ends with a table that denies the rest. Other checks go on beside it."""
    assert by_digest(B, *rules) == served


IMAGE = Image(OCI_MANIFEST, frozenset({"linux/amd64"}), 1000, NOW - 10 * DAY, {"vendor": "acme"})


@pytest.mark.parametrize(
    ("conditions", "met"),
    [
        (Conditions(platforms=("windows/*",)), False),
        (Conditions(platforms=("windows/*", "linux/*")), True),
        (Conditions(media_types=("*oci*",)), True),
        (Conditions(media_types=("*docker*",)), False),
        (Conditions(labels={"vendor": "ac*"}), True),
        (Conditions(labels={"vendor": "ac*", "other": "*"}), False),
        (Conditions(larger_than=999), True),
        (Conditions(larger_than=1000), False),
        (Conditions(older_than=9 * DAY), True),
        (Conditions(older_than=11 * DAY), False),
        (Conditions(younger_than=11 * DAY), True),
        (Conditions(younger_than=9 * DAY), False),
        (Conditions(larger_than=999, platforms=("windows/*",)), False),
    ],
)
def test_conditions_are_met_by_what_the_image_is_like(conditions: Conditions, met: bool) -> None:
    """All of them must be; one that is not known is not met, so a blob, which has no documents, is never refused for them."""
    assert by_digest(A, Rule("no", deny=conditions), images={A: IMAGE}) == (not met)
    assert by_digest(A, Rule("no", deny=conditions), images={A: Image(OCI_MANIFEST)}) or conditions.media_types
    assert by_digest(A, Rule("no", deny=conditions))


def test_an_immutable_tag_goes_on_meaning_the_first_image() -> None:
    """Until a person releases another one, which it then goes on meaning."""
    fixed = Rule("fixed", immutable=True)
    assert by_tag([seen(A, 9, 9)], fixed) == (A, None)
    assert by_tag([seen(A, 900, 900), seen(B, 800)], fixed) == (A, "fixed")
    assert by_tag([seen(A, 900, 900), seen(B, 800, 800), seen(C, 700, 700)], fixed) == (A, "fixed")
    assert by_tag([seen(A, 9, 9), seen(B, 1, released=RELEASED)], fixed) == (B, None)
    assert by_tag([seen(A, 9, 9), seen(B, 2, 2, released=RELEASED), seen(C, 1)], fixed) == (B, "fixed")


def test_a_tag_does_not_move_to_an_older_image() -> None:
    """By what the images say of themselves; where one does not say it, it may."""
    rule, old, new = Rule("older", refuse_older=True), Image("", created=NOW - 9 * DAY), Image("", created=NOW - 2 * DAY)
    history = [seen(A, 9, 9), seen(B, 1)]
    assert by_tag(history, rule, images={A: new, B: old}) == (A, "older")
    assert by_tag(history, rule, images={A: old, B: new}) == (B, None)
    assert by_tag(history, rule, images={A: new, B: new}) == (B, None)
    assert by_tag(history, rule, images={A: new, B: Image("")}) == (B, None)
    assert by_tag([seen(A, 9, 9), seen(B, 1, released=RELEASED)], rule, images={A: new, B: old}) == (B, None)


@pytest.mark.parametrize(
    "rule",
    [COOL, replace(BLOCK, name="cool"), Rule("cool", deny=EVERYTHING), Rule("cool", immutable=True)],
    ids=["cooldown", "blocklist", "deny", "immutable"],
)
def test_a_rule_that_observes_changes_nothing_and_says_what_it_would_have_done(rule: Rule) -> None:
    """What it would have found is the same as if it were enforced."""
    history = [seen(A, 9, 9), seen(B, 1)]
    enforced = decide([rule], Asked(APP, "1", B), Facts(history), NOW)
    found = decide([replace(rule, enforced=False)], Asked(APP, "1", B), Facts(history), NOW)
    assert found.serve == history[-1].descriptor
    assert (found.finding, found.observed) == (None, (enforced.finding,))


def test_a_rule_that_observes_sees_what_others_allow() -> None:
    """An allow before it would have ended it."""
    rules = [Rule("yes", allow=EVERYTHING), Rule("no", enforced=False, deny=EVERYTHING)]
    assert decide(rules, Asked(APP, None, A), Facts(), NOW).observed == ()


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("library/*", True),
        ("app", True),
        ("docker.io/library/app", True),
        ("docker.io/*", True),
        ("*", True),
        ("app:1*", True),
        ("app:2*", False),
        ("ghcr.io/*", False),
        ("other", False),
        ("registry.lan:5000/app", False),
        ("docker.io/app", True),
    ],
)
def test_a_pattern_fits_names_as_people_write_them(pattern: str, fits: bool) -> None:
    """With or without the registry, and Docker's own images without their folder; a port is no tag."""
    assert (not by_digest(A, Rule("no", (Pattern.parse(pattern),), deny=EVERYTHING), tags=["1.0"])) == fits
    assert (by_tag([seen(A, 1)], Rule("no", (Pattern.parse(pattern),), deny=EVERYTHING))[0] is None) == fits


def test_without_rules_everything_is_served_for_ever() -> None:
    """Nothing is found, and nothing ends it."""
    found = decide([], Asked(APP, "1", B), Facts([seen(A, 9, 9), seen(B, 0)]), NOW)
    assert (found.serve and found.serve.digest, found.finding, found.observed, found.until) == (B, None, (), math.inf)


def test_what_has_not_been_read_passes_for_what_it_may_be() -> None:
    """A list of what is allowed by its labels lets a manifest be fetched, and then decides; blobs have no labels."""
    rules = [Rule("ours", allow=Conditions(labels={"vendor": "acme"})), Rule("no", deny=EVERYTHING)]
    assert by_digest(A, *rules)
    assert by_digest(A, *rules, images={A: IMAGE})
    assert not by_digest(A, *rules, images={A: Image(OCI_MANIFEST)})
    assert decide(rules, Asked(APP, None, LAYER), Facts(), NOW).serve is not None


def test_a_block_list_beside_conditions_counts_for_blobs_too() -> None:
    """One table may have both."""
    rule = Rule("both", blocked={LAYER.hex: ""}, deny=Conditions(platforms=("windows/*",)), refuse_older=True)
    assert decide([rule], Asked(APP, None, LAYER), Facts(), NOW).serve is None
