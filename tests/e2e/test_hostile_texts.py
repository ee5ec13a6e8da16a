"""Texts that upstream chose, on the dashboard in a real Chromium: they are shown, and nothing of them runs or becomes an element."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.browser import Browser
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Redirect, Scripted, Status

_RUN = "window.owned=1"
PAYLOADS = [
    f"<script data-owned>{_RUN}</script>",
    f'"><img src=x onerror="{_RUN}" data-owned>',
    f"'><svg/onload={_RUN} data-owned>",
    f'" autofocus onfocus="{_RUN}" data-owned="',
    f"' onmouseover='{_RUN}' data-owned='",
    f'<a href="javascript:{_RUN}" data-owned>x</a>',
    f"javascript:{_RUN}",
    "</title></textarea></style></script></pre><b data-owned>b</b>",
    "<!--><b data-owned>--><b data-owned>",
    f"<iframe srcdoc='<script>parent.{_RUN}</script>' data-owned></iframe>",
    '<meta http-equiv="refresh" content="0;url=//evil.invalid" data-owned>',
    "<base href=//evil.invalid data-owned>",
    "<form action=//evil.invalid data-owned><button>",
    "<style data-owned>*{display:none}</style>",
    f"&lt;img src=x onerror={_RUN} data-owned&gt;",
    f"\\x3cscript\\x3e{_RUN}\\x3c/script\\x3e",
    "{{ 7*7 }}${7*7}<%= 7*7 %>",
    "<b data-owned\x00\x1b>\u202e\u2066\u200b",
    "]]><![CDATA[<b data-owned>",
]
_LOOK = """
return [window.owned === undefined, document.querySelectorAll("[data-owned], script:not([src]), iframe, base, img[src=x]").length,
        document.querySelectorAll("a[href^='javascript:' i]").length, location.origin];
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "browser") as window:
        yield window


def hostile_image(upstream: Scripted) -> None:
    """Each payload in each text of an image's configuration, and in annotations."""
    configuration = {
        "created": "2026-01-01T00:00:00Z",
        "author": "".join(PAYLOADS),
        "rootfs": {"type": "layers", "diff_ids": []},
        "config": {
            "User": PAYLOADS[0],
            "WorkingDir": PAYLOADS[1],
            "StopSignal": PAYLOADS[2],
            "Entrypoint": PAYLOADS,
            "Cmd": PAYLOADS,
            "Env": [f"{payload}={payload}" for payload in PAYLOADS],
            "Labels": {payload: payload for payload in PAYLOADS},
            "ExposedPorts": {payload: {} for payload in PAYLOADS},
            "Volumes": {payload: {} for payload in PAYLOADS},
        },
        "history": [{"created_by": payload, "comment": payload} for payload in PAYLOADS],
    }
    upstream.add_image("library/app", "1", configuration=configuration, annotations={payload: payload for payload in PAYLOADS})


async def test_nothing_that_upstream_says_runs_on_the_dashboard(start: StartMirror, upstream: Scripted, browser: Browser) -> None:
    """Names, descriptions, tags, configurations, errors and search terms, on each page, in both languages; no other host is asked."""
    hostile_image(upstream)
    for number, payload in enumerate(PAYLOADS):
        upstream.add_to_hub(f"app{number}", payload, number)
        upstream.hub[payload] = {"name": payload, "description": f"app {payload}", "star_count": payload, "is_official": payload}
    upstream.tag_details["library/app"] = [
        {"name": name, "full_size": payload, "images": [{"os": payload, "architecture": payload}]}
        for payload in PAYLOADS
        for name in ("1", payload)
    ]
    mirror: Mirror = await start()
    upstream.fail(
        "/tags/list",
        Status(200, {"Content-Type": "application/json"}, json.dumps({"name": "app", "tags": ["1", *PAYLOADS]}).encode()),
        times=10,
    )
    await mirror.get("/v2/app/manifests/1")
    for blob in upstream.blobs:
        await mirror.get(f"/v2/app/blobs/{blob}")
    for payload in PAYLOADS:
        upstream.fail(
            "/broken/", Redirect(f"http://127.0.0.1:1/{payload}".replace("\x00", "").replace("\x1b", "")), method="*", times=2
        )
        await mirror.get("/v2/broken/manifests/1")
    pages = [
        "/",
        "/images",
        "/image/docker.io/library/app:1",
        "/search?q=app",
        "/repository/docker.io/library/app?view=tags",
        "/repository/docker.io/library/app",
    ]
    for payload in PAYLOADS:
        term = quote(payload)
        pages += [
            f"/search?q={term}",
            f"/?q={term}",
            f"/repository/docker.io/library/app?view=tags&filter={term}",
            f"/image/{term}",
        ]
    for language in ("en", "zh"):
        for page in pages[: len(pages) if language == "en" else 6]:
            await asyncio.to_thread(browser.go, f"{mirror.url}{page}{'&' if '?' in page else '?'}lang={language}")
            assert await asyncio.to_thread(browser.script, _LOOK) == [True, 0, 0, mirror.url], page
    await asyncio.to_thread(browser.go, f"{mirror.url}/search?q=app")
    text = await asyncio.to_thread(browser.text)
    for payload in PAYLOADS[:-2]:
        assert payload in text
    assert browser.hosts_asked() <= {mirror.url.removeprefix("http://")}
    # Violations of the Content-Security-Policy would be here: something was taken for markup.
    assert [line for line in browser.complaints() if "status of 4" not in line] == []
    # What would have been found: the same text as markup.
    for payload in PAYLOADS[:6]:
        await asyncio.to_thread(browser.script, "document.body.insertAdjacentHTML('beforeend', arguments[0])", payload)
    assert (await asyncio.to_thread(browser.script, _LOOK))[1] >= 3
