"""What the pages show. In a browser: tests/e2e/test_dashboard.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
import subprocess
import time
from pathlib import Path

from mirror.cache.warming import WarmState
from mirror.certificate import ends
from mirror.downloads.active import Download
from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.storage.disk.catalog.inventory import Inventory
from mirror.storage.inventory import Day, History, Totals, Traffic, UnderWay
from mirror.web import charts
from mirror.web.downloads import by_image
from mirror.web.pages import Pages, State
from mirror.web.site_info import SiteInfo
from mirror.web.templating import Templates
from tests.cache.test_inventory import pull, serve
from tests.support.commands import Commands
from tests.support.dashboard import HOSTILE, HTML, IMAGE, PAGES, log_in, post, token
from tests.support.filled import fill
from tests.support.images import make_index
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted


async def test_an_upstream_that_nobody_has_asked_is_not_called_healthy(mirror: Mirror, upstream: Scripted) -> None:
    """What is not known is not said; after an answer it is, and when that was."""
    upstream.add_image("library/app", "1")
    page = (await mirror.get("/", **HTML)).body
    assert b"not visited yet" in page
    unknown = page.count(b"<li>")
    assert unknown > 1
    assert b"healthy" not in page
    await mirror.get("/v2/app/manifests/1")
    async with asyncio.timeout(PATIENCE):
        # A page has the state of a moment ago.
        while b"healthy" not in (page := (await mirror.get("/", **HTML)).body):
            await asyncio.sleep(0.1)
    assert page.count(b"<li>") == unknown
    assert b"answered" in page


def test_the_trend_is_drawn_once_it_tells_something() -> None:
    """From the size an hour ago or earlier to the size now, the highest at the top; before that it says when it will be."""
    totals = Totals(0, 0, 0, 0, 4096, 0, 0, Traffic(0, 0, 0, 0))
    pages = Pages(None, None, SiteInfo("1", tuple, 8192, 1.0, dict), Templates("1"))  # type: ignore[arg-type]

    def figures(*samples: tuple[float, int]) -> str:
        sizes = tuple((int(time.time() - ago), size) for ago, size in samples)
        return pages.parts(State((), totals, History(sizes, ()), {"mirror": [], "registries": {}}), "en")["figures"]

    drawn = figures((7200, 1024), (3600, 2048))
    assert re.search(r"Size of the cache lately: 1\sKiB on 20\d\d-[^,]*, 4\sKiB now", drawn)
    line = re.search(r'<path class="line" d="M0\.0 ([\d.]+)L120\.0 ([\d.]+)L240\.0 ([\d.]+)"', drawn)
    assert line is not None, drawn
    heights = [float(height) for height in line.groups()]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3
    for young in (figures(), figures((600, 1024))):
        assert "The trend shows here after an hour" in young
        assert "<path" not in young


async def test_what_is_fetched_ahead_is_counted_apart(start: StartMirror, upstream: Scripted) -> None:
    """A prefetched layer that nobody asks for does not count as fetched for a client; one that a client reads meanwhile does."""
    mirror: Mirror = await start(prefetch=True)
    image = upstream.add_image("library/app", "1", layers=[os.urandom(200_000), os.urandom(300_000)])
    before = await mirror.metric("mirror_prefetched_bytes_total")
    await mirror.get("/v2/app/manifests/1")
    await mirror.get(f"/v2/app/blobs/{image.layers[0]}")
    async with asyncio.timeout(PATIENCE):
        while await mirror.metric("mirror_prefetched_bytes_total") < before + 300_000:
            await asyncio.sleep(0.01)
    await until(lambda: not mirror.spooled())
    await mirror.stop()
    with contextlib.closing(Inventory(mirror.directory)) as inventory:
        totals, history = inventory.totals(), inventory.history()
    traffic, today = totals.traffic, history.days[-1]
    assert (traffic.prefetched, traffic.pulled) == (today.prefetched, 0)
    assert 300_000 <= today.ahead < 301_000
    assert today.fetched - today.ahead == today.passed == today.sent
    assert (today.cached, traffic.saved) == (0, 0)


def _fill(directory: Path) -> None:
    fill(directory, 10_000)
    # All of them at once have to be read first: minutes, on a busy machine.
    with contextlib.closing(Inventory(directory)) as inventory:
        inventory.learn()


async def test_the_first_screen_is_small_with_ten_thousand_images(start: StartMirror) -> None:
    """Page, script, style and picture together stay under 100 KB, uncompressed; the files may be kept for ever."""
    # Eviction would begin to clear away what is said to be there.
    mirror: Mirror = await start(max_size="2TiB")
    await mirror.mended()
    await asyncio.to_thread(_fill, mirror.directory)
    async with asyncio.timeout(PATIENCE):
        # A page has the figures of a moment ago at once, and has new ones made.
        while b">10,000<" not in (page := await mirror.get("/", **HTML)).body:
            await asyncio.sleep(0.2)
    assert page.body.count(b'<th scope="row">') == 25
    total = len(page.body)
    for url in sorted(set(re.findall(r'(?:src|href)="(/web/[^"]+)"', page.body.decode()))):
        asset = await mirror.get(url)
        assert (asset.status, asset.headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable")
        total += len(asset.body)
    assert total < 100_000
    for path in (
        "/?page=40&order=size",
        "/?page=400&order=size&q=app",
        "/?page=400&view=images",
        "/repository/docker.io/library/app-7",
    ):
        last = await mirror.get(path, **HTML)
        assert (last.status, len(last.body) < 60_000) == (200, True)
        assert b"Page 40 of 40" in last.body or b"Page 400 of 400" in last.body or b"10 images" in last.body


def test_when_a_certificate_ends_is_read_from_its_file(tmp_path: Path) -> None:
    """As OpenSSL reads it, before and after 2050, where the form of dates changes; of what is no certificate nothing is said."""
    for days in (1, 3000, 20_000):
        file = tmp_path / "mirror.crt"
        made = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -days {days} -out {file} -keyout {tmp_path / 'mirror.key'}"
        subprocess.run(made.split(), check=True, capture_output=True)
        told = subprocess.run(["openssl", "x509", "-enddate", "-noout", "-in", file], check=True, capture_output=True, text=True)
        assert ends(file) == ssl.cert_time_to_seconds(told.stdout.strip().removeprefix("notAfter="))
    whole = file.read_text()
    for text in ("", "-----BEGIN CERTIFICATE-----", whole[:200], whole.replace("MII", "AAA")):
        file.write_text(text)
        assert ends(file) is None
    assert ends(tmp_path / "none") is None


async def test_the_settings_are_for_the_admin(dashboard: Mirror) -> None:
    """All that are in force, as they would be written, and none that is secret."""
    refused = await dashboard.get("/settings", **HTML)
    assert (refused.status, b"cache.max_size" in refused.body) == (401, False)
    page = (await dashboard.get("/settings", Cookie=await log_in(dashboard), **HTML)).body.decode()
    for text in ("cache.max_size", "9.54 MiB/s", "30 d", "5 m", "server.listen"):
        assert text in page
    assert token(dashboard) not in page


async def test_an_images_platforms_are_tabs(mirror: Mirror, upstream: Scripted) -> None:
    """Each a link, so that no script is needed; what is cached comes first, and only one platform's layers are on the page."""
    made = make_index(5)
    serve(upstream, "library/app", "1", made)
    await pull(mirror, "library/app", "1", made, "arm64")
    async with asyncio.timeout(PATIENCE):
        # A file is there a moment before the catalog knows it.
        while '<span class="badge good">complete</span>' not in (page := (await mirror.get(IMAGE, **HTML)).body.decode()):
            await asyncio.sleep(0.05)
    tabs = re.findall(r'href="(/image/[^"]*\?platform=[^"]*)#platform"[^>]*>([^<]*)<', page)
    assert [label for _, label in tabs] == ["arm64", "amd64"]
    assert page.count("layer 0") >= 1
    assert "/bin/true" in page
    other = (await mirror.get(tabs[1][0].replace("%2F", "/"), **HTML)).body.decode()
    assert '<span class="badge ">not cached</span>' in other
    assert "layer 0" not in other
    for command in ("docker pull app:1", "podman pull docker.io/library/app:1", "FROM app:1@sha256:"):
        assert command in page
    assert (await mirror.get(f"{IMAGE}?platform=nothing", **HTML)).status == 200


