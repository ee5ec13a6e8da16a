"""The images that Kubernetes manifests name: those of Pods, of what has a template for Pods, and of anything else that has containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mirror.cli.ask import images_of
from mirror.cli.yaml_files import documents_of, read_text

_SUFFIXES = (".yaml", ".yml", ".json")
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
"""The lists of containers in a PodSpec (Kubernetes API reference, core/v1)."""
_LARGEST = 16 * 1024 * 1024
"""Characters of a file."""


def images_in_manifests(place: Path) -> list[str]:
    """Returns the images of a file, or of all ``.yaml``, ``.yml`` and ``.json`` files below a folder, in order of files and documents.

    Raises click.UsageError with what is wrong where.
    """
    files = [place]
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise click.UsageError(f"--kubernetes {place}: no {', '.join(_SUFFIXES)} file is in it")
    found: dict[str, None] = {}
    for file in files:
        for number, document in enumerate(_documents(file), 1):
            for image in _named(document):
                try:
                    images_of([image])
                except click.UsageError as error:
                    raise click.UsageError(f"--kubernetes {file}, document {number}: {error.message}") from None
                found[image] = None
    if not found:
        raise click.UsageError(f"--kubernetes {place}: no container is in it that names an image")
    return list(found)


def _documents(file: Path) -> list[Any]:
    text = read_text("--kubernetes", file, _LARGEST)
    hint = "; render a Helm chart first: helm template CHART > FILE" if "{{" in text else ""
    return documents_of("--kubernetes", file, text, hint)


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
