"""The inventory of a store: images with their sizes, use and freshness, their manifests and layers, and totals.

An *image* is a tag whose manifest is cached, or a cached manifest that a repository holds under no tag and in no index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mirror.manifests import Descriptor
from mirror.names import Digest, Reference, Repository, image_name
from mirror.storage.image_config import ImageConfig

_T = TypeVar("_T")
ORDERS = ("name", "pulled", "fetched", "size", "pinned")
"""How images can be sorted: by name; the last pulled, the last fetched, the largest, or those that are pinned or in a list first."""


@dataclass(frozen=True, slots=True)
class Image:
    """One line of the inventory. Sizes in bytes, times in seconds since the epoch."""

    repository: Repository
    reference: Reference
    digest: Digest
    platforms: tuple[str, ...]
    """Those whose manifests are cached; empty if it is for no platform, or if that is not known yet."""
    size: int
    """How much of it is cached."""
    shared: int
    """How much of that other images have too."""
    missing: int
    """Blobs that its cached manifests name and that are not cached."""
    fetched: float
    checked: float | None
    """When the tag was last checked with upstream; None for a digest."""
    pulls: int
    pulled: float | None
    """When a client last pulled it by this name; None if none has since pulls are counted."""
    pinned: bool
    """True if it was pinned by hand."""
    listed: bool = False
    """True if it is in a list, which pins it too."""
    pushed: float | None = None
    """When it was pushed; None if it does not live here."""
    pushed_by: str = ""
    """Who pushed it: an address or a user."""

    def __str__(self) -> str:
        return image_name(self.repository, self.reference)


@dataclass(frozen=True, slots=True)
class Page(Generic[_T]):
    """Some entries of a list, and how many there are in all."""

    entries: tuple[_T, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an image, or its configuration; `images` is how many cached images have it."""

    descriptor: Descriptor
    cached: bool
    images: int


@dataclass(frozen=True, slots=True)
class Variant:
    """One manifest of an image: of its only platform, or one that its index lists."""

    digest: Digest
    platform: str | None
    cached: bool
    """Whether the manifest is cached. Only then the fields below are known."""
    config: Layer | None = None
    layers: tuple[Layer, ...] = ()
    settings: ImageConfig | None = None
    """From its configuration, if that is cached and an image's."""

    @property
    def size(self) -> int:
        """Bytes of its layers, cached or not."""
        return sum(layer.descriptor.size for layer in self.layers)

    @property
    def complete(self) -> bool:
        """Whether it can be pulled without upstream."""
        blobs = self.layers if self.config is None else (self.config, *self.layers)
        return self.cached and all(blob.cached for blob in blobs)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another image, and the bytes that it has in common with one."""

    image: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Details:
    """The manifests and layers of an image, and the images that share content with it, the most first."""

    image: Image
    media_type: str
    variants: tuple[Variant, ...]
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests of clients over some time, and their bytes. `fetched` from upstream and `sent` to clients in bytes."""

    requests: int
    hits: int
    fetched: int
    sent: int
    prefetched: int = 0
    """How many of the bytes fetched came before a client asked for them."""
    pulled: int = 0
    """How many of the bytes fetched were fetched by ``mirror pull`` or from the dashboard."""

    @property
    def saved(self) -> int:
        """Bytes that upstream did not have to send for clients. What was pulled ahead on purpose was not sent for them."""
        return max(0, self.sent - (self.fetched - self.pulled))

    @property
    def ahead(self) -> int:
        """Bytes fetched that no client waited for."""
        return min(self.fetched, self.prefetched + self.pulled)

    @property
    def passed(self) -> int:
        """Bytes that clients waited for while upstream sent them."""
        return min(self.sent, self.fetched - self.ahead)

    @property
    def cached(self) -> int:
        """Bytes that clients got from the cache."""
        return self.sent - self.passed


@dataclass(frozen=True, slots=True)
class Totals:
    """Everything cached, sizes in bytes."""

    images: int
    repositories: int
    manifests: int
    blobs: int
    size: int
    unfinished: int
    """What downloads in progress, or interrupted, take."""
    pinned: int
    """How many images are pinned."""
    traffic: Traffic
    """Since the cache was made."""
    hosted: int = 0
    """What was pushed, which `size` leaves out."""


@dataclass(frozen=True, slots=True)
class RepositoryLine:
    """One repository of the list. Sizes in bytes, times in seconds since the epoch."""

    repository: Repository
    images: int
    names: tuple[str, ...]
    """Some of its images, the last pulled first, each as ``:tag`` or ``@digest``."""
    platforms: tuple[str, ...]
    size: int
    """How much of it is cached; what its images share counts once."""
    pinned: int
    fetched: float
    pulls: int
    pulled: float | None


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that clients have asked for, by the name that they used; it may be gone from the cache."""

    image: str
    count: int
    last: float


@dataclass(frozen=True, slots=True)
class UnderWay:
    """The image that a blob under way belongs to. Sizes in bytes."""

    image: str
    platform: str | None
    blobs: dict[str, int]
    """Its blobs by digest, with their sizes."""
    cached: frozenset[str]
    """Those of them that are in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Day(Traffic):
    """The traffic of one day (UTC)."""

    date: str


@dataclass(frozen=True, slots=True)
class History:
    """Of the last 30 days; days without traffic are there too."""

    sizes: tuple[tuple[int, int], ...]
    """Seconds since the epoch, and bytes that were cached; oldest first."""
    days: tuple[Day, ...]


class Inventory(Protocol):
    """Queries about a store, for people. All methods raise CatalogFailed."""

    async def images(
        self,
        search: str = "",
        order: str = "name",
        start: int = 0,
        count: int | None = None,
        repository: Repository | None = None,
    ) -> Page[Image]:
        """The images from `start` on, `count` of them at most; of one repository, or of all.

        Every word of `search` must be part of ``registry/path:tag``, or begin the digest; in whatever case. `order` is one of ORDERS.
        """
        ...

    async def image(self, repository: Repository, reference: Reference) -> Details | None:
        """Returns the manifests and layers of an image, by tag or digest; None if it is not cached."""
        ...

    async def repositories(self, order: str = "name", start: int = 0, count: int = 50) -> Page[RepositoryLine]:
        """The repositories from `start` on, `count` of them at most; `order` is one of ORDERS."""
        ...

    async def most_pulled(self, count: int) -> tuple[Pulled, ...]:
        """The images that clients have asked for most often."""
        ...

    async def under_way(self, repository: Repository, digests: Iterable[str]) -> dict[str, UnderWay]:
        """By digest, the image of a repository that each of some blobs belongs to, as far as that is known."""
        ...

    async def totals(self) -> Totals:
        """Everything in figures."""
        ...

    async def history(self) -> History:
        """What the last month was like."""
        ...
