"""The dashboard in a real Chromium."""

from __future__ import annotations

import asyncio
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from mirror.clients import CLIENTS
from tests.e2e.conftest import Watched
from tests.support.browser import Browser
from tests.support.dashboard import HOSTILE
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Hold, Scripted

SIZE = 4_000_000


async def cache(mirror: Mirror, upstream: Scripted, name: str, tag: str = "1", layers: list[bytes] | None = None) -> Any:
    """Pulls an image, as a client does."""
    image = upstream.add_image(name, tag, layers=layers or [os.urandom(2000)])
    await mirror.get(f"/v2/{name}/manifests/{tag}")
    for blob in (*image.layers, image.config):
        await mirror.get(f"/v2/{name}/blobs/{blob}")
        await mirror.until_cached(blob)
    return image


WATCH = """
window.seen = [];
const list = document.getElementById("downloads");
new MutationObserver(() => {
  const bar = list.querySelector("progress");
  if (bar) window.seen.push([bar.value, list.querySelector(".facts").innerText]);
}).observe(list, { childList: true, subtree: true, attributes: true, characterData: true });
"""
"""Notes what the page shows of a download, each time that it changes."""


async def test_a_download_is_seen_moving_and_finishing(watched: Watched, upstream: Scripted) -> None:
    """It appears by itself with its image's name, its bytes grow, with rate, readers and time left, and it is done; then the figures tell of it."""
    mirror, window = watched.mirror, watched.window
    upstream.extra_headers = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "42;w=21600"}
    upstream.rate = SIZE / 8
    image = upstream.add_image("library/big", "1", layers=[os.urandom(SIZE)])
    layer = str(image.layers[0])
    half = Hold(after=SIZE // 2)
    upstream.fail(layer, half)
    await watched.do(lambda: window.go(mirror.url))
    await watched.do(lambda: window.until_text("Nothing is being downloaded"))
    await watched.do(lambda: window.script(WATCH))
    await mirror.get("/v2/big/manifests/1")
    _, writer = await mirror.slow_reader(f"/v2/big/blobs/{layer}")
    await half.reached.wait()
    await watched.do(lambda: window.until_text("docker.io/library/big:1", "#downloads"))
    await watched.do(lambda: window.until_text("1 client reading", "#downloads"))
    seen = await watched.do(lambda: window.script("return window.seen"))
    values = [value for value, _ in seen]
    assert values == sorted(values)
    assert len({value for value in values if 0 < value < SIZE}) > 1, seen
    assert any(re.search(r"of 3\.81\sMiB\s+[\d.]+\sKiB/s\s+\d+\ss left\s+1 client reading", facts) for _, facts in seen), seen
    half.release.set()
    await watched.do(lambda: window.until_text("done", "#downloads"))
    assert await watched.do(lambda: window.script("return document.querySelector('#downloads progress').value")) >= SIZE
    writer.close()
    await watched.do(lambda: window.until_text("Nothing is being downloaded"))
    await watched.do(lambda: window.until_text("in 1 repository", "#figures"))
    bars = "return document.querySelectorAll('#traffic rect.fetched').length"
    await watched.do(lambda: window.until(lambda: window.script(bars) == 1, "today's traffic"))
    for told in ("healthy", "first byte after", "42 of 100 pulls left"):
        await watched.do(partial(window.until_text, told, "#upstreams"))
    assert not list((mirror.directory / "live").glob("*"))


async def test_search_finds_an_image_and_its_page_opens(watched: Watched, upstream: Scripted) -> None:
    """While it is typed, by any part of the name; its line tells all of it; the page shows its layers, what shares them, and how to pull it."""
    mirror, window = watched.mirror, watched.window
    shared = os.urandom(3000)
    image = await cache(mirror, upstream, "library/redis", "7.2", [shared, os.urandom(500)])
    await cache(mirror, upstream, "library/postgres", "16", [shared])
    await cache(mirror, upstream, "owner/other", "edge")

    def line() -> str:
        window.go(f"{mirror.url}/?q=redis")
        return window.text("#images tbody tr")

    def look() -> None:
        # Uses are written down after some seconds.
        window.until(lambda: "1 time" in line(), "the pull")
        facts = [
            "docker.io/library/redis:7.2",
            "amd64",
            r"[\d.]+\sKiB\s+2.93\sKiB shared",
            "(just now|ago)",
            "(just now|ago)",
            "fresh",
        ]
        assert re.search(r"\s+(.*\s+)?".join(facts), line()), line()
        window.go(mirror.url)
        assert "library/redis" in window.text("#images tbody")
        rows = "return [...document.querySelectorAll('#images tbody th')].map(e => e.innerText)"
        assert len(window.script(rows)) == 3
        window.type("#search input", "DIS 7")
        window.until(lambda: len(window.script(rows)) == 1, "one row")
        assert window.url.endswith("/?q=DIS+7")
        window.click("#images tbody th a")
        window.until_text("Pull it")
        assert window.text("h1") == "docker.io/library/redis:7.2"
        page = window.text("main")
        address = mirror.url.removeprefix("http://")
        for text in (
            "docker pull redis:7.2",
            str(image.digest),
            "docker.io/library/postgres:16",
            "complete",
        ):
            assert text in page
        assert page.count(str(image.layers[0])[:19]) == 1
        window.click("label[for=way-address]")
        assert f"docker pull {address}/docker.io/library/redis:7.2" in window.text("main")
        window.click(".way:nth-of-type(5) .copy")
        window.until(lambda: window.script("return document.querySelector('.copy.done') !== null"), "copied")
        window.go(f"{mirror.url}/?q=nothing+of+the+kind")
        assert "No image matches “nothing of the kind”." in window.text("#images")

    await watched.do(look)


async def test_pin_and_delete_work_with_the_token_and_not_without(watched: Watched, upstream: Scripted) -> None:
    """In the browser after logging in; a wrong token is told so; after logging out the buttons are gone, and what was deleted is."""
    mirror, window = watched.mirror, watched.window
    image = await cache(mirror, upstream, "library/app")
    page = f"{mirror.url}/image/docker.io/library/app:1"
    window.forgiven += ["status of 401", "status of 409"]

    def steer() -> None:
        window.go(page)
        assert window.script("return document.querySelectorAll('[name=action]').length") == 0
        window.click("main a[href^='/login']")
        window.type("#token", "not the token, alas")
        window.click(".login button")
        window.until_text("that is not the admin token")
        window.type("#token", watched.token)
        window.click(".login button")
        window.until(lambda: window.url == page, "the page again")
        window.click("[value=pin]")
        window.until_text("Pinned: it stays")
        window.click("[value=refresh]")
        window.until_text("still the same")
        window.click(".danger summary")
        window.click("[value=delete]")
        window.until_text("is pinned: unpin it first")
        window.go(page)
        window.click("[value=unpin]")
        window.until_text("No longer pinned")
        window.click(".account button")
        window.until_text("Log in", ".top")
        window.go(page)
        assert window.script("return document.querySelectorAll('[name=action]').length") == 0
        window.go(f"{mirror.url}/login?to=/image/docker.io/library/app:1")
        window.type("#token", watched.token)
        window.click(".login button")
        window.until(lambda: window.url == page, "the page")
        window.click(".danger summary")
        window.click("[value=delete]")
        window.until_text("Deleted from the cache.")
        assert "Nothing is cached yet." in window.text("#images")

    await watched.do(steer)
    assert not mirror.cached(image.digest)
    assert (await mirror.get("/v2/app/manifests/1")).status == 200


async def test_languages_themes_and_phones(watched: Watched, upstream: Scripted) -> None:
    """Both languages by a switch that stays; light and dark by the system or a switch; nothing is wider than a phone."""
    mirror, window = watched.mirror, watched.window
    await cache(mirror, upstream, "library/app-with-quite-a-long-name/and-a-second-part", "a-tag-that-is-long-too-2025-11-25")
    lines = "return [...document.querySelectorAll('.top > *, .switches > *')].map(e => e.getBoundingClientRect().bottom)"
    background = "return getComputedStyle(document.body).backgroundColor"
    pages = ["/", "/image/docker.io/library/app-with-quite-a-long-name/and-a-second-part:a-tag-that-is-long-too-2025-11-25"]
    window.forgiven += ["status of 404"]
    pages += [*(f"/setup?client={client}" for client in CLIENTS), "/class", "/login", "/image/docker.io/library/none:1"]

    def spoken(language: str) -> bool:
        return str(window.script("return document.documentElement.lang")).startswith(language)

    def switch() -> None:
        window.go(mirror.url)
        assert window.script("return document.documentElement.lang") == "en"
        window.click("[hreflang=zh]")
        window.until_text("命中率")
        assert window.url == f"{mirror.url}/"
        window.go(f"{mirror.url}/setup")
        window.until_text("配置客户端")
        assert window.script("return document.documentElement.lang") == "zh-Hans"
        window.prefer("light")
        light = window.script(background)
        window.prefer("dark")
        dark = window.script(background)
        assert light != dark
        window.click("[title='浅色']")
        window.until(lambda: window.script(background) == light, "light")
        window.click("[title='深色']")
        window.prefer("light")
        window.until(lambda: window.script(background) == dark, "dark")
        window.size(360, 740, mobile=True)
        for language in ("zh", "en"):
            if not spoken(language):
                # The only one that is shown.
                window.click(f"[hreflang={language}]")
                window.until(partial(spoken, language), language)
            assert max(window.script(lines)) < 60, "the header takes more than one row"
            for path in pages:
                window.go(mirror.url + path)
                assert spoken(language)
                width = window.script("return document.documentElement.scrollWidth")
                assert width <= 360, (language, path)
                assert window.script("return document.querySelector('main').offsetHeight") > 200, path

    await watched.do(switch)


async def test_several_images_are_selected_and_deleted(watched: Watched, upstream: Scripted) -> None:
    """In the list of a repository: a box at each, one for all, and buttons that appear with the first selection."""
    mirror, window = watched.mirror, watched.window
    for tag in ("1", "2", "3"):
        await cache(mirror, upstream, "library/app", tag)

    def steer() -> None:
        window.go(f"{mirror.url}/login?to=/repository/docker.io/library/app")
        window.type("#token", watched.token)
        window.click(".login button")
        window.until_text("3 images")
        shown = "return getComputedStyle(document.querySelector('.bulk')).display"
        assert window.script(shown) == "none"
        window.click("[data-all]")
        assert window.script("return document.querySelectorAll('tbody :checked').length") == 3
        window.click("tbody tr:first-child [name=image]")
        assert window.script(shown) == "flex"
        window.click(".bulk .danger summary")
        window.click(".bulk [value=delete]")
        window.until_text("Deleted from the cache.")
        window.until_text("1 image")
        assert "docker.io/library/app:1" in window.text("#images tbody")

    await watched.do(steer)


async def test_what_is_not_cached_is_fetched_from_its_page(watched: Watched, upstream: Scripted) -> None:
    """The error page offers it; the page of the image is there afterwards, whole."""
    mirror, window = watched.mirror, watched.window
    window.forgiven += ["status of 404"]
    upstream.add_image("library/app", "1")

    def steer() -> None:
        window.go(f"{mirror.url}/image/docker.io/library/app:1")
        window.until_text("Not in the cache")
        window.click("main a[href^='/login']")
        window.type("#token", watched.token)
        window.click(".login button")
        window.until_text("Not in the cache")
        window.click("[value=fetch]")
        window.until_text("All of it is in the cache now.")
        assert "complete" in window.text("#platform")

    await watched.do(steer)


async def test_an_image_is_found_on_docker_hub_and_fetched(watched: Watched, upstream: Scripted) -> None:
    """From the search box to the results, to the repository's tags, filtered; a click fetches one for two platforms, and the page shows it coming. In Chinese too."""
    mirror, window = watched.mirror, watched.window
    await cache(mirror, upstream, "owner/redis-cached", "1")
    upstream.add_to_hub("redis", HOSTILE, 12000, official=True)
    images = [upstream.add_image("library/redis", layers=[os.urandom(200_000)]) for _ in range(3)]
    upstream.add_index("library/redis", "7.10", images)
    for tag in ("7.9", "latest"):
        upstream.add_image("library/redis", tag)
    half = Hold(after=100_000)
    upstream.fail(str(images[1].layers[0]), half)

    def find() -> None:
        window.go(f"{mirror.url}/login?to=/")
        window.type("#token", watched.token)
        window.click(".login button")
        window.until_text("owner/redis-cached", "#images")
        window.type("#search input", "redis\n")
        window.until_text("12,000", ".found")
        assert window.url.startswith(f"{mirror.url}/search?q=redis")
        assert HOSTILE in window.text(".found")
        assert "official" in window.text(".found")
        assert "redis-cached" in window.text("#images")
        window.click("[hreflang=zh]")
        window.until_text("官方", ".found")
        window.click("[hreflang=en]")
        window.until_text("official", ".found")
        window.click(".found th a")
        window.until_text("3 tags")
        names = "return [...document.querySelectorAll('.upstream-tags th[scope=row]')].map(e => e.innerText)"
        assert window.script(names) == ["latest", "7.10", "7.9"]
        window.type("[name=filter]", "7.1\n")
        window.until(lambda: window.script(names) == ["7.10"], "the filtered tags")
        window.click("[name=platform][value='linux/arm64']")
        window.click(".upstream-tags button")
        window.until_text("docker.io/library/redis:7.10", "#downloads")
        assert "filter=7.1" in window.url

    await watched.do(find)
    await half.reached.wait()
    half.release.set()
    await watched.do(lambda: window.until_text("Nothing is being downloaded", "#downloads"))
    assert [mirror.cached(image.layers[0]) for image in images] == [True, True, False]

    def see() -> None:
        window.go(window.url)
        assert window.text(".upstream-tags .badge") == "cached"
        window.size(360, 740, mobile=True)
        for path in ("/search?q=redis", "/repository/docker.io/library/redis?view=tags"):
            window.go(mirror.url + path)
            assert window.script("return document.documentElement.scrollWidth") <= 360, path

    await watched.do(see)
    assert upstream.count("GET", "/v1/search") == 1


async def test_the_page_comes_to_life_again_after_a_restart(start: StartMirror, browser: Browser, tmp_path: Path) -> None:
    """Who watches does not hold up the stopping, and is shown the next mirror at the same address."""
    browser.forgiven += ["net::ERR_"]
    mirror: Mirror = await start()
    listen = mirror.url.removeprefix("http://")
    await asyncio.to_thread(browser.go, mirror.url)
    await asyncio.to_thread(browser.until_text, "live", "#live")
    async with asyncio.timeout(PATIENCE):
        await mirror.stop()
    await asyncio.to_thread(browser.until_text, "reconnecting", "#live")
    await start(settings={"server": {"listen": listen}})
    await asyncio.to_thread(browser.until_text, "live", "#live")


COPYING = """
const write = navigator.clipboard.writeText.bind(navigator.clipboard);
navigator.clipboard.writeText = async text => { await write(text); window.copied = text; };
"""
"""Notes what has come into the clipboard."""


async def test_students_copy_commands_from_the_class_page(watched: Watched, upstream: Scripted) -> None:
    """From the overview, without a token: each image has its command in the clipboard at one click, and a tar; in Chinese too."""
    mirror, window = watched.mirror, watched.window
    for name in ("library/first", "library/second"):
        await cache(mirror, upstream, name)
    command = f"docker pull {mirror.url.removeprefix('http://')}/docker.io/library/second:1"

    def study() -> None:
        window.go(mirror.url)
        window.click("nav.places a[href='/class']")
        window.until_text("Images for the class")
        window.script(COPYING)
        window.click(f"[data-copy='{command}']")
        window.until(lambda: window.script("return window.copied") == command, "the command in the clipboard")
        window.until(lambda: window.script("return document.querySelector('.copy.done') !== null"), "copied")
        links = window.script("return [...document.querySelectorAll('a[download]')].map(link => link.getAttribute('href'))")
        assert links == [f"/export/docker.io/library/{name}:1.tar" for name in ("first", "second")]
        window.click("[hreflang=zh]")
        window.until_text("课堂镜像")
        assert window.url == f"{mirror.url}/class"

    await watched.do(study)
