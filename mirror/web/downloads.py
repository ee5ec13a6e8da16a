"""Groups downloads by image: one line for all blobs of an image that are being downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mirror.downloads.active import Download
from mirror.storage.inventory import UnderWay


@dataclass(frozen=True, slots=True)
class ImageDownload:
    """An image that is being downloaded, or a blob that belongs to no known image. Sizes in bytes, the rate in bytes a second."""

    name: str
    link: str
    """The image's name, where it has a page; empty otherwise."""
    platform: str | None
    blobs: int
    """How many of its blobs are being downloaded, or were a moment ago."""
    size: int | None
    """None where upstream has not said it."""
    have: int
    rate: float
    readers: int
    left: float | None
    """Seconds at this rate; None if unknown."""
    ended: bool
    error: str = ""


def by_image(downloads: Iterable[Download], images: Mapping[tuple[str, str], UnderWay]) -> tuple[ImageDownload, ...]:
    """Groups downloads, in their order; `images` maps repository and digest to the image that a blob belongs to."""
    groups: dict[tuple[str, str | None], list[Download]] = {}
    known: dict[tuple[str, str | None], UnderWay] = {}
    for download in downloads:
        image = images.get((download.repository, download.digest))
        key = (download.repository, download.digest) if image is None else (image.image, image.platform)
        groups.setdefault(key, []).append(download)
        if image is not None:
            known[key] = image
    return tuple(_line(group, known.get(key)) for key, group in groups.items())


def _line(group: list[Download], image: UnderWay | None) -> ImageDownload:
    running = [download for download in group if not download.ended]
    rate = sum(download.rate for download in running)
    sizes = [download.size for download in group]
    # The most recent failure.
    error = next((download.error for download in group if download.error), "")
    have = sum(download.have for download in group)
    size = None if None in sizes else sum(size or 0 for size in sizes)
    if image is not None:
        names = {download.digest for download in group}
        # The size that upstream states counts, not the manifest's.
        size = sum(size for name, size in image.blobs.items() if name not in names) + sum(
            image.blobs.get(download.digest, 0) if download.size is None else download.size for download in group
        )
        have += sum(size for name, size in image.blobs.items() if name in image.cached and name not in names)
    left = None
    if running and rate >= 1 and all(download.size is not None for download in running):
        left = sum(max(0, (download.size or 0) - download.have) for download in running) / rate
    return ImageDownload(
        group[0].repository if image is None else image.image,
        "" if image is None else image.image,
        None if image is None else image.platform,
        len(group),
        size,
        have,
        rate,
        max(download.readers for download in group),
        left,
        not running,
        error,
    )
