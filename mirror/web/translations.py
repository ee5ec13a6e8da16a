"""The languages of the dashboard.

Error messages are in English (mirror/errors.py); mirror/web/explanations.py translates them to Chinese.
"""

from __future__ import annotations

import re

from mirror.web.explanations import in_chinese
from mirror.web.texts import TEXTS

LANGUAGES = {"en": "English", "zh": "简体中文"}
"""Languages by the code that texts, cookies and links use. The first is the default."""
TAGS = {"en": "en", "zh": "zh-Hans"}
"""The values of the ``lang`` attribute (BCP 47)."""


def text(language: str, key: str, **values: object) -> str:
    """Returns a text with its values. Raises KeyError for an unknown key."""
    found = TEXTS[key][list(LANGUAGES).index(language)]
    if "|" in found:
        one, other = found.split("|")
        found = one if values.get("n") == 1 else other
    filled = found.format(**{name: f"{value:,}" if isinstance(value, int) else value for name, value in values.items()})
    # A no-break space joins a number and its measure word.
    return re.sub(r"(?<=\d) (?=[\u4e00-\u9fff])", "\u00a0", filled)


def explain(language: str, message: str, error: Exception | None = None) -> str:
    """Translates an error's message; see `in_chinese`."""
    return in_chinese(message, error) if language == "zh" else message


def keys() -> frozenset[str]:
    return frozenset(TEXTS)


def preferred(accept: str) -> str:
    """Returns the language that an Accept-Language header prefers (RFC 9110, section 12.5.4)."""
    best, weight = next(iter(LANGUAGES)), 0.0
    for member in accept[:1000].split(","):
        name, _, parameter = member.partition(";")
        language = name.strip().lower().partition("-")[0]
        quality = parameter.strip().removeprefix("q=") if parameter else "1"
        try:
            value = float(quality)
        except ValueError:
            continue
        if language in LANGUAGES and value > weight:
            best, weight = language, value
    return best
