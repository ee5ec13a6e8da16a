"""What an archive says about itself: its images, their names, and which of its files holds what.

Gathered file by file, in any order. Nothing of it counts before it is compared with a digest: `documents` are found by the digest of their own bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.bundles.archive import ArchiveInvalid, Member, clean
from mirror.bundles.layout import BUNDLE, DOCKER_MANIFEST, INDEX, LONG_SUMS, MARKER, SIGNATURE, SUMS
from mirror.bundles.signing import verify
from mirror.errors import DigestInvalid, Invalid, UpstreamInvalid
from mirror.manifests import MAX_SIZE, OCI_MANIFEST, Manifest, blobs_of, media_type_of
from mirror.names import Digest, Reference, Repository, Tag

ParseName = Callable[[str], tuple[Repository, Reference]]
"""Takes an image's name as people write it. Raises Invalid."""

_DESCRIPTIONS = (MARKER, INDEX, DOCKER_MANIFEST, BUNDLE, SUMS, LONG_SUMS, SIGNATURE)
_LARGEST_DESCRIPTION = 16 * 1024 * 1024
_MOST_IN_MEMORY = 64 * 1024 * 1024
"""Bytes of descriptions, manifests and configurations together."""
_MOST_IMAGES = 10_000
_DEEPEST_LINK = 8
_NAMED_BY_DIGEST = re.compile(r"(?:.*/)?(?:sha256:)?([0-9a-f]{64})(?:\.tar|\.tar\.gz|\.json)?")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_COMPRESSED = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}
_CONTAINERD_NAME, _REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file whose bytes were hashed, or are to have this digest. `size` in bytes; `magic` is its first bytes."""

    digest: Digest
    size: int
    magic: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """An image that the archive says it has. `names` is empty if it gives none; `rebuilt` is True if its manifest was made here, since `docker save` keeps none."""

    names: tuple[tuple[Repository, Reference], ...]
    root: Digest
    bare_tag: str | None = None
    rebuilt: bool = False


@dataclass
class Claims:
    """Collects what an archive says about its images. `add` is called once for each of its files."""

    documents: dict[Digest, bytes] = field(default_factory=dict)
    """Manifests and configurations: every small JSON object."""
    sizes: dict[str, int] = field(default_factory=dict)
    _files: dict[str, bytes] = field(default_factory=dict)
    _links: dict[str, str] = field(default_factory=dict)
    _memory: int = 0

    # ------------------------------------------------------------------ gathering

    def wants(self, member: Member, magic: bytes) -> bool:
        """Returns whether a file must be read into memory; `magic` is its first bytes. Raises ArchiveInvalid if it is too large for that."""
        described = member.name in _DESCRIPTIONS
        if described and member.size > _LARGEST_DESCRIPTION:
            raise ArchiveInvalid(f"{member.name} has {member.size} bytes; {_LARGEST_DESCRIPTION} are allowed")
        return described or (magic.startswith(b"{") and member.size <= MAX_SIZE)

    def add(self, member: Member, data: bytes | None) -> None:
        """Notes a file, with its content if `wants` is true of it. Raises ArchiveInvalid."""
        if member.target is not None:
            self._links[member.name] = member.target
            return
        self.sizes[member.name] = member.size
        if data is None:
            return
        self._memory += len(data)
        if self._memory > _MOST_IN_MEMORY:
            raise ArchiveInvalid(
                f"{member.name}: the archive has more than {_MOST_IN_MEMORY} bytes of manifests and configurations"
            )
        if member.name in _DESCRIPTIONS:
            self._files[member.name] = data
        else:
            digest = Digest.of(data)
            named = digest_in(member.name)
            if named is not None and named.algorithm != digest.algorithm:
                digest = Digest.of(data, named.algorithm)
            if named is not None and digest != named and member.name.startswith("blobs/"):
                raise ArchiveInvalid(f"{member.name} is not what its name says: its digest is {digest}")
            self.documents[digest] = data
            self._files[member.name] = data

    # ------------------------------------------------------------------ the signature

    def check_signature(self, key: bytes) -> Mapping[str, str]:
        """Returns the SHA-256 of every file, by name, once the signature over them is verified. Raises ArchiveInvalid; SignatureWrong, KeyUnusable."""
        sums, signature = self._files.get(SUMS), self._files.get(SIGNATURE)
        if sums is None or signature is None:
            raise ArchiveInvalid(f"the archive is not signed: {SUMS} and {SIGNATURE} are expected before its blobs")
        verify(sums, signature, key)
        signed = _read_sums(sums, SUMS)
        if LONG_SUMS in self._files:
            self._check_signed(LONG_SUMS, signed)
            signed.update(dict.fromkeys(_read_sums(self._files[LONG_SUMS], LONG_SUMS), ""))
        for name in self.sizes:
            self._check_signed(name, signed)
        return signed

    def _check_signed(self, name: str, signed: Mapping[str, str]) -> None:
        if name in (SUMS, SIGNATURE):
            return
        if name not in signed:
            raise ArchiveInvalid(f"{name} is not among the signed files")
        named = digest_in(name) if name.startswith("blobs/") else None
        if named is not None:
            expected = named.hex if named.algorithm == "sha256" else ""
        else:
            expected = hashlib.sha256(self._files[name]).hexdigest() if name in self._files else "no file of a bundle"
        if signed[name] != expected:
            raise ArchiveInvalid(f"{name} is not what was signed")

    def check_signed(self, member: Member, signed: Mapping[str, str]) -> None:
        """Raises ArchiveInvalid for a file after the signature that the signature does not cover."""
        self._check_signed(member.name, signed)

    # ------------------------------------------------------------------ what it has

    def file_of(self, name: str) -> str:
        """Returns the file that a name stands for; follows links within the archive. Raises ArchiveInvalid."""
        found = name
        for _ in range(_DEEPEST_LINK):
            if found not in self._links:
                return found
            found = self._links[found]
        raise ArchiveInvalid(f"{name} is a link to a link to a link: {_DEEPEST_LINK} are allowed")

    def layer_digests(self, magic_of: Callable[[str], bytes]) -> dict[str, Digest]:
        """Returns the digests that the layers of `docker save` must have, by the images' configurations and the files' names. `magic_of` returns a file's first bytes."""
        found: dict[str, Digest] = {}
        for _, layers, diff_ids, _ in self._docker_images():
            for path, diff_id in zip(layers, diff_ids, strict=True):
                file = self.file_of(path)
                if _compression(magic_of(file)):
                    named = digest_in(file)
                elif (named := found.get(file, diff_id)) != diff_id:
                    raise ArchiveInvalid(f"{file} is a layer of two images that say different things of it")
                if named is not None:
                    found[file] = named
        return found

    def claims(self, parse: ParseName, content_of: Callable[[str], Content | None]) -> list[Claim]:
        """Returns the images in the archive. `content_of` returns what one of its files holds, None if that is not known. Raises ArchiveInvalid.

        If there are both an OCI layout and `docker save`'s manifest.json, the layout counts, since it has the original manifests.
        """
        if INDEX in self._files:
            found = self._of_layout(parse)
        elif DOCKER_MANIFEST in self._files:
            found = self._of_docker(parse, content_of)
        else:
            raise ArchiveInvalid(f"this is no archive of images: it has neither {INDEX} nor {DOCKER_MANIFEST}")
        return found + self._referrers(parse)

    def _of_layout(self, parse: ParseName) -> list[Claim]:
        found: dict[tuple[Digest, str | None], list[tuple[Repository, Reference]]] = {}
        tags = self._docker_tags(parse)
        for entry in _objects(_json(self._files[INDEX], INDEX), "manifests", INDEX):
            root = _digest(entry.get("digest"), INDEX)
            annotations = entry.get("annotations")
            names, bare = _names(annotations if isinstance(annotations, dict) else {}, parse)
            config = _json(self.documents[root], str(root)).get("config") if root in self.documents else None
            if not names and isinstance(config, dict):
                names = tags.get(str(config.get("digest")), [])
            found.setdefault((root, None if names else bare), []).extend(names)
        return [Claim(tuple(dict.fromkeys(names)), root, bare) for (root, bare), names in found.items()]

    def _docker_tags(self, parse: ParseName) -> dict[str, list[tuple[Repository, Reference]]]:
        """Returns the names in manifest.json, by the configuration's digest: for layouts whose index.json has none."""
        if DOCKER_MANIFEST not in self._files:
            return {}
        found = {}
        for entry in _list(_json(self._files[DOCKER_MANIFEST], DOCKER_MANIFEST), DOCKER_MANIFEST):
            config = digest_in(str(entry.get("Config")))
            found[str(config)] = _repo_tags(entry, parse)
        return found

    def _docker_images(self) -> list[tuple[bytes, list[str], list[Digest], dict[str, Any]]]:
        """Of each image in manifest.json: its configuration, its layers' names, the digests of their uncompressed bytes, and its entry."""
        if DOCKER_MANIFEST not in self._files or INDEX in self._files:
            return []
        found = []
        for entry in _list(_json(self._files[DOCKER_MANIFEST], DOCKER_MANIFEST), DOCKER_MANIFEST):
            name = clean(_string(entry.get("Config"), f"Config in {DOCKER_MANIFEST}"))
            config = self._files.get(self.file_of(name))
            if config is None:
                raise ArchiveInvalid(f"{name}, which {DOCKER_MANIFEST} names, is not in the archive, or is no configuration")
            rootfs = _json(config, name).get("rootfs")
            diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
            layers = entry.get("Layers")
            if not isinstance(diff_ids, list) or not isinstance(layers, list) or len(diff_ids) != len(layers):
                raise ArchiveInvalid(f"{name} and {DOCKER_MANIFEST} disagree about the number of layers")
            paths = [clean(_string(layer, f"a layer in {DOCKER_MANIFEST}")) for layer in layers]
            found.append((config, paths, [_digest(diff_id, name) for diff_id in diff_ids], entry))
        return found

    def docker_configs(self) -> list[bytes]:
        """Returns the configurations in `docker save`, which are blobs of the rebuilt images. Raises ArchiveInvalid."""
        return [config for config, _, _, _ in self._docker_images()]

    def _of_docker(self, parse: ParseName, content_of: Callable[[str], Content | None]) -> list[Claim]:
        found = []
        for config, layers, diff_ids, entry in self._docker_images():
            described = []
            for path, diff_id in zip(layers, diff_ids, strict=True):
                content = content_of(self.file_of(path))
                if content is None:
                    raise ArchiveInvalid(f"{path}, which {DOCKER_MANIFEST} names, is not in the archive")
                compression = _compression(content.magic)
                if not compression and content.digest != diff_id:
                    raise ArchiveInvalid(
                        f"{path} is not the layer that its image's configuration names: its digest is {content.digest}"
                    )
                described.append({"mediaType": _LAYER + compression, "digest": str(content.digest), "size": content.size})
            # Made from the image's content only, so that the same image has the same digest everywhere.
            body = {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": _CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
                "layers": described,
            }
            manifest = json.dumps(body, separators=(",", ":")).encode()
            root = Digest.of(manifest)
            self.documents[root] = manifest
            found.append(Claim(tuple(dict.fromkeys(_repo_tags(entry, parse))), root, rebuilt=True))
        return found

    def _referrers(self, parse: ParseName) -> list[Claim]:
        """Returns signatures and the like, which only bundles of this program name."""
        if BUNDLE not in self._files:
            return []
        entries = _objects(_json(self._files[BUNDLE], BUNDLE), "referrers", BUNDLE)
        return [
            Claim((_parsed(_string(entry.get("name"), BUNDLE), parse),), _digest(entry.get("digest"), BUNDLE))
            for entry in entries
        ]

    def seen(self, parse: ParseName) -> dict[tuple[Repository, Reference, Digest], str]:
        """Returns when the mirror that wrote a bundle first learnt what its tags mean (see `bundle_document`). Nobody has verified it: it is for people.

        Empty for other archives, and for bundles of earlier versions; what is no time is left out.
        """
        document = _json(self._files.get(BUNDLE, b"{}"), BUNDLE)
        images = document.get("images") if isinstance(document, dict) else None
        found = {}
        for entry in images if isinstance(images, list) else []:
            when = entry.get("seen") if isinstance(entry, dict) else None
            if isinstance(when, str) and _MOMENT.fullmatch(when):
                name = _parsed(_string(entry.get("name"), BUNDLE), parse)
                found[*name, _digest(entry.get("digest"), BUNDLE)] = when
        return found

    def referred(self, parse: ParseName) -> list[tuple[Repository, Digest, dict[str, Any]]]:
        """Returns the entries of referrers lists: repository, subject and descriptor; without cosign's, which have tags."""
        if BUNDLE not in self._files:
            return []
        found = []
        for entry in _objects(_json(self._files[BUNDLE], BUNDLE), "referrers", BUNDLE):
            repository, reference = _parsed(_string(entry.get("name"), BUNDLE), parse)
            digest = _digest(entry.get("digest"), BUNDLE)
            body = _json(self.documents.get(digest, b"{}"), str(digest))
            subject = body.get("subject")
            if isinstance(reference, Digest) and isinstance(subject, dict):
                config = body.get("config")
                kind = body.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
                described = {"mediaType": body.get("mediaType") or OCI_MANIFEST, "digest": str(digest), "size": entry.get("size")}
                optional = {"artifactType": kind, "annotations": body.get("annotations")}
                described.update({key: value for key, value in optional.items() if value})
                found.append((repository, _digest(subject.get("digest"), str(digest)), described))
        return found

    def named_blobs(self) -> set[Digest]:
        """Returns the configurations and layers that the manifests in the archive name."""
        found: set[Digest] = set()
        for body in self.documents.values():
            config, layers = blobs_of(body)
            found |= {blob.digest for blob in ([config] if config is not None else []) + list(layers)}
        return found

    def manifest(self, digest: Digest) -> Manifest | None:
        """Returns a manifest in the archive; None if it is not there. Raises ArchiveInvalid if the document is no manifest."""
        body = self.documents.get(digest)
        if body is None:
            return None
        try:
            return Manifest(media_type_of(body, None, verified=True), digest, body)
        except UpstreamInvalid as error:
            raise ArchiveInvalid(f"{digest}: {error.message}") from None


