"""What guards promise of indexes (docs/guards.md): it is decided on them by the images that they name, of a whole mirror in front of a scripted registry."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from mirror.guards import children
from tests.support.commands import Commands
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Image, Scripted, Status

LATEST = "/v2/app/manifests/latest"
DAY = 86400.0


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "this_platform", lambda: "linux/amd64")


def guard(**table: Any) -> dict[str, Any]:
    return {"guard": [{"name": "rule", **table}]}


def days_ago(days: float) -> str:
    return datetime.fromtimestamp(time.time() - days * DAY, UTC).isoformat()


def add_index(upstream: Scripted, *, bad: str = "", tag: str = "latest", **configuration: Any) -> tuple[Any, list[Image]]:
    """An index with images for amd64, arm64 and s390x, of which the one of `bad` has `configuration`, and two layers."""
    images = []
    for architecture in ("amd64", "arm64", "s390x"):
        is_bad = architecture == bad
        more = configuration if is_bad else {"created": days_ago(5)}
        layers = [architecture.encode() * (2000 if is_bad else 1)]
        images.append(upstream.add_image("library/app", None, layers, {"architecture": architecture, **more}))
    digest, _ = upstream.add_index("library/app", tag, images)
    return digest, images


RULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "label": ({"deny": {"labels": {"status": "revoked*"}}}, {"config": {"Labels": {"status": "revoked in May"}}}),
    "size": ({"deny": {"larger_than": "8KB"}}, {"created": days_ago(5)}),
    "age": ({"deny": {"older_than": "730d"}}, {"created": days_ago(1000)}),
    "too young": ({"deny": {"younger_than": "1d"}}, {"created": days_ago(0.1)}),
    "label and platform": (
        {"deny": {"labels": {"status": "revoked*"}, "platforms": ["linux/amd64"]}},
        {"config": {"Labels": {"status": "revoked"}}},
    ),
    "older": ({"refuse_older": True}, {"created": days_ago(9)}),
}


@pytest.mark.parametrize("rule", RULES)
async def test_an_index_is_held_for_an_image_that_it_names(start: StartMirror, upstream: Scripted, rule: str) -> None:
    """The tag goes on meaning its last good index before any client has asked for the image, by HEAD and GET, so that no pull breaks in the middle; by digest the
    index is refused by what refuses its image. What is fetched to decide is fetched once, and only for the platform that is pulled here."""
    table, configuration = RULES[rule]
    good, _ = add_index(upstream)
    mirror: Mirror = await start(tag_ttl=0, settings=guard(**table))
    assert (await mirror.get(LATEST)).headers["Docker-Content-Digest"] == str(good)
    assert "Mirror-Tag" not in (await mirror.get(LATEST)).headers
    bad, images = add_index(upstream, bad="amd64", **configuration)
    asked = len(upstream.asked)
    for method in ("HEAD", "GET", "HEAD", "GET"):
        got = await mirror.get(LATEST, method)
        assert (got.status, got.headers["Docker-Content-Digest"]) == (200, str(good))
        assert got.headers["Mirror-Tag"] == f"held; new={bad}"
    # HEAD of the tag four times; the index, its image, and the configuration of that once.
    assert [one.method for one in upstream.asked[asked:]].count("HEAD") == 4
    assert [one.path.rpartition("/")[2] for one in upstream.asked[asked:] if one.method == "GET"] == [
        str(bad),
        str(images[0].digest),
        str(images[0].config),
    ]
    by_digest = 200 if rule == "older" else 403
    for method in ("GET", "HEAD"):
        for digest in (bad, images[0].digest):
            assert (await mirror.get(f"/v2/app/manifests/{digest}", method)).status == by_digest


async def test_a_first_pull_that_is_refused_was_served_to_nobody(start: StartMirror, upstream: Scripted) -> None:
    """Its history says so, and what came after it is no reason to go back to it; a single image and an index alike, by GET and by HEAD first."""
    mirror: Mirror = await start(tag_ttl=0, settings=guard(**RULES["label"][0]))
    single = upstream.add_image("library/one", "latest", None, RULES["label"][1])
    add_index(upstream, bad="amd64", **RULES["label"][1])
    for path, method in ((LATEST, "GET"), ("/v2/one/manifests/latest", "HEAD")):
        assert (await mirror.get(path, method)).status == 403
    assert (await mirror.get(f"/v2/one/manifests/{single.digest}", "HEAD")).status == 403
    good, _ = add_index(upstream)
    assert (await mirror.get(LATEST)).headers["Docker-Content-Digest"] == str(good)
    commands = Commands(mirror.directory)
    for name, served in (("app", [False, True]), ("one", [False])):
        history = (await commands.json("history", name))["history"]
        assert [seen["served"] is not None for seen in history] == served


async def test_an_image_for_another_platform_counts_once_a_client_asks_for_it(start: StartMirror, upstream: Scripted) -> None:
    """It is not fetched before, since registries limit requests. Then the tag goes back, and of the next index this platform is read too."""
    good, _ = add_index(upstream)
    mirror: Mirror = await start(tag_ttl=0, settings=guard(**RULES["label"][0]))
    await mirror.get(LATEST)
    new, (_, arm, other) = add_index(upstream, bad="arm64", **RULES["label"][1])
    assert (await mirror.get(LATEST)).headers["Docker-Content-Digest"] == str(new)
    assert upstream.count("GET", str(arm.digest)) == 0
    assert (await mirror.get(f"/v2/app/manifests/{arm.digest}")).status == 403
    got = await mirror.get(LATEST)
    assert (got.headers["Docker-Content-Digest"], got.headers["Mirror-Tag"]) == (str(good), f"held; new={new}")
    newer, (_, arm, _) = add_index(upstream, bad="arm64", **RULES["label"][1])
    assert (await mirror.get(LATEST)).headers["Mirror-Tag"] == f"held; new={newer}"
    assert upstream.count("GET", str(arm.digest)) == 1
    assert upstream.count("GET", str(other.digest)) == 0


@pytest.mark.parametrize("lost", ["manifest", "configuration"])
async def test_an_image_that_cannot_be_read_decides_nothing(start: StartMirror, upstream: Scripted, lost: str) -> None:
    """A condition that is not known is not met, so a registry that has lost one image of an index holds nobody up; it is not asked again with each request."""
    index, images = add_index(upstream, bad="amd64", **RULES["label"][1])
    path = str(images[0].digest if lost == "manifest" else images[0].config)
    upstream.fail(path, Status(404), times=99, method="*")
    mirror: Mirror = await start(tag_ttl=0, settings=guard(**RULES["label"][0]))
    for _ in range(3):
        assert (await mirror.get(LATEST)).headers["Docker-Content-Digest"] == str(index)
    assert 1 <= upstream.count("GET", path) <= 2


async def test_crowds_have_the_images_of_an_index_read_once(start: StartMirror, upstream: Scripted) -> None:
    """However many clients ask for a new tag at the same time, by tag and by digest."""
    index, images = add_index(upstream, bad="amd64", **RULES["label"][1])
    mirror: Mirror = await start(settings=guard(**RULES["label"][0]))
    paths = [LATEST, f"/v2/app/manifests/{index}"] * 10
    assert {got.status for got in await asyncio.gather(*(mirror.get(path) for path in paths))} == {403}
    for digest in (index, images[0].digest, images[0].config):
        assert upstream.count("GET", str(digest)) == 1


@pytest.mark.parametrize(("labels", "status"), [(("ours", "ours"), 200), (("ours", "theirs"), 403)], ids=["all", "one is not"])
async def test_an_index_is_allowed_by_its_images(
    start: StartMirror, upstream: Scripted, labels: tuple[str, str], status: int
) -> None:
    """Where all of them that clients here get are allowed; the others are no reason to refuse it."""
    names = (*labels, "theirs")
    images = [upstream.add_image("library/app", None, None, {"config": {"Labels": {"by": label}}}) for label in names]
    upstream.add_index("library/app", "latest", images)
    rules = [{"name": "ours", "allow": {"labels": {"by": "ours"}}}, {"name": "no", "deny": True}]
    mirror: Mirror = await start(settings={"guard": rules})
    # A client with another machine has pulled here before.
    await mirror.get(f"/v2/app/manifests/{images[1].digest}")
    assert (await mirror.get(LATEST)).status == status


async def test_a_blocked_layer_holds_the_index_before_its_image_is_asked_for(start: StartMirror, upstream: Scripted) -> None:
    """The manifest of the image is read for that, once, and its configuration is not."""
    good, _ = add_index(upstream)
    bad, images = add_index(upstream, bad="amd64", created=days_ago(1))
    upstream.add_manifest(
        "library/app", "latest", upstream.manifests["library/app", str(good)][1], "application/vnd.oci.image.index.v1+json"
    )
    mirror: Mirror = await start(tag_ttl=0)
    await mirror.get(LATEST)
    await Commands(mirror.directory)("block", str(images[0].layers[0]), "--reason", "a miner")
    await mirror.stop()
    mirror = await start(tag_ttl=0)
    upstream.add_manifest(
        "library/app", "latest", upstream.manifests["library/app", str(bad)][1], "application/vnd.oci.image.index.v1+json"
    )
    for method in ("HEAD", "GET"):
        got = await mirror.get(LATEST, method)
        assert (got.headers["Docker-Content-Digest"], got.headers["Mirror-Tag"]) == (str(good), f"held; new={bad}")
    assert upstream.count("GET", str(images[0].digest)) == 1
    assert upstream.count("GET", str(images[0].config)) == 0
    assert json.loads((await mirror.get(f"/v2/app/manifests/{bad}")).body)["errors"][0]["code"] == "DENIED"
