"""What a request's target means: which resource, of which repository, in which registry.

Clients name the registry in four ways (docs/clients.md has the table):

- ``/v2/library/alpine/…``: the default registry (dockerd's registry-mirrors);
- ``/v2/owner/image/…?ns=ghcr.io``: containerd, buildkit, k3s, nerdctl;
- ``/v2/ghcr.io/owner/image/…``: podman, or the mirror named in an image's reference;
- ``/ghcr.io/v2/owner/image/…``: a mirror's URL with a path.

Resources: OCI distribution-spec 1.1, "Endpoints".
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

from mirror.errors import RegistryUnknown, RequestInvalid, RouteUnknown, Unsupported
from mirror.names import Digest, Reference, Repository, is_registry_name, looks_like_registry, parse_reference

_LONGEST_KEPT = 512
_MOST_FIELDS = 20


class Resource(Enum):
    BASE = "base"
    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"
    CATALOG = "catalog"
    UPLOAD = "upload"
    PAGE = "page"


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed target. `repository` is None for BASE, CATALOG and PAGE; `reference` where the resource has none."""

    resource: Resource
    path: str
    registry: str | None = None
    """As the client named it; None where it did not."""
    repository: Repository | None = None
    reference: Reference | None = None
    query: dict[str, str] = field(default_factory=dict)


class Targets:
    """Parses request targets for the registries there are."""

    def __init__(self, registries: Collection[str], default: str, aliases: dict[str, str]) -> None:
        """`aliases` are other names of registries: index.docker.io and the like."""
        self._registries = registries
        self._default = default
        self._aliases = aliases
        self._cached: Callable[[str], Target] = lru_cache(4096)(self._parse)

    def parse(self, target: str) -> Target:
        """Parses the request line's target as it came, in origin or absolute form. Raises Invalid, Unknown."""
        return self._cached(target) if len(target) <= _LONGEST_KEPT else self._parse(target)

    def _parse(self, target: str) -> Target:
        if not target.startswith("/"):
            # Absolute form (RFC 9112, section 3.2.2): scheme and authority are not looked at.
            _, scheme, rest = target.partition("://")
            slash = rest.find("/")
            if not scheme or slash < 0:
                raise RequestInvalid("the request's target is not a path")
            target = rest[slash:]
        raw_path, _, raw_query = target.partition("?")
        segments = [_decoded(segment) for segment in raw_path[1:].split("/")]
        query = _query(raw_query)
        path = "/" + "/".join(segments)
        if segments[0] == "v2":
            return self._api(path, None, segments[1:], query)
        if len(segments) > 1 and segments[1] == "v2" and looks_like_registry(segments[0]):
            return self._api(path, self._known(segments[0]), segments[2:], query)
        return Target(Resource.PAGE, path, query=query)

    def _api(self, path: str, registry: str | None, rest: list[str], query: dict[str, str]) -> Target:
        if registry is None and (namespace := query.get("ns")):
            registry = self._known(namespace)
        match rest:
            case [] | [""]:
                return Target(Resource.BASE, path, registry, query=query)
            case ["_catalog"]:
                return Target(Resource.CATALOG, path, registry, query=query)
            case [*name, "manifests", reference] if name:
                return self._target(Resource.MANIFEST, path, registry, name, parse_reference(reference), query)
            case [*name, "blobs", "uploads"] | [*name, "blobs", "uploads", _] if name:
                return self._target(Resource.UPLOAD, path, registry, name, None, query)
            case [*name, "blobs", digest] if name:
                return self._target(Resource.BLOB, path, registry, name, Digest.parse(digest), query)
            case [*name, "tags", "list"] if name:
                return self._target(Resource.TAGS, path, registry, name, None, query)
            case [*name, "referrers", digest] if name:
                return self._target(Resource.REFERRERS, path, registry, name, Digest.parse(digest), query)
        raise RouteUnknown("no such resource: /v2/<name>/manifests|blobs|tags|referrers/… are (OCI distribution-spec)")

    def _target(
        self,
        resource: Resource,
        path: str,
        registry: str | None,
        name: list[str],
        reference: Reference | None,
        query: dict[str, str],
    ) -> Target:
        if registry is None and looks_like_registry(name[0]):
            registry, name = self._known(name[0]), _without_version(name[1:])
        elif registry is not None and len(name) > 1 and self._canonical(name[0]) == registry:
            # buildkit sends `ns` and also keeps a mirror's path, which comes after /v2/.
            name = _without_version(name[1:])
        registry = registry or self._default
        if registry == "docker.io" and len(name) == 1:
            name = ["library", *name]
        return Target(resource, path, registry, Repository.parse(registry, "/".join(name)), reference, query)

    def _canonical(self, name: str) -> str:
        """A registry's name as it is set: without the port that https has anyhow, and for other names of it its own."""
        name = name.lower()
        if name not in self._registries:
            name = name.removesuffix(":443")
        return self._aliases.get(name, name)

    def _known(self, name: str) -> str:
        canonical = self._canonical(name)
        if canonical in self._registries:
            return canonical
        if not is_registry_name(canonical):
            raise RegistryUnknown("the registry's name (ns, or the first part of the path) is not a host name")
        raise RegistryUnknown.named(canonical)


def _without_version(name: list[str]) -> list[str]:
    """A repository's name without the ``v2`` of a registry's whole URL, put where its name alone was meant to be."""
    return name[1:] if len(name) > 1 and name[0] == "v2" else name


def _decoded(segment: str) -> str:
    if "%" not in segment:
        return segment
    try:
        decoded = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise RequestInvalid("a percent-encoding in the path is not UTF-8") from None
    if "/" in decoded or any(ord(character) < 32 for character in decoded):
        raise RequestInvalid("the path has a percent-encoded '/' or control character")
    return decoded


def _query(raw: str) -> dict[str, str]:
    if not raw:
        return {}
    try:
        return dict(parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise RequestInvalid(f"the query is not UTF-8, or has more than {_MOST_FIELDS} fields") from None


def refuse_write(method: str) -> Unsupported:
    """The answer to pushes and deletes."""
    return Unsupported(f"{method} is not supported: this is a pull-through mirror; push to the registry itself")
