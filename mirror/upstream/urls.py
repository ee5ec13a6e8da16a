"""Parses URLs that upstream sends (redirects, token realms, links to the next page of a list), and says which of them may get credentials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from yarl import URL

from mirror.errors import UpstreamInvalid

_LONGEST = 16 * 1024
_UNSAFE = re.compile(r"[^\x21-\x7e]+")
_AUTHORITY = re.compile(r"^((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)([^/?#]+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOSTS = {"docker.io": "registry-1.docker.io"}
"""The hosts of registries whose name is another one."""


def parse_url(text: str, said_by: str, base: URL | None = None) -> URL:
    """Parses an absolute http or https URL, or one relative to `base` (RFC 3986, section 5).

    Spaces and non-ASCII characters are escaped, as in Go's net/url. Existing escapes are kept, since signatures cover them. Internationalized hosts are encoded by
    IDNA. Raises UpstreamInvalid, which names `said_by`.
    """
    problem = "points to something that is no URL"
    text = text.strip(" ")
    if not text or len(text) > _LONGEST or _CONTROL.search(text):
        raise UpstreamInvalid(f"{said_by} {problem}")
    try:
        text = _AUTHORITY.sub(
            lambda match: match[0] if match[0].isascii() else match[1] + URL(f"//{match[2]}").raw_authority, text
        )
        url = URL(_UNSAFE.sub(lambda match: quote(match[0], safe="", errors="surrogateescape"), text), encoded=True)
        if base is not None and not url.scheme:
            url = base.join(url)
        # yarl validates some parts only when they are read.
        usable = (
            url.scheme in ("http", "https")
            and bool(url.host)
            and bool(url.port)
            and bool(url.raw_path)
            and bool(str(url.with_user(None)))
        )
    except (ValueError, TypeError):
        usable = False
    if not usable:
        raise UpstreamInvalid(f"{said_by} {problem} with http or https, a host and a port")
    return url.with_fragment(None)


def same_origin(one: URL, other: URL) -> bool:
    """Returns whether scheme, host and port are the same (RFC 6454, section 5)."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def may_get_credentials(owner: URL, url: URL) -> bool:
    """Returns whether the credentials for `owner` may be sent to `url`: to the same origin, or from http to https on the same host, both at default ports."""
    usual = owner.is_default_port() and url.is_default_port()
    return same_origin(owner, url) or (owner.host == url.host and usual and (owner.scheme, url.scheme) == ("http", "https"))


def is_own(registry: str, url: URL) -> bool:
    """Returns whether a URL is on the registry's own host, which its name is: a host, or a host and a port."""
    host = _HOSTS.get(registry, registry)
    # Not `host`, which is decoded: a registry's name is in ASCII.
    return host in (url.raw_host, f"{url.raw_host}:{url.port}") or url.raw_host == registry


def gets_credentials(registry: str, url: URL, urls: Sequence[URL]) -> bool:
    """Returns whether an endpoint, one of `urls`, may get the registry's credentials: its own one, or else the first. Others are often public mirrors."""
    return same_origin(url, next((own for own in urls if is_own(registry, own)), urls[0]))
