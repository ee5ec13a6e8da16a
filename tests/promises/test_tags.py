"""What the mirror promises of tags (docs/design.md)."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE, patiently
from tests.support.scripted import Corrupt, Cut, Delay, Fault, Headers, Pending, Scripted, Silence, Status

LATEST = "/v2/app/manifests/latest"


async def test_content_by_digest_is_never_asked_for_again(start: StartMirror, upstream: Scripted) -> None:
    """Once cached, a manifest or blob needs no upstream, whatever the tags' age."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    for reference in (f"manifests/{image.digest}", f"blobs/{image.layers[0]}", f"blobs/{image.config}"):
        assert (await mirror.get(f"/v2/app/{reference}")).status == 200
    for digest in (image.layers[0], image.config):
        await mirror.until_cached(digest)
    asked = len(upstream.asked)
    for _ in range(3):
        for reference in (f"manifests/{image.digest}", f"blobs/{image.layers[0]}", f"blobs/{image.config}"):
            assert (await mirror.get(f"/v2/app/{reference}")).cache == "mirror; hit"
            assert (await mirror.head(f"/v2/app/{reference}")).cache == "mirror; hit"
    assert len(upstream.asked) == asked


async def test_a_tag_is_fresh_for_its_ttl(mirror: Mirror, upstream: Scripted) -> None:
    """Within it, upstream is not asked: one GET serves all."""
    image = upstream.add_image("library/app", "latest")
    first = await mirror.get(LATEST)
    assert (first.body, first.cache) == (image.body, "mirror; fwd=miss; stored")
    for _ in range(5):
        assert (await mirror.get(LATEST)).cache == "mirror; hit"
        assert (await mirror.head(LATEST)).cache == "mirror; hit"
    assert (upstream.count("GET"), upstream.count("HEAD")) == (1, 0)


async def test_then_it_is_checked_with_head_and_only_a_changed_digest_costs_a_get(start: StartMirror, upstream: Scripted) -> None:
    """HEADs are free at Docker Hub, GETs count as pulls."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    await mirror.get(LATEST)
    for count in (1, 2):
        answer = await mirror.get(LATEST)
        assert (answer.body, answer.cache) == (image.body, "mirror; fwd=stale; detail=validated")
        assert (upstream.count("GET"), upstream.count("HEAD")) == (1, count)
    moved = upstream.add_image("library/app", "latest")
    assert (await mirror.get(LATEST)).body == moved.body
    assert (upstream.count("GET"), upstream.count("HEAD")) == (2, 3)
    assert (await mirror.get(f"/v2/app/manifests/{image.digest}")).body == image.body


@pytest.mark.parametrize("trouble", ["down", "slow", "limiting", "failing", "forbidden"])
async def test_upstream_in_trouble_the_cached_tag_is_served_stale(start: StartMirror, upstream: Scripted, trouble: str) -> None:
    """Down, slow past a short deadline, or limiting: never a reason for a pull to fail."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0, revalidate_timeout=0.2)
    assert (await mirror.get(LATEST)).status == 200
    match trouble:
        case "down":
            await upstream.stop()
        case "slow":
            upstream.fail("latest", Silence(), times=50, method="HEAD")
        case "limiting":
            upstream.fail("latest", Status(429, {"Retry-After": "60"}), times=50, method="HEAD")
        case "failing":
            for method in ("HEAD", "GET"):
                upstream.fail("latest", Status(503), times=50, method=method)
        case "forbidden":
            for method in ("HEAD", "GET"):
                upstream.fail("latest", Status(403), times=50, method=method)
    for method in ("GET", "HEAD", "GET"):
        answer = await mirror.get(LATEST, method)
        assert answer.status == 200
        assert answer.headers["Docker-Content-Digest"] == str(image.digest)
        assert answer.cache == "mirror; fwd=stale; detail=upstream-unavailable"
    assert await mirror.metric("mirror_stale_served_total") >= 3


