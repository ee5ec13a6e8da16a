"""The names by which clients ask for images, made full: ``docker.io/library/redis`` whichever way they say it."""

from __future__ import annotations

import re
from urllib.parse import unquote

_DOCKER = "docker.io"
_ALIASES = dict.fromkeys(("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"), _DOCKER)
_IMAGE = re.compile(
    r"(?P<repository>[a-z0-9.:\[\]-]+(?:/[a-z0-9._-]+)+)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})|@(?P<digest>[a-z0-9]+:[0-9a-f]+))"
)
_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def split_image(name: str) -> tuple[str, str] | None:
    """Splits the full name of an image into its repository, and its tag or digest; None if it is no such name."""
    match = _IMAGE.fullmatch(name)
    return (match["repository"], match["tag"] or match["digest"]) if match else None


def short(repository: str) -> str:
    """A repository's name as people write it for Docker."""
    for prefix in (f"{_DOCKER}/library/", f"{_DOCKER}/"):
        if repository.startswith(prefix):
            return repository[len(prefix) :]
    return repository


def full(name: str, namespace: str = "") -> str:
    """Returns a repository's full name.

    Clients name the registry before the path, in the query's `namespace` (containerd's ``ns``), in both (buildkit), or not at all: then Docker Hub is meant.
    """
    first, slash, rest = name.partition("/")
    named = _registry(first) if slash and _looks_like_registry(first) else ""
    registry = _registry(namespace) or named or _DOCKER
    path = rest if named == registry else name
    return f"{registry}/library/{path}" if registry == _DOCKER and "/" not in path else f"{registry}/{path}"


def segments_of(path: str) -> tuple[list[str], str]:
    """Splits the path of a URL after its ``v2``. A registry's name before that, as in ``/ghcr.io/v2/owner/image/…``, is the second value."""
    segments = [unquote(segment) for segment in path.lstrip("/").split("/")]
    if len(segments) > 1 and segments[1] == "v2" and _looks_like_registry(segments[0]):
        return segments[1:], segments[0]
    return segments, ""


def _looks_like_registry(component: str) -> bool:
    return "." in component or ":" in component or component == "localhost"


def _registry(name: str) -> str:
    lower = name.strip().lower()
    return _ALIASES.get(lower, lower)
