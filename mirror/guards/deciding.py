"""The function that decides what a client gets. It asks nobody and remembers nothing: everything is in the facts that it is given.

Tables are read in their order, and for each kind of check the first one that fits the image and has that check counts: `deny` and `allow` are one kind. Block lists
add up. By a tag, a client gets what the registry says that the tag means, or, if something is against that, the latest earlier meaning that was served and has
nothing against it. By a digest it gets that, or an error.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from mirror.guards.rules import Asked, Decision, Finding, Image, Rule
from mirror.guards.signatures import is_signature
from mirror.manifests import Descriptor
from mirror.names import Digest
from mirror.storage.scans import SEVERITIES
from mirror.storage.sightings import Sighting

_AGED = 60.0
"""Seconds after which it is decided anew by the age of an image."""
_SCANNED_LATER = 60.0
"""Seconds after which it is decided anew by what scanners found: another process may have run them."""
_SIGNED_LATER = 60.0
"""Seconds after which it is looked again for signatures: they are made after the image."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of what somebody wants."""

    history: Sequence[Sighting] = ()
    """Of the tag that was asked for; the last one is what it means now."""
    tags: Collection[str] = ()
    """The tags that have meant the digest that was asked for."""
    names: Mapping[Digest, Collection[Digest]] = field(default_factory=dict)
    """What manifests name, all the way down, as far as that is here."""
    images: Mapping[Digest, Image] = field(default_factory=dict)
    children: Mapping[Digest, Sequence[Digest]] = field(default_factory=dict)
    """The images that indexes name, as far as they could be read. What they are is in `images`."""
    again: float = math.inf
    """In seconds from now, after which what could not be read is looked for again."""
    unsigned: Mapping[tuple[str, Digest], str] = field(default_factory=dict)
    """Why a rule, by its name, does not find a manifest signed; what it finds signed is not in it."""
    severities: Mapping[Digest, str] = field(default_factory=dict)
    """The worst that scanners have found in manifests, and in what they name; without those that none has looked at."""
    held: bool = False
    """True if the digest that was asked for belongs only to what is held back."""


def decide(rules: Sequence[Rule], asked: Asked, facts: Facts, now: float) -> Decision:
    """Decides by `rules`, those that observe and those that are enforced. `now` in seconds since the epoch."""
    tags = facts.tags if asked.tag is None else (asked.tag,)
    fitting = [rule for rule in rules if rule.fits(asked.repository, tags)]
    if asked.is_hosted:
        fitting = [rule.for_hosted(asked.repository) for rule in fitting]
    serve, finding = _choose([rule for rule in fitting if rule.enforced], asked, facts, now)
    observed = []
    for rule in fitting:
        if not rule.enforced:
            _, would = _choose([other for other in fitting if other.enforced or other is rule], asked, facts, now)
            if would is not None and would.rule == rule.name:
                observed.append(would)
    until = min((found.until for found in (finding, *observed) if found is not None), default=math.inf)
    until = min(until, now + facts.again)
    if any(rule.depends_on_age for rule in fitting):
        until = min(until, now + _AGED)
    if any(rule.max_severity is not None for rule in fitting):
        until = min(until, now + _SCANNED_LATER)
    return Decision(serve, finding, tuple(observed), until)


def _choose(rules: Sequence[Rule], asked: Asked, facts: Facts, now: float) -> tuple[Descriptor | None, Finding | None]:
    against = None
    for candidate in _candidates(asked, facts):
        found = _objection(rules, asked, candidate.digest, facts, now)
        if found is None and candidate.digest in asked.lost:
            found = Finding("", "it cannot be had", now)
        if found is None:
            return candidate, None if candidate.digest == asked.digest else against
        against = against or found
    return None, against


def _candidates(asked: Asked, facts: Facts) -> Iterable[Descriptor]:
    """What the client may get, the best first."""
    if asked.tag is None:
        return [Descriptor("", asked.digest, 0)]
    served = sorted(_served(facts.history), key=lambda sighting: sighting.served or 0.0, reverse=True)
    return {sighting.digest: sighting.descriptor for sighting in (facts.history[-1], *served)}.values()


def _served(history: Sequence[Sighting]) -> list[Sighting]:
    return [sighting for sighting in history if sighting.served is not None]


def _objection(rules: Sequence[Rule], asked: Asked, digest: Digest, facts: Facts, now: float) -> Finding | None:
    return (
        _by("deny", _denied(rules, digest, facts, now))
        or _by("blocklist", _blocked(rules, digest, facts))
        or _by("max_severity", _scanned(rules, digest, facts))
        or _by("cooldown", _held(rules, facts))
        or (_by("signed", _unsigned(rules, asked, digest, facts, now)) if asked.tag is not None else None)
        or (_by("cooldown", _cooling(rules, asked, digest, facts, now)) if asked.tag is not None else None)
        or (_by("immutable", _moved(rules, digest, facts)) if asked.tag is not None else None)
        or (_by("refuse_older", _older(rules, digest, facts)) if asked.tag is not None else None)
    )


def _by(check: str, found: Finding | None) -> Finding | None:
    return None if found is None else replace(found, check=check)


