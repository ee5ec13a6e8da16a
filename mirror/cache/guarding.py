"""What the cache asks before it gives content to anybody. mirror/guards answers; a cache without rules has nobody to ask."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from mirror.errors import MirrorError
from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.slices import FileSlice, Part, Reader, SliceUnreadable

BY_HAND = "by hand"
"""The name of the rule that refuses what ``mirror block`` names."""


_LONGEST_REASON = 500


class Guarded(MirrorError):
    """403, as `Denied`: clients show the message of it. `rule` is the name of what forbids it, and `reason` is why, if that is known. `digest` is what was
    refused."""

    status = 403
    code = "DENIED"

    def __init__(self, message: str, rule: str, reason: str = "", digest: Digest | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        self.reason = reason
        self.digest = digest


def refusal(name: str, rule: str, reason: str, digest: Digest) -> Guarded:
    """Returns the error for an image that nobody may have. `digest` is what its name means."""
    return Guarded(f"{name} is refused by the guard {rule!r}: {reason}", rule, reason, digest)


def verdict_header(rule: str, verdict: str, reason: str) -> str:
    """Returns one value of the header Mirror-Guard. A long reason is cut: lists come from anywhere, and clients take headers of some KiB."""
    return f"{_quoted(rule)}; {verdict}{f'; reason={_quoted(reason[:_LONGEST_REASON])}' if reason else ''}"


def _quoted(text: str) -> str:
    """A string as structured fields have it (RFC 8941, section 3.3.3)."""
    plain = "".join(character if " " <= character <= "~" else "?" for character in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a client gets: `serve`, or `error` instead."""

    serve: Descriptor | None
    error: Guarded | None
    held_until: float | None
    """Until when something else is held back; None if `serve` is what was asked for."""
    headers: tuple[tuple[str, str], ...] = ()
    """For the response: what was decided, and what would have been."""
    complete: bool = True
    """False if the manifest had to be read to decide, and was not here."""
    verdicts: tuple[tuple[str, str, str, str], ...] = ()
    """Rules that have, or would have, changed what a client gets; each with how and why, and the setting of the rule that it comes of."""
    may_pass: bool = False
    """True if what is held back, or refused, is served later without anybody changing a rule: after a time, or once it is signed."""


class Archive(Protocol):
    """What an archive brings, which need not be in the store yet."""

    def manifest(self, digest: Digest) -> Manifest | None: ...

    def document(self, digest: Digest) -> bytes | None:
        """Returns a configuration or a signature."""
        ...

    def meaning(self, repository: Repository, tag: Tag) -> Digest | None: ...

    def referrers(self, repository: Repository, digest: Digest) -> list[Digest]: ...


class Guard(Protocol):
    """Decides what may be served."""

    epoch: int
    """While it is the same, what passed before passes still."""
    revision: int
    """While it is the same, `blocks` answers the same."""

    def passes(self, repository: Repository, reference: Reference, digest: Digest) -> bool:
        """True if it is known that nothing is to be said against serving a manifest for a reference. Called for every hit in memory."""
        ...

    async def rule_tag(
        self, repository: Repository, tag: Tag, found: Descriptor, lost: frozenset[Digest] = frozenset()
    ) -> Ruling:
        """Decides what clients get by a tag, whose history says what the registry means by it; `found` counts where the catalog fails. What is `lost` cannot be
        had; a decision without it is not remembered."""
        ...

    def forget_tag(self, repository: Repository, tag: Tag) -> None:
        """Forgets what it decided on a tag, whose history has changed."""
        ...

    def forget_repository(self, repository: Repository) -> None:
        """Forgets what it decided on a repository: a push may have been a signature."""
        ...

    async def rule_digest(self, repository: Repository, digest: Digest, manifest: Manifest | None) -> Ruling:
        """Decides on a manifest by its digest, before it is fetched and again once it is here."""
        ...

    async def foresee(self, repository: Repository, reference: Reference, root: Descriptor, archive: Archive | None) -> Ruling:
        """Decides what clients would get by a reference if it meant `root` from now on, which an archive may bring. Remembers nothing."""
        ...

    async def explain(self, repository: Repository, tag: Tag) -> Ruling:
        """Decides, for people, what clients get by a tag that was seen, by what is here: nobody is asked, and nothing is remembered or counted. Raises CatalogFailed."""
        ...

    async def check_blob(self, repository: Repository, digest: Digest) -> None:
        """Raises Guarded if a blob must not be served."""
        ...

    def blocks(self, repository: Repository, digest: Digest) -> Guarded | None:
        """Returns the error for content that is blocked, without asking the store; None if it is not."""
        ...

    def count(self, repository: Repository, reference: Reference, ruling: Ruling) -> None:
        """Counts a ruling that has its effect on somebody."""
        ...

    def headers(self, repository: Repository, reference: Reference) -> tuple[tuple[str, str], ...]:
        """Returns the headers of the last ruling on a reference."""
        ...


class GuardedReader:
    """A reader that ends with Guarded as soon as its blob is blocked: before the last bytes, so that nobody gets it whole.

    It cuts no slice, since each cut costs a fast client time: whoever sends one calls its `check`.
    """

    def __init__(
        self, reader: Reader, guard: Callable[[], Guard | None], repository: Repository, digest: Digest, passed: int = -1
    ) -> None:
        """`guard` returns what decides now: there may be none yet when the download begins. `passed` is its revision by which the blob was found not to be blocked."""
        self.size = reader.size
        self._reader = reader
        self._guard = guard
        self._repository = repository
        self._digest = digest
        self._passed = passed

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        async with aclosing(self._reader.parts(start, stop)) as parts:
            part = await anext(parts, None)
            while part is not None:
                self._check()
                try:
                    yield FileSlice(part.fd, part.offset, part.length, self._check) if isinstance(part, FileSlice) else part
                except SliceUnreadable as unreadable:
                    try:
                        part = await parts.athrow(unreadable)
                    except StopAsyncIteration:
                        return
                else:
                    part = await anext(parts, None)

    async def aclose(self) -> None:
        await self._reader.aclose()

    def _check(self) -> None:
        guard = self._guard()
        if guard is not None and guard.revision != self._passed:
            if (error := guard.blocks(self._repository, self._digest)) is not None:
                raise error
            self._passed = guard.revision
