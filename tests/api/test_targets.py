"""Which registry, repository and resource a request means."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.api.ranges import matches, parse_ranges
from mirror.api.targets import Resource, Targets, without_secret
from mirror.config import ALIASES
from mirror.errors import MirrorError, RangeNotSatisfiable, RegistryUnknown
from mirror.names import Digest, Repository, Tag

DIGEST = "sha256:" + "a" * 64
TARGETS = Targets({"docker.io": 1, "ghcr.io": 1, "localhost:5001": 1}.keys(), "docker.io", ALIASES)


@pytest.mark.parametrize(
    ("target", "registry", "path"),
    [
        ("/v2/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/owner/img/manifests/3?ns=ghcr.io", "ghcr.io", "owner/img"),
        ("/v2/img/manifests/3?ns=ghcr.io", "ghcr.io", "img"),
        ("/v2/alpine/manifests/3?ns=docker.io", "docker.io", "library/alpine"),
        ("/v2/library/alpine/manifests/3?ns=registry-1.docker.io", "docker.io", "library/alpine"),
        ("/v2/ghcr.io/owner/img/manifests/3", "ghcr.io", "owner/img"),
        ("/v2/docker.io/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/index.docker.io/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/registry.hub.docker.com/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/alpine/manifests/3?ns=index.docker.io", "docker.io", "library/alpine"),
        ("/v2/alpine/manifests/3?ns=docker.io:443", "docker.io", "library/alpine"),
        ("/v2/ghcr.io:443/owner/img/manifests/3", "ghcr.io", "owner/img"),
        ("/v2/docker.io/v2/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/docker.io/v2/library/alpine/manifests/3?ns=docker.io:443", "docker.io", "library/alpine"),
        ("/v2/docker.io/v2/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/v2/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/docker.io/v2/v2/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/index.docker.io/v1/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/v2/img/manifests/3", "docker.io", "v2/img"),
        ("/ghcr.io/v2/v2/owner/img/manifests/3", "ghcr.io", "v2/owner/img"),
        ("/registry.hub.docker.com/v2/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/hub.docker.com/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/registry-1.docker.io/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/docker.io/v2/registry-1.docker.io/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/docker.io/docker.io/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("//v2/library/alpine/manifests/3", "docker.io", "library/alpine"),
        ("/v2/GHCR.IO/owner/img/manifests/3", "ghcr.io", "owner/img"),
        ("/GHCR.io:443/v2/owner/img/manifests/3", "ghcr.io", "owner/img"),
        ("/v2/ghcr.io./owner/img/manifests/3", "ghcr.io", "owner/img"),
        ("/v2/owner/v2/manifests/3", "docker.io", "owner/v2"),
        ("/v2/localhost:5001/a/b/c/manifests/3", "localhost:5001", "a/b/c"),
        ("/v2/localhost%3A5001/a/manifests/3", "localhost:5001", "a"),
        ("/ghcr.io/v2/owner/img/manifests/3", "ghcr.io", "owner/img"),
        ("/ghcr.io/v2/owner/img/manifests/3?ns=ghcr.io", "ghcr.io", "owner/img"),
        ("/v2/ghcr.io/owner/img/manifests/3?ns=ghcr.io", "ghcr.io", "owner/img"),
        ("/v2/manifests/manifests/manifests/3", "docker.io", "manifests/manifests"),
        ("http://mirror.lan/v2/ghcr.io/owner/img/manifests/3", "ghcr.io", "owner/img"),
    ],
)
def test_every_way_a_client_asks(target: str, registry: str, path: str) -> None:
    """Bare names, ``?ns=``, the registry as first component, the registry before ``/v2/``, and what real clients mix of them."""
    parsed = TARGETS.parse(target)
    assert (parsed.resource, parsed.repository, parsed.reference) == (Resource.MANIFEST, Repository(registry, path), Tag("3"))


@pytest.mark.parametrize(
    ("namespace", "registry"),
    [
        ("docker.io", "docker.io"),
        ("DOCKER.IO", "docker.io"),
        ("docker.io:443", "docker.io"),
        ("Docker.io:443", "docker.io"),
        ("docker.io.", "docker.io"),
        ("docker.io.:443", "docker.io"),
        ("docker.io/", "docker.io"),
        (" docker.io ", "docker.io"),
        ("https://docker.io", "docker.io"),
        ("https://docker.io/", "docker.io"),
        ("https://docker.io/v2/", "docker.io"),
        ("https://docker.io:443/v2", "docker.io"),
        ("http://docker.io:80", "docker.io"),
        ("HTTPS://Index.Docker.io/v1/", "docker.io"),
        ("registry-1.docker.io:443", "docker.io"),
        ("registry.hub.docker.com", "docker.io"),
        ("registry.docker.io", "docker.io"),
        ("http://localhost:5001", "localhost:5001"),
        ("localhost:5001/v2", "localhost:5001"),
        ("", "docker.io"),
        ("docker.io:80", None),
        ("https://docker.io:5000", None),
        ("docker.io/library", None),
        ("https://docker.io/../ghcr.io", None),
        ("https://evil.example@docker.io", None),
        ("docker.io@evil.example", None),
        ("localhost", None),
        ("..", None),
        (".", None),
        ("://", None),
    ],
)
def test_the_forms_of_a_namespace(namespace: str, registry: str | None) -> None:
    """What is a registry's name or URL, in any case, is taken as what it means; anything else is no registry."""
    target = f"/v2/owner/img/manifests/3?{urlencode({'ns': namespace})}"
    if registry is None:
        with pytest.raises(RegistryUnknown):
            TARGETS.parse(target)
    else:
        assert TARGETS.parse(target).repository == Repository(registry, "owner/img")


