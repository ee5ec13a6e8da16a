"""What a bundle holds, as values."""

from __future__ import annotations

from dataclasses import dataclass, field

from mirror.manifests import Descriptor
from mirror.names import Digest, Reference, Repository


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a bundle."""

    repository: Repository
    reference: Reference
    root: Descriptor
    """Of its index, or of its only manifest."""
    platforms: tuple[str, ...] = ()
    docker: tuple[Digest, tuple[Digest, ...]] | None = None
    """The configuration and the layers of its first platform; None if it is no container image."""
    seen: float | None = None
    """See `mirror.storage.store.Store.first_seen`. None for a digest, which never means anything else."""


@dataclass(frozen=True, slots=True)
class Referrer:
    """A signature, an attestation or an SBOM of the manifest `subject`. `reference` is a tag for cosign's."""

    repository: Repository
    reference: Reference
    root: Descriptor
    subject: Digest
    seen: float | None = None
    """As that of an image."""


@dataclass(slots=True)
class Contents:
    """What a bundle holds."""

    images: list[Image] = field(default_factory=list)
    referrers: list[Referrer] = field(default_factory=list)
    blobs: dict[Digest, int | bytes] = field(default_factory=dict)
    """Sizes in bytes, in the order of the bundle; the content itself where only a manifest has it embedded."""
    omitted: dict[Digest, int] = field(default_factory=dict)
    """Layers that are left out, since the receiver has them. Sizes in bytes."""
