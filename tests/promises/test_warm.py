"""``[[warm]]``: lists of images that a running mirror pulls by schedule, and keeps."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.cache import warming
from mirror.cache.warming import WarmList
from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest, Repository, Tag
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.store import ListedImage
from tests.support.commands import Commands
from tests.support.dashboard import HTML
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Image, Scripted, Status

APP = Repository("docker.io", "library/app")
ALL = ["all"]
"""The platforms of single manifests: whatever they are."""


def lists(*tables: dict[str, Any]) -> dict[str, Any]:
    return {"warm": [{"platforms": ALL, **table} for table in tables]}


def whole(image: Image, mirror: Mirror) -> bool:
    return all(mirror.cached(digest) for digest in (image.digest, image.config, *image.layers))


async def pulls(mirror: Mirror, result: str, name: str = "1") -> float:
    """How many pulls of a list there were since the test began. Metrics belong to the process, which runs many tests."""
    text = (await mirror.get("/metrics")).body.decode()
    line = f'mirror_warm_pulls_total{{list="{name}",result="{result}"}} '
    return sum(float(one.removeprefix(line)) for one in text.splitlines() if one.startswith(line))


async def until_next(mirror: Mirror, name: str) -> None:
    """Waits until the mirror has looked at a list, and nothing of it is due for a while."""
    begin = f'mirror_warm_next_pull_timestamp_seconds{{list="{name}"}} '
    async with asyncio.timeout(PATIENCE):
        while True:
            text = (await mirror.get("/metrics")).body.decode()
            if any(float(line.removeprefix(begin)) > time.time() + 30 for line in text.splitlines() if line.startswith(begin)):
                return
            await asyncio.sleep(0.02)


async def test_a_list_is_pulled_and_pinned_and_a_restart_pulls_nothing_again(start: StartMirror, upstream: Scripted) -> None:
    """All of each image, without a client. After a restart before the time has come, upstream is asked nothing; a new image is pulled alone."""
    images = [upstream.add_image("library/app", str(number)) for number in range(3)]
    mirror: Mirror = await start(settings=lists({"name": "again", "images": ["app:0", "app:1"], "every": "1h"}))
    await until(lambda: all(whole(image, mirror) for image in images[:2]))
    await until_next(mirror, "again")
    assert not mirror.cached(images[2].digest)
    await mirror.stop()
    catalog = Catalog(mirror.directory / "catalog")
    assert {images[0].digest, images[0].layers[0], images[1].config} <= catalog.pinned().keys()
    catalog.close()
    asked = len(upstream.asked)
    mirror = await start(settings=lists({"name": "again", "images": ["app:0", "app:1", "app:2"], "every": "1h"}))
    await until(lambda: whole(images[2], mirror))
    await until_next(mirror, "again")
    new = [one.path.rpartition("/")[2] for one in upstream.asked[asked:]]
    assert not {"0", "1", *(str(one) for image in images[:2] for one in (image.digest, image.config, *image.layers))} & set(new)
    assert max(Counter(one for one in new if one != "2").values()) == 1


async def test_the_next_run_of_an_unchanged_list_asks_for_tags_alone(start: StartMirror, upstream: Scripted) -> None:
    """By HEAD, once for each tag and run, nothing for what is named by digest; what a tag means anew is pulled, and alone."""
    images = [upstream.add_image("library/app", str(number)) for number in range(3)]
    names = ["app:0", "app:1", f"app@{images[2].digest}"]
    mirror: Mirror = await start(settings=lists({"name": "tags", "images": names, "every": "300ms"}))
    await until(lambda: all(whole(image, mirror) for image in images))

    async def after(more: int) -> None:
        goal = await pulls(mirror, "pulled", "tags") + more
        async with asyncio.timeout(PATIENCE):
            while await pulls(mirror, "pulled", "tags") < goal:
                await asyncio.sleep(0.02)

    await after(3)
    asked = len(upstream.asked)
    await after(9)
    later = upstream.asked[asked:]
    assert {(one.method, one.path.rpartition("/")[2]) for one in later} == {("HEAD", "0"), ("HEAD", "1")}
    newer = upstream.add_image("library/app", "1", layers=[b"newer"])
    await until(lambda: whole(newer, mirror))
    assert upstream.count("GET", str(newer.layers[0])) == 1
    assert upstream.count("GET", str(images[0].layers[0])) == 1


async def test_what_fails_is_counted_and_tried_again_and_holds_up_nothing(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that upstream lacks, one whose layer fails, a registry that is not mirrored: the others are pulled at once; each is pulled when it can be."""
    monkeypatch.setattr(warming, "_FIRST_RETRY", 0.05)
    monkeypatch.setattr(warming, "_LONGEST_RETRY", 0.1)
    fine = upstream.add_image("library/app", "fine")
    names = ["app:missing", "unknown.lan/app:1", "app:fine"]
    mirror: Mirror = await start(settings=lists({"name": "fails", "images": names, "every": "1h"}))
    await until(lambda: whole(fine, mirror))
    async with asyncio.timeout(PATIENCE):
        while await pulls(mirror, "failed", "fails") < 6:
            await asyncio.sleep(0.02)
    assert await pulls(mirror, "pulled", "fails") == 1
    assert upstream.count("HEAD", "/manifests/fine") <= 1
    page = (await mirror.get("/", **HTML)).body.decode()
    assert "1 of 3 pulled" in page
    assert "unknown.lan/app:1: " in page
    later = upstream.add_image("library/app", "missing", layers=[b"later"])
    await until(lambda: whole(later, mirror))
    async with asyncio.timeout(PATIENCE):
        while "2 of 3 pulled" not in (page := (await mirror.get("/", **HTML)).body.decode()):
            await asyncio.sleep(0.02)
    assert "docker.io/library/app:missing: " not in page