@pytest.mark.parametrize(
    "target",
    [
        "/v2/a/b/manifests/3?ns=evil.example",
        "/v2/evil.example/a/manifests/3",
        "/evil.example/v2/a/manifests/3",
        "/v2/a/manifests/3?ns=127.0.0.1:9",
    ],
)
def test_a_registry_that_is_not_configured_is_a_key_that_is_missing(target: str) -> None:
    """It is never dialled; the error says which table to add."""
    with pytest.raises(RegistryUnknown, match=r'\[registries\."'):
        TARGETS.parse(target)


@pytest.mark.parametrize(
    ("target", "resource", "reference"),
    [
        ("/v2", Resource.BASE, None),
        ("/v2/", Resource.BASE, None),
        ("/ghcr.io/v2/", Resource.BASE, None),
        ("/v2/ghcr.io/", Resource.BASE, None),
        ("/v2/ghcr.io/v2/", Resource.BASE, None),
        ("/ghcr.io/v2/v2/", Resource.BASE, None),
        ("/v2/v2/", Resource.BASE, None),
        ("//v2/", Resource.BASE, None),
        ("http://mirror.lan/v2/", Resource.BASE, None),
        ("http://mirror.lan", Resource.OTHER, None),
        ("/v2/_catalog", Resource.CATALOG, None),
        ("/v2/ghcr.io/_catalog", Resource.CATALOG, None),
        ("/v2/v2/_catalog", Resource.CATALOG, None),
        (f"/v2/a/b/blobs/{DIGEST}", Resource.BLOB, Digest("sha256", "a" * 64)),
        (f"/v2/a/b/blobs/{DIGEST.replace(':', '%3a')}", Resource.BLOB, Digest("sha256", "a" * 64)),
        ("/v2/a/b/tags/list", Resource.TAGS, None),
        (f"/v2/a/b/referrers/{DIGEST}", Resource.REFERRERS, Digest("sha256", "a" * 64)),
        ("/v2/a/b/blobs/uploads/", Resource.UPLOAD, None),
        ("/v2/a/b/blobs/uploads/1-2", Resource.UPLOAD, None),
        ("/metrics", Resource.OTHER, None),
    ],
)
def test_resources(target: str, resource: Resource, reference: object) -> None:
    """The distribution-spec's endpoints."""
    parsed = TARGETS.parse(target)
    assert (parsed.resource, parsed.reference) == (resource, reference)


@given(st.text(st.characters(codec="latin-1"), max_size=200).map(lambda text: "/v2/" + text))
def test_no_target_breaks_the_parser(target: str) -> None:
    """It is understood or refused, and a repository that comes out has no way up the tree."""
    try:
        parsed = TARGETS.parse(target)
    except MirrorError:
        return
    if parsed.repository is not None:
        assert ".." not in parsed.repository.path.split("/")
        assert Repository.parse(parsed.repository.registry, parsed.repository.path)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=-7", (93, 100)),
        ("bytes=-700", (0, 100)),
        ("bytes=50-1000", (50, 100)),
        ("bytes= 1 - 2 ", (1, 3)),
        ("BYTES=1-2", (1, 3)),
        ("bytes=0-0", (0, 1)),
        ("items=0-1", None),
        ("bytes=5-6,0-1", [(5, 7), (0, 2)]),
        ("bytes=0-1,5-6,", [(0, 2), (5, 7)]),
        ("bytes=0-9,5-19,40-49", [(0, 20), (40, 50)]),
        ("bytes=0-60,10-20,50-55", (0, 61)),
        ("bytes=0-1,100-", (0, 2)),
        ("bytes=0-,0-,-100", (0, 100)),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(0, 4098, 2)), None),
        ("nonsense", None),
    ],
)
def test_ranges(header: str | None, expected: tuple[int, int] | list[tuple[int, int]] | None) -> None:
    """All forms of RFC 9110: overlapping ranges are joined, those beyond the end left out; other units and too many ranges are ignored."""
    assert parse_ranges(header, 100) == ([expected] if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize(
    "header",
    [
        "bytes=100-",
        "bytes=100-200",
        "bytes=9-3",
        "bytes=-0",
        "bytes=-",
        "bytes=a-b",
        "bytes=1",
        "bytes=",
        "bytes=99999999999999999999-",
        "bytes=0-1,x",
        "bytes=100-,200-",
    ],
)
def test_ranges_that_cannot_be(header: str) -> None:
    """Past the end, backwards, or malformed: 416, with the size."""
    with pytest.raises(RangeNotSatisfiable) as caught:
        parse_ranges(header, 100)
    assert caught.value.size == 100


def test_etags_match() -> None:
    """Lists, weak tags, and any."""
    assert matches('"a", W/"b"', '"b"')
    assert matches("*", '"b"')
    assert not matches('"a"', '"b"')
    assert not matches(None, '"b"')


@pytest.mark.parametrize(
    "path",
    [
        "/t/{}/v2/",
        "//t//{}/v2/x/manifests/1",
        "/t/t/{}/v2/x/manifests/1",
        "/%74/%74/{}/v2/",
        "/T/{}/v2/",
        "/t/{}",
        "http://m/t/t/{}/v2/",
    ],
)
def test_a_secret_path_is_not_shown_however_it_is_written(path: str) -> None:
    """Neither in the path of a target, which is logged, nor where that cannot be parsed: with the part before it twice, or empty parts."""
    path = path.format("mirror_secret")
    assert "secret" not in without_secret(path)
    try:
        shown = without_secret(TARGETS.parse(path).path)
    except MirrorError as error:
        shown = error.message
    assert "secret" not in shown
