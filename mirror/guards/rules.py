"""Rules, as ``[[guard]]`` tables describe them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from mirror.guards.signatures import Signers
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository


@dataclass(frozen=True, slots=True)
class Pattern:
    """A shell pattern of image names such as ``ghcr.io/owner/*:v*``: the registry may be left out, and so may the tag; ``*`` matches slashes too."""

    repository: str
    tag: str | None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        # A colon before the last slash is a port's.
        head, slash, last = text.strip().rpartition("/")
        name, colon, tag = last.partition(":")
        return cls(f"{head}{slash}{name}", tag if colon else None)

    def fits(self, repository: Repository, tags: Collection[str]) -> bool:
        """`tags` are those by which the image is known. A pattern with a tag fits if one of them does."""
        names = [repository.path, str(repository)]
        if repository.registry == "docker.io" and repository.path.startswith("library/"):
            short = repository.path.removeprefix("library/")
            names += [short, f"docker.io/{short}"]
        if not any(fnmatchcase(name, self.repository) for name in names):
            return False
        return self.tag is None or any(fnmatchcase(tag, self.tag) for tag in tags)

    def names(self, repository: Repository) -> bool:
        """Returns whether it fits the name of a hosted repository, not only that of a registry, or any name."""
        return self.repository[:1] not in ("*", "?", "[") and fnmatchcase(repository.path, self.repository)


@dataclass(frozen=True, slots=True)
class Image:
    """What the documents of an image say about it. A fact is None, or empty, if they do not say it, or are not here."""

    media_type: str
    platforms: frozenset[str] = frozenset()
    size: int | None = None
    """Of its configuration and layers, in bytes."""
    created: float | None = None
    """In seconds since the epoch. Its author's word: nothing proves it."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What an image must be like; all that are given must be met, and one that is not known is not met. Sizes in bytes, ages in seconds."""

    platforms: tuple[str, ...] = ()
    media_types: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    larger_than: int | None = None
    older_than: float | None = None
    younger_than: float | None = None

    @property
    def needs_image(self) -> bool:
        """True if the name of an image does not decide."""
        return self != Conditions()

    @property
    def depends_on_age(self) -> bool:
        return self.older_than is not None or self.younger_than is not None

    def met(self, image: Image | None, now: float) -> bool:
        """Returns whether an image meets them."""
        if not self.needs_image:
            return True
        if image is None:
            return False
        return all(
            (
                not self.platforms or any(fnmatchcase(one, wanted) for one in image.platforms for wanted in self.platforms),
                not self.media_types or any(fnmatchcase(image.media_type, wanted) for wanted in self.media_types),
                all(name in image.labels and fnmatchcase(image.labels[name], wanted) for name, wanted in self.labels.items()),
                self.larger_than is None or (image.size is not None and image.size > self.larger_than),
                self.older_than is None or (image.created is not None and now - image.created > self.older_than),
                self.younger_than is None or (image.created is not None and now - image.created < self.younger_than),
            )
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One table. Times in seconds."""

    name: str
    images: tuple[Pattern, ...] = ()
    """Which images it is for; all if there are none."""
    enforced: bool = True
    """False if it only observes: what it would have done is shown, and not done."""
    reason: str = ""
    """For people whose pull it changes; empty for a sentence that says what happened."""
    cooldown: float | None = None
    new_tags_wait: bool = False
    """True if a tag that was never seen before has to wait too."""
    strict: bool = False
    """True if what is held back cannot be had by its digest either."""
    blocked: Mapping[str, str] = field(default_factory=dict)
    """The hexadecimal digits of digests, with the reason for each. It changes while the mirror runs."""
    deny: Conditions | None = None
    allow: Conditions | None = None
    immutable: bool = False
    refuse_older: bool = False
    max_severity: str | None = None
    """One of `mirror.storage.scans.SEVERITIES`: what scanners have found to be worse is refused."""
    signed: Signers | None = None
    """One of them must have signed what a tag means."""

    def fits(self, repository: Repository, tags: Collection[str]) -> bool:
        """Returns whether the rule is for an image."""
        return not self.images or any(pattern.fits(repository, tags) for pattern in self.images)

    def for_hosted(self, repository: Repository) -> Rule:
        """Returns what counts of the rule for a repository that lives here. What moves a tag there is a push by somebody who may, so checks of moves are for
        those who ask for them by the repository's own name."""
        if not (self.cooldown or self.immutable or self.refuse_older) or any(one.names(repository) for one in self.images):
            return self
        return replace(self, cooldown=None, immutable=False, refuse_older=False)

    @property
    def has_tag_pattern(self) -> bool:
        return any(pattern.tag is not None for pattern in self.images)

    @property
    def checks(self) -> tuple[str, ...]:
        """The settings by which it may hold or refuse something; of block lists, those that have entries now."""
        set_ = {
            "cooldown": self.cooldown is not None,
            "blocklist": bool(self.blocked),
            "deny": self.deny is not None,
            "immutable": self.immutable,
            "refuse_older": self.refuse_older,
            "max_severity": self.max_severity is not None,
            "signed": self.signed is not None,
        }
        return tuple(name for name, is_set in set_.items() if is_set)

    @property
    def needs_image(self) -> bool:
        """True if it decides by what is in an image."""
        return self.refuse_older or any(
            conditions is not None and conditions.needs_image for conditions in (self.deny, self.allow)
        )

    @property
    def depends_on_age(self) -> bool:
        """True if it decides by how old an image is."""
        return any(conditions is not None and conditions.depends_on_age for conditions in (self.deny, self.allow))


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants. `digest` is what it means: of a tag, by the registry's word."""

    repository: Repository
    tag: str | None
    digest: Digest
    is_hosted: bool = False
    """True if the repository lives here."""
    lost: frozenset[Digest] = frozenset()
    """What a tag has meant, and cannot be had."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule has against something, and until when; infinite if no time changes that."""

    rule: str
    reason: str
    until: float
    is_wait: bool = False
    """True if it is a matter of time only."""
    may_pass: bool = False
    """True if it ends without anybody changing a rule: by time, or by a signature."""
    check: str = ""
    """The setting that it comes of, such as ``cooldown``."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`serve` is what the client gets, None if nothing. `finding` is why that is not what it asked for."""

    serve: Descriptor | None
    finding: Finding | None
    observed: tuple[Finding, ...]
    """What rules that only observe would have found."""
    until: float
    """How long the decision holds, unless facts or rules change."""