async def test_platforms_are_those_that_are_asked_for(start: StartMirror, upstream: Scripted) -> None:
    """Of an index, the wanted platforms and no others, as with ``mirror pull --platform``."""
    variants = {name: upstream.add_image("library/app", name, layers=[name.encode()]) for name in ("amd64", "arm64")}
    upstream.add_index("library/app", "1", list(variants.values()))
    table = {"name": "platforms", "images": ["app:1"], "platforms": ["arm64"], "every": "1h"}
    mirror: Mirror = await start(settings={"warm": [table]})
    await until(lambda: whole(variants["arm64"], mirror))
    await until_next(mirror, "platforms")
    assert not mirror.cached(variants["amd64"].layers[0])
    assert upstream.count("GET", str(variants["amd64"].layers[0])) == 0


async def test_sighup_takes_another_list(tmp_path: Path, upstream: Scripted) -> None:
    """And a file is read again with it; what leaves the list loses its pin, but not one by hand; a file that cannot be read changes nothing. Each by one worker."""
    images = {name: upstream.add_image("library/app", name, layers=[name.encode()]) for name in ("one", "two", "three", "four")}
    config, names = tmp_path / "mirror.toml", tmp_path / "names.txt"
    names.write_text("\ufeffapp:two # comment\n\n# nothing\n")

    def write(listed: str, level: str) -> None:
        config.write_text(
            f'[log]\nlevel = "{level}"\n[[warm]]\nname = "lab"\nimages = {listed}\nfile = "{names}"\nplatforms = ["all"]\nevery = "1h"\n'
        )

    def cached(image: Image) -> bool:
        return all((tmp_path / "cache" / "blobs" / "sha256" / one.hex).exists() for one in (image.digest, *image.layers))

    write('["app:one"]', "info")
    commands = Commands(tmp_path / "cache")
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(config), "--workers", "2") as mirror:
        await until(lambda: cached(images["one"]) and cached(images["two"]))
        await until(lambda: "lab: 2 of 2 images pulled" in mirror.log)
        assert Counter(one.path for one in upstream.asked if "/blobs/" in one.path).most_common(1)[0][1] == 1

        async def listed() -> dict[str, tuple[bool, bool]]:
            found = (await commands.json("ls"))["images"]
            return {image["reference"]: (image["pinned"], image["listed"]) for image in found}

        assert await listed() == {"one": (False, True), "two": (False, True)}
        for _ in range(8):
            # A connection of its own each, so that every worker answers.
            page = await asyncio.to_thread(_page, mirror.url)
            assert "List lab" in page
            assert "2 of 2 pulled" in page
        await commands("pin", "app:one")
        done = await commands.run("rm", "app:two")
        assert (done.returncode, "is in the list lab of [[warm]]" in done.stderr) == (1, True)
        names.unlink()
        write('["app:three"]', "info")
        os.kill(mirror.pid, signal.SIGHUP)
        await until(lambda: "names.txt cannot be read: No such file" in mirror.log)
        assert "SIGHUP: taken: warm" in mirror.log
        assert await listed() == {"one": (True, True), "two": (False, True)}
        names.write_text("app:four\n")
        os.kill(mirror.pid, signal.SIGHUP)
        await until(lambda: cached(images["three"]) and cached(images["four"]))
        assert await listed() == {"one": (True, False), "two": (False, False), "three": (False, True), "four": (False, True)}
        config.write_text("")
        os.kill(mirror.pid, signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            while any(one[1] for one in (await listed()).values()):
                pass
        assert mirror.terminate() == 0


def _page(url: str) -> str:
    request = urllib.request.Request(url, headers={**HTML, "Accept-Language": "en"})
    with urllib.request.urlopen(request) as response:
        return bytes(response.read()).decode()


async def test_another_process_takes_over(tmp_path: Path, upstream: Scripted) -> None:
    """Of two mirrors on one directory, one pulls; when it is killed, the other does."""
    upstream.add_image("library/app", "1")
    config = tmp_path / "mirror.toml"
    config.write_text('[cache]\nprefetch = false\n[[warm]]\nimages = ["app:1"]\nplatforms = ["all"]\nevery = "100ms"\n')
    arguments = ({"docker.io": upstream.url}, "--config", str(config))
    with MirrorProcess(tmp_path / "cache", *arguments) as one:  # type: ignore[arg-type]
        await until(lambda: upstream.count("HEAD", "/manifests/1") > 2)
        with MirrorProcess(tmp_path / "cache", *arguments) as other:  # type: ignore[arg-type]
            one.kill()
            # Both write into one file.
            so_far = len(other.log)
            await until(lambda: "1 of 1 image pulled" in other.log[so_far:])


async def test_lists_rest_while_offline(tmp_path: Path, upstream: Scripted) -> None:
    """Nobody is asked, nothing fails, pins stay; once online, what is due is pulled at once."""
    image = upstream.add_image("library/app", "1")
    config = tmp_path / "mirror.toml"
    table = '[[warm]]\nimages = ["app:1"]\nplatforms = ["all"]\nevery = "100ms"\n'
    config.write_text(f"[upstream]\noffline = true\n{table}")
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(config)) as mirror:
        async with asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(mirror.metric, "mirror_warm_images") != 1:
                await asyncio.sleep(0.02)
        assert mirror.metric("mirror_warm_pulls_total") == 0
        assert upstream.asked == []
        config.write_text(table)
        os.kill(mirror.pid, signal.SIGHUP)
        file = tmp_path / "cache" / "blobs" / "sha256" / image.layers[0].hex
        await until(file.exists)
        assert mirror.terminate() == 0


