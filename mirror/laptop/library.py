"""What some bundles hold: images, their manifests, and where each blob is. No byte of a blob is given out before its digest is verified."""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any, BinaryIO, Iterable, Iterator, NamedTuple

from mirror.laptop.archive import Archive, Unusable
from mirror.laptop.names import is_digest, split_image

_BLOBS = "blobs/"
_LARGEST_DOCUMENT = 64 * 1024 * 1024
"""Bytes of an index, or of a list of what is in the tar."""
_ELSEWHERE = ("foreign", "nondistributable")
"""In media types of layers that registries do not have (image-spec 1.1, "layer.md")."""
_BUILD_CACHE = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.buildkit.cacheconfig.",
)
"""Beginnings of the media types of blobs in an index: BuildKit's registry cache lists them where other indexes list manifests."""


class Damaged(Exception):
    """The bytes of a blob are not those that its digest names."""


class Blob:
    """One blob of an archive."""

    def __init__(self, digest: str, archive: Archive, start: int, size: int) -> None:
        self.digest = digest
        self.size = size
        self._archive = archive
        self._start = start
        self._lock = threading.Lock()
        self._good: bool | None = None

    @property
    def archive(self) -> str:
        return self._archive.name

    def verify(self) -> None:
        """Reads it once, and compares the digest; later calls know. Others who need it wait for the first. Raises Damaged, Changed, OSError."""
        with self._lock:
            if self._good is None:
                algorithm, _, expected = self.digest.partition(":")
                hasher = hashlib.new(algorithm)
                for chunk in self._archive.read_chunks(self._start, self.size):
                    hasher.update(chunk)
                self._good = hasher.hexdigest() == expected
        if not self._good:
            raise Damaged(f"{self.digest} is damaged in {self.archive}: copy {self.archive} again")

    def open_parts(self, start: int, stop: int) -> Iterator[tuple[BinaryIO, int, int]]:
        """Yields the open files with its bytes from `start` to `stop`, each with an offset and a number of bytes. Raises Damaged, Changed, OSError."""
        self.verify()
        return self._archive.open_parts(self._start + start, stop - start)

    def read(self) -> bytes:
        """Raises Damaged, Changed, OSError."""
        self.verify()
        return b"".join(self._archive.read_chunks(self._start, self.size))


class Image(NamedTuple):
    """An image that has a name. Sizes in bytes."""

    repository: str
    reference: str
    """A tag, or a digest."""
    digest: str
    platforms: tuple[str, ...]
    size: int
    missing: int
    """Blobs of it that are in none of the archives."""
    seen: str
    """When its tag was first known to mean it, as its archive says (RFC 3339); empty if it does not say so."""


