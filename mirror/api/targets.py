"""Parses request targets: which resource is meant, of which repository, in which registry.

Clients name the registry in four ways (docs/clients.md has the table):

- ``/v2/library/alpine/…``: the default registry (dockerd's registry-mirrors);
- ``/v2/owner/image/…?ns=ghcr.io``: containerd, buildkit, k3s, nerdctl;
- ``/v2/ghcr.io/owner/image/…``: podman, or the mirror named in an image's reference;
- ``/ghcr.io/v2/owner/image/…``: a mirror's URL with a path.

Bundles are beside that: ``/export/docker.io/library/alpine:3.20.tar?platform=linux/amd64`` has one image, ``/export/lab.tar?images=redis:7,python:3.12`` those
that are listed, where ``*`` stands for all.

Before the first and the last of these, ``/t/TOKEN`` may stand: a secret path, for clients that send nothing else.

Resources: OCI distribution-spec 1.1, "Endpoints".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

from mirror.errors import NameInvalid, RegistryUnknown, RequestInvalid, RouteUnknown
from mirror.manifests import is_platform
from mirror.names import Digest, Reference, Repository, is_registry_name, looks_like_registry, parse_image, parse_reference

_SECRET_PART = "t"  # noqa: S105  no secret, but what comes before one
_SECRET_PATH = re.compile(r"(?<![A-Za-z0-9._%-])(?:(?:t|%74)/+)+[^/?#\s\"']+", re.IGNORECASE)
_LONGEST_KEPT = 512
_MOST_FIELDS = 20
_TAR = ".tar"
_TRAILING_DOT = re.compile(r"([^:]+)\.(|:\d+)")
"""A host name from the root of DNS on, with or without a port."""


class Resource(Enum):
    BASE = "base"
    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"
    CATALOG = "catalog"
    UPLOAD = "upload"
    EXPORT = "export"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed target. `repository` is None for BASE, CATALOG, OTHER and a bundle of all images; `reference` is None for resources without one."""

    resource: Resource
    path: str
    registry: str | None = None
    """The registry that the client named; None if it named none."""
    repository: Repository | None = None
    reference: Reference | None = None
    query: dict[str, str] = field(default_factory=dict)
    upload: str = ""
    """The id of an upload in progress."""
    tags: tuple[str, ...] = ()
    """The tags in the query, each once."""
    secret: str | None = field(default=None, repr=False)
    """The token of a secret path, ``/t/TOKEN/v2/…``; `path` is without it."""

    @property
    def prefix(self) -> str:
        """What stands before `path` in the URLs of this client."""
        return "" if self.secret is None else f"/{_SECRET_PART}/{self.secret}"


