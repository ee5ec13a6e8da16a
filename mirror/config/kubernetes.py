"""The images that Kubernetes manifests name: those of Pods, of what has a template for Pods, and of anything else that has containers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mirror.config.image_names import parse_name
from mirror.config.yaml_files import Named, YamlFiles

_SUFFIXES = (".yaml", ".yml", ".json")
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
"""The lists of containers in a PodSpec (Kubernetes API reference, core/v1)."""
_LARGEST = 16 * 1024 * 1024
"""Bytes of a file."""


def images_in_manifests(place: Path, files: YamlFiles | None = None) -> list[str]:
    """Returns the images of a file, or of all ``.yaml``, ``.yml`` and ``.json`` files below a folder, in order of files and documents.

    Blocks. Raises ValueError with what is wrong where; also if a folder or file cannot be read, or no image is named.
    """
    files = files or YamlFiles()
    found: dict[str, None] = {}
    for file in _files_of(place):
        for where, image in files.named(file, _LARGEST, _images, _hint):
            try:
                parse_name(image)
            except ValueError as error:
                raise ValueError(f"{file}, {where}: {error}") from None
            found[image] = None
    if not found:
        raise ValueError(f"{place}: no container is in it that names an image")
    return list(found)


def _files_of(place: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise error

    try:
        if not place.is_dir():
            return [place]
        found = [Path(folder) / name for folder, _, names in os.walk(place, onerror=fail) for name in names]
        files = sorted(file for file in found if file.suffix in _SUFFIXES and file.is_file())
    except OSError as error:
        raise ValueError(f"{error.filename or place} cannot be read: {error.strerror or error}") from None
    if not files:
        raise ValueError(f"{place}: no {', '.join(_SUFFIXES)} file is in it")
    return files


def _hint(text: str) -> str:
    return "; render a Helm chart first: helm template CHART > FILE" if "{{" in text else ""


def _images(documents: list[Any]) -> Named:
    return tuple((f"document {number}", image) for number, document in enumerate(documents, 1) for image in _named(document))


def _named(document: Any) -> list[str]:
    """Returns the images of all lists of containers and of image volumes in a document, in its order."""
    found = []
    # An alias can stand for the same node any number of times.
    seen: set[int] = set()
    waiting = [document]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict | list) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, list):
            waiting.extend(reversed(node))
            continue
        for key in _CONTAINERS:
            containers = node.get(key)
            found += [one.get("image") for one in containers if isinstance(one, dict)] if isinstance(containers, list) else []
        volumes = node.get("volumes")
        for volume in volumes if isinstance(volumes, list) else []:
            source = volume.get("image") if isinstance(volume, dict) else None
            found.append(source.get("reference") if isinstance(source, dict) else None)
        waiting.extend(reversed(list(node.values())))
    return [image.strip() for image in found if isinstance(image, str) and image.strip()]
