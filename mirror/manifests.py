"""What a manifest is, and what it names.

A *manifest* is a small JSON document that names the blobs of one image; an *index* (Docker: manifest list) names manifests, one per
platform. Both are content: they are kept byte for byte as upstream gave them, because their digest is their name.

Media types and fields: OCI image-spec 1.1, "manifest.md" and "image-index.md"; Docker's, distribution's "manifest v2 schema 2".
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from platform import machine
from typing import Any

from mirror.errors import DigestInvalid, UpstreamInvalid
from mirror.names import Digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"

MEDIA_TYPES = (
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_ARTIFACT,
    DOCKER_SCHEMA1_SIGNED,
    DOCKER_SCHEMA1,
)
"""All that are asked for upstream, so that what is cached does not depend on which client came first."""

ACCEPT = ", ".join(MEDIA_TYPES)
ACCEPT_ANY = f"{ACCEPT}, */*"
"""For a manifest by digest: its type was chosen by whoever named the digest."""

INDEXES = (OCI_INDEX, DOCKER_LIST)
"""Those of them that name manifests."""

MAX_SIZE = 4 * 1024 * 1024
"""Bytes. "A manifest … SHOULD be at most 4 megabytes" (distribution-spec 1.1, "Pushing Manifests")."""

COSIGN = (".sig", ".att", ".sbom")
"""Ends of the tags under which cosign keeps what refers to an image: ``sha256-<hex>.sig`` (cosign, "SIGNATURE_SPEC.md")."""
_ELSEWHERE = ("foreign", "nondistributable")
"""In media types of layers that registries do not have (image-spec 1.1, "layer.md")."""
_ATTESTS = "vnd.docker.reference.digest"
"""The annotation by which an entry of an index attests another (buildkit, "attestation-storage.md")."""

_SAFE_TYPE = re.compile(r"application/(?:[a-z0-9.+-]+\+json|json|octet-stream|vnd\.[a-z0-9._+-]+)(?<!xml)(?<!html)")
"""Types that no browser runs or renders. What upstream says is served from the dashboard's own origin."""

_PLATFORM = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){1,2}")
"""What is taken for a platform in what upstream says."""
_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
"""Machine names of ``uname -m`` and of images (image-spec 1.1, "image-index.md": GOARCH), where they differ."""
_REQUESTED_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9.]+)?")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What is known of content without having it. `size` is in bytes."""

    media_type: str
    digest: Digest
    size: int
    endpoint: str = field(default="", compare=False)
    """The URL of the endpoint that said so; empty if none did."""
    age: int = field(default=0, compare=False)
    """For how many seconds it has known that: more than 0 if it is a mirror."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's bytes exactly as upstream gave them, and their name."""

    media_type: str
    digest: Digest
    body: bytes
    endpoint: str = field(default="", compare=False)
    """The URL of the endpoint that it came from; empty if it comes from the cache."""
    age: int = field(default=0, compare=False)
    """As in `Descriptor`, of a manifest by its tag."""
    told: bool = field(default=True, compare=False)
    """False if another mirror or a bucket gave it by its digest, which may have it of another repository."""

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.body), self.endpoint, self.age)


def media_type_of(body: bytes, content_type: str | None, *, verified: bool = False) -> str:
    """The media type of a manifest, from its Content-Type and its own ``mediaType``.

    With `verified`, a digest vouches for `body`: then its own ``mediaType`` counts, whatever the Content-Type says, and types that are not known here are
    passed through. Without, raises UpstreamInvalid where the two disagree and for unknown types (another site's JSON). Raises UpstreamInvalid for what is not
    a JSON object with a media type that is safe to serve (HTML from a captive portal).
    Parameters of the Content-Type are dropped: "The registry SHOULD NOT include parameters on the Content-Type header."
    """
    document = _document(body)
    said = (content_type or "").partition(";")[0].strip().lower()
    own = document.get("mediaType")
    if own is not None and not isinstance(own, str) and not verified:
        raise UpstreamInvalid("the manifest's mediaType is not a string")
    own = own if isinstance(own, str) else ""
    if verified and _SAFE_TYPE.fullmatch(own):
        return own
    if said in MEDIA_TYPES:
        if own in MEDIA_TYPES and own != said:
            raise UpstreamInvalid(f"the manifest says it is {own}, its Content-Type says {said}")
        return said
    if own in MEDIA_TYPES:
        return own
    # Plain file servers and some old registries say application/json or octet-stream: the fields decide.
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1_SIGNED if "signatures" in document else DOCKER_SCHEMA1
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    if isinstance(document.get("layers"), list) and isinstance(document.get("config"), dict):
        return OCI_MANIFEST
    if verified and _SAFE_TYPE.fullmatch(said):
        return said
    raise UpstreamInvalid(f"not a manifest of a known kind (Content-Type {said or 'absent'!r})")