class Targets:
    """Parses request targets; remembers short ones."""

    def __init__(self, registries: Collection[str], default: str, aliases: dict[str, str]) -> None:
        """`registries` are those that are configured; `default` is meant where a client names none; `aliases` are other names, such as index.docker.io."""
        self._default = default
        self._aliases = aliases
        self.take(registries)

    def take(self, registries: Collection[str]) -> None:
        """Other registries are configured from now on."""
        self._registries = registries
        self._cached: Callable[[str], Target] = lru_cache(4096)(self._parse)

    def parse(self, target: str) -> Target:
        """Parses the target of a request line, in origin or absolute form (RFC 9112, section 3.2). Raises Invalid, Unknown."""
        return self._cached(target) if len(target) <= _LONGEST_KEPT else self._parse(target)

    def _parse(self, target: str) -> Target:
        if not target.startswith("/"):
            authority = target_authority(target)
            if authority is None:
                raise RequestInvalid("the request's target is not a path")
            rest = target.partition("://")[2][len(authority) :]
            target = rest if rest.startswith("/") else f"/{rest}"
        raw_path, _, raw_query = target.partition("?")
        # A mirror's URL that ends in a slash makes "//v2/".
        segments = [_decoded(segment) for segment in raw_path.lstrip("/").split("/")]
        query = _query(raw_query)
        if segments[0] == _SECRET_PART and len(segments) > 1:
            rest = raw_path.lstrip("/").split("/", 2)[2] if "v2" in segments[2:4] else ""
            found = self._parse(f"/{rest}{'?' if raw_query else ''}{raw_query}")
            if found.resource is Resource.OTHER or found.secret is not None:
                raise RouteUnknown(f"after /{_SECRET_PART}/TOKEN comes /v2/…, or the name of a registry and /v2/…")
            return replace(found, secret=segments[1])
        path = "/" + "/".join(segments)
        if segments[0] == "v2":
            return self._with_tags(self._api(path, None, segments[1:], query), raw_query)
        if len(segments) > 1 and segments[0] == "export" and path.endswith(_TAR):
            return self._export(path, "/".join(segments[1:]).removesuffix(_TAR), query)
        if len(segments) > 1 and segments[1] == "v2" and looks_like_registry(segments[0]):
            return self._with_tags(self._api(path, self._known(segments[0]), segments[2:], query), raw_query)
        return Target(Resource.OTHER, path, query=query)

    def _with_tags(self, target: Target, raw_query: str) -> Target:
        if target.resource is not Resource.MANIFEST or "tag" not in target.query:
            return target
        tags = tuple(dict.fromkeys(value for name, value in parse_qsl(raw_query) if name == "tag"))
        return replace(target, tags=tags)

    def repository(self, name: str, namespace: str | None) -> Repository:
        """Returns the repository that a client names as in the path of a URL, with the `ns` of its query. Raises Invalid, RegistryUnknown."""
        target = self._api("", self._known(namespace) if namespace else None, [*name.split("/"), "tags", "list"], {})
        if target.repository is None:
            raise NameInvalid(f"{name[:80]!r} is not a repository name")
        return target.repository

    def _export(self, path: str, name: str, query: dict[str, str]) -> Target:
        """Where the query lists images, the path is only the name of a file, and the first one is the target's."""
        listed = [one for one in query.get("images", "").split(",") if one.strip()]
        if listed == ["*"]:
            return Target(Resource.EXPORT, path, query=query)
        repository, reference = parse_image(listed[0] if listed else name, self._default, self._aliases)
        return Target(Resource.EXPORT, path, repository.registry, repository, reference, query)

    def image(self, name: str) -> tuple[Repository, Reference]:
        """Parses an image's name as people write it. Raises Invalid."""
        return parse_image(name, self._default, self._aliases)

    def _api(self, path: str, registry: str | None, rest: list[str], query: dict[str, str]) -> Target:
        if registry is None and (namespace := query.get("ns")):
            registry = self._known(namespace)
        if registry is None and rest[-1:] in (["_catalog"], [""]) and looks_like_registry(rest[0]):
            # Its base or catalog, with the registry's name where repositories have it.
            registry, rest = self._known(rest[0]), rest[1:]
        if rest[:1] == ["v2"] and rest[1:] in ([], [""], ["_catalog"]):
            # A mirror's URL that ends in /v2 already.
            rest = rest[1:]
        match rest:
            case [] | [""]:
                return Target(Resource.BASE, path, registry, query=query)
            case ["_catalog"]:
                return Target(Resource.CATALOG, path, registry, query=query)
            case [*name, "manifests", reference] if name:
                return self._target(Resource.MANIFEST, path, registry, name, parse_reference(reference), query)
            case [*name, "blobs", "uploads"] if name:
                return self._target(Resource.UPLOAD, path, registry, name, None, query)
            case [*name, "blobs", "uploads", upload] if name:
                return replace(self._target(Resource.UPLOAD, path, registry, name, None, query), upload=upload)
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
        if registry is not None and len(name) > 1 and self._canonical(name[0]) == registry:
            # buildkit sends `ns` and also keeps a mirror's path, which comes after /v2/.
            name = _without_version(name[1:])
        registry = registry or self._default
        if registry == "docker.io":
            if len(name) > 2 and name[0] in ("v1", "v2"):
                # Docker Hub's names have two parts: this is the end of a URL such as https://index.docker.io/v1/.
                name = name[1:]
            if len(name) == 1:
                name = ["library", *name]
        return Target(resource, path, registry, Repository.parse(registry, "/".join(name)), reference, query)

    def _canonical(self, name: str) -> str:
        """The name under which a registry is configured. `name` may be in any case, an alias, or a URL; it may have the default port or a trailing dot."""
        scheme, _, rest = name.strip().lower().rpartition("://")
        host, _, path = rest.partition("/")
        if path.strip("/") not in ("", "v1", "v2"):
            return name
        if host not in self._registries:
            host = host.removesuffix(":80" if scheme == "http" else ":443")
        if (match := _TRAILING_DOT.fullmatch(host)) is not None:
            host = match[1] + match[2]
        return self._aliases.get(host, host)

    def _known(self, name: str) -> str:
        canonical = self._canonical(name)
        if canonical in self._registries:
            return canonical
        if not is_registry_name(canonical):
            raise RegistryUnknown(
                f"{name[:100]!r}, which is in the place of a registry's name (ns, or the path's first part), is not a host name"
            )
        raise RegistryUnknown.named(canonical)


def without_secret(text: str) -> str:
    """What a client has sent, without the token of a secret path: for logs and messages."""
    return _SECRET_PATH.sub(f"{_SECRET_PART}/…", text)


def target_authority(target: str) -> str | None:
    """The authority of a request target in absolute form (RFC 9112, section 3.2.2), such as ``mirror.lan:5000``; None for other forms."""
    if target.startswith("/"):
        return None
    scheme, separator, rest = target.partition("://")
    return re.split("[/?#]", rest, maxsplit=1)[0] if separator and scheme.lower() in ("http", "https") else None


def _without_version(name: list[str]) -> list[str]:
    """A repository's name without a leading ``v2``: some write a registry's URL with it where its name is expected."""
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


def platforms_in(text: str) -> list[str] | None:
    """The platforms of a query, with commas between them; None for all that are cached. Raises RequestInvalid."""
    platforms = [platform.strip().lower() for platform in text.split(",") if platform.strip()]
    for platform in platforms:
        if not is_platform(platform):
            raise RequestInvalid(f"a platform such as linux/arm64 is expected; found {platform[:80]!r}")
    return platforms or None
