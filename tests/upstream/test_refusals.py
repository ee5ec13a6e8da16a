"""Why upstream refuses: the error names a country's block, an allow-list, or missing credentials, and says what to do."""

from __future__ import annotations

import pytest

from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted, Status

_JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, b'{"errors":[{"code":"DENIED","message":"Due to US export control laws this is unavailable"}]}', "export control"),
        (403, b"<html>The CloudFront distribution is configured to block access from your country.</html>", "export control"),
        (403, b"This service is not available in your region", "export control"),
        (403, b"you are in a sanctioned territory", "export control"),
        (451, b"", "export control"),
        (403, b"<html>image is not in the whitelist</html>", "list of the images"),
        (403, "镜像不在白名单中".encode(), "list of the images"),
        (403, b"<html>Forbidden</html>", "web page"),
        (403, b'{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}', "needs credentials"),
        (403, b"", "needs credentials"),
    ],
)
async def test_a_refusal_is_named(start: StartMirror, upstream: Scripted, status: int, body: bytes, expected: str) -> None:
    """The client gets 403 with the reason; a block of the country comes with the advice to use a proxy or another endpoint."""
    upstream.fail("/v2/", Status(status, _JSON, body), times=20, method="*")
    mirror: Mirror = await start()
    answer = await mirror.get("/v2/app/manifests/1")
    assert answer.status == 403
    text = answer.body.decode()
    assert expected in text
    assert ("proxy elsewhere" in text) == (expected == "export control")


async def test_a_block_of_the_country_is_told_rather_than_another_endpoints_refusal(
    start: StartMirror, upstream: Scripted
) -> None:
    """Whatever order they have: it is what somebody can do something about."""
    upstream.fail("/v2/", Status(403), times=20, method="*")
    async with Scripted() as second:
        second.fail("/v2/", Status(451), times=20, method="*")
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        answer = await mirror.get("/v2/app/manifests/1")
    assert (answer.status, "proxy elsewhere" in answer.body.decode()) == (403, True)


async def test_a_token_service_that_blocks_the_country_is_named_too(start: StartMirror, upstream: Scripted) -> None:
    """Docker Hub's is on another host, which may be the one that is blocked."""
    upstream.auth = "bearer"
    upstream.fail("/token", Status(403, body=b"access from your country: export control"), times=20)
    mirror: Mirror = await start()
    answer = await mirror.get("/v2/app/manifests/1")
    assert (answer.status, "proxy elsewhere" in answer.body.decode()) == (403, True)


async def test_a_web_page_instead_of_a_blob_is_not_its_bytes(start: StartMirror, upstream: Scripted) -> None:
    """The next endpoint is asked before a byte of it reaches the client."""
    image = upstream.add_image("library/app", "1")
    async with Scripted() as second:
        second.add_manifest("library/app", "1", image.body)
        second.blobs |= upstream.blobs
        page = Status(200, {"Content-Type": "text/html"}, b"<html>log in</html>")
        upstream.fail("/blobs/", page, times=20, method="*")
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        before = await mirror.metric("mirror_verification_failures_total")
        for digest in (image.config, *image.layers):
            assert (await mirror.head(f"/v2/app/blobs/{digest}")).headers["Content-Length"] == str(
                len(upstream.blobs[str(digest)])
            )
            assert (await mirror.get(f"/v2/app/blobs/{digest}")).digest() == digest
        assert await mirror.metric("mirror_verification_failures_total") == before