async def test_what_utf8_cannot_say_of_an_image_ends_no_page_and_no_command(mirror: Mirror, upstream: Scripted) -> None:
    """Half a surrogate pair, which JSON can say (RFC 8259, section 8.2): with a mark in its place on the page, as the image says it in JSON."""
    half = "\ud800"
    config = {"Labels": {half: half}, "Entrypoint": [half], "Env": [f"A={half}"], "User": half}
    image = upstream.add_image("library/app", configuration={"architecture": half, "os": half, "config": config})
    upstream.add_manifest("library/app", "1", image.body.replace(b"layer.v1.tar", rb"\ud800"))
    for path in ("manifests/1", f"blobs/{image.config}"):
        assert (await mirror.get(f"/v2/app/{path}")).status == 200
    await mirror.until_cached(image.config)
    page = await mirror.get("/image/docker.io/library/app:1", **HTML)
    assert (page.status, "library/<wbr>app" in page.body.decode()) == (200, True)
    shown = await Commands(mirror.directory).json("show", "app:1")
    assert half in json.dumps(shown, ensure_ascii=False)


async def test_an_image_of_ten_thousand_platforms_is_a_page_like_others(mirror: Mirror, upstream: Scripted) -> None:
    """What an index lists beyond what anybody would read is counted only, and so is what is for no platform."""
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": f"sha256:{number:064x}",
            "size": 1,
            "platform": {"os": HOSTILE if number % 2 else "linux", "architecture": str(number)},
        }
        for number in range(10_000)
    ]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    upstream.add_manifest("library/app", "1", body, OCI_INDEX)
    assert (await mirror.get("/v2/app/manifests/1")).status == 200
    page = await mirror.get(IMAGE, **HTML)
    assert b"and 4,960 more and 5,000 attestations" in page.body
    assert len(page.body) < 200_000
    assert b"<script>alert" not in page.body