async def test_signatures_are_pulled_and_kept_with_the_image(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """With `referrers`, what refers to an image, what refers to that, and cosign's tags are fetched once and pinned, also while upstream fails; without it nobody asks for them."""
    image, other = (upstream.add_image("library/app", tag) for tag in ("1", "2"))

    def refer(subject: Image) -> Image:
        described = {"mediaType": OCI_MANIFEST, "digest": str(subject.digest), "size": len(subject.body)}
        return upstream.add_image("library/app", subject=described, artifactType="application/vnd.example.signature")

    signature = refer(image)
    countersigned = refer(signature)
    refer(other)
    cosign = upstream.add_image("library/app", f"sha256-{image.digest.hex}.sig", layers=[b"cosign"])
    settings = lists(
        {"name": "signed", "images": ["app:1"], "every": "1h", "referrers": True},
        {"name": "plain", "images": ["app:2"], "every": "1h"},
    )
    mirror: Mirror = await start(settings=settings)
    await until_next(mirror, "signed")
    await until_next(mirror, "plain")
    attached = [signature, countersigned, cosign]
    assert all(whole(one, mirror) for one in (image, other, *attached))
    assert not [one for one in upstream.asked if str(other.digest) in one.path and "referrers" in one.path]
    assert not [one for one in upstream.asked if f"sha256-{other.digest.hex}" in one.path]
    for one in attached:
        assert upstream.count("GET", f"/manifests/{one.digest}") <= 1
        assert upstream.count("GET", f"/blobs/{one.layers[0]}") == 1

    async def pinned() -> set[Digest]:
        catalog = await asyncio.to_thread(Catalog, mirror.directory / "catalog")
        try:
            return set(catalog.pinned())
        finally:
            catalog.close()

    kept = {digest for one in attached for digest in (one.digest, one.config, *one.layers)}
    assert kept <= await pinned()
    await mirror.stop()

    # One more signature, which upstream fails to give: the list fails, says why, and keeps what it had.
    settings["warm"][0]["every"] = settings["warm"][1]["every"] = "200ms"
    upstream.fail(str(refer(image).layers[0]), Status(500), times=1000)
    mirror = await start(settings=settings, tag_ttl=0)
    async with asyncio.timeout(PATIENCE):
        while await pulls(mirror, "failed", "signed") < 1:
            await asyncio.sleep(0.02)
    page = (await mirror.get("/", **HTML)).body.decode()
    assert "signatures and the like may be missing" in page
    assert kept <= await pinned()
    await mirror.stop()

    # What leaves the list is no longer kept, nor is what refers to it.
    mirror = await start(settings={"warm": [{**settings["warm"][1], "every": "1h"}]})
    await until_next(mirror, "plain")
    assert not kept & await pinned()


@pytest.mark.parametrize("more", [(), ("more",)], ids=["alone", "beside names"])
@pytest.mark.parametrize("kind", ["file", "compose", "kubernetes"])
async def test_files_that_name_images_are_read_again(
    tmp_path: Path, upstream: Scripted, kind: str, more: tuple[str, ...]
) -> None:
    """Images of a list, a Compose file and a folder of manifests are pulled and pinned; a file that is broken, cut short, missing, unreadable, a FIFO or names none
    keeps what was pinned, whether or not the list has `images` too."""
    images = {name: upstream.add_image("library/app", name, layers=[name.encode()]) for name in ("one", "two", "more")}
    config, place = tmp_path / "mirror.toml", tmp_path / "named"
    file = place
    if kind == "kubernetes":
        place.mkdir()
        (place / "deep").mkdir()
        file = place / "deep" / "pods.yaml"
        (place / "notes.txt").write_text("containers: [{image: none}]")

    def text(*names: str) -> str:
        if kind == "file":
            return "".join(f"app:{name}\n" for name in names)
        if kind == "compose":
            return "services:\n" + "".join(f"  {name}: {{image: 'app:${{TAG_{name}:-{name}}}'}}\n" for name in names)
        return "".join(f"---\nspec: {{containers: [{{image: 'app:{name}'}}]}}\n" for name in names)

    def write(level: str) -> None:
        # Another setting changes too, so that the log shows when it has been taken.
        config.write_text(
            f'[log]\nlevel = "{level}"\n[[warm]]\nname = "lab"\n{kind} = "{place}"\nplatforms = ["all"]\nevery = "1h"\n'
            f"images = {[f'app:{name}' for name in more]}\n"
        )

    file.write_text(text("one"))
    write("info")
    commands = Commands(tmp_path / "cache")

    async def listed() -> set[str]:
        return {one["reference"] for one in (await commands.json("ls"))["images"] if one["listed"]}

    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(config)) as mirror:

        async def read_again(*words: str) -> None:
            seen = len(mirror.log)
            os.kill(mirror.pid, signal.SIGHUP)
            await until(lambda: all(word in mirror.log[seen:] for word in ("SIGHUP", *words)))

        await until(lambda: ("lab: 2 of 2 images pulled" if more else "lab: 1 of 1 image pulled") in mirror.log)
        assert await listed() == {"one", *more}
        assert mirror.metric("mirror_warm_unreadable") == 0

        def make_fifo() -> None:
            file.unlink(missing_ok=True)
            os.mkfifo(file)

        def remove() -> None:
            file.unlink()
            if place.exists():
                place.rename(tmp_path / "away")

        broken: list[tuple[Callable[[], Any], str]] = [(lambda: file.write_text("services: [\ncontainers: [\nApp\n"), "named")]
        empty = {"file": "names no image", "compose": "it has no services", "kubernetes": "no container is in it"}
        broken.append((lambda: file.write_text(""), empty[kind]))
        if kind == "compose":
            built = "services:\n  app:\n    build: .\n"
            broken.append((lambda: file.write_text(built), "names no image"))
        if kind == "kubernetes":
            broken.append((file.unlink, "no .yaml, .yml, .json file is in it"))
        broken += [
            (make_fifo, "" if kind == "kubernetes" else "not a regular file"),
            (remove, "cannot be read: No such file"),
        ]
        for number, (work, words) in enumerate(broken):
            work()
            write(("debug", "info")[number % 2])
            await read_again(words)
            async with asyncio.timeout(PATIENCE):
                while await asyncio.to_thread(mirror.metric, "mirror_warm_unreadable") != 1:
                    await asyncio.sleep(0.02)
            assert await listed() == {"one", *more}, words
        page = await asyncio.to_thread(_page, mirror.url)
        assert "cannot be read: No such file" in page
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text("two"))
        write("info" if "debug" in config.read_text() else "debug")
        await read_again()
        async with asyncio.timeout(PATIENCE):
            while await listed() != {"two", *more}:
                pass
        await until((tmp_path / "cache" / "blobs" / "sha256" / images["two"].layers[0].hex).exists)
        assert mirror.metric("mirror_warm_unreadable") == 0
        assert upstream.count("GET", str(images["one"].layers[0])) == 1
        assert mirror.terminate() == 0