def payload_of(body: bytes) -> bytes | None:
    """What the digest of a signed schema 1 manifest names: the document without its signatures. None for what is not one.

    Each signature says how many bytes of `body` come first and what ends them ("formatLength", "formatTail"; distribution's "manifest v2 schema 1",
    "Signed Manifests"). Nothing but the signatures may differ between the two. Whoever calls verifies the payload by its digest.
    """
    document = _readable(body)
    signatures = document.get("signatures")
    if document.get("schemaVersion") != 1 or not isinstance(signatures, list):
        return None
    try:
        protected = json.loads(_decoded(signatures[0]["protected"]))
        length, tail = protected["formatLength"], _decoded(protected["formatTail"])
        payload = body[:length] + tail if isinstance(length, int) and 0 < length <= len(body) else b""
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    del document["signatures"]
    return payload if _readable(payload) == document else None


def _decoded(text: str) -> bytes:
    """base64url without padding (RFC 7515, appendix C). Raises TypeError, ValueError."""
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


def children_of(body: bytes) -> tuple[list[Digest], list[Digest]]:
    """The digests that a manifest names: (manifests, blobs). Entries that make no sense are passed over.

    Foreign layers and embedded data are listed too: whether anybody asks for them is the client's affair.
    """
    try:
        document = _document(body)
    except UpstreamInvalid:
        return [], []
    manifests = _digests(document.get("manifests"))
    blobs = _digests([document.get("config")]) + _digests(document.get("layers")) + _digests(document.get("blobs"))
    for layer in document.get("fsLayers") or () if isinstance(document.get("fsLayers"), list) else ():
        if isinstance(layer, dict):
            blobs += _digests([{"digest": layer.get("blobSum")}])
    return manifests, blobs


def is_own(body: bytes, digest: Digest) -> bool:
    """Returns whether a registry that has this manifest must have what it names with `digest`: not where it is only named as a layer that is elsewhere, by its
    media type or its URLs (image-spec 1.1, "layer.md" and "descriptor.md")."""
    document = _readable(body)
    listed = [entry for name in ("layers", "manifests", "blobs") for entry, _ in _described(document.get(name))]
    listed += [entry for entry, _ in _described([document.get("config")])]
    named = any(
        entry["digest"] == str(digest) and not entry.get("urls") and not is_elsewhere(str(entry.get("mediaType")))
        for entry in listed
    )
    return named or any(descriptor.digest == digest for _, descriptor in _described(document.get("fsLayers"), "blobSum"))