def test_the_days_stand_on_an_axis_with_round_figures() -> None:
    """Heights fit the axis; what was fetched ahead is no part of what clients got."""
    days = (Day(9, 9, 0, 0, date="2025-01-01"), Day(9, 9, 5 * 2**30, 11 * 2**30, 2**30, 2**30, date="2025-01-02"))
    chart = charts.bars(History((), days))
    assert chart is not None
    assert (chart.top, chart.sent, chart.cached, chart.ahead) == (12 * 2**30, 11 * 2**30, 8 * 2**30, 2 * 2**30)
    bar = chart.bars[1]
    assert (bar.passed, bar.cached, bar.ahead) == ((90.0, 30.0), (10.0, 80.0), (100.0, 20.0))
    assert charts.bars(History((), days[:1])) is None
    for most in (1, 3, 1023, 1025, 10**9, 10**13):
        assert most <= charts.axis_end(most) <= 2 * most


def test_downloads_are_shown_by_image() -> None:
    """One line for all blobs of an image, with what is cached of it already; a blob that nothing is known of has a line of its own."""
    name = "docker.io/library/app"

    def download(digest: str, size: int | None, have: int, readers: int = 1, ended: bool = False, error: str = "") -> Download:
        return Download(digest, name, size, have, 10.0, readers, 0.0, True, ended, error)

    image = UnderWay(f"{name}:1", "linux/amd64", {"a": 100, "b": 200, "c": 300, "d": 1}, frozenset(("c", "a")))
    known = {(name, digest): image for digest in "abc"}
    lines = by_image([download("b", None, 50), download("x", 7, 7, ended=True), download("a", 110, 110, ended=True)], known)
    assert [line.name for line in lines] == [f"{name}:1", name]
    whole, alone = lines
    assert (whole.size, whole.have, whole.blobs, whole.rate, whole.readers) == (611, 460, 2, 10.0, 1)
    assert (whole.ended, whole.left, whole.link) == (False, None, f"{name}:1")
    assert (alone.ended, alone.link, alone.size) == (True, "", 7)
    assert by_image([download("b", 200, 50)], known)[0].left == 15
    assert by_image([download("b", 200, 50), download("a", 100, 0, 0, True, "gone")], known)[0].error == "gone"


