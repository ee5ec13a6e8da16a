"""Which images are chosen of an index."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mirror.cache.platforms import Selection
from mirror.errors import Denied, ManifestUnknown, MirrorError, UpstreamInvalid
from mirror.manifests import OCI_INDEX, OCI_MANIFEST, Manifest
from mirror.names import Digest


class Images:
    """Manifests by digest, and the requests for them."""

    def __init__(self) -> None:
        self.known: dict[Digest, Manifest] = {}
        self.configs: dict[Digest, bytes] = {}
        self.asked: list[Digest] = []
        self.refused: set[Digest] = set()

    def image(self, name: str, config: dict[str, str] | None = None) -> Manifest:
        made = self._add({"schemaVersion": 2, "layers": [], "config": {}, "annotations": {"name": name}}, OCI_MANIFEST)
        self.configs[made.digest] = json.dumps(config).encode() if config else b""
        return made

    def index(self, *entries: tuple[Manifest, str | None], media_type: str = OCI_INDEX) -> Manifest:
        described = []
        for manifest, platform in entries:
            entry: dict[str, Any] = {"mediaType": manifest.media_type, "digest": str(manifest.digest), "size": 1}
            if platform is not None:
                entry["platform"] = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
            described.append(entry)
        return self._add({"schemaVersion": 2, "manifests": described}, media_type)

    def _add(self, document: dict[str, Any], media_type: str) -> Manifest:
        body = json.dumps(document).encode()
        made = Manifest(media_type, Digest.of(body), body)
        self.known[made.digest] = made
        return made

    async def manifest_of(self, digest: Digest) -> Manifest:
        self.asked.append(digest)
        if digest in self.refused:
            raise Denied("refused")
        if digest not in self.known:
            raise ManifestUnknown("absent")
        return self.known[digest]

    async def config_of(self, manifest: Manifest) -> bytes:
        return self.configs[manifest.digest]

    async def select(self, root: Manifest, *platforms: str) -> tuple[set[Manifest], list[MirrorError]]:
        """No platforms are all of them."""
        selection = Selection("app:1", platforms or None, self.manifest_of, self.config_of)
        await selection.walk(root)
        return set(selection.images.values()), selection.failures


AMD = {"os": "linux", "architecture": "amd64"}
ARM = {"os": "linux", "architecture": "arm64"}


@pytest.mark.parametrize("media_type", [OCI_INDEX, "application/vnd.example.index.v9+json"])
async def test_indexes_of_indexes_are_walked(media_type: str) -> None:
    """Each manifest is asked for once, however often it is listed, and a circle cannot be made of digests."""
    images = Images()
    one, two, three = images.image("one"), images.image("two"), images.image("three")
    inner = images.index((one, "linux/amd64"), (two, "linux/arm64"), media_type=media_type)
    outer = images.index((inner, None), (inner, None), (three, "linux/s390x"), (one, "linux/amd64"))
    root = images.index((outer, None), media_type=media_type)
    assert await images.select(root) == ({one, two, three}, [])
    assert len(images.asked) == len(set(images.asked)) == 5
    assert await images.select(root, "linux/arm64") == ({two}, [])
    assert await images.select(root, "linux/arm64", "linux/s390x") == ({two, three}, [])


async def test_a_platform_is_inherited_and_of_the_others_nothing_is_asked() -> None:
    """An inner index of one platform: its entries need not repeat it."""
    images = Images()
    one, two = images.image("one"), images.image("two")
    inner, other = images.index((one, None)), images.index((two, None))
    root = images.index((inner, "linux/amd64"), (other, "linux/arm64"))
    assert await images.select(root, "linux/amd64") == ({one}, [])
    assert images.asked == [inner.digest, one.digest]


@pytest.mark.parametrize(
    ("config", "platform", "chosen"),
    [
        (AMD, "linux/amd64", True),
        (AMD, "linux/arm64", False),
        (ARM, "linux/arm64/v8", True),
        ({"os": "linux", "architecture": "arm"}, "linux/arm/v6", True),
        ({"os": "windows", "architecture": "amd64"}, "linux/amd64", False),
    ],
)
async def test_the_configuration_says_what_no_index_does(config: dict[str, str], platform: str, chosen: bool) -> None:
    """A single image for another platform is refused in words; in an index, an entry without a platform is as its configuration says."""
    images = Images()
    one, two = images.image("one", config), images.image("two")
    for root, others in ((one, set()), (images.index((one, None), (two, "linux/s390x")), {"linux/s390x"})):
        if chosen:
            assert await images.select(root, platform) == ({one}, [])
        else:
            known = ", ".join(sorted({f"{config['os']}/{config['architecture']}"} | others))
            with pytest.raises(ManifestUnknown, match=f"app:1 is not for {platform}, but for {known}"):
                await images.select(root, platform)
        assert one in (await images.select(root))[0]


async def test_what_is_for_no_machine() -> None:
    """A chart is wanted where it was asked for itself, and of an index with all platforms only."""
    images = Images()
    chart, image = images.image("chart"), images.image("image")
    assert await images.select(chart, "linux/amd64") == ({chart}, [])
    root = images.index((chart, None), (image, "linux/amd64"))
    assert await images.select(root, "linux/amd64") == ({image}, [])
    assert await images.select(root) == ({chart, image}, [])
    with pytest.raises(ManifestUnknown, match="is not for linux/arm64, but for linux/amd64"):
        await images.select(root, "linux/arm64")


async def test_what_upstream_lacks_is_named_and_the_rest_is_chosen() -> None:
    """By digest and platform; what was not wanted is not missed."""
    images = Images()
    one, two, three = images.image("one"), images.image("two"), images.image("three")
    root = images.index((images.index((one, "linux/amd64"), (two, "linux/arm64")), None), (three, None))
    del images.known[two.digest], images.known[three.digest]
    chosen, (failure,) = await images.select(root)
    assert chosen == {one}
    assert "upstream lacks 2 manifests that app:1 lists" in failure.message
    assert f"{two.digest} (linux/arm64)" in failure.message
    assert f"{three.digest}" in failure.message
    assert await images.select(root, "linux/amd64") == ({one}, [])
    assert (await images.select(root, "linux/arm64"))[1][0].message.startswith("upstream lacks")
    # It might have been the one that has the last entry.
    assert str(three.digest) in (await images.select(root, "linux/riscv64"))[1][0].message


async def test_a_refusal_does_not_lose_the_rest() -> None:
    """One repository's manifest may be refused or fail by itself."""
    images = Images()
    one, two = images.image("one"), images.image("two")
    images.refused = {two.digest}
    chosen, failures = await images.select(images.index((two, "linux/arm64"), (one, "linux/amd64")))
    assert (chosen, [type(failure) for failure in failures]) == ({one}, [Denied])


async def test_depth_and_number_are_bounded() -> None:
    """Traps end, with what was found above them."""
    images = Images()
    one = images.image("one")
    root = images.index((one, "linux/amd64"))
    for _ in range(20):
        root = images.index((root, None), (images.image("beside"), "linux/arm64"))
    chosen, (failure,) = await images.select(root)
    assert len(chosen) == 1
    assert isinstance(failure, UpstreamInvalid)
    assert "more than 8 deep" in failure.message
    images.asked.clear()
    wide = images.index(*((images.image(str(number)), "linux/amd64") for number in range(2001)))
    _, (failure,) = await images.select(wide)
    assert "more than 2000 manifests" in failure.message
    assert images.asked == []
