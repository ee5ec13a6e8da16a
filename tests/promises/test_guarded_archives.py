"""Guards at the door for archives: `mirror import`, uploads over HTTP, and dry runs say what a rule does to each image, and clients get what a registry's move would give them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror import wiring
from mirror.bundles.importing import Import, Importer, Wishes
from mirror.bundles.sources import sources_of
from mirror.config import ALIASES, DEFAULT_REGISTRY, load
from mirror.names import parse_image
from tests.promises.test_signed import make_key, sign_with_payload
from tests.support.archives import pack
from tests.support.commands import Commands
from tests.support.dashboard import token
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Image, Scripted

LATEST = "/v2/app/manifests/latest"
NAME = "docker.io/library/app"
OLD, NEW = "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"
"""The new image was built before the old one."""


def archive(upstream: Scripted, *tags: str) -> bytes:
    """An OCI layout of images of the scripted registry, by their tags."""
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    entries = []
    for tag in tags:
        media_type, body = upstream.manifests["library/app", tag]
        digest = next(key for (_, key), (_, other) in upstream.manifests.items() if other == body and key.startswith("sha256:"))
        named = json.loads(body)
        for one in (named["config"], *named["layers"]):
            files[f"blobs/{one['digest'].replace(':', '/')}"] = upstream.blobs[one["digest"]]
        files[f"blobs/{digest.replace(':', '/')}"] = body
        annotations = {"org.opencontainers.image.ref.name": f"{NAME}:{tag}"}
        entries.append({"mediaType": media_type, "digest": digest, "size": len(body), "annotations": annotations})
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return pack(files)


@dataclass
class Case:
    """A rule, what is said of an image that an archive brings where its tag had another one and where it had none, and the status or image that clients get
    then. "old" and "new" are images."""

    table: Callable[[Path, Image], dict[str, Any]]
    had_one: tuple[str, str | int]
    had_none: tuple[str, str | int] = ("imported", "new")


def key_file(folder: Path) -> str:
    (folder / "key.pub").write_bytes(make_key("ecdsa")[0])
    return str(folder / "key.pub")


def list_file(folder: Path, image: Image) -> str:
    (folder / "list.txt").write_text(f"{image.layers[0]} poisoned\n")
    return str(folder / "list.txt")


CASES = {
    "cooldown": Case(lambda folder, image: {"cooldown": "3d"}, ("held", "old")),
    "new tags too": Case(lambda folder, image: {"cooldown": "3d", "new_tags": "hold"}, ("held", "old"), ("refused", 403)),
    "immutable": Case(lambda folder, image: {"immutable": True}, ("held", "old")),
    "refuse_older": Case(lambda folder, image: {"refuse_older": True}, ("held", "old")),
    "signed": Case(lambda folder, image: {"signed": {"keys": [key_file(folder)]}}, ("refused", 403), ("refused", 403)),
    # These do not come in at all, so a tag keeps what it had.
    "label": Case(lambda folder, image: {"deny": {"labels": {"bad": "yes"}}}, ("refused", "old"), ("refused", 404)),
    "list": Case(lambda folder, image: {"blocklist": [list_file(folder, image)]}, ("refused", "old"), ("refused", 404)),
    "name": Case(lambda folder, image: {"deny": True}, ("refused", 403), ("refused", 404)),
    "observe": Case(lambda folder, image: {"cooldown": "3d", "mode": "observe"}, ("imported", "new")),
    "others": Case(lambda folder, image: {"cooldown": "3d", "images": ["other"]}, ("imported", "new")),
}


@dataclass
class Lab:
    """A cache without a network, a rule, and an archive."""

    start: StartMirror
    folder: Path
    table: dict[str, Any]

    async def mirror(self) -> Mirror:
        settings = {"guard": [{"name": "rule", **self.table}], "upstream": {"offline": True}}
        mirror: Mirror = await self.start(settings=settings)
        return mirror

    async def bring(self, way: str, sent: bytes) -> Any:
        """Returns what is said of the image, as JSON."""
        if way == "upload":
            mirror = await self.mirror()
            headers = {"Authorization": f"Bearer {token(mirror)}"}
            async with mirror.session.put("/import", data=sent, headers=headers) as answer:
                said = json.loads(await answer.text())
            await mirror.stop()
            return said["images"][0]
        (self.folder / "app.tar").write_bytes(sent)
        [source] = sources_of([str(self.folder / "app.tar")], lambda: io.FileIO(0))
        this = Import(source, Wishes(lambda name: parse_image(name, DEFAULT_REGISTRY, ALIASES), dry_run=way == "dry run"))
        settings = load(None, {}, {"cache": {"dir": str(self.folder / "cache")}, "guard": [{"name": "rule", **self.table}]})
        async with wiring.guarded_store(settings) as (store, guard):
            with contextlib.closing(Importer(store, guard)) as importer:
                await importer.run(this)
        return this.document()["images"][0]


@pytest.mark.parametrize("way", ["file", "upload", "dry run"])
@pytest.mark.parametrize("had", [True, False], ids=["had one", "had none"])
@pytest.mark.parametrize("rule", CASES)
async def test_an_archive_is_no_way_around(
    start: StartMirror, upstream: Scripted, tmp_path: Path, rule: str, had: bool, way: str
) -> None:
    """Rule by way: the image is named with rule and reason, clients get what they would if a registry had moved the tag, and a dry run says the same and
    changes nothing."""
    case = CASES[rule]
    old = upstream.add_image("library/app", "latest", configuration={"created": OLD})
    if had:
        await Lab(start, tmp_path, {"deny": True, "images": ["other"]}).bring("file", archive(upstream, "latest"))
    new = upstream.add_image("library/app", "latest", configuration={"created": NEW, "config": {"Labels": {"bad": "yes"}}})
    lab = Lab(start, tmp_path, case.table(tmp_path, new))
    said = await lab.bring(way, archive(upstream, "latest"))
    state, got_then = case.had_one if had else case.had_none
    observed = ["would-hold"] if had and rule == "observe" else []
    assert [one["verdict"] for one in said["guards"]] == (observed if state == "imported" else [state])
    assert [one["rule"] for one in said["guards"]] == ["rule"] * len(said["guards"])
    assert said["served"] == {"held": str(old.digest), "refused": None, "imported": str(new.digest)}[state]
    assert (said["fault"] is not None) == (state == "refused")
    assert (said["held_until"] is not None) == (state != "imported" and "cooldown" in lab.table)
    if way == "dry run":
        got_then = (403 if rule in ("name", "signed") else "old") if had else 404
    mirror = await lab.mirror()
    got = await mirror.get(LATEST)
    bodies = {old.body: "old", new.body: "new"}
    assert bodies.get(got.body, got.status) == got_then
    assert len(upstream.asked) == 0


async def test_what_an_archive_brings_is_served_when_it_has_waited(
    start: StartMirror, upstream: Scripted, tmp_path: Path
) -> None:
    """Released, since no test waits for days: without a registry, and what is held back is not evicted meanwhile. People read what happens to it."""
    upstream.add_image("library/app", "latest")
    lab = Lab(start, tmp_path, {"cooldown": "3d"})
    await lab.bring("file", archive(upstream, "latest"))
    new = upstream.add_image("library/app", "latest")
    (tmp_path / "new.tar").write_bytes(archive(upstream, "latest"))
    (tmp_path / "mirror.toml").write_text('[[guard]]\nname = "rule"\ncooldown = "3d"\n')
    commands = Commands(tmp_path / "cache")
    done = await commands.run("import", str(tmp_path / "new.tar"), "--config", str(tmp_path / "mirror.toml"))
    assert (done.returncode, "held" in done.stdout) == (0, True)
    assert f"{NAME}:latest is held back by the guard 'rule': the tag moved to it on" in done.stderr
    (tmp_path / "mirror.toml").write_text('[cache]\nmax_size = "1KB"\n')
    await commands("gc", "--config", str(tmp_path / "mirror.toml"))
    await commands("release", "app", "--why", "urgent")
    mirror = await lab.mirror()
    for path in (LATEST, f"/v2/app/blobs/{new.layers[0]}", f"/v2/app/blobs/{new.config}"):
        assert (await mirror.get(path)).status == 200
    assert (await mirror.get(LATEST)).body == new.body


@pytest.mark.parametrize("way", ["file", "upload", "dry run"])
async def test_an_archive_may_bring_the_signature_along(start: StartMirror, upstream: Scripted, tmp_path: Path, way: str) -> None:
    """After the image that it signs, too; then it is served."""
    image = upstream.add_image("library/app", "latest")
    pem, sign = make_key("ecdsa")
    sign_with_payload(upstream, image.digest, sign)
    (tmp_path / "key.pub").write_bytes(pem)
    lab = Lab(start, tmp_path, {"signed": {"keys": [str(tmp_path / "key.pub")]}})
    said = await lab.bring(way, archive(upstream, "latest", f"sha256-{image.digest.hex}.sig"))
    assert (said["guards"], said["fault"], said["served"]) == ([], None, str(image.digest))
    if way != "dry run":
        mirror = await lab.mirror()
        assert (await mirror.get(LATEST)).body == image.body