async def test_a_page_has_links_to_the_tars_of_the_platforms_that_are_cached(mirror: Mirror, upstream: Scripted) -> None:
    """Each link gives a tar, and the command to load it is there, in English and in Chinese; an incomplete image has none."""
    amd, arm = (upstream.add_image("library/both", layers=[os.urandom(2000)]) for _ in range(2))
    upstream.add_index("library/both", "1", [amd, arm])
    await mirror.get("/v2/both/manifests/1")
    for image in (amd, arm):
        async with asyncio.timeout(PATIENCE):
            # A blob's file is there before the catalog knows of it.
            while ("/export/" in (await mirror.get("/image/docker.io/library/both:1", **HTML)).body.decode()) is not (
                image is arm
            ):
                await asyncio.sleep(0.02)
        await mirror.get(f"/v2/both/manifests/{image.digest}")
        for blob in (*image.layers, image.config):
            await mirror.get(f"/v2/both/blobs/{blob}")
            await mirror.until_cached(blob)
    async with asyncio.timeout(PATIENCE):
        # The same of the second one's blobs.
        while (await mirror.get("/image/docker.io/library/both:1", **HTML)).body.decode().count('href="/export/') < 3:
            await asyncio.sleep(0.02)
    for language, words in (("en", "Download as a tar"), ("zh", "下载为 tar 文件")):
        page = (await mirror.get("/image/docker.io/library/both:1", **HTML, Accept_Language=language)).body.decode()
        assert words in page
        links = re.findall(r'href="(/export/[^"]*)" download', page)
        assert links == [
            "/export/docker.io/library/both:1.tar?platform=linux/amd64",
            "/export/docker.io/library/both:1.tar?platform=linux/arm64",
            "/export/docker.io/library/both:1.tar",
        ]
        for link in links:
            assert (await mirror.get(link)).headers["Content-Type"] == "application/x-tar"
        assert f"curl -f &#39;{mirror.url}{links[0]}&#39; | docker load" in page


async def test_every_page_says_that_the_mirror_is_offline(start: StartMirror, upstream: Scripted) -> None:
    """In both languages, and among the live parts; a mirror that is not says nothing of it."""
    mirror: Mirror = await start()
    for path in PAGES:
        assert b"No registry is asked" not in (await mirror.get(path, **HTML)).body, path
    await mirror.stop()
    asked = len(upstream.asked)
    mirror = await start(settings={"upstream": {"offline": True}})
    for language, words in (("en", "No registry is asked"), ("zh", "不访问任何上游仓库")):
        for path in PAGES:
            if path != "/images":
                page = (await mirror.get(path, **HTML, Accept_Language=language)).body.decode()
                assert page.count(words) == 1, path
        async with mirror.session.get("/events", headers={"Accept-Language": language}) as events:
            async for line in events.content:
                if line.startswith(b"data: "):
                    assert words in json.loads(line[6:])["faults"]
                    break
    assert "离线模式" in (await mirror.get("/repository/docker.io/library/none", **HTML, Accept_Language="zh")).body.decode()
    assert len(upstream.asked) == asked


