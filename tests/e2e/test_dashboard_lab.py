"""The dashboard of a lab's mirror in a real Chromium, in English and Chinese: lists, offline, tars to carry away, uploads that are refused, finding."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from mirror.names import Digest
from tests.e2e.conftest import Watched
from tests.e2e.test_dashboard import cache
from tests.e2e.test_dockerd import Dockerd
from tests.e2e.test_podman import policy
from tests.support.archives import layout_of, pack
from tests.support.browser import Browser
from tests.support.commands import Commands
from tests.support.dashboard import HOSTILE
from tests.support.images import Image, digest_of, make_image, make_index
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror
from tests.support.programs import require, run
from tests.support.relay import CuttingRelay
from tests.support.scripted import Hold, Pending, Scripted, Status

LANGUAGES = ("en", "zh")


def add(upstream: Scripted, name: str, image: Image) -> None:
    """Gives the scripted registry an image that unpacks, under the tag ``1``."""
    for data in image.blobs.values():
        upstream.add_blob(data)
    for number, (media_type, body) in enumerate(image.manifests):
        upstream.add_manifest(name, "1" if number == len(image.manifests) - 1 else None, body, media_type)


def speak(window: Browser, language: str) -> None:
    """Switches to a language, if the page is not in it."""
    if not str(window.script("return document.documentElement.lang")).startswith(language):
        window.click(f"[hreflang={language}]")
        window.until(lambda: str(window.script("return document.documentElement.lang")).startswith(language), language)


def words(window: Browser, css: str = "body") -> str:
    """The text of an element, with single spaces."""
    return " ".join(window.text(css).split())


def until_words(window: Browser, text: str, css: str = "body") -> None:
    window.until(lambda: text in words(window, css), f"{text!r} in {css}")


async def test_lists_that_are_pulled_by_schedule(
    start: StartMirror, browser: Browser, upstream: Scripted, tmp_path: Path
) -> None:
    """Each list with its schedule, platforms and next pull; how many of its images have been pulled changes by itself; what fails says why, and so does a file that cannot be read."""
    upstream.add_image("library/good", "1", layers=[os.urandom(50_000)])
    first = Pending()
    upstream.fail("/library/good/manifests/1", first, method="*")
    lists = [
        {"name": "lab", "images": ["good:1", "absent:1"], "platforms": ["linux/amd64"], "every": "6h"},
        {"name": "night", "file": str(tmp_path / "none.txt"), "platforms": ["all"], "at": "02:00"},
    ]
    mirror = await start(settings={"warm": lists, "upstream": {"header_timeout": 60}})
    await first.reached.wait()

    def before() -> None:
        browser.go(mirror.url)
        for language, texts in (
            (
                "en",
                (
                    "Pulled by schedule",
                    "0 of 2 pulled List lab every 6 h, linux/amd64 not pulled yet",
                    "daily at 02:00, all platforms",
                ),
            ),
            ("zh", ("定时拉取", "2 个中已拉取 0 个 列表 lab 每隔 6 小时、linux/amd64 尚未拉取", "每天 02:00、所有平台")),
        ):
            speak(browser, language)
            for text in texts:
                until_words(browser, text, "#warm")

    def after() -> None:
        # The page has not been loaded again.
        for language, texts in (
            (
                "zh",
                (
                    "2 个中已拉取 1 个",
                    "上次：刚刚",
                    "docker.io/library/absent:1：上游没有该镜像或标签",
                    f"无法读取 {tmp_path}/none.txt",
                ),
            ),
            (
                "en",
                (
                    "1 of 2 pulled",
                    "last just now",
                    "docker.io/library/absent:1: docker.io has no",
                    f"{tmp_path}/none.txt cannot be read",
                ),
            ),
        ):
            speak(browser, language)
            for text in texts:
                until_words(browser, text, "#warm")
        browser.size(360, 740, mobile=True)
        assert browser.script("return document.documentElement.scrollWidth") <= 360
        browser.click("#images tbody th a")
        browser.until_text("in a list")

    await asyncio.to_thread(before)
    first.release.set()
    await asyncio.to_thread(after)


async def test_a_mirror_that_goes_off_line_and_comes_back(browser: Browser, upstream: Scripted, tmp_path: Path) -> None:
    """SIGHUP shows the banner on a page that is open, and takes it away. Meanwhile every page has it, upstream hears nothing, nothing offers to fetch, and what is not cached says why."""
    config = tmp_path / "mirror.toml"
    settings = f'[cache]\ntag_ttl = 0\nnegative_ttl = 0\n[registries."docker.io"]\nsearch = "{upstream.url}/v1/search"\n'
    config.write_text(settings)
    upstream.add_image("library/app", "2")
    browser.forgiven += ["status of 404"]
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(config)) as process:
        image = upstream.add_image("library/app", "1", layers=[os.urandom(2000)])
        await Commands(process.directory, upstream)("pull", "app:1", "--platform", "linux/amd64")
        secret = (tmp_path / "cache" / "admin-token").read_text().strip()

        def switch(offline: bool) -> None:
            config.write_text(f"{settings}[upstream]\noffline = {str(offline).lower()}\n")
            os.kill(process.pid, signal.SIGHUP)

        def log_in() -> None:
            browser.go(f"{process.url}/login?to=/")
            browser.type("#token", secret)
            browser.click(".login button")
            browser.until_text("docker.io", "#upstreams")
            assert words(browser, "#faults") == ""
            switch(True)
            until_words(browser, "offline No registry is asked", "#faults")

        def look() -> None:
            for language, banner, texts in (
                ("en", "offline No registry is asked", ("cannot be fetched", "Tags may be missing", "this mirror is offline")),
                ("zh", "离线 不访问任何上游仓库", ("离线期间无法拉取", "标签可能不全", "镜像站处于离线模式，不访问上游。")),
            ):
                speak(browser, language)
                until_words(browser, banner, "#faults")
                pages = {
                    "/image/docker.io/library/app:1": str(image.digest),
                    "/image/docker.io/library/app:2": texts[0],
                    "/repository/docker.io/library/app?view=tags": texts[1],
                    "/search?q=app": texts[2],
                }
                for path, text in pages.items():
                    browser.go(process.url + path)
                    assert words(browser).count(banner) == 1, path
                    assert text.rstrip("。") in words(browser), (path, words(browser))
                    assert "缓存中没有此内容" not in words(browser)
                    assert (
                        browser.script(
                            "return document.querySelectorAll('[value=fetch], [value=refresh], .upstream-tags button').length"
                        )
                        == 0
                    )
                browser.go(f"{process.url}/repository/docker.io/library/app?view=tags")
                assert browser.script(
                    "return [...document.querySelectorAll('.upstream-tags th[scope=row]')].map(e => e.innerText)"
                ) == ["1"]
                browser.go(process.url)

        def return_() -> None:
            speak(browser, "en")
            until_words(browser, "offline No registry is asked", "#faults")
            switch(False)
            browser.until(lambda: words(browser, "#faults") == "", "a page without the banner")
            browser.go(f"{process.url}/image/docker.io/library/app:2")
            browser.click("[value=fetch]")
            browser.until_text("All of it is in the cache now.")

        await asyncio.to_thread(log_in)
        asked = len(upstream.asked)
        await asyncio.to_thread(look)
        assert len(upstream.asked) == asked
        await asyncio.to_thread(return_)
        assert upstream.count("GET", "/manifests/2") == 1


async def test_the_tags_page_and_its_button_are_in_chinese(start: StartMirror, browser: Browser, upstream: Scripted) -> None:
    """Headings, states, platforms, the button by its name for screen readers; a click says that it fetches, shows it coming and then cached; what fails is explained, and what was said in English stays below."""
    mirror = await start(settings={"upstream": {"stall_timeout": 60}})
    watched, window = Watched(mirror, browser), browser
    window.forgiven += ["status of 503", "status of 404"]
    images = [upstream.add_image("library/redis", layers=[os.urandom(200_000)]) for _ in range(2)]
    upstream.add_index("library/redis", "7.2", images)
    upstream.add_image("library/redis", "broken")
    half = Hold(after=100_000)
    upstream.fail(str(images[0].layers[0]), half)
    upstream.fail("/manifests/broken", *[Status(500)] * 9, method="*")
    page = "/repository/docker.io/library/redis?view=tags"

    def fetch() -> None:
        watched.log_in(page.replace("?", "%3F"))
        window.go(f"{mirror.url}{page}&lang=zh")
        window.until_text("全部标签")
        head = "return [...document.querySelectorAll('.upstream-tags thead th')].map(e => e.innerText.trim())"
        assert window.script(head) == ["标签", "平台", "大小", "状态", "拉取到缓存"]
        text = words(window, "main")
        for part in ("返回概览", "拉取以下平台", "所有平台", "未缓存", "筛选", "2 个标签", "正在下载", "目前没有下载"):
            assert part in text, (part, text)
        label = "return document.querySelector(\"button[value='docker.io/library/redis:7.2']\").getAttribute('aria-label')"
        assert " ".join(window.script(label).split()) == "拉取 7.2 到缓存"
        assert window.script("return document.querySelector('[name=filter]').placeholder") == "标签的一部分，如 7.2"
        window.click("button[value='docker.io/library/redis:7.2']")
        window.until_text("正在拉取，进度见下载列表。", ".note")
        window.until_text("docker.io/library/redis:7.2", "#downloads")

    def see() -> None:
        window.until_text("目前没有下载", "#downloads")
        window.go(window.url)
        window.until_text("已缓存", ".upstream-tags .badge.good")
        window.click("button[value='docker.io/library/redis:broken']")
        window.until_text("操作未完成", "h1")
        assert "上游服务器出错（500）" in window.text("[role=alert]"), window.text()
        assert "原文：" in window.text("main")
        window.go(f"{mirror.url}{page}&filter=none-such")
        window.until_text("没有包含“none-such”的标签。")
        window.go(f"{mirror.url}/repository/docker.io/library/none?view=tags")
        assert "缓存中没有 docker.io/library/none" in window.text("[role=alert]")

    await watched.do(fetch)
    await half.reached.wait()
    half.release.set()
    await watched.do(see)
    assert [mirror.cached(image.layers[0]) for image in images] == [True, False]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_tar_is_downloaded_and_loads(watched: Watched, upstream: Scripted, tmp_path: Path, language: str) -> None:
    """From an image's page, of one platform, and from the class page: the browser saves it, a real dockerd loads it, and skopeo finds the registry's digests in it."""
    require("skopeo")
    mirror, window = watched.mirror, watched.window
    index, amd64 = make_index(81), make_image(81)
    add(upstream, "library/both", index)
    for path in ("manifests/1", *(f"manifests/{digest_of(body)}" for _, body in index.manifests[:1])):
        assert (await mirror.get(f"/v2/both/{path}")).status == 200
    for blob in amd64.blobs:
        assert str((await mirror.get(f"/v2/both/blobs/{blob}")).digest()) == blob
        # The page is not read again: it has to find all of it.
        await mirror.until_cached(Digest.parse(blob))
    saved = window.downloads / "docker.io-library-both-1.tar"

    def download(page: str, link: str, label: str) -> bytes:
        window.go(f"{mirror.url}{page}")
        speak(window, language)
        window.until(lambda: window.text(f"[href='{link}']") == label or label in words(window, f"[href='{link}']"), link)
        window.click(f"[href='{link}']")
        window.until(saved.exists, "the file")
        data = saved.read_bytes()
        saved.unlink()
        return data

    def study() -> None:
        tar = "/export/docker.io/library/both:1.tar"
        title = {"en": "Download as a tar", "zh": "下载为 tar 文件"}[language]
        one = download("/image/docker.io/library/both:1", f"{tar}?platform=linux/amd64", "amd64")
        assert title in window.text("#export")
        assert download("/class", tar, title) == one
        saved.write_bytes(one)

    await watched.do(study)
    daemon = await asyncio.to_thread(Dockerd, "http://127.0.0.1:1")
    try:
        assert "both:1" in await asyncio.to_thread(daemon.docker, "load", "-i", str(saved))
        found = json.loads(await asyncio.to_thread(daemon.docker, "image", "inspect", "both:1"))[0]
    finally:
        await asyncio.to_thread(daemon.stop)
    config = json.loads(amd64.manifests[0][1])["config"]["digest"]
    assert found["Id"] == config
    assert found["RootFS"]["Layers"] == json.loads(amd64.blobs[config])["rootfs"]["diff_ids"]
    source = f"oci-archive:{saved}:docker.io/library/both:1"
    raw = await asyncio.to_thread(run, "skopeo", "--policy", str(policy(tmp_path)), "inspect", "--raw", source)
    assert digest_of(raw.encode()) == index.digest


@pytest.mark.parametrize("moves", [False, True])
async def test_a_download_that_breaks_off_goes_on(mirror: Mirror, browser: Browser, upstream: Scripted, moves: bool) -> None:
    """Chromium asks for the rest by itself, with Range and If-Range, after each of three cuts, and the file is the bundle byte for byte. If the tag has come to mean
    something else meanwhile, the file is the new bundle whole, and nothing of the old one is in it."""

    async def add_and_cache() -> None:
        image = upstream.add_image("library/app", "1", layers=[os.urandom(8_000_000)])
        await Commands(mirror.directory, upstream)("pull", "app:1", "--platform", "linux/amd64")
        assert mirror.cached(image.layers[0])

    await add_and_cache()
    cuts = [3_000_000] if moves else [3_000_000, 2_500_000, 700_000]
    port = int(mirror.url.rpartition(":")[2])
    async with CuttingRelay(port, "/export/", cuts, add_and_cache if moves else None) as relay:

        def download() -> bytes:
            browser.go(f"{relay.url}/image/docker.io/library/app:1")
            browser.click("[href^='/export/']")
            saved = browser.downloads / "docker.io-library-app-1.tar"
            browser.until(saved.exists, "the file")
            return saved.read_bytes()

        data = await asyncio.to_thread(download)
    assert data == (await mirror.get("/export/docker.io/library/app:1.tar")).body
    assert len(relay.heads) == len(cuts) + 1
    assert ["\r\nrange: bytes=" in head and "\r\nif-range: " in head for head in relay.heads] == [False, *(True for _ in cuts)]


async def test_an_upload_without_the_token_is_refused_in_words(watched: Watched, tmp_path: Path) -> None:
    """A wrong token leads to no form. A form whose session has ended, or that is of another one, gives the reason and what to do, however large the file; nothing is written. With the token it works."""
    mirror, window = watched.mirror, watched.window
    window.forgiven += ["status of 401", "status of 403", "net::ERR_"]
    image = make_image(82, size=40_000_000)
    file = tmp_path / "lab.tar"
    file.write_bytes(pack(layout_of({"docker.io/library/lab:1": image})))

    def upload() -> None:
        window.type("#archive", str(file))
        window.click(".upload button.primary")

    def nothing_came() -> None:
        assert not list((mirror.directory / "blobs" / "sha256").iterdir())
        assert mirror.spooled() == []

    refused = {
        "en": (
            "that is not the admin token",
            "changing anything needs the admin token: log in",
            "this form is of another session",
        ),
        "zh": ("管理员令牌不正确", "更改需要管理员令牌：请先登录", "此表单属于另一次登录：请重新载入页面"),
    }

    def refuse(language: str, wrong: str, ended: str, other: str) -> None:
        window.go(f"{mirror.url}/import?lang={language}")
        window.click("main a[href^='/login']")
        window.type("#token", "not the token")
        window.click(".login button")
        window.until_text(wrong, "[role=alert]")
        window.go(f"{mirror.url}/import")
        assert window.script("return document.querySelector('#archive')") is None
        watched.log_in("/import")
        window.script("document.querySelector('.upload [name=secret]').value = '0'.repeat(64)")
        upload()
        window.until_text(other, "[role=alert]")
        nothing_came()
        window.go(f"{mirror.url}/import")
        window.script("return fetch('/logout', {method: 'POST', redirect: 'manual'}).then(() => true)")
        upload()
        window.until_text(ended, "[role=alert]")
        nothing_came()
        window.click("main a[href='/login?to=/import']")
        window.until(lambda: window.script("return document.querySelector('#token')") is not None, "the form for the token")

    for language, texts in refused.items():
        await watched.do(partial(refuse, language, *texts))
    assert (await mirror.get("/v2/library/lab/manifests/1")).status == 404

    def succeed() -> None:
        watched.log_in("/import")
        upload()
        window.until_text("新增", "h2")

    await watched.do(succeed)
    assert str((await mirror.get("/v2/library/lab/manifests/1")).digest()) == image.digest


async def test_the_search_box(watched: Watched, upstream: Scripted) -> None:
    """What matches nothing leads to Docker Hub's search with the same term, which is no markup; a digest finds its image; a registry without a search, and a term that nobody has, say so."""
    mirror, window = watched.mirror, watched.window
    image = await cache(mirror, upstream, "library/redis", "7.2")
    upstream.add_to_hub("postgres", "A database", 11)
    rows = "return document.querySelectorAll('#images tbody tr').length"
    texts = {
        "en": (
            "No image matches",
            "Search Docker Hub for “postgres”",
            "On Docker Hub",
            "has no search that this mirror can use",
            "It has no repository that matches",
        ),
        "zh": (
            "没有匹配",
            "在 Docker Hub 中搜索“postgres”",
            "Docker Hub 上",
            "ghcr.io 没有可用的搜索：请输入完整的仓库名",
            "没有匹配“zzz”的仓库",
        ),
    }

    def find(language: str, none: str, lead: str, on_hub: str, no_search: str, no_match: str) -> None:
        window.go(mirror.url)
        speak(window, language)
        window.type("#search input", str(image.digest)[:20])
        window.until(lambda: "q=sha256" in window.url and window.script(rows) == 1, "the image of the digest")
        window.go(mirror.url)
        window.type("#search input", "postgres")
        window.until_text(none, "#images")
        window.click("#images a.button")
        window.until_text("A database", ".found")
        assert window.url.endswith("/search?q=postgres")
        assert on_hub in window.text("#upstream-title")
        window.go(f"{mirror.url}/?q=postgres")
        assert lead in words(window, "#images")
        for term, text in (("ghcr.io/redis", no_search), ("zzz", no_match)):
            window.go(mirror.url)
            window.type("#search input", f"{term}\n")
            window.until(lambda: "/search?q=" in window.url, "the page of results")
            window.until_text(text, "main")
        window.go(mirror.url)
        window.type("#search input", f"{HOSTILE}\n")
        window.until(lambda: "/search?q=" in window.url, "the page of results")
        assert window.script("return document.querySelector('.find input').value") == HOSTILE[:200]

    for language, parts in texts.items():
        await watched.do(partial(find, language, *parts))
