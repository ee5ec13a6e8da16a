"""What changed from one image to another, of the platforms that both are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mirror.manifests import Descriptor, Manifest, blobs_of, platform_of
from mirror.storage.image_config import ImageConfig, parse_config
from mirror.storage.inventory import Variant

MOST_PLATFORMS = 4
"""Platforms of an image that are compared."""
_PREFERRED = "linux/amd64"


@dataclass(frozen=True, slots=True)
class Documents:
    """What the documents of an image for one platform say of it."""

    platform: str | None
    layers: tuple[Descriptor, ...]
    settings: ImageConfig

    @property
    def size(self) -> int:
        """Bytes of its layers."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Change:
    """`what` is ``layers`` (how many), ``size`` (bytes of all layers), ``created`` (seconds since the epoch), ``entrypoint``, ``command``, ``user``,
    ``environment`` or ``labels``. Of the last two, `names` are those that were added (+), removed (-) or changed; of layers, the digests of new ones."""

    platform: str | None
    what: str
    before: int | float | str | None = None
    after: int | float | str | None = None
    names: tuple[str, ...] = ()


def documents_of(manifest: Manifest, configuration: bytes, platform: str | None) -> Documents | None:
    """Returns what the documents of an image say; None if the configuration is not an image's. `platform` is as its index has it."""
    settings = parse_config(configuration)
    if settings is None:
        return None
    return Documents(platform or platform_of(configuration), tuple(blobs_of(manifest.body)[1]), settings)


def documents_in(variants: Iterable[Variant]) -> list[Documents]:
    """Returns what is said of the platforms whose configurations are cached."""
    return [
        Documents(variant.platform, tuple(layer.descriptor for layer in variant.layers), variant.settings)
        for variant in variants
        if variant.settings is not None
    ]


def changes(before: Sequence[Documents], now: Sequence[Documents]) -> tuple[Change, ...] | None:
    """Returns what changed, of each platform that both are for, the preferred one first; None if there is none."""
    older = {one.platform: one for one in before}
    pairs = [(older[one.platform], one) for one in now if one.platform in older]
    if not pairs and len(before) == len(now) == 1:
        # One of them does not say what it is for.
        pairs = [(before[0], now[0])]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: pair[1].platform != _PREFERRED)
    return tuple(change for pair in pairs[:MOST_PLATFORMS] for change in _changes(*pair))


def _changes(before: Documents, now: Documents) -> Iterable[Change]:
    platform = now.platform
    old = {layer.digest for layer in before.layers}
    new = tuple(str(layer.digest) for layer in now.layers if layer.digest not in old)
    if new or len(now.layers) != len(before.layers):
        yield Change(platform, "layers", len(before.layers), len(now.layers), new)
    if before.size != now.size:
        yield Change(platform, "size", before.size, now.size)
    then, after = before.settings, now.settings
    if then.created != after.created and then.created is not None and after.created is not None:
        yield Change(platform, "created", then.created, after.created)
    for what, one, other in (
        ("entrypoint", " ".join(then.entrypoint), " ".join(after.entrypoint)),
        ("command", " ".join(then.command), " ".join(after.command)),
        ("user", then.user, after.user),
    ):
        if one != other:
            yield Change(platform, what, one, other)
    for what, pairs, others in (("environment", then.environment, after.environment), ("labels", then.labels, after.labels)):
        if names := _differing(dict(pairs), dict(others)):
            yield Change(platform, what, names=names)


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    names = [f"+{name}" for name in now if name not in before] + [f"-{name}" for name in before if name not in now]
    return (*names, *(name for name in now if name in before and before[name] != now[name]))