def test_lists_that_are_pulled_by_schedule() -> None:
    """What each holds, when it was and will be pulled, what fails and why, in both languages; nothing where there are no lists; while offline they wait."""
    totals = Totals(0, 0, 0, 0, 4096, 0, 0, Traffic(0, 0, 0, 0))
    pages = Pages(None, None, SiteInfo("1", tuple, 8192, 1.0, dict), Templates("1"))  # type: ignore[arg-type]
    now = time.time()
    failures = tuple((f"docker.io/library/app:{number}", "no connection with x: Connection refused") for number in range(7))
    lists = (
        WarmState("lab", ("linux/arm64", "linux/amd64"), 21600.0, None, 9, 2, now - 7200, now + 3500, failures, ""),
        WarmState("<b>", None, None, "02:00", 1, 0, None, now - 1, (), "/etc/x.txt cannot be read: No such file or directory"),
    )

    def shown(language: str, warm: tuple[WarmState, ...] = lists, *, offline: bool = False) -> str:
        report = {"mirror": [], "registries": {}, "offline": offline}
        part = pages.parts(State((), totals, History((), ()), report, (), warm), language)["warm"]
        return " ".join(re.sub(r"<[^>]*>", " ", part).split())

    english, chinese = shown("en"), shown("zh")
    for words in (
        "2 of 9 pulled List lab every 6 h, linux/arm64, linux/amd64",
        "last 2 h ago next in 58 min",
        "docker.io/library/app:4: no connection with x: Connection refused and 2 more",
        "0 of 1 pulled List &lt;b&gt; daily at 02:00, all platforms not pulled yet due now",
        "/etc/x.txt cannot be read",
    ):
        assert words in english, (words, english)
    for words in (
        "定时拉取",
        "拉取 2 个",
        "列表 lab",
        "上游拒绝连接",
        "每天 02:00、所有平台",
        "尚未拉取",
        "即将或正在进行",
    ):
        assert words in chinese.replace("\u00a0", " "), (words, chinese)
    assert "waits until the mirror is online" in shown("en", offline=True)
    assert shown("en", ()) == ""


async def test_the_class_page_has_a_command_and_a_tar_for_every_image(start: StartMirror, upstream: Scripted) -> None:
    """Without a token: pinned images first, each by the name under which this client knows the mirror; one tar of all that are pinned; no tar of what is not whole."""
    mirror = await start()
    images = {name: upstream.add_image(f"library/{name}", "1", layers=[os.urandom(2000)]) for name in "abcd"}
    for name, image in images.items():
        await mirror.get(f"/v2/{name}/manifests/1")
        for blob in (*(image.layers if name != "b" else ()), image.config):
            await mirror.get(f"/v2/{name}/blobs/{blob}")
            await mirror.until_cached(blob)
    cookie = await log_in(mirror)
    secret = re.search(r'name="secret" value="([^"]*)"', (await mirror.get("/?view=images", **HTML, Cookie=cookie)).body.decode())
    assert secret is not None
    for name in "dc":
        form = {"action": "pin", "image": f"docker.io/library/{name}:1", "secret": secret[1]}
        assert (await post(mirror, "/images", form, Cookie=cookie))[0] in (200, 303)
    page = (await mirror.get("/class", **HTML, Host="mirror.lan:5000")).body.decode()
    commands = re.findall(r'data-copy="(docker pull [^"]*)"', page)
    assert commands == [f"docker pull mirror.lan:5000/docker.io/library/{name}:1" for name in "cdab"]
    assert "insecure-registries&#34;: [&#34;mirror.lan:5000&#34;]" in page
    links = re.findall(r'href="(/export/[^"]*)" download', page)
    together = "/export/lab.tar?images=docker.io/library/c%3A1%2Cdocker.io/library/d%3A1"
    assert links == [*(f"/export/docker.io/library/{name}:1.tar" for name in "cda"), together]
    for link in links:
        got = await mirror.get(link)
        assert (got.status, got.headers["Content-Type"]) == (200, "application/x-tar")
    assert "insecure-registries" not in (await mirror.get("/class", **HTML)).body.decode()
    assert "课堂镜像" in (await mirror.get("/class", **HTML, Accept_Language="zh")).body.decode()
    found = (await mirror.get("/class?q=a:1", **HTML)).body.decode()
    assert re.findall(r"docker pull [^\"]*/(.):1\"", found) == ["a"]
    assert (await post(mirror, "/class", {}))[0] == 405


async def test_a_class_page_of_many_images_has_pages(start: StartMirror) -> None:
    """Each image is on one of them."""
    mirror = await start(max_size="2TiB")
    await mirror.mended()
    await asyncio.to_thread(fill, mirror.directory, 60)
    first = (await mirror.get("/class", **HTML)).body.decode()
    assert 'rel="next" href="/class?page=2"' in first and 'rel="prev"' not in first
    second = (await mirror.get("/class?page=2", **HTML)).body.decode()
    commands = [re.findall(r'data-copy="(docker pull [^"]*)"', page) for page in (first, second)]
    assert [len(page) for page in commands] == [25, 25] and not set(commands[0]) & set(commands[1])