# ---------------------------------------------------------------------- times


def at(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M"))


def listed(since: float, ran: float | None = None, tried: float | None = None, failures: int = 0) -> ListedImage:
    return ListedImage("x", APP, Tag("1"), since, ran, tried, failures, "no connection" if failures else "")


def warm(interval: float | None = None, time_of_day: str | None = None) -> WarmList:
    return WarmList("x", list, None, interval, time_of_day)


def test_when_a_list_with_an_interval_is_due() -> None:
    """At once, then after each interval, up to a tenth of it or five minutes late: not all mirrors at the same moment."""
    hourly, daily = warm(3600), warm(86400)
    assert hourly.due(listed(1000.0)) == 1000.0
    waits = [hourly.due(listed(0, ran)) - ran for ran in map(float, range(1000, 2000, 7))]
    assert 3600 <= min(waits) < 3650
    assert 3850 < max(waits) <= 3900
    assert 86400 <= daily.due(listed(0, 5.0)) - 5.0 <= 86700
    assert 1 <= warm(1).due(listed(0, 5.0)) - 5.0 <= 1.1


def test_when_a_list_with_a_time_of_day_is_due() -> None:
    """The next time that the clock shows it, up to five minutes late, also where a day has 23 hours; missed, it is due until it is made up for."""
    nightly = warm(time_of_day="02:00")
    for since, expected in (
        ("2026-11-29 01:59", "2026-11-29 02:00"),
        ("2026-11-29 02:00", "2026-11-30 02:00"),
        ("2026-11-29 02:03", "2026-11-30 02:00"),
        ("2026-12-31 23:00", "2027-01-01 02:00"),
    ):
        for image in (listed(at(since)), listed(0, at(since))):
            assert 0 <= nightly.due(image) - at(expected) <= 300, since


def test_the_time_of_day_is_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through both changes of the clock in a year."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        for day in ("2026-03-28", "2026-10-24"):
            due = warm(time_of_day="12:00").due(listed(0, at(f"{day} 12:01")))
            shown = time.localtime(due)
            assert (shown.tm_hour, shown.tm_min // 5) == (12, 0)
            assert 22 < (due - at(f"{day} 12:01")) / 3600 < 25.2
    finally:
        monkeypatch.undo()
        time.tzset()


def test_when_what_failed_is_tried_again() -> None:
    """After a minute, doubling up to an hour, or up to the interval where that is shorter; never later than it would be due anyway."""
    daily, often = warm(86400), warm(600)
    waits = [daily.due(listed(0, None, 1e6, failures)) - 1e6 for failures in range(1, 9)]
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert often.due(listed(0, 0.0, 1e6, 9)) - 1e6 == 600
    assert daily.due(listed(0, 1e6, 1e6 + 86400 - 5, 9)) <= 1e6 + 86700
    assert warm(time_of_day="02:00").due(listed(0, None, 1e6, 1)) == 1e6 + 60
