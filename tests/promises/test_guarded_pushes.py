"""Guards of repositories that live in the mirror: what a push is told, and what clients get by its tag then."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from mirror.names import Digest
from tests.promises.test_signed import FORMS, make_key
from tests.support.commands import Commands
from tests.support.mirrors import Got, Mirror, StartMirror
from tests.support.patience import patiently
from tests.support.pushes import HOSTED, manifest_of, push_blob, put_manifest
from tests.support.scripted import Scripted

TAG = "/v2/team/app/manifests/1"
OLD, NEW = "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"
"""The second image was built before the first one."""


async def hosting(start: StartMirror, *tables: dict[str, Any]) -> Mirror:
    mirror: Mirror = await start(settings={"hosted": HOSTED, "guard": [{"name": "rule", **table} for table in tables]})
    return mirror


async def push(mirror: Mirror, layer: bytes, created: str = OLD) -> tuple[int, bytes, str]:
    """Pushes an image with the tag 1. Returns the status, its manifest, and the header that says that it is held back."""
    config = json.dumps({"config": {"Labels": {"layer": layer.decode()}}}).encode()
    for data in (config, layer):
        await push_blob(mirror.session, "team/app", data)
    body = manifest_of(config, layer, annotations={"org.opencontainers.image.created": created})
    said = await put_manifest(mirror.session, "team/app", "1", body)
    return said.status, body, said.headers.get("Mirror-Tag", "")


async def exported(mirror: Mirror) -> set[str]:
    got = await mirror.get("/export/team/app:1.tar")
    if got.status != 200:
        return set()
    with tarfile.open(fileobj=BytesIO(got.body)) as tar:
        return {name.rpartition("/")[2] for name in tar.getnames()}


Table = Callable[[Path], dict[str, Any]]


def key(folder: Path) -> dict[str, Any]:
    (folder / "key.pub").write_bytes(make_key("ecdsa")[0])
    return {"keys": [str(folder / "key.pub")]}


CASES: dict[str, tuple[Table, int, str]] = {
    "cooldown": (lambda _: {"cooldown": "3d", "images": ["team/*"]}, 201, "first"),
    "cooldown of others": (lambda _: {"cooldown": "3d"}, 201, "second"),
    "cooldown of the registry": (lambda _: {"cooldown": "3d", "images": ["docker.io/*", "*"]}, 201, "second"),
    "immutable": (lambda _: {"immutable": True, "images": ["team/app:*"]}, 403, "first"),
    "immutable of others": (lambda _: {"immutable": True, "images": ["team/app:v*"]}, 201, "second"),
    "refuse_older": (lambda _: {"refuse_older": True, "images": ["team/*"]}, 403, "first"),
    "label": (lambda _: {"deny": {"labels": {"layer": "second"}}}, 403, "first"),
    "signed": (lambda folder: {"signed": key(folder)}, 201, "refused"),
    "observe": (lambda _: {"immutable": True, "images": ["team/*"], "mode": "observe"}, 201, "second"),
}


@pytest.mark.parametrize("before", ["with the rule", "before the rule"])
@pytest.mark.parametrize("case", CASES)
async def test_what_a_push_moves_is_decided_on(start: StartMirror, tmp_path: Path, case: str, before: str) -> None:
    """Rule by way: what may never be served is refused when it is pushed, what waits is taken; GET, HEAD and bundles agree, by the tag's aliases too, also
    where the first image was pushed before there was a rule."""
    table, status, meant = CASES[case]
    mirror = await hosting(start, *([table(tmp_path)] if before == "with the rule" else []))
    assert (await push(mirror, b"first"))[0] == 201
    if before == "before the rule":
        await mirror.stop()
        mirror = await hosting(start, table(tmp_path))
    first = manifest_of(
        b'{"config": {"Labels": {"layer": "first"}}}', b"first", annotations={"org.opencontainers.image.created": OLD}
    )
    pushed, second, held = await push(mirror, b"second", NEW)
    assert pushed == status
    assert held.startswith("held; ") == (case == "cooldown")
    for path in (TAG, f"{TAG}?ns=docker.io", "/v2/docker.io/team/app/manifests/1"):
        for method in ("GET", "HEAD", "GET"):
            got = await mirror.get(path, method)
            assert _which(got, first, second) == meant, (path, method)
    names = await exported(mirror)
    assert (Digest.of(first).hex in names, Digest.of(second).hex in names) == (meant == "first", meant == "second")
    by_digest = await mirror.get(f"/v2/team/app/manifests/{Digest.of(second)}")
    assert by_digest.status == (200 if status == 201 else 404)


def _which(got: Got, first: bytes, second: bytes) -> str:
    if got.status == 403:
        return "refused"
    return {str(Digest.of(first)): "first", str(Digest.of(second)): "second"}[got.headers["Docker-Content-Digest"]]


async def test_the_audit_log_has_what_guards_refused_of_a_push(start: StartMirror, tmp_path: Path) -> None:
    """As denied, with the rule and the digest: a manifest by its tag, and a blob that is blocked. What nobody refused is noted as before."""
    log, blocked = tmp_path / "audit.log", Digest.of(b"poison")
    (tmp_path / "blocked.txt").write_text(f"{blocked} a miner\n")
    tables = [{"name": "rule", "immutable": True, "images": ["team/*"], "blocklist": [str(tmp_path / "blocked.txt")]}]
    mirror: Mirror = await start(settings={"hosted": HOSTED, "guard": tables, "server": {"audit_log": str(log)}})
    _, first, _ = await push(mirror, b"first")
    status, second, _ = await push(mirror, b"second")
    assert status == 403
    async with mirror.session.post(f"/v2/team/app/blobs/uploads/?digest={blocked}", data=b"poison") as answer:
        assert answer.status == 403
    await mirror.stop()
    found = [json.loads(line) for line in log.read_text().splitlines()]
    pushes = [
        (one["verdict"], one.get("reference"), one.get("digest")) for one in found if one.get("reference") or "digest" in one
    ]
    assert pushes == [
        ("allowed", "1", str(Digest.of(first))),
        ("denied", "1", str(Digest.of(second))),
        ("denied", None, str(blocked)),
    ]
    assert all(one["reason"].startswith('guard "rule"; refused: ') for one in found if one["verdict"] == "denied")


async def test_what_is_pushed_and_held_is_in_the_history_and_is_released(start: StartMirror) -> None:
    """Who pushed is in it. A release counts in a mirror that runs, and the time of the push stays, by which old tags are deleted."""
    mirror = await hosting(start, {"cooldown": "3d", "images": ["team/*"]})
    commands = Commands(mirror.directory)
    _, first, _ = await push(mirror, b"first")
    _, second, _ = await push(mirror, b"second")
    assert (await mirror.get(TAG)).body == first
    before = (await commands.json("show", "team/app:1"))["pushed"]
    await commands("release", "team/app:1", "--why", "urgent")
    history = (await commands.json("history", "team/app:1"))["history"]
    assert [one["digest"] for one in history] == [str(Digest.of(first)), str(Digest.of(second))]
    assert [one["endpoint"] for one in history] == ["push by 127.0.0.1"] * 2
    for _ in patiently():
        if (await mirror.get(TAG)).body == second:
            break
    assert (await commands.json("show", "team/app:1"))["pushed"] == before
    third = await push(mirror, b"third")
    assert (third[0], (await mirror.get(TAG)).body) == (201, second)


async def test_a_tag_that_was_deleted_is_immutable_still(start: StartMirror) -> None:
    """To delete and push is no way to move it; the same image may be pushed again."""
    mirror = await hosting(start, {"immutable": True, "images": ["team/app:1"]})
    _, first, _ = await push(mirror, b"first")
    async with mirror.session.delete(TAG) as done:
        assert done.status == 202
    assert (await mirror.get(TAG)).status == 404
    assert (await push(mirror, b"second"))[0] == 403
    assert (await push(mirror, b"first"))[0] == 201
    assert (await mirror.get(TAG)).body == first


async def test_a_denied_tag_cannot_be_pushed(start: StartMirror) -> None:
    """Other tags of the repository can."""
    mirror = await hosting(start, {"deny": True, "images": ["team/app:1"]})
    assert (await push(mirror, b"first"))[0] == 403
    body = manifest_of(b'{"config": {"Labels": {"layer": "first"}}}', b"first")
    assert (await put_manifest(mirror.session, "team/app", "2", body)).status == 201
    assert (await mirror.get("/v2/team/app/manifests/2")).status == 200


async def test_a_hosted_tag_goes_back_to_its_last_good_image(start: StartMirror, tmp_path: Path) -> None:
    """When what it means is blocked."""
    mirror = await hosting(start)
    _, first, _ = await push(mirror, b"first")
    _, second, _ = await push(mirror, b"second")
    assert (await mirror.get(TAG)).body == second
    await Commands(mirror.directory)("block", str(Digest.of(b"second")))
    for _ in patiently():
        if (got := await mirror.get(TAG)).body != second:
            break
    assert (got.status, got.body) == (200, first)
    assert got.headers["Mirror-Tag"].startswith("held; new=")


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_pushed_waits_for_its_signature(start: StartMirror, upstream: Scripted, tmp_path: Path, form: str) -> None:
    """It is pushed, then signed, and served from then on, in both forms; until then the last one that is signed is."""
    pem, sign = make_key("ecdsa")
    (tmp_path / "key.pub").write_bytes(pem)
    mirror = await hosting(start, {"signed": {"keys": [str(tmp_path / "key.pub")]}})

    async def signed(digest: Digest) -> None:
        upstream.manifests.clear()
        FORMS[form](upstream, digest, sign)
        for (_, reference), (_, body) in upstream.manifests.items():
            named = json.loads(body)
            for one in (named["config"], *named["layers"]):
                await push_blob(mirror.session, "team/app", upstream.blobs[one["digest"]])
            assert (await put_manifest(mirror.session, "team/app", reference, body)).status == 201

    _, first, _ = await push(mirror, b"first")
    assert (await mirror.get(TAG)).status == 403
    await signed(Digest.of(first))
    assert (await mirror.get(TAG)).body == first
    _, second, held = await push(mirror, b"second")
    assert held == f"held; new={Digest.of(second)}"
    assert (await mirror.get(TAG)).body == first
    await signed(Digest.of(second))
    assert (await mirror.get(TAG)).body == second
    assert len(upstream.asked) == 0


async def test_a_tag_goes_back_past_a_push_that_was_deleted(start: StartMirror) -> None:
    """To the last good image that its repository still has."""
    mirror = await hosting(start)
    bodies = [(await push(mirror, layer))[1] for layer in (b"first", b"second", b"third")]
    async with mirror.session.delete(f"/v2/team/app/manifests/{Digest.of(bodies[1])}") as deleted:
        assert deleted.status == 202
    await Commands(mirror.directory)("block", str(Digest.of(b"third")))
    for _ in patiently():
        got = await mirror.get(TAG)
        if "Mirror-Tag" in got.headers:
            break
    assert (got.status, got.body) == (200, bodies[0])