async def test_a_slow_check_goes_on_behind(start: StartMirror, upstream: Scripted) -> None:
    """Who asks is not held; the answer counts once it is there. One check at a time is enough for all."""
    old = upstream.add_image("library/app", "latest")
    patient = {"upstream": {"header_timeout": PATIENCE}}
    mirror: Mirror = await start(tag_ttl=0, revalidate_timeout=0.1, settings=patient)
    await mirror.get(LATEST)
    moved = upstream.add_image("library/app", "latest")
    check = Pending()
    upstream.fail("latest", check, method="HEAD")
    upstream.fail("latest", Silence(), times=1000, method="HEAD")
    answers = await asyncio.gather(*(mirror.get(LATEST) for _ in range(10)))
    assert {answer.body for answer in answers} == {old.body}
    assert all("fwd=stale" in answer.cache for answer in answers)
    assert upstream.count("HEAD") == 1
    check.release.set()
    # Later checks are not answered.
    for _ in patiently():
        if (await mirror.get(LATEST)).body == moved.body:
            break
    assert upstream.count("HEAD") <= 2
    assert upstream.count("GET") == 2


async def test_a_moved_tag_whose_manifest_cannot_be_had_stays_where_it_was(start: StartMirror, upstream: Scripted) -> None:
    """HEAD goes through and GET is limited, as Docker Hub does it: the old image can still be pulled, by both of dockerd's steps."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    await mirror.get(LATEST)
    upstream.add_image("library/app", "latest")
    upstream.fail("manifests/", Status(429), times=100)
    head = await mirror.head(LATEST)
    assert head.headers["Docker-Content-Digest"] == str(image.digest)
    assert (await mirror.get(LATEST)).body == image.body


async def test_an_upstream_known_to_be_down_is_not_waited_for(start: StartMirror, upstream: Scripted) -> None:
    """The breaker opens after failures of three repositories: then an error comes at once, and upstream is left alone."""
    mirror: Mirror = await start()
    upstream.fail("manifests/", Status(500), times=1000)
    upstream.fail("manifests/", Status(500), times=1000, method="HEAD")
    for number in range(20):
        answer = await mirror.get(f"/v2/app{number}/manifests/latest")
        assert answer.status == 503
        assert b"UNAVAILABLE" in answer.body
    assert upstream.count("GET") <= 8
    ready = (await mirror.get("/readyz")).body.decode()
    assert '"degraded"' in ready
    assert '"state": "down"' in ready
    assert re.search(r"is paused for \d+ s after failures: \S", ready), ready
    assert re.search(r"is paused for \d+ s after failures: \S", answer.body.decode()), answer.body
    page = (await mirror.get("/", Accept="text/html")).body.decode()
    assert re.search(r"paused for \d+.s after failures|asked again by the next request", page), page


async def test_a_tag_that_is_gone_is_gone_but_its_content_stays(start: StartMirror, upstream: Scripted) -> None:
    """404 for the tag is upstream's word; who knows the digest still gets what is cached."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    await mirror.get(LATEST)
    upstream.manifests.clear()
    assert (await mirror.get(LATEST)).status == 404
    assert (await mirror.head(LATEST)).status == 404
    assert (await mirror.get(f"/v2/app/manifests/{image.digest}")).body == image.body


async def test_404s_are_remembered_briefly(start: StartMirror, upstream: Scripted) -> None:
    """A name that is not there costs one request upstream, and is found soon after it appears."""
    mirror: Mirror = await start(negative_ttl=PATIENCE)
    blob = f"/v2/app/blobs/sha256:{'0' * 64}"
    for _ in range(5):
        assert (await mirror.get(LATEST)).status == 404
        assert (await mirror.get(blob)).status == 404
    assert upstream.count("GET") == 2
    await mirror.stop()
    mirror = await start(negative_ttl=0.5)
    assert (await mirror.get(LATEST)).status == 404
    image = upstream.add_image("library/app", "latest")
    for _ in patiently():
        if (await mirror.get(LATEST)).body == image.body:
            break
        await asyncio.sleep(0.1)