def embedded_in(body: bytes, digest: Digest) -> bytes | None:
    """The content that a manifest embeds in its descriptor of `digest`, whose digest and size it has; None where it embeds none (image-spec 1.1, "Embedded Content")."""
    document = _readable(body)
    listed = [entry for name in ("layers", "manifests", "blobs") for entry, _ in _described(document.get(name))]
    for entry in (document.get("config"), document.get("subject"), *listed):
        if isinstance(entry, dict) and entry.get("digest") == str(digest) and isinstance(entry.get("data"), str):
            try:
                data = base64.b64decode(entry["data"], validate=True)
            except ValueError:
                continue
            if len(data) == entry.get("size") and Digest.of(data, digest.algorithm) == digest:
                return data
    return None


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of an index: a manifest, and the platform that it is for, as ``os/architecture[/variant]``; None where it says none."""

    descriptor: Descriptor
    platform: str | None


def entries_of(body: bytes) -> list[Entry]:
    """What an index lists; nothing for what is no index."""
    return [
        Entry(descriptor, platform_in(entry.get("platform")))
        for entry, descriptor in _described(_readable(body).get("manifests"))
    ]


def attestations_in(body: bytes) -> list[tuple[Digest, Digest]]:
    """The entries of an index that attest another one, each with the digest of that."""
    found = []
    for entry, descriptor in _described(_readable(body).get("manifests")):
        annotations = entry.get("annotations")
        for subject in _digests([{"digest": annotations.get(_ATTESTS)}] if isinstance(annotations, dict) else ()):
            found.append((descriptor.digest, subject))
    return found


def blobs_of(body: bytes) -> tuple[Descriptor | None, list[Descriptor]]:
    """The configuration of a single manifest, where it has one, and its layers in order, each once for every time that it is listed.

    The size in bytes is what the manifest says; 0 where it says nothing (schema 1).
    """
    document = _readable(body)
    configs = [descriptor for _, descriptor in _described([document.get("config")])]
    layers = [
        descriptor
        for name in ("layers", "blobs", "fsLayers")
        for _, descriptor in _described(document.get(name), "blobSum" if name == "fsLayers" else "digest")
    ]
    return (configs[0] if configs else None), layers


def is_elsewhere(media_type: str) -> bool:
    """Returns whether layers of a media type are those that registries do not have (image-spec 1.1, "Non-Distributable Layers")."""
    return any(word in media_type for word in _ELSEWHERE)


def is_platform(text: str) -> bool:
    """Returns whether what somebody asks for has the form of a platform, ``linux/amd64`` or ``linux/arm/v7`` (image-spec 1.1, "image-index.md")."""
    return _REQUESTED_PLATFORM.fullmatch(text) is not None


def platform_named(text: str) -> str:
    """Returns a platform as images name it; without an operating system, Linux is meant. Raises ValueError."""
    named = text.strip().lower() if "/" in text else f"linux/{text.strip().lower()}"
    if not is_platform(named):
        raise ValueError(f"a platform such as linux/arm64 or linux/arm/v7 is expected; found {text[:80]!r}")
    return named


def this_platform() -> str:
    """Returns the platform of this machine's containers."""
    architecture = machine().lower()
    return f"linux/{_MACHINES.get(architecture, architecture)}"


def platform_of(config: bytes) -> str | None:
    """The platform that an image's configuration names; None where it is no image's (image-spec 1.1, "config.md")."""
    return platform_in(_readable(config))


def platform_in(value: Any) -> str | None:
    """The platform that an object of an index or a configuration names; None where it names none."""
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("os", "architecture")):
        return None
    parts = [value["os"], value["architecture"], value.get("variant")]
    platform = "/".join(part for part in parts if isinstance(part, str) and part)
    return platform if _PLATFORM.fullmatch(platform) else None


def _described(entries: Any, key: str = "digest") -> list[tuple[dict[str, Any], Descriptor]]:
    found = []
    for entry in entries if isinstance(entries, list) else ():
        for digest in _digests([{"digest": entry.get(key)}] if isinstance(entry, dict) else ()):
            media_type, size = entry.get("mediaType"), entry.get("size")
            found.append(
                (
                    entry,
                    Descriptor(
                        media_type if isinstance(media_type, str) else "",
                        digest,
                        size if isinstance(size, int) and size > 0 else 0,
                    ),
                )
            )
    return found


def _readable(body: bytes) -> dict[str, Any]:
    try:
        return _document(body)
    except UpstreamInvalid:
        return {}


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise UpstreamInvalid("the manifest is not JSON") from None
    if not isinstance(document, dict):
        raise UpstreamInvalid("the manifest is not a JSON object")
    return document


def _digests(entries: Any) -> list[Digest]:
    found: list[Digest] = []
    for entry in entries if isinstance(entries, list | tuple) else ():
        value = entry.get("digest") if isinstance(entry, dict) else None
        if isinstance(value, str):
            try:
                found.append(Digest.parse(value))
            except DigestInvalid:
                continue
    return found
