"""Names of images as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config import ALIASES, DEFAULT_REGISTRY
from mirror.errors import Invalid
from mirror.names import Digest, image_name, parse_image, parse_repository

HEX = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("redis", "docker.io/library/redis:latest"),
        ("redis:7.2", "docker.io/library/redis:7.2"),
        ("owner/image", "docker.io/owner/image:latest"),
        ("docker.io/redis", "docker.io/library/redis:latest"),
        ("index.docker.io/owner/image:1", "docker.io/owner/image:1"),
        ("ghcr.io/owner/image:1", "ghcr.io/owner/image:1"),
        ("GHCR.io/owner/image", "ghcr.io/owner/image:latest"),
        ("ghcr.io/image", "ghcr.io/image:latest"),
        ("localhost/image", "localhost/image:latest"),
        ("registry.lan:5001/a/b/c:x", "registry.lan:5001/a/b/c:x"),
        ("[::1]:5001/a:x", "[::1]:5001/a:x"),
        ("host:5000", "docker.io/library/host:5000"),
        (f"redis@{HEX}", f"docker.io/library/redis@{HEX}"),
        (f"redis:7@{HEX}", f"docker.io/library/redis@{HEX}"),
        (" redis\n", "docker.io/library/redis:latest"),
    ],
)
def test_what_is_meant(written: str, meant: str) -> None:
    """As Docker reads it: the default registry and its library, ``latest``, ports that are no tags; a digest counts more than a tag."""
    assert image_name(*parse_image(written, DEFAULT_REGISTRY, ALIASES)) == meant


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("", "repository name"),
        ("https://ghcr.io/owner/image", "is a URL"),
        ("Redis", "lower-case"),
        ("redis:", "is not a tag"),
        ("redis:a b", "is not a tag"),
        ("redis@sha256:12", "is not a digest"),
        ("ghcr.io/", "repository name"),
        ("-bad-.io/x", "not the name of a registry"),
        ("a" * 300, "longer than"),
        ("redis\x1b[31m", "repository name"),
    ],
)
def test_errors_say_what_is_wrong(written: str, told: str) -> None:
    """And show nothing that a terminal would obey."""
    with pytest.raises(Invalid, match=told) as caught:
        parse_image(written, DEFAULT_REGISTRY, ALIASES)
    assert caught.value.message.isprintable()


def test_a_repository_has_no_tag() -> None:
    """What stands behind it is named, not dropped."""
    assert str(parse_repository("redis", DEFAULT_REGISTRY, ALIASES)) == "docker.io/library/redis"
    for written in ("redis:7", "ghcr.io/owner/image:7", f"redis@{HEX}"):
        with pytest.raises(Invalid, match="only the repository is expected"):
            parse_repository(written, DEFAULT_REGISTRY, ALIASES)


@given(st.text(alphabet="aZ0.:/@-_ %é[]", max_size=30) | st.text(max_size=30))
def test_any_text_is_a_name_or_an_error_of_ours(text: str) -> None:
    """And a name's full form means itself."""
    try:
        repository, reference = parse_image(text, DEFAULT_REGISTRY, ALIASES)
    except Invalid:
        return
    assert parse_image(image_name(repository, reference), DEFAULT_REGISTRY, ALIASES) == (repository, reference)
    assert isinstance(reference, Digest) or reference.value