async def test_starting_needs_no_upstream_and_what_is_cached_can_be_pulled(start: StartMirror, upstream: Scripted) -> None:
    """After a restart with no network, everything that was ever pulled is there, by tag and by digest."""
    image = upstream.add_image("library/app", "latest")
    first: Mirror = await start(tag_ttl=0)
    for reference in ("manifests/latest", f"blobs/{image.config}", f"blobs/{image.layers[0]}"):
        await first.get(f"/v2/app/{reference}")
    await first.until_cached(image.layers[0])
    await first.until_cached(image.config)
    await first.stop()
    await upstream.stop()
    second: Mirror = await start(tag_ttl=0)
    assert (await second.get("/readyz")).status == 200
    assert (await second.head(LATEST)).headers["Docker-Content-Digest"] == str(image.digest)
    assert (await second.get(LATEST)).body == image.body
    assert (await second.get(f"/v2/app/blobs/{image.layers[0]}")).body == upstream.blobs[str(image.layers[0])]
    assert (await second.get(f"/v2/app/blobs/{image.config}")).body == upstream.blobs[str(image.config)]
    assert (await second.get("/v2/app/manifests/other")).status == 503


async def test_a_hundred_ask_for_one_tag_at_once(mirror: Mirror, upstream: Scripted) -> None:
    """Upstream sees one GET."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail("latest", Delay(0.3))
    answers = await asyncio.gather(*(mirror.get(LATEST) for _ in range(100)))
    assert all(answer.body == image.body for answer in answers)
    assert upstream.count("GET") == 1


@pytest.mark.parametrize(
    "fault", [Corrupt(5), Headers({"Docker-Content-Digest": f"sha256:{'1' * 64}"}), Headers({"Content-Type": "text/html"})]
)
async def test_a_manifest_that_is_not_what_it_says(mirror: Mirror, upstream: Scripted, fault: Any) -> None:
    """Wrong bytes and wrong digests are refused and not kept; a wrong Content-Type is set right by what the document says of itself."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail("latest", fault)
    answer = await mirror.get(LATEST)
    if isinstance(fault, Headers) and "Content-Type" in fault.headers:
        assert answer.body == image.body
        assert answer.headers["Content-Type"] == "application/vnd.oci.image.manifest.v1+json"
    else:
        assert answer.status == 503
        assert not mirror.cached(image.digest)
        assert (await mirror.get(LATEST)).body == image.body


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Sign in to the hotel's network</html>",
        b"[]",
        b"{}",
        b'{"schemaVersion": 2, "layers": []}',
        b"[" * 100_000,
        b" " * (4 * 1024 * 1024 + 1),
    ],
)
async def test_what_is_no_manifest_is_not_served_as_one(mirror: Mirror, upstream: Scripted, body: bytes) -> None:
    """HTML, other JSON, deep nesting, more than 4 MiB: 503 with a reason, nothing kept, and the mirror goes on."""
    digest = upstream.add_manifest("library/app", "latest", body, "text/html")
    answer = await mirror.get(LATEST)
    assert answer.status == 503
    assert b"UNAVAILABLE" in answer.body
    assert not mirror.cached(digest)
    assert (await mirror.get(f"/v2/app/manifests/{digest}")).status == 503


async def test_a_manifest_whose_media_types_disagree(mirror: Mirror, upstream: Scripted) -> None:
    """Content-Type says an index, the document says an image, and no digest vouches for the bytes: neither is served."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail("latest", Headers({"Content-Type": "application/vnd.oci.image.index.v1+json", "Docker-Content-Digest": None}))
    answer = await mirror.get(LATEST)
    assert answer.status == 503
    assert b"Content-Type says" in answer.body
    assert not mirror.cached(image.digest)


async def test_a_manifest_cut_short_is_asked_for_again(mirror: Mirror, upstream: Scripted) -> None:
    """One broken connection is not the end of a pull."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail("latest", Status(502))
    assert (await mirror.get(LATEST)).body == image.body
    assert upstream.count("GET") == 2


async def test_sha512_works_like_sha256(mirror: Mirror, upstream: Scripted) -> None:
    """Manifests and blobs, cold and warm, cuts included."""
    blob = upstream.add_blob(b"x" * 300_000, "sha512")
    image = upstream.add_image("library/app")
    manifest = upstream.add_manifest("library/app", None, image.body, algorithm="sha512")
    upstream.fail(str(blob), Cut(100_000))
    for _ in range(2):
        assert (await mirror.get(f"/v2/app/blobs/{blob}")).body == b"x" * 300_000
        assert (await mirror.get(f"/v2/app/manifests/{manifest}")).body == image.body
    await until(lambda: mirror.cached(blob))
    assert upstream.count("GET", str(manifest)) == 1