def digest_in(name: str) -> Digest | None:
    """Returns the digest in a file's name: ``blobs/sha256/<hex>``, and of `docker save`, podman and crane ``<hex>.tar``, ``<hex>.json``, ``sha256:<hex>``."""
    folder, _, algorithm = name.rpartition("/")[0].partition("/")
    if folder == "blobs":
        try:
            return Digest.parse(f"{algorithm}:{name.rpartition('/')[2]}")
        except DigestInvalid:
            raise ArchiveInvalid(f"{name[:200]!r} is no blob of an OCI layout: its name is no digest") from None
    match = _NAMED_BY_DIGEST.fullmatch(name)
    return Digest("sha256", match[1]) if match and "/" not in name else None


def is_layer(name: str) -> bool:
    """Returns whether a file holds a layer of `docker save`, by its name."""
    return name.endswith((".tar", ".tar.gz", ".tgz"))


def _compression(magic: bytes) -> str:
    return _COMPRESSED.get(magic[:2], "")


def _names(annotations: dict[str, Any], parse: ParseName) -> tuple[list[tuple[Repository, Reference]], str | None]:
    """Returns the name in an entry of index.json, or the tag if the entry has only that."""
    full, short = annotations.get(_CONTAINERD_NAME), annotations.get(_REF_NAME)
    if isinstance(full, str) and full:
        return [_parsed(full, parse)], None
    if isinstance(short, str) and short:
        if ":" in short or "/" in short or "@" in short:
            return [_parsed(short, parse)], None
        return [], short
    return [], None


