"""The names a registry knows, parsed once at the edge into frozen values.

A *repository* lives in a *registry* (``docker.io``) under a *path* (``library/alpine``). Inside it, a
*reference* is either a *tag* (``3.20``, which may move) or a *digest* (``sha256:…``, which names content and never
changes). Below the edge no raw string stands for any of them.

Grammar: OCI distribution-spec 1.1, "Pulling manifests" (names, tags); OCI image-spec 1.1, "Digests".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.errors import DigestInvalid, NameInvalid, TagInvalid

if TYPE_CHECKING:
    from hashlib import _Hash

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_REGISTRY = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?|\[[0-9a-f:]+\](?::[0-9]{1,5})?")
_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")
_NUMBER = re.compile(r"(\d+)")

# "Many clients impose a limit of 255 characters on the length of the concatenation of hostname, /, and name"
_MAX_NAME = 255


def _shown(value: str) -> str:
    """A client's text, fit for an error message: quoted, control characters escaped, bounded."""
    return repr(value if len(value) <= 80 else value[:77] + "...")


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository of one registry, for example ``docker.io`` and ``library/alpine``."""

    registry: str
    path: str

    @classmethod
    def parse(cls, registry: str, path: str) -> Repository:
        """Checks `path` against the grammar. Raises NameInvalid."""
        if len(registry) + 1 + len(path) > _MAX_NAME:
            raise NameInvalid(f"the repository name is longer than {_MAX_NAME} characters: {_shown(path)}")
        if not _PATH.fullmatch(path):
            raise NameInvalid(
                f"{_shown(path)} is not a repository name: lower-case letters and digits, parts separated by"
                " single '.', '_', '__' or '-' and by '/'"
            )
        return cls(registry, path)

    def __str__(self) -> str:
        return f"{self.registry}/{self.path}"


@dataclass(frozen=True, slots=True)
class Tag:
    """A name within a repository that may point to other content tomorrow."""

    value: str

    @classmethod
    def parse(cls, value: str) -> Tag:
        """Raises TagInvalid."""
        if not _TAG.fullmatch(value):
            raise TagInvalid(
                f"{_shown(value)} is not a tag: 1 to 128 letters, digits, '.', '_' and '-', not beginning with '.' or '-'"
            )
        return cls(value)

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Digest:
    """The name of content: an algorithm and the lower-case hex of its hash. sha256 and sha512 are known."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, value: str) -> Digest:
        """Raises DigestInvalid for another shape, an unknown algorithm, or a wrong length."""
        algorithm, colon, encoded = value.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if not colon or length is None:
            raise DigestInvalid(f"{_shown(value)} is not a digest: sha256:<64 hex> or sha512:<128 hex>")
        if len(encoded) != length or not _HEX.fullmatch(encoded):
            raise DigestInvalid(f"{_shown(value)} is not a digest: {algorithm} has {length} lower-case hex digits")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Digest:
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def hasher(self) -> _Hash:
        """A fresh hash of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


Reference = Tag | Digest


def parse_reference(value: str) -> Reference:
    """A tag or a digest: a tag has no colon. Raises TagInvalid, DigestInvalid."""
    return Digest.parse(value) if ":" in value else Tag.parse(value)


def parse_image(text: str, default: str, aliases: Mapping[str, str]) -> tuple[Repository, Reference]:
    """An image as people write it, ``[REGISTRY/]PATH[:TAG][@DIGEST]``: `default` is the registry that is meant without one, and ``latest`` the tag.

    With a tag and a digest the digest counts, as it does for Docker. Grammar: distribution/reference, "splitDockerDomain"; `aliases` are other names
    of registries. Raises NameInvalid, TagInvalid, DigestInvalid.
    """
    name, at, digest = text.strip().partition("@")
    # A colon before the last slash is a port's.
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    repository = parse_repository(f"{head}{slash}{last}", default, aliases)
    parsed = Tag.parse(tag if colon else "latest")
    return repository, Digest.parse(digest) if at else parsed


def parse_repository(text: str, default: str, aliases: Mapping[str, str]) -> Repository:
    """A repository as people write it, ``[REGISTRY/]PATH``; ``redis`` is ``docker.io/library/redis``. Raises NameInvalid."""
    name = text.strip()
    if "://" in name:
        raise NameInvalid(f"{_shown(text)} is a URL: an image is named without it, such as ghcr.io/owner/image:1.0")
    first, slash, path = name.partition("/")
    if not slash or not looks_like_registry(first):
        registry, path = default, name
    else:
        registry = first.lower()
    registry = aliases.get(registry, registry)
    if not is_registry_name(registry):
        raise NameInvalid(f"{_shown(first)} is not the name of a registry: a host such as ghcr.io or registry.lan:5000")
    head, colon, _ = path.rpartition(":")
    if colon or "@" in path:
        raise NameInvalid(f"{_shown(text)} has a tag or a digest: only the repository is expected, such as {head or 'redis'}")
    if registry == "docker.io" and "/" not in path:
        # Docker's own images (distribution/reference, "officialRepoPrefix").
        path = f"library/{path}"
    return Repository.parse(registry, path)


def parse_search(text: str, default: str, aliases: Mapping[str, str]) -> tuple[str, str]:
    """Splits a search term as people write it, ``[REGISTRY/]TERM``, into a registry and what to search for there, without a tag or digest."""
    term = " ".join(text.split())
    first, slash, rest = term.partition("/")
    registry = aliases.get(first.lower(), first.lower())
    if not slash or not looks_like_registry(first) or not is_registry_name(registry):
        registry, rest = default, term
    rest = rest.partition("@")[0].partition(":")[0]
    return registry, rest.removeprefix("library/") if registry == "docker.io" else rest


def short_name(repository: Repository) -> str:
    """Returns a repository's name as people write it, such as ``redis`` for ``docker.io/library/redis``."""
    return repository.path.removeprefix("library/") if repository.registry == "docker.io" else str(repository)


def natural(tag: str) -> tuple[bool, list[tuple[bool, int, str]], str]:
    """Returns a sort key: numbers in numeric order, and what is not a version first."""
    version = tag[1:] if tag[:1] == "v" else tag
    parts = [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in _NUMBER.split(version) if part]
    return version[:1].isdigit(), parts, tag


def image_name(repository: Repository, reference: Reference) -> str:
    """An image's full name, as people write it."""
    return f"{repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"


def is_repository_path(value: str) -> bool:
    """True for the shape of a repository's name, or of whole parts of one."""
    return len(value) <= _MAX_NAME and _PATH.fullmatch(value) is not None


def is_registry_name(value: str) -> bool:
    """True for the shape of a registry's name: a lower-case host, an optional port."""
    return len(value) <= _MAX_NAME and _REGISTRY.fullmatch(value) is not None


def looks_like_registry(component: str) -> bool:
    """True where a first path component must mean a registry, by the rule of Docker's reference grammar.

    It does when it has a dot or a colon or is ``localhost`` (distribution/reference, "splitDockerDomain").
    """
    return "." in component or ":" in component or component == "localhost"
