"""What commands print with ``--json`` has the keys that docs/json.md lists, and no others."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click import Context

from mirror.access import FOLDER
from mirror.access.audit import FIELDS
from mirror.access.month_file import exchange, month_of
from mirror.cli import main
from mirror.config import load
from mirror.names import Digest
from mirror.storage.scans import ScanResult, keep_scan_result
from mirror.wiring import store
from tests.support.archives import layout_of, pack
from tests.support.commands import Commands
from tests.support.images import make_image
from tests.support.mirrors import MirrorProcess
from tests.support.scripted import Scripted

DOCUMENT = (Path(__file__).parents[2] / "docs" / "json.md").read_text()


def documented() -> dict[str, set[str]]:
    """The keys of each command."""
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    found = {
        name: {key for row in re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE) for key in re.findall(r"`(.*?)`", row)}
        for name, text in sections
    }
    image = {key.removeprefix("images[].") for key in found["ls"] if key.startswith("images[].")}
    return {**found, "show": found["show"] | image}


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Those of a document, in the same notation. An empty list has none."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from keys(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for below in value:
            yield from keys(below, f"{path}[]")
    else:
        yield path


async def test_documents_have_the_documented_keys(upstream: Scripted, tmp_path: Path) -> None:
    """Each command in each of its outcomes: a pinned image, a shared layer, damage that can and that cannot be repaired, a client's file."""
    commands = Commands(tmp_path / "cache", upstream)
    base = os.urandom(5000)
    image = upstream.add_image("library/app", "1", layers=[base, os.urandom(1000)])
    upstream.add_image("library/other", "1", layers=[base], configuration={"rootfs": {}})
    found: dict[str, set[str]] = {}

    async def run(*arguments: str, status: int = 0, **environment: str) -> Any:
        document = await commands.json(*arguments, status=status, **environment)
        found.setdefault(arguments[0], set()).update(keys(document))
        return document

    await run("pull", "app:1", "other:1", "--platform", "linux/amd64")
    await run("pin", "app:1")
    await run("have")
    upstream.add_to_hub("app", "An app", 1)
    await run("search", "app", MIRROR_REGISTRIES=json.dumps({"docker.io": {"search": f"{upstream.url}/v1/search"}}))
    third = upstream.add_image("library/third", "1")
    await run("pull", "third:1", "--platform", "linux/amd64")
    (tmp_path / "cache" / "blobs" / "sha256" / third.layers[0].hex).unlink()
    await run("export", "--all", "-o", str(tmp_path / "lab.tar"))
    await run("rm", "third:1")
    layout = layout_of({"docker.io/library/fourth:1": make_image(1)})
    del layout[next(name for name, blob in layout.items() if blob.startswith(b"\x1f\x8b"))]
    (tmp_path / "delta.tar").write_bytes(pack(layout))
    await run("import", str(tmp_path / "delta.tar"), status=1)
    await run("import", str(tmp_path / "lab.tar"))
    refused = json.dumps([{"name": "none", "images": ["**"], "deny": True}])
    await run("import", "--dry-run", str(tmp_path / "lab.tar"), status=1, MIRROR_GUARD=refused)
    [shown] = (await run("show", "app:1"))["variants"]
    assert shown["scans"] == []
    async with store(load(None, {}, {"cache": {"dir": str(tmp_path / "cache")}})) as opened:
        result = ScanResult("trivy", "high", {"high": 2, "low": 1}, 1e9, 2e9, "no database")
        await keep_scan_result(opened, Digest.parse(shown["digest"]), result)
    told = await commands("show", "app:1")
    assert "  scan trivy: worst: high (2 high, 1 low); " in told
    assert "the last scan failed: no database" in told
    for command in (["ls"], ["show", "app:1"], ["tags", "app"], ["gc", "--dry-run"], ["unpin", "app:1"]):
        await run(*command)
    (tmp_path / "cache" / "blobs" / "sha256" / image.config.hex).write_bytes(b"damaged")
    await run("verify")
    month, _ = month_of(time.time())
    exchange(tmp_path / "cache" / FOLDER, month, {(month, "ghcr.io/acme/**", "alice"): 5}, {("ghcr.io/acme/**", "alice"): 10})
    await run("stats")
    root = ["--root", str(tmp_path / "root")]
    for command in (
        ["configure", "docker", *root],
        ["configure", "docker", *root, "--write"],
        ["configure", "docker", *root, "--undo"],
    ):
        await run(*command)
    await run("configure", "docker", *root, "--undo", status=1)
    added = await commands("user", "add", "alice", "--password-stdin", "--json", stdin="correct horse\n")
    found["user"] = set(keys(json.loads(added)))
    await run("user", "list")
    for command in (["add", "ci", "--user", "alice", "--scope", "pull"], ["list"], ["rm", "ci"]):
        await run("token", *command)
    entry = {name: name for name in ("time", *FIELDS)} | {"repository": "docker.io/library/app"}
    (tmp_path / "audit.log").write_text(json.dumps(entry) + "\n")
    await run("who", "app", MIRROR_SERVER__AUDIT_LOG=str(tmp_path / "audit.log"))
    doctor = await commands.run("doctor", "--json", "--mirror", "http://127.0.0.1:1")
    found["doctor"] = set(keys(json.loads(doctor.stdout)))
    await run("history", "other:1")
    upstream.add_image("library/other", "1", layers=[os.urandom(10)], configuration={"rootfs": {}})
    observed = json.dumps([{"name": "wait", "cooldown": "3d"}])
    assert await commands.run("pull", "other:1", "--platform", "linux/amd64", MIRROR_CACHE__TAG_TTL="0s", MIRROR_GUARD=observed)
    latest = (await run("history", "other:1", "--changes"))["history"][-1]
    assert {change["what"] for change in latest["changes"]} == {"layers", "size"}
    await run("release", "other:1", "--why", "urgent")
    await run("block", str(image.config))
    await run("unblock", str(image.config))
    await run("rm", "other:1")
    await run("rm", "nothing:1", status=1)
    config = tmp_path / "mirror.toml"
    config.write_text("")
    with MirrorProcess(tmp_path / "running", {}, "--config", str(config)):
        config.write_text('[log]\nlevel = "debug"\n[server]\nhosts = ["a.lan"]\n')
        reloaded = await Commands(tmp_path / "running").json("reload")
    assert reloaded == {"taken": ["log.level"], "restart": ["server.hosts"]}
    found["reload"] = set(keys(reloaded))
    expected = documented()
    # Nothing is hosted: test_commands.py has some that are.
    found["gc"].add("hosted.tags[]")
    # There is none on a disk that has room.
    assert found["stats"] | {"degraded[]"} == expected.pop("stats")
    assert found.pop("stats")
    assert found == expected
    context = Context(main)
    with_json = {
        name
        for name in main.list_commands(context)
        if (known := main.get_command(context, name)) and any("--json" in one.opts for one in known.params)
    }
    assert with_json == documented().keys()
    assert set(await commands.json("show", "nothing:2", status=1)) == {"error"}