def _repo_tags(entry: dict[str, Any], parse: ParseName) -> list[tuple[Repository, Reference]]:
    tags = entry.get("RepoTags")
    return [_parsed(_string(tag, "RepoTags"), parse) for tag in tags] if isinstance(tags, list) else []


def _parsed(name: str, parse: ParseName) -> tuple[Repository, Reference]:
    try:
        return parse(name)
    except Invalid as error:
        raise ArchiveInvalid(f"the archive names an image {name[:120]!r}: {error.message}") from None


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ArchiveInvalid(f"{name} is not JSON") from None


def _objects(document: Any, key: str, name: str) -> list[dict[str, Any]]:
    return _list(document.get(key) if isinstance(document, dict) else None, name)


def _list(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > _MOST_IMAGES or not all(isinstance(entry, dict) for entry in value):
        raise ArchiveInvalid(f"{name} is no list of at most {_MOST_IMAGES} images")
    return value


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ArchiveInvalid(f"{name}: a name is expected, found {str(value)[:80]}")
    return value


def _digest(value: Any, name: str) -> Digest:
    try:
        return Digest.parse(value if isinstance(value, str) else "")
    except DigestInvalid as error:
        raise ArchiveInvalid(f"{name}: {error.message}") from None


def _read_sums(data: bytes, name: str) -> dict[str, str]:
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        hex_, separator, path = line.partition("  ")
        if not separator:
            raise ArchiveInvalid(f"{name} is malformed: {line[:80]!r}")
        found[path] = hex_
    return found


def tagged(name: tuple[Repository, Reference], bare_tag: str | None) -> tuple[Repository, Reference]:
    """Returns the name that `--as` gives to an image for which an archive has only a tag."""
    repository, reference = name
    return repository, Tag.parse(bare_tag) if bare_tag is not None else reference
