"""Changes from the dashboard: pin, unpin, refresh, delete and fetch images, one or several at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from mirror.cache.images import Images
from mirror.cache.pull import Pull, Pulls
from mirror.errors import MirrorError, RequestInvalid, Unknown
from mirror.fleet_documents import Change
from mirror.manifests import is_platform
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.sightings import Block, Released
from mirror.tasks import SingleFlight
from mirror.web.fleet import FleetMembers, check, tell

log = logging.getLogger(__name__)

Image = tuple[Repository, Reference]

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/riscv64", "linux/ppc64le", "linux/s390x")
"""Those that are offered; any other that an image is for can be fetched too."""
EVERY = "all"
MOST = 50
"""Images that can be changed at once."""

_DONE = {"pin": "pinned", "unpin": "unpinned", "refresh": "refreshed", "delete": "deleted"}
_PATIENCE = 3.0
"""Seconds within which the failure of a fetch is the answer to the request; later, the list of downloads shows it."""
_MOST_FETCHES = 20
_LONGEST_REASON = 300
_MOST_PLATFORMS = 20
_FAILED_FOR = 60.0
"""Seconds for which a failure is shown."""


class Actions:
    """Applies changes. Each method raises MirrorError."""

    def __init__(self, images: Images, pulls: Pulls, fleet: FleetMembers | None = None) -> None:
        """`fleet` has the mirrors of the fleet, which are told of changes too."""
        self._images = images
        self._fleet = fleet
        self._pulls = pulls
        self._fetches: SingleFlight[None] = SingleFlight()
        self._running: set[str] = set()
        self._failures: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def aclose(self) -> None:
        """Ends fetches; another fetch of an image continues where they stopped."""
        await self._fetches.aclose()

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Images whose fetch failed within `_FAILED_FOR`, with the reasons."""
        oldest = time.monotonic() - _FAILED_FOR
        while self._failures and next(iter(self._failures.values()))[0] < oldest:
            self._failures.popitem(last=False)
        return [(image, message) for image, (_, message) in self._failures.items()]

    async def apply(self, action: str, images: Sequence[Image]) -> str:
        """Applies an action to each image, even if it fails for another. Returns one word for what was done."""
        if not 0 < len(images) <= MOST:
            raise RequestInvalid(f"select between 1 and {MOST} images")
        if action not in _DONE:
            raise RequestInvalid("action is pin, unpin, refresh, delete or fetch")
        done, names = "", []
        failures: list[MirrorError] = []
        absent: list[tuple[str, MirrorError]] = []
        for image in images:
            try:
                done = await self._one(action, *image)
                names.append(image_name(*image))
            except Unknown as error:
                # Another mirror of the fleet may have it.
                absent.append((image_name(*image), error))
            except MirrorError as error:
                failures.append(error)
        told = await tell(self._fleet, Change(action, (*names, *(name for name, _ in absent))))
        failures += [error for name, error in absent if name not in told.did]
        if len(failures) == 1 == len(images):
            raise failures[0]
        if failures:
            missed = f"; the others {told.sentence()}" if told.faults else ""
            raise type(failures[0])(
                f"{len(images) - len(failures)} of {len(images)} images were changed: {'; '.join(error.message for error in failures)}{missed}"
            )
        check(told)
        return done or _DONE[action]

    async def _one(self, action: str, repository: Repository, reference: Reference) -> str:
        match action:
            case "pin":
                await self._images.pin(repository, reference)
                return "pinned"
            case "unpin":
                await self._images.unpin(repository, reference)
                return "unpinned"
            case "refresh":
                return "changed" if (await self._images.refresh(repository, reference)).changed else "refreshed"
            case "delete":
                await self._images.delete(repository, reference)
                return "deleted"
        raise RequestInvalid("action is pin, unpin, refresh, delete or fetch")

    async def rule(self, form: Mapping[str, str], parse: Callable[[str], Image], who: str) -> str:
        """Releases a tag, blocks or unblocks a digest. `parse` reads an image's name. Returns one word for what was done."""
        why = form.get("why", "").strip()[:_LONGEST_REASON]
        match form.get("action"):
            case "release":
                repository, reference = parse(form.get("image", ""))
                if not isinstance(reference, Tag) or not why:
                    raise RequestInvalid("a tag and a reason are expected")
                # The page says which one it shows: the tag may have moved once more since.
                only = Digest.parse(form["digest"]) if form.get("digest") else None
                digest = await self._images.release(repository, reference, Released(time.time(), who, why), only)
                name = image_name(repository, reference)
                check(await tell(self._fleet, Change("release", (name,), who, why, digest=str(digest))))
                return "released"
            case "block":
                digest = Digest.parse(form.get("digest", "").strip())
                await self._images.block(Block(digest, why, who, time.time()))
                check(await tell(self._fleet, Change("block", (str(digest),), who, why)))
                return "blocked"
            case "unblock":
                await self._unblock(Digest.parse(form.get("digest", "")), who)
                return "unblocked"
        raise RequestInvalid("action is release, block or unblock")

    async def _unblock(self, digest: Digest, who: str) -> None:
        error = None
        try:
            await self._images.unblock(digest, who)
        except Unknown as unknown:
            error = unknown
        told = await tell(self._fleet, Change("unblock", (str(digest),), who))
        if error is not None and str(digest) not in told.did:
            raise error
        check(told)

    async def fetch(self, image: Image, platforms: Sequence[str]) -> str:
        """Starts to fetch the missing parts of an image, as ``mirror pull`` does, and continues in the background. Raises errors that occur within `_PATIENCE`."""
        wanted = tuple(sorted(set(platforms)))
        if not 0 < len(wanted) <= _MOST_PLATFORMS:
            raise RequestInvalid(f"select between 1 and {_MOST_PLATFORMS} platforms")
        if any(platform != EVERY and not is_platform(platform) for platform in wanted):
            raise RequestInvalid(f"platform is {EVERY}, or one such as {PLATFORMS[1]}")
        name = image_name(*image)
        if len(self._running) >= _MOST_FETCHES and name not in self._running:
            raise RequestInvalid(f"{_MOST_FETCHES} images are being fetched already: wait for one of them")
        self._failures.pop(name, None)
        task, _ = self._fetches.start((name, wanted), lambda: self._fetch(image, name, wanted))
        await asyncio.wait([task], timeout=_PATIENCE)
        if task.done():
            task.result()
        return "fetched" if task.done() else "fetching"

    async def _fetch(self, image: Image, name: str, platforms: Sequence[str]) -> None:
        self._running.add(name)
        try:
            await self._pulls.pull(Pull(*image, None if EVERY in platforms else platforms))
        except MirrorError as error:
            log.warning("%s could not be fetched: %s", name, error)
            self._failures[name] = time.monotonic(), error.message
            self._failures.move_to_end(name)
            while len(self._failures) > _MOST_FETCHES:
                self._failures.popitem(last=False)
            raise
        finally:
            self._running.discard(name)
