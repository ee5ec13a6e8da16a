"""Since when: the times in bundle.json, and what becomes of them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mirror.bundles.layout import moment
from tests.cli.test_export import PLATFORMS, checked, members
from tests.support.archives import layout_of, pack
from tests.support.commands import Commands
from tests.support.images import make_image
from tests.support.scripted import Scripted

NAME = "docker.io/library/app:1"


def age(cache: Path, days: int) -> None:
    """Makes it long ago that a cache saw what its tags mean."""
    with closing(sqlite3.connect(cache / "catalog" / "content.sqlite")) as db, db:
        db.execute("UPDATE sighting SET first = first - ?", (days * 86400,))


def rewritten(tar: Path, seen: object) -> bytes:
    """A bundle with other times, or without any as earlier versions wrote them."""
    found = members(tar)
    described = json.loads(found["bundle.json"])
    for image in described["images"]:
        del image["seen"]
        if seen is not None:
            image["seen"] = seen
    return pack({**found, "bundle.json": json.dumps(described).encode()})


async def test_a_bundle_says_since_when_and_stays_the_same(upstream: Scripted, tmp_path: Path) -> None:
    """`seen` is when the mirror first learnt what the tag means: not when it was last checked, and the same after the tag moved away and back. A digest has none."""
    commands, tar = Commands(tmp_path / "cache", upstream), tmp_path / "lab.tar"
    first, second = (upstream.add_image("library/app", "1", layers=[layer]) for layer in (b"first", b"second"))
    upstream.add_manifest("library/app", "1", first.body)
    named = ("app:1", f"app@{first.digest}", *PLATFORMS)
    report = await commands.json("export", *named, "-o", str(tar))
    age(tmp_path / "cache", 10)
    history = (await commands.json("history", "app:1"))["history"]
    report = await commands.json("export", *named, "-o", str(tar))
    content, (_, described) = tar.read_bytes(), checked(tar)
    seen = [image["seen"] for image in described["images"]]
    assert seen == [history[0]["from"].replace("+00:00", "Z"), None]
    assert [image["seen"] for image in report["images"]] == seen
    for meant in (second, first):
        upstream.add_manifest("library/app", "1", meant.body)
        await commands("pull", "app:1", *PLATFORMS)
    assert len((await commands.json("history", "app:1"))["history"]) == 3
    await commands("export", *named, "-o", str(tar))
    assert tar.read_bytes() == content


async def test_bundles_of_two_mirrors_differ_in_nothing_else(upstream: Scripted, tmp_path: Path) -> None:
    """The same images at another time: every other file of the bundle is the same, and each is whole by its own sums."""
    upstream.add_image("library/app", "1")
    found = []
    for name, days in (("one", 0), ("other", 3)):
        commands = Commands(tmp_path / name, upstream)
        await commands("pull", "app:1", *PLATFORMS)
        age(tmp_path / name, days)
        await commands("export", "app:1", *PLATFORMS, "-o", str(tmp_path / f"{name}.tar"))
        found.append(checked(tmp_path / f"{name}.tar")[0])
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"bundle.json", "SHA256SUMS"}
    assert (tmp_path / "one.tar").stat().st_size == (tmp_path / "other.tar").stat().st_size


async def test_an_import_shows_the_time_and_does_not_take_it_for_its_own(upstream: Scripted, tmp_path: Path) -> None:
    """It is in the table and in the JSON, dry or not; the history of the importing mirror, by which guards go, begins at the import."""
    exporting, importing, tar = Commands(tmp_path / "cache", upstream), Commands(tmp_path / "lab"), tmp_path / "lab.tar"
    upstream.add_image("library/app", "1")
    await exporting("pull", "app:1", *PLATFORMS)
    age(tmp_path / "cache", 10)
    await exporting("export", "app:1", *PLATFORMS, "-o", str(tar))
    seen = checked(tar)[1]["images"][0]["seen"]
    assert (await importing.json("import", str(tar), "--dry-run"))["images"][0]["seen"] == seen
    assert seen in await importing("import", str(tar))
    (sighting,) = (await importing.json("history", "app:1"))["history"]
    assert sighting["from"].replace("+00:00", "Z") > seen


@pytest.mark.parametrize("seen", [None, 5, [], "soon", "\x1b[31m2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z\n"])
async def test_a_bundle_without_times_is_imported(upstream: Scripted, tmp_path: Path, seen: object) -> None:
    """Those of earlier versions, and what is no time: the images come in, and nothing is said of when."""
    exporting, importing, tar = Commands(tmp_path / "cache", upstream), Commands(tmp_path / "lab"), tmp_path / "lab.tar"
    upstream.add_image("library/app", "1")
    await exporting("export", "app:1", *PLATFORMS, "-o", str(tar))
    tar.write_bytes(rewritten(tar, seen))
    (image,) = (await importing.json("import", str(tar)))["images"]
    assert (image["image"], image["seen"], image["fault"]) == (NAME, None, None)
    assert "\x1b" not in await importing("import", str(tar))


@pytest.mark.parametrize(
    "document", [b"[]", b'{"referrers":[]}', b'{"referrers":[],"images":{}}', b'{"referrers":[],"images":[1,{"seen":2}]}']
)
async def test_another_programs_bundle_json_is_no_error(tmp_path: Path, document: bytes) -> None:
    """What is not as this program writes it says nothing of times. Only a list of referrers is demanded, as ever."""
    importing, tar = Commands(tmp_path / "lab"), tmp_path / "lab.tar"
    tar.write_bytes(pack({"bundle.json": document, **layout_of({NAME: make_image(2)})}))
    done = await importing.run("import", str(tar), "--json")
    if document == b"[]":
        assert (done.returncode, "bundle.json is no list" in done.stderr) == (1, True)
    else:
        found: Any = json.loads(done.stdout)
        assert [(image["image"], image["seen"]) for image in found["images"]] == [(NAME, None)]


def test_what_no_calendar_has_is_no_time() -> None:
    """A damaged catalog may give any number: the bundle is made all the same."""
    assert moment(1.9) == "1970-01-01T00:00:01Z"
    assert [moment(when) for when in (None, -1.0, 1e300, float("inf"), float("nan"))] == [None] * 5
