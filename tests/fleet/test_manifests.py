"""Manifests and tags from a place before the registry: a mirror of the same fleet, or a parent."""

from __future__ import annotations

import pytest

from mirror.upstream.fleet import ranked
from tests.fleet.test_places import LIVES, Setting, of_mirrors, place, setting
from tests.support.dashboard import post, token
from tests.support.scripted import Fault, Image, Status

__all__ = ["place", "setting"]

ABSENT = {"Cache-Status": "mirror; fwd=miss; detail=MANIFEST_UNKNOWN"}
LIMITED = {"Retry-After": "77", "Cache-Status": "mirror; fwd=miss; detail=TOOMANYREQUESTS"}


def image_at_the_place(setting: Setting) -> tuple[Image, str, str]:
    """An image that both have, and the paths of its tag and its digest, whose home is the place."""
    setting.place.extra_headers = dict(LIVES)

    def homed(key: str) -> bool:
        return ranked((setting.own, setting.place.url), key)[0] == setting.place.url

    tag = next(str(number) for number in range(1000) if homed(f"docker.io/library/app:{number}"))
    while not homed(str((image := setting.upstream.add_image("library/app", tag)).digest)):
        pass
    setting.place.manifests |= setting.upstream.manifests
    base = "/v2/library/app/manifests"
    return image, f"{base}/{tag}", f"{base}/{image.digest}"


@of_mirrors
async def test_a_tag_and_its_manifest_come_from_the_place(setting: Setting) -> None:
    """The registry is not asked at all."""
    image, tag, digest = image_at_the_place(setting)
    assert (await setting.mirror.head(tag)).headers["Docker-Content-Digest"] == str(image.digest)
    assert (await setting.mirror.get(digest)).body == image.body
    assert (await setting.mirror.get(tag)).body == image.body
    assert ([asked.method for asked in setting.place.asked], setting.upstream.asked) == (["HEAD", "GET"], [])


@of_mirrors
@pytest.mark.parametrize(
    "fault",
    [
        Status(500),
        Status(503),
        Status(403),
        Status(404),
        Status(404, {"Cache-Status": "mirror; fwd=bypass; detail=NAME_UNKNOWN"}),
    ],
    ids=["500", "503", "403", "404 of nobody", "404 of its own"],
)
@pytest.mark.parametrize("by_tag", [True, False], ids=["tag", "digest"])
async def test_what_is_no_answer_leads_to_the_registry(setting: Setting, fault: Fault, by_tag: bool) -> None:
    """By one request more."""
    image, tag, digest = image_at_the_place(setting)
    setting.place.fail("/manifests/", fault)
    assert (await setting.mirror.get(tag if by_tag else digest)).body == image.body
    assert (setting.place.count("GET", "/manifests/"), setting.upstream.count("GET", "/manifests/")) == (1, 1)


@of_mirrors
@pytest.mark.parametrize(("headers", "status", "answer"), [(ABSENT, 404, 404), (LIMITED, 503, 503)], ids=["404", "429"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_the_registry_has_said_there_counts(
    setting: Setting, headers: dict[str, str], status: int, answer: int, method: str
) -> None:
    """It is not asked once more."""
    _, tag, _ = image_at_the_place(setting)
    setting.place.fail("/manifests/", Status(status, headers), method="*")
    assert (await setting.mirror.get(tag, method)).status == answer
    assert setting.upstream.asked == []


@of_mirrors
async def test_a_manifest_that_is_not_what_its_digest_says_comes_from_the_registry(setting: Setting) -> None:
    """A wrong one is never served."""
    image, _, digest = image_at_the_place(setting)
    media_type, body = setting.place.manifests["library/app", str(image.digest)]
    setting.place.manifests["library/app", str(image.digest)] = media_type, body + b" "
    assert (await setting.mirror.get(digest)).body == image.body
    assert setting.upstream.count("GET", str(image.digest)) == 1


@of_mirrors
async def test_a_refresh_asks_the_registry(setting: Setting) -> None:
    """By its word of now, and not by what another mirror has asked for a while ago."""
    image, tag, _ = image_at_the_place(setting)
    assert (await setting.mirror.get(tag)).body == image.body
    path = f"/image/docker.io/library/app:{tag.rpartition('/')[2]}"
    status, _, _ = await post(setting.mirror, path, {"action": "refresh"}, Authorization=f"Bearer {token(setting.mirror)}")
    assert (status, len(setting.place.asked), setting.upstream.count("HEAD", tag)) == (200, 1, 1)