def _denied(rules: Sequence[Rule], digest: Digest, facts: Facts, now: float) -> Finding | None:
    """An index is denied for itself, and for each of its images that is not allowed before; it is allowed where all of them are."""
    image = facts.images.get(digest)
    left = [facts.images[child] for child in facts.children.get(digest, ())]
    for rule in rules:
        if rule.allow is not None:
            # What has not been read yet, as every blob, is let pass for what it may be.
            if image is None or rule.allow.met(image, now):
                return None
            others = [one for one in left if not rule.allow.met(one, now)]
            if left and not others:
                return None
            left = others
        if rule.deny is not None:
            if rule.deny.met(image, now):
                return Finding(rule.name, rule.reason or "it is denied", math.inf)
            for one in left:
                if rule.deny.met(one, now):
                    return Finding(rule.name, rule.reason or f"its image for {_platform(one)} is denied", math.inf)
    return None


def _platform(image: Image) -> str:
    return ", ".join(sorted(image.platforms)) or "no platform"


def _blocked(rules: Sequence[Rule], digest: Digest, facts: Facts) -> Finding | None:
    for rule in rules:
        if rule.blocked:
            for named in (digest, *facts.names.get(digest, ())):
                if (reason := rule.blocked.get(named.hex)) is not None:
                    what = "it is blocked" if named == digest else f"{named}, which it names, is blocked"
                    return Finding(rule.name, f"{what}: {reason or rule.reason or 'no reason is given'}", math.inf)
    return None


def _scanned(rules: Sequence[Rule], digest: Digest, facts: Facts) -> Finding | None:
    rule = next((rule for rule in rules if rule.max_severity is not None), None)
    found = facts.severities.get(digest)
    if rule is None or rule.max_severity is None or found is None:
        return None
    if SEVERITIES.index(found) <= SEVERITIES.index(rule.max_severity):
        return None
    return Finding(rule.name, rule.reason or f"a scanner found something of severity {found} in it", math.inf)


def _held(rules: Sequence[Rule], facts: Facts) -> Finding | None:
    rule = next((rule for rule in rules if rule.cooldown is not None), None)
    if rule is not None and rule.strict and facts.held:
        return Finding(rule.name, rule.reason or "a tag moved to it, and it is held back", math.inf, is_wait=True)
    return None


def _unsigned(rules: Sequence[Rule], asked: Asked, digest: Digest, facts: Facts, now: float) -> Finding | None:
    rule = next((rule for rule in rules if rule.signed is not None), None)
    if rule is None or is_signature(asked.tag or ""):
        return None
    why = facts.unsigned.get((rule.name, digest))
    return None if why is None else Finding(rule.name, rule.reason or why, now + _SIGNED_LATER, may_pass=True)


def _cooling(rules: Sequence[Rule], asked: Asked, digest: Digest, facts: Facts, now: float) -> Finding | None:
    rule = next((rule for rule in rules if rule.cooldown is not None), None)
    if rule is None or rule.cooldown is None or digest != asked.digest:
        return None
    current, served = facts.history[-1], _served(facts.history)
    until = current.first + rule.cooldown
    if current.released is not None or now >= until:
        return None
    if served:
        if max(served, key=lambda sighting: sighting.served or 0.0).digest == digest:
            return None
        what = f"the tag moved to it on {_date(current.first)}"
    elif not rule.new_tags_wait:
        return None
    else:
        what = f"the tag was first seen on {_date(current.first)}"
    return Finding(rule.name, rule.reason or f"{what}; it is served from {_date(until)} on", until, is_wait=True, may_pass=True)


def _moved(rules: Sequence[Rule], digest: Digest, facts: Facts) -> Finding | None:
    rule = next((rule for rule in rules if rule.immutable), None)
    served = _served(facts.history)
    if rule is None or not served:
        return None
    released = [sighting for sighting in facts.history if sighting.released is not None]
    meant = released[-1] if released else served[0]
    if digest == meant.digest:
        return None
    return Finding(
        rule.name, rule.reason or f"the tag must not move, and has meant {meant.digest} since {_date(meant.first)}", math.inf
    )


def _older(rules: Sequence[Rule], digest: Digest, facts: Facts) -> Finding | None:
    rule = next((rule for rule in rules if rule.refuse_older), None)
    current, served = facts.history[-1], _served(facts.history)
    if rule is None or digest != current.digest or current.released is not None or not served:
        return None
    before = max(served, key=lambda sighting: sighting.served or 0.0)
    then, made = _made(before.digest, facts), _made(digest, facts)
    if not then or not made:
        return None
    if not (both := sorted(then.keys() & made.keys())):
        then, made, both = {"": max(then.values())}, {"": max(made.values())}, [""]
    for platform in both:
        if made[platform] < then[platform]:
            what = f"its image for {platform}" if len(made) > 1 else "it"
            dates = _date(made[platform]), _date(then[platform])
            return Finding(
                rule.name, rule.reason or f"{what} was made on {dates[0]}, what the tag meant before on {dates[1]}", math.inf
            )
    return None


def _made(digest: Digest, facts: Facts) -> dict[str, float]:
    """When the images of an index were made by platform, or the only image; without what is not known."""
    found: dict[str, float] = {}
    listed = [facts.images[child] for child in facts.children.get(digest, ())]
    dated = [image for image in listed if image.created is not None] or [facts.images[digest]] if digest in facts.images else []
    for image in dated:
        if image.created is not None:
            for platform in image.platforms or ("",):
                found[platform] = max(found.get(platform, image.created), image.created)
    return found


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
