"""What clients ask for of an image, by name, for tests that try every kind."""

from __future__ import annotations

from tests.support.scripted import Image

RESOURCES = ["tag", "head", "digest", "blob", "blob head", "tags", "referrers"]


def request(resource: str, image: Image) -> tuple[str, str]:
    """Method and path below the repository."""
    return {
        "tag": ("GET", "manifests/latest"),
        "head": ("HEAD", "manifests/latest"),
        "digest": ("GET", f"manifests/{image.digest}"),
        "blob": ("GET", f"blobs/{image.layers[0]}"),
        "blob head": ("HEAD", f"blobs/{image.layers[0]}"),
        "tags": ("GET", "tags/list"),
        "referrers": ("GET", f"referrers/{image.digest}"),
    }[resource]