class Library:
    """The images of all archives."""

    def __init__(self) -> None:
        self.blobs: dict[str, Blob] = {}
        self.manifests: dict[str, str] = {}
        """Media types by digest."""
        self.tags: dict[str, dict[str, str]] = {}
        """Of each repository the digests by tag; it is empty where images have only digests."""
        self.referrers: dict[str, list[dict[str, Any]]] = {}
        """Descriptors of what refers to a manifest, by its digest."""
        self.images: list[Image] = []
        self.problems: list[str] = []
        self._documents: dict[str, dict[str, Any]] = {}
        """Of manifests, by digest."""

    def add(self, archives: Iterable[Archive]) -> None:
        """Reads archives. Where two have a tag, the later one's counts. What cannot be used is noted in `problems`."""
        images: dict[str, tuple[str, str, str, tuple[str, ...], str]] = {}
        roots: list[tuple[str, str]] = []
        for archive in archives:
            try:
                index, bundle = self._open(archive)
                found = list(_named(index["manifests"], "annotations"))
                attached = list(_named(bundle["referrers"], "name"))
                about = {image["name"]: (tuple(map(str, image["platforms"])), image.get("seen")) for image in bundle["images"]}
            except Unusable as error:
                self.problems.append(str(error))
                continue
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                self.problems.append(f"{archive.name}: index.json or bundle.json is not as `mirror export` writes it: {error!r}")
                continue
            for name, repository, reference, digest, media_type in found:
                platforms, seen = about.get(name, ((), None))
                # Earlier versions did not write when.
                images[name] = (repository, reference, digest, platforms, seen if isinstance(seen, str) else "")
                roots.append((digest, media_type))
            for _, repository, reference, digest, media_type in attached:
                self._name(repository, reference, digest)
                roots.append((digest, media_type))
        for digest, media_type in roots:
            self._walk(digest, media_type)
        for name, (repository, reference, digest, platforms, seen) in images.items():
            if digest not in self._documents:
                self.problems.append(f"{name} is not served: its manifest is missing or damaged")
                continue
            self._name(repository, reference, digest)
            needed = self._needed(digest)
            there = [self.blobs[one].size for one in needed if one in self.blobs]
            self.images.append(Image(repository, reference, digest, platforms, sum(there), len(needed) - len(there), seen))
        self._refer()

    def _open(self, archive: Archive) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns its index.json and bundle.json, and takes up its blobs. Raises Unusable."""
        members = archive.members()

        def document(name: str) -> bytes:
            start, size = members.get(name, (0, 0))
            if not 0 < size <= _LARGEST_DOCUMENT:
                raise Unusable(f"{archive.name} is cut off, or was not made by `mirror export`: there is no {name} in it")
            try:
                return b"".join(archive.read_chunks(start, size))
            except OSError as error:
                raise Unusable(f"{archive.name} cannot be read: {error.strerror or error}") from None

        sums = {
            path: sum_
            for sum_, _, path in (line.partition("  ") for line in document("SHA256SUMS").decode("utf-8", "replace").splitlines())
        }
        lacking = [path for path in sums if path not in members]
        if lacking:
            raise Unusable(
                f"{archive.name} is cut off or damaged: {len(lacking)} of its {len(sums)} files are missing: copy it again"
            )
        documents = []
        for name in ("index.json", "bundle.json"):
            body = document(name)
            if hashlib.sha256(body).hexdigest() != sums.get(name):
                raise Unusable(f"{archive.name} is damaged: {name} is not what SHA256SUMS says: copy it again")
            documents.append(json.loads(body))
        for path, (start, size) in members.items():
            digest = path[len(_BLOBS) :].replace("/", ":", 1)
            if path.startswith(_BLOBS) and is_digest(digest):
                self.blobs.setdefault(digest, Blob(digest, archive, start, size))
        return documents[0], documents[1]

    def _name(self, repository: str, reference: str, digest: str) -> None:
        tags = self.tags.setdefault(repository, {})
        if not is_digest(reference):
            tags[reference] = digest

    def _walk(self, root: str, media_type: str) -> None:
        """Takes up a manifest, and those that it lists. An index lists more than is here: platforms that nobody wanted."""
        left = [(root, media_type)]
        while left:
            digest, media_type = left.pop()
            blob = self.blobs.get(digest)
            if blob is None or digest in self._documents or blob.size > _LARGEST_DOCUMENT:
                continue
            try:
                document = json.loads(blob.read())
                if not isinstance(document, dict):
                    raise ValueError("it is no JSON object")
            except Damaged as error:
                self.problems.append(str(error))
                continue
            except (OSError, ValueError, RecursionError) as error:
                self.problems.append(f"the manifest {digest} in {blob.archive} cannot be used: {error}")
                continue
            self._documents[digest] = document
            self.manifests[digest] = media_type
            left += [
                (str(child.get("digest")), str(child.get("mediaType")))
                for child in _list(document, "manifests")
                if not _is_build_cache(child)
            ]

    def _needed(self, root: str) -> set[str]:
        """The configurations and layers of those of an image's manifests that are here."""
        needed: set[str] = set()
        seen: set[str] = set()
        left = [root]
        while left:
            digest = left.pop()
            document = self._documents.get(digest)
            if document is None or digest in seen:
                continue
            seen.add(digest)
            config = document.get("config")
            blobs = [*([config] if isinstance(config, dict) else []), *_list(document, "layers")]
            needed.update(
                str(one.get("digest")) for one in blobs if not any(word in str(one.get("mediaType")) for word in _ELSEWHERE)
            )
            for child in _list(document, "manifests"):
                if _is_build_cache(child):
                    needed.add(str(child.get("digest")))
                else:
                    left.append(str(child.get("digest")))
        return needed

    def _refer(self) -> None:
        """Lists what refers to which manifest (distribution-spec 1.1, "Listing Referrers")."""
        for digest, document in self._documents.items():
            subject = document.get("subject")
            if not isinstance(subject, dict):
                continue
            config = document.get("config")
            kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
            described: dict[str, Any] = {"mediaType": self.manifests[digest], "digest": digest, "size": self.blobs[digest].size}
            if kind:
                described["artifactType"] = kind
            if isinstance(document.get("annotations"), dict):
                described["annotations"] = document["annotations"]
            self.referrers.setdefault(str(subject.get("digest")), []).append(described)


def _named(descriptors: Any, key: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields name, repository, tag or digest, digest and media type of descriptors whose name is under `key`, or in their annotations."""
    for descriptor in descriptors:
        name = descriptor[key]
        if isinstance(name, dict):
            name = name["org.opencontainers.image.ref.name"]
        parts = split_image(name)
        if parts is not None:
            yield name, parts[0], parts[1], descriptor["digest"], descriptor["mediaType"]


def _is_build_cache(entry: dict[str, Any]) -> bool:
    return str(entry.get("mediaType")).startswith(_BUILD_CACHE)


def _list(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