# ---------------------------------------------------------------- whose no is whose


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_digest_that_lags_behind_its_tag_takes_nothing_away(start: StartMirror, upstream: Scripted, method: str) -> None:
    """HEAD names a digest whose GET is 404 as yet: the old image is served stale, and the new one once it is there."""
    old = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    assert (await mirror.get(LATEST)).status == 200
    new = upstream.add_image("library/app", "latest")
    missing = Status(404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
    upstream.fail(str(new.digest), missing, times=10)
    upstream.fail("manifests/latest", missing, times=10)
    for _ in range(3):
        answer = await mirror.get(LATEST, method)
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, str(old.digest))
    upstream.heal()
    await until_fresh(mirror, method, str(new.digest))


_MISSING = Status(404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
_BY_TAG_ALONE = [
    _MISSING,
    *(Status(status, body=b"no") for status in (400, 403, 404, 410, 500)),
    Status(200, body=b"<html>"),
    Corrupt(5),
]
"""What a GET by digest may get where one by tag is answered."""


@pytest.mark.parametrize("fault", _BY_TAG_ALONE, ids=str)
async def test_a_tag_whose_get_works_is_there_though_its_digest_is_not(
    start: StartMirror, upstream: Scripted, fault: Fault
) -> None:
    """GET by tag has the last word on what HEAD said of it."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    assert (await mirror.get(LATEST)).status == 200
    new = upstream.add_image("library/app", "latest")
    upstream.fail(str(new.digest), fault, times=10)
    assert (await mirror.get(LATEST)).body == new.body


@pytest.mark.parametrize("fault", _BY_TAG_ALONE, ids=str)
@pytest.mark.parametrize("asks", ["digest", "tag"])
async def test_a_digest_that_only_head_knows_comes_by_its_tag(
    start: StartMirror, upstream: Scripted, asks: str, fault: Fault
) -> None:
    """As dockerd asks: HEAD of the tag, then GET of the digest, which a lagging replica does not have as yet. Where the tag's GET gives it, it is served."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail(str(image.digest), fault, times=10)
    mirror: Mirror = await start(negative_ttl="1m")
    assert (await mirror.head(LATEST)).headers["Docker-Content-Digest"] == str(image.digest)
    assert (await mirror.get(f"/v2/app/manifests/{image.digest if asks == 'digest' else 'latest'}")).body == image.body


@pytest.mark.parametrize(
    "fault", [Status(403), Status(404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'), Status(500)], ids=str
)
@pytest.mark.parametrize("asks", ["HEAD", "GET"])
@pytest.mark.parametrize("where", ["here", "in another process", "after a restart"])
async def test_a_digest_that_upstream_does_not_give_comes_by_the_tag(
    start: StartMirror, upstream: Scripted, fault: Fault, asks: str, where: str
) -> None:
    """Whoever has asked by HEAD what the tag means, whenever that was, and however the manifest is asked for."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    assert (await mirror.head(LATEST)).headers["Docker-Content-Digest"] == str(image.digest)
    for method in ("HEAD", "GET"):
        upstream.fail(str(image.digest), fault, times=20, method=method)
    if where == "after a restart":
        await mirror.stop()
    if where != "here":
        mirror = await start(mirror.directory)
    by_tag = upstream.count("GET", "latest")
    got = await mirror.get(f"/v2/app/manifests/{image.digest}", asks)
    assert (got.status, got.headers["Docker-Content-Digest"]) == (200, str(image.digest))
    assert upstream.count("GET", "latest") == by_tag + 1


async def test_a_digest_that_was_deleted_upstream_is_not_told_again(start: StartMirror, upstream: Scripted) -> None:
    """The tag that HEAD said means it is asked about anew."""
    old = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    assert (await mirror.head(LATEST)).headers["Docker-Content-Digest"] == str(old.digest)
    new = upstream.add_image("library/app", "latest")
    del upstream.manifests["library/app", str(old.digest)]
    assert (await mirror.get(f"/v2/app/manifests/{old.digest}")).status == 404
    assert (await mirror.head(LATEST)).headers["Docker-Content-Digest"] == str(new.digest)


@pytest.mark.parametrize(
    "body",
    [
        *(b"404 page not found", b"", b"<html>", b"[]", b"{}", b'{"errors": []}', b'{"errors": "no"}', b"[" * 100_000),
        *(b'{"errors": [null, "x", {}]}', b'{"errors": [{"status": 404, "message": "File not found."}]}'),
        *(b'{"errors": [{"code": "UNKNOWN"}]}', b'{"errors": [{"code": "DENIED"}]}', b'{"errors": [{"code": ["NAME_UNKNOWN"]}]}'),
    ],
)
async def test_a_404_that_is_no_registrys_takes_no_tag_away(start: StartMirror, upstream: Scripted, body: bytes) -> None:
    """An ingress says it while the registry behind it restarts: the tag is served stale, and checked again."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0, negative_ttl="1m")
    assert (await mirror.get(LATEST)).status == 200
    for method in ("GET", "HEAD"):
        upstream.fail("library", Status(404, {"Content-Type": "text/plain"}, body), times=20, method=method)
    answer = await mirror.get(LATEST)
    assert (answer.status, answer.body) == (200, image.body)
    assert "stale" in answer.cache
    assert (await mirror.get("/v2/app/manifests/other")).status == 404
    upstream.add_image("library/app", "other")
    upstream.heal()
    assert (await mirror.get("/v2/app/manifests/other")).status == 200, "it is not remembered either"


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("reference", ["tag", "digest"])
async def test_what_the_first_endpoint_does_not_have_the_next_is_asked_for(
    start: StartMirror, upstream: Scripted, status: int, reference: str
) -> None:
    """A cache of popular images, or a public mirror with an allow-list, has no say for what it does not carry."""
    async with Scripted() as second:
        image = second.add_image("library/app", "latest")
        name = "latest" if reference == "tag" else str(image.digest)
        for method in ("GET", "HEAD"):
            upstream.fail("manifests/", Status(status), times=20, method=method)
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        assert (await mirror.get(f"/v2/app/manifests/{name}")).body == image.body
        assert upstream.count("GET") >= 1


async def test_gone_is_what_all_endpoints_say_is_gone(start: StartMirror, upstream: Scripted) -> None:
    """One endpoint's 404 beside another that cannot be asked: nobody knows, and the cached tag is served."""
    async with Scripted() as second:
        image = upstream.add_image("library/app", "latest")
        mirror: Mirror = await start(endpoints=[upstream.url, second.url], tag_ttl=0)
        assert (await mirror.get(LATEST)).status == 200
        upstream.manifests.clear()
        await second.stop()
        answer = await mirror.get(LATEST)
        assert (answer.status, answer.body) == (200, image.body)
        await second.start()
        for _ in patiently():
            if (await mirror.get(LATEST)).status == 404:
                break
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("code", ["MANIFEST_UNKNOWN", "NOT_FOUND", "TAG_EXPIRED"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_gone_in_a_registrys_words(start: StartMirror, upstream: Scripted, code: str, method: str) -> None:
    """The specification's, Harbor's and Quay's: then the tag is gone here too."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    assert (await mirror.get(LATEST)).status == 200
    upstream.fail("latest", Status(404, body=b'{"errors": [{"code": "%s"}]}' % code.encode()), times=20, method="*")
    assert (await mirror.get(LATEST, method)).status == 404


async def test_one_endpoints_word_does_not_make_anothers_certain(start: StartMirror, upstream: Scripted) -> None:
    """An ingress says 404 where the tag came from, and a mirror beside it never had it: nobody has said that it is gone."""
    async with Scripted() as second:
        image = upstream.add_image("library/app", "latest")
        mirror: Mirror = await start(endpoints=[upstream.url, second.url], tag_ttl=0)
        assert (await mirror.get(LATEST)).status == 200
        upstream.fail("library", Status(404, {"Content-Type": "text/plain"}, b"404 page not found"), times=20, method="*")
        answer = await mirror.get(LATEST)
        assert (answer.status, answer.body) == (200, image.body)
        assert second.count("GET", "latest") == 1


async def until_fresh(mirror: Mirror, method: str, digest: str) -> None:
    """Stale answers end within the time that a failed check is not repeated."""
    for _ in patiently():
        if (await mirror.get(LATEST, method)).headers["Docker-Content-Digest"] == digest:
            return
        await asyncio.sleep(0.1)
