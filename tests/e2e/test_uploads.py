"""Uploads of archives by a real Chromium and a real curl."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

from mirror.names import Digest
from tests.support.archives import layout_of, pack
from tests.support.browser import Browser
from tests.support.dashboard import token
from tests.support.images import Image, make_image
from tests.support.mirrors import Mirror
from tests.support.patience import PATIENCE
from tests.support.programs import require

NAME = "docker.io/library/lab:1"

WATCH = """
window.seen = [];
new MutationObserver(() => {
  window.seen.push(document.querySelector(".going progress")?.value ?? null);
}).observe(document.querySelector(".going"), { childList: true, subtree: true, attributes: true, characterData: true });
"""
"""Notes each change of the progress bar."""


async def serves(mirror: Mirror, image: Image) -> bool:
    found = [await mirror.get("/v2/library/lab/manifests/1")]
    found += [await mirror.get(f"/v2/library/lab/blobs/{digest}") for digest in image.blobs]
    return [str(one.digest()) for one in found] == [image.digest, *image.blobs]


async def test_a_browser_uploads_an_archive(mirror: Mirror, browser: Browser, tmp_path: Path) -> None:
    """From the overview, after logging in; the bar moves, the page says what came in, in English and Chinese; a file that is no archive is refused in words."""
    image = make_image(51, size=40_000_000)
    (tmp_path / "lab.tar").write_bytes(pack(layout_of({NAME: image})))
    (tmp_path / "no.tar").write_bytes(b"<html>" * 1000)

    def upload(file: str) -> None:
        browser.type("#archive", str(tmp_path / file))
        browser.click(".upload button.primary")

    def look() -> None:
        browser.go(f"{mirror.url}/import")
        browser.until_text("Log in")
        browser.click("main a[href^='/login']")
        browser.type("#token", token(mirror))
        browser.click(".login button.primary")
        browser.until_text("Upload images")
        browser.script(WATCH)
        upload("lab.tar")
        browser.until_text("1 image,")
        browser.until_text("imported")
        seen = [value for value in browser.script("return window.seen") if value is not None]
        assert seen == sorted(seen)
        assert len({value for value in seen if value > 1}) > 1, seen
        upload("lab.tar")
        browser.until_text("already here")
        upload("no.tar")
        browser.until_text("this is no tar")
        browser.go(f"{mirror.url}/import?lang=zh")
        browser.until_text("上传镜像")
        upload("lab.tar")
        browser.until_text("已存在")
        browser.go(f"{mirror.url}/import")
        upload("no.tar")
        browser.until_text("这不是镜像的 tar 文件")
        browser.go(f"{mirror.url}/import?lang=en")
        browser.click(".crumb a")
        browser.until_text("Upload images", "a[href='/import']")

    # What the console says of answers that are no 2xx.
    browser.forgiven += ["401 (Unauthorized)", "400 (Bad Request)"]
    await asyncio.to_thread(look)
    assert await serves(mirror, image)
    assert browser.hosts_asked() <= {mirror.url.removeprefix("http://")}


async def test_curl_uploads_a_file_and_a_pipe(mirror: Mirror, tmp_path: Path) -> None:
    """`curl -T FILE` and `-T -`, whose body is chunked; the answer is JSON, and what fails has an exit status and a reason."""
    require("curl")
    image = make_image(52, size=5_000_000)
    tar = pack(layout_of({NAME: image}))
    (tmp_path / "lab.tar").write_bytes(tar)

    async def curl(*arguments: str, data: bytes = b"", key: str = "") -> tuple[int, str]:
        command = ["curl", "-sS", "--fail-with-body", "-H", f"Authorization: Bearer {key or token(mirror)}", *arguments]

        def run() -> tuple[int, str]:
            done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE, check=False)
            return done.returncode, done.stdout.decode()

        return await asyncio.to_thread(run)

    url = f"{mirror.url}/import"
    status, text = await curl("-T", str(tmp_path / "lab.tar"), url, key="wrong")
    assert (status, "that is not the admin token" in text) == (22, True)
    status, text = await curl("-T", "-", url, data=tar[: len(tar) // 2])
    assert (status, "the archive is cut off" in text) == (22, True)
    assert (await mirror.get("/v2/library/lab/manifests/1")).status == 404
    status, text = await curl("-T", "-", url, data=tar)
    assert (status, json.loads(text)["images"][0]["image"]) == (0, NAME)
    assert await serves(mirror, image)
    for arguments in (("-T", str(tmp_path / "lab.tar"), f"{url}/"), ("-F", f"archive=@{tmp_path}/lab.tar", url)):
        status, text = await curl(*arguments)
        assert (status, json.loads(text)["size"]) == (0, 0), arguments
    assert mirror.cached(Digest.parse(image.digest))
