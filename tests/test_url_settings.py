"""What may be secret in a URL is shown nowhere: user, password and query of each setting that takes one."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from mirror.clients import Address
from mirror.config import ConfigError, load
from mirror.config.in_force import in_force
from mirror.config.settings import Settings
from mirror.redaction import redacted

SECRET = "hunter2-s3cret"
FLEET = "http://mirror.lan:5000"
OIDC = {"name": "staff", "audience": "mirror", "claims": {"sub": "*"}}

PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "registries.endpoints": lambda url: {"registries": {"lan": {"endpoints": [url]}}},
    "registries.endpoints.url": lambda url: {"registries": {"lan": {"endpoints": [{"url": url}]}}},
    "registries.endpoints.proxy": lambda url: {"registries": {"lan": {"endpoints": [{"url": "https://lan", "proxy": url}]}}},
    "registries.proxy": lambda url: {"registries": {"lan": {"endpoints": ["https://lan"], "proxy": url}}},
    "registries.search": lambda url: {"registries": {"lan": {"endpoints": ["https://lan"], "search": url}}},
    "registries.tag_details": lambda url: {"registries": {"lan": {"endpoints": ["https://lan"], "tag_details": url}}},
    "upstream.proxy": lambda url: {"upstream": {"proxy": url}},
    "server.public_url": lambda url: {"server": {"public_url": url}},
    "fleet.mirrors": lambda url: {"fleet": {"mirrors": [url, FLEET], "own": FLEET}},
    "fleet.own": lambda url: {"fleet": {"mirrors": [FLEET], "own": url}},
    "fleet.parents": lambda url: {"fleet": {"parents": [url]}},
    "fleet.parents.url": lambda url: {"fleet": {"parents": [{"url": url}]}},
    "fleet.bucket": lambda url: {"fleet": {"bucket": url.replace("https://", "s3://")}},
    "fleet.bucket_endpoint": lambda url: {"fleet": {"bucket": "s3://name", "bucket_endpoint": url}},
    "oidc.issuer": lambda url: {"oidc": [{**OIDC, "issuer": url}]},
    "guard.blocklist": lambda url: {"guard": [{"blocklist": [url]}]},
    "webhook.url": lambda url: {"webhook": [{"url": url}]},
    "webhook": lambda url: {"webhook": url},
    "scan.command": lambda url: {"scan": [{"command": ["scanner", url, "{archive}"]}]},
}
"""Settings that take a URL, by their keys; and those in which one may be found."""
_NO_URL = {"guard.signed.identities.issuer"}
"""It is a pattern, and says who has signed."""
URLS = {
    "user": f"https://r0b0t:{SECRET}@host.example/x",
    "user alone": f"https://{SECRET}@host.example/x",
    "not encoded": f"https://r0b0t:p/w?{SECRET}#@host.example/x",
    "query": f"https://host.example/x?token={SECRET}",
    "fragment": f"https://host.example/x#{SECRET}",
    "both": f"https://r0b0t:{SECRET}@host.example/x?token={SECRET}",
    "no scheme that is known": f"ftp://r0b0t:{SECRET}@host.example/x?token={SECRET}",
    "no port": f"https://r0b0t:{SECRET}@host.example:x/y?token={SECRET}",
}


@pytest.mark.parametrize("form", URLS)
@pytest.mark.parametrize("place", PLACES)
def test_a_secret_in_a_url_is_not_shown(place: str, form: str) -> None:
    """Neither in the error, where the setting refuses it, nor among the settings in force. Whose it is can be seen, but of a webhook, whose path is secret too."""
    try:
        settings = load(None, {}, PLACES[place](URLS[form]))
    except ConfigError as error:
        shown = str(error)
        assert place.split(".")[0] in shown
    else:
        shown = "\n".join(in_force(settings).values())
    assert SECRET not in shown
    assert "r0b0t" not in shown
    assert place.startswith("webhook") or "host.example" in shown


@pytest.mark.parametrize("form", URLS)
def test_a_secret_in_a_mirrors_url_is_not_shown(form: str) -> None:
    """On the command line, for ``mirror configure``."""
    with pytest.raises(ValueError, match=r"host\.example") as raised:
        Address.parse(URLS[form])
    assert SECRET not in str(raised.value)


def test_every_setting_that_takes_a_url_is_in_the_table() -> None:
    """By what its description says."""
    takes = {key for key, description in _described(Settings) if re.search(r"\bURLs?\b", description)}
    assert takes - _NO_URL <= PLACES.keys()
    assert len(takes) > 8


def _described(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.description or ""
        for below in _models(field.annotation):
            yield from _described(below, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in typing.get_args(annotation):
        yield from _models(one)


@pytest.mark.parametrize("text", ["", "alpine:3.20", "/var/lib/a?b#c", "user@example.com", "sha256:ab", "https://host.example/x"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    """Paths, names and URLs without anything secret."""
    assert redacted(text) == text
