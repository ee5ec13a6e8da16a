"""A real headless Chromium, driven over WebDriver (W3C) by Debian's chromedriver."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.programs import Program, answers, require

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync --disable-dev-shm-usage --hide-scrollbars --force-color-profile=srgb"
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which WebDriver gives an element (W3C WebDriver, section 12)."""


class Browser:
    """One window. What its console says and what it asks for is kept."""

    def __init__(self, folder: Path, language: str = "en") -> None:
        require("chromium", "chromedriver")
        folder.mkdir(parents=True, exist_ok=True)
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        self.downloads = folder / "downloads"
        """Where files are saved that pages offer. A file that is not complete has another name."""
        port = free_port()
        self._driver = Program(["chromedriver", f"--port={port}"], folder / "chromedriver.log", {"LANGUAGE": language})
        self._base = f"http://127.0.0.1:{port}"
        self._driver.wait_until(lambda: answers(f"{self._base}/status"))
        options = {
            "args": [*_FLAGS.split(), f"--user-data-dir={self._profile}", f"--lang={language}", f"--accept-lang={language}"],
            "binary": shutil.which("chromium"),
            "prefs": {"download.default_directory": str(self.downloads), "download.prompt_for_download": False},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{session['sessionId']}"
        self.forgiven: list[str] = []
        """Parts of messages that a test provokes on purpose."""
        self._console: list[str] = []
        self._asked: list[str] = []
        self.size(1280, 1000)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._call("DELETE", "", None)
        self._driver.stop()
        shutil.rmtree(self._profile, ignore_errors=True)

    # ------------------------------------------------------------------ going and looking

    def go(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    @property
    def url(self) -> str:
        return str(self._call("GET", "/url", None))

    def size(self, width: int, height: int, mobile: bool = False, scale: float = 1) -> None:
        """Of the page's view, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, theme: str) -> None:
        """What the system says that its user likes: ``light`` or ``dark``."""
        self._devtools("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})

    def script(self, code: str, *arguments: Any) -> Any:
        """What JavaScript returns."""
        return self._call("POST", "/execute/sync", {"script": code, "args": list(arguments)})

    def text(self, css: str = "body") -> str:
        return str(self.script("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """Waits for something that must come."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"never came: {what}\n{self.text()[:3000]}"
            time.sleep(0.05)
        return found

    def until_text(self, text: str, css: str = "body") -> None:
        self.until(lambda: text in self.text(css), f"{text!r} in {css}")

    # ------------------------------------------------------------------ doing

    def click(self, css: str) -> None:
        self._call("POST", f"/element/{self._find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        """Key by key, as a person does."""
        self._call("POST", f"/element/{self._find(css)}/value", {"text": text})

    def _find(self, css: str) -> str:
        return str(self._call("POST", "/element", {"using": "css selector", "value": css})[_ELEMENT])

    # ------------------------------------------------------------------ what went on

    def complaints(self) -> list[str]:
        """Everything that the console was told: errors, violations of the Content-Security-Policy, warnings."""
        self._console += [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]
        return [message for message in self._console if not any(part in message for part in self.forgiven)]

    def asked(self) -> list[str]:
        """The URLs of all requests that pages have made."""
        for entry in self._call("POST", "/se/log", {"type": "performance"}):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._asked.append(message["params"]["request"]["url"])
        return self._asked

    def hosts_asked(self) -> set[str]:
        return {urlsplit(url).netloc for url in self.asked() if urlsplit(url).scheme in ("http", "https", "ws", "wss")}

    # ------------------------------------------------------------------ WebDriver

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return json.loads(response.read())["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{method} {path}: {error.read().decode(errors='replace')[:1500]}") from None
