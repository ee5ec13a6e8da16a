"""Renders the package's templates, and holds the files that pages load."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mirror.web import filters
from mirror.web.context import THEMES
from mirror.web.guard_reasons import reason
from mirror.web.translations import LANGUAGES, explain, text

_HERE = Path(__file__).parent
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that pages load. Its URL holds a hash of its content, so browsers may cache it for ever."""

    url: str
    content_type: str
    body: bytes


class Templates:
    """Renders pages. Every value is escaped."""

    def __init__(self, version: str) -> None:
        """Reads the static files. Raises OSError."""
        self.assets: dict[str, Asset] = {}
        urls = {}
        for file in sorted((_HERE / "static").iterdir()):
            if file.suffix in _TYPES:
                body = file.read_bytes()
                url = f"/web/{hashlib.sha256(body).hexdigest()[:12]}/{file.name}"
                self.assets[url] = Asset(url, _TYPES[file.suffix], body)
                urls[file.name] = url
        self._pages = _environment(True)
        self._scripts = _environment(False)
        for name in (
            "size",
            "rate",
            "number",
            "percent",
            "clock",
            "date",
            "machine_time",
            "short",
            "breakable",
            "platform",
            "familiar",
            "tar",
        ):
            self._pages.globals[name] = getattr(filters, name)
        self._pages.globals.update(asset=urls.__getitem__, version=version, LANGUAGES=LANGUAGES, THEMES=THEMES)

    def compile(self) -> Iterator[None]:
        """Compiles one template at each step, which takes some milliseconds."""
        for name in self._pages.list_templates(["html"]):
            self._pages.get_template(name)
            yield

    def page(self, name: str, language: str, **values: Any) -> str:
        """Renders an HTML template: a page, or a part of one."""
        bound = {
            "t": partial(text, language),
            "explain": partial(explain, language),
            "reason": partial(reason, language),
            "now": time.time,
            "ago": lambda moment: filters.ago(moment, language),
            "span": lambda seconds: filters.span(seconds, language),
        }
        return self._pages.get_template(name).render(**bound, **values)

    def script(self, name: str, **values: Any) -> str:
        """Renders a shell script. Nothing is escaped, so no value may come from a request (see setup.py)."""
        return self._scripts.get_template(name).render(**values)


def _environment(escape: bool) -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=escape,  # noqa: S701 (scripts: see `script`)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
