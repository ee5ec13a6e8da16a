"""``[[warm]]`` lists: their files, their images, and whether the running mirror pulls them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from mirror.clients import Address
from mirror.config import load
from mirror.doctor import warm
from mirror.doctor.findings import Finding, Level
from tests.doctor.conftest import of
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted, Status

NOWHERE = Address.parse("http://127.0.0.1:1")


async def examined(tree: dict[str, Any], upstream: Scripted, *lists: dict[str, Any], mirror: str | None = None) -> list[Finding]:
    """The findings about lists of images of docker.io and a registry that refuses connections, ghcr.io."""
    tree["registries"]["docker.io"] = {"endpoints": [upstream.url]}
    settings = load(None, {}, {**tree, "warm": list(lists)})
    return await warm.examine(settings, NOWHERE if mirror is None else Address.parse(mirror))


async def test_images_that_upstream_has(tree: dict[str, Any], upstream: Scripted) -> None:
    """One finding a list; one HEAD an image, though two lists name it, and nothing is pulled."""
    for tag in ("1", "2", "3"):
        upstream.add_image("library/app", tag)
    found = await examined(tree, upstream, {"images": ["app:1", "app:2"]}, {"name": "lab", "images": ["app:2", "app:3"]})
    assert [(finding.level, finding.check, finding.message) for finding in found] == [
        (Level.OK, "warm 1", "2 images, which upstream has"),
        (Level.OK, "warm lab", "2 images, which upstream has"),
    ]
    assert sorted((one.method, one.path.rpartition("/")[2]) for one in upstream.asked) == [("HEAD", tag) for tag in "123"]


async def test_images_that_cannot_be_had_or_checked(tree: dict[str, Any], upstream: Scripted) -> None:
    """A name that does not exist, one that needs credentials and a registry that is not mirrored are problems; a registry that is away is none of the list."""
    upstream.add_image("library/app", "1")
    upstream.fail("secret", Status(401), times=10, method="*")
    names = ["app:1", "app:77", "secret:1", "nobody.example/app:1", "ghcr.io/owner/app:1"]
    wrong, away = await examined(tree, upstream, {"images": names})
    assert (wrong.level, wrong.check, bool(wrong.cure)) == (Level.PROBLEM, "warm 1", True)
    assert wrong.message.startswith("3 of 5 images cannot be had: ")
    for part in (
        "docker.io/library/app:77: docker.io has no manifest 77",
        "docker.io/library/secret:1: ",
        "does not serve nobody.example",
    ):
        assert part in wrong.message
    assert (away.level, bool(away.cure)) == (Level.ADVICE, True)
    assert away.message.startswith("1 of 5 images could not be checked: ghcr.io/owner/app:1: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"app:1\nNot a Name\n", "line 2"),
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b"# nothing yet\n", "names no image"),
    ],
)
async def test_a_file_that_cannot_be_used(
    content: bytes | None, words: str, tree: dict[str, Any], upstream: Scripted, tmp_path: Path
) -> None:
    """It is named with the line, and other lists are checked all the same."""
    file = tmp_path / "lab.txt"
    if content is not None:
        file.write_bytes(content)
    upstream.add_image("library/app", "1")
    found = await examined(tree, upstream, {"name": "lab", "file": str(file)}, {"images": ["app:1"]})
    (bad,) = of(found, "warm lab")
    assert (bad.level, bool(bad.cure)) == (Level.PROBLEM, True)
    assert words in bad.message
    (good,) = of(found, "warm 2")
    assert good.level == Level.OK


async def test_a_list_that_names_no_image(tree: dict[str, Any], upstream: Scripted, tmp_path: Path) -> None:
    """A Compose file whose services are all built from sources: the list keeps what it had before, as with an emptied file."""
    file = tmp_path / "compose.yaml"
    file.write_text("services:\n  app:\n    build: .\n")
    upstream.add_image("library/app", "1")
    found = await examined(tree, upstream, {"name": "lab", "compose": str(file)}, {"images": ["app:1"]})
    (empty,) = of(found, "warm lab")
    assert (empty.level, f"{file} names no image" in empty.message, bool(empty.cure)) == (Level.PROBLEM, True, True)
    (good,) = of(found, "warm 2")
    assert good.level == Level.OK


async def pulled_lists(mirror: Mirror) -> int:
    """How many lists have been pulled and are not due."""
    text = (await mirror.get("/metrics")).body.decode()
    found = re.findall(
        r'^mirror_warm_(?:last|next)_pull_timestamp_seconds\{list="(?:good|failing|longer)"\} ([1-9].*)$', text, re.MULTILINE
    )
    return len(found) // 2


async def test_what_the_running_mirror_does_with_a_list(
    tree: dict[str, Any], upstream: Scripted, start: StartMirror, tmp_path: Path
) -> None:
    """When it was pulled and is pulled next; what fails; and a list that the mirror does not have as it stands in the settings."""
    image = upstream.add_image("library/app", "1")
    lists = {"good": ["app:1"], "failing": ["app:1", "app:77"], "longer": ["app:1"]}
    tables = [{"name": name, "images": images, "platforms": ["all"], "every": "6h"} for name, images in lists.items()]
    mirror: Mirror = await start(settings={"warm": tables})
    await until(lambda: mirror.cached(image.layers[0]))
    lines = {
        'mirror_warm_failing{list="failing"} 1.0',
        *(f'mirror_warm_failing{{list="{name}"}} 0.0' for name in ("good", "longer")),
    }
    async with asyncio.timeout(PATIENCE):
        while not lines <= set((await mirror.get("/metrics")).body.decode().splitlines()) or await pulled_lists(mirror) < len(
            lists
        ):
            await asyncio.sleep(0.02)
    tables[2]["images"] = ["app:1", "app:2"]
    upstream.add_image("library/app", "2")
    found = await examined(tree, upstream, *tables, {"name": "new", "images": ["app:1"]}, mirror=mirror.url)
    pulled = {name: of(found, f"warm {name}")[-1] for name in (*lists, "new")}
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert pulled["good"].level == Level.OK
    assert re.fullmatch(f"the running mirror keeps 1 image pinned, last pulled {moment}, next {moment}", pulled["good"].message)
    assert pulled["failing"].level == Level.PROBLEM
    assert pulled["failing"].message.startswith("the last pull failed of 1 image; ")
    assert pulled["longer"].level == Level.ADVICE
    assert pulled["longer"].message.endswith(", but the list has 2")
    assert pulled["new"] == Finding(
        Level.ADVICE,
        "warm new",
        "the running mirror does not have this list",
        "send it SIGHUP (systemctl reload mirror), or start it again",
    )


async def test_offline_only_files_are_checked(tree: dict[str, Any], upstream: Scripted) -> None:
    """No registry is asked."""
    tree["upstream"] = {"offline": True}
    (found,) = await examined(tree, upstream, {"images": ["app:1", "app:2"]})
    assert (found.level, found.message) == (Level.OK, "2 images; 2 were not checked")
    assert upstream.asked == []


async def test_without_lists_there_is_nothing_to_say(tree: dict[str, Any], upstream: Scripted) -> None:
    """Nor is anything asked."""
    assert await examined(tree, upstream) == []
    assert upstream.asked == []
