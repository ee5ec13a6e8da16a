"""A real scanner, OSV-Scanner, looks at an image that the mirror has cached. Its database is made up: no other can be had here."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from mirror.config import load
from mirror.names import Digest
from mirror.scans import scanning
from mirror.storage.scans import scan_results
from mirror.wiring import store
from tests.support.mirrors import StartMirror
from tests.support.patience import patiently
from tests.support.programs import require
from tests.support.scripted import Scripted

LATEST = "/v2/app/manifests/latest"
ADVISORY = {
    "schema_version": "1.6.0",
    "id": "CVE-2022-1",
    "modified": "2022-01-01T00:00:00Z",
    "summary": "a made-up fault",
    "affected": [{"package": {"ecosystem": "Alpine:v3.19", "name": "zlib"}, "versions": ["1.2.11-r0"]}],
}


def alpine() -> bytes:
    """A layer with what says that Alpine's zlib is installed."""
    files = {
        "etc/": b"",
        "etc/os-release": b"ID=alpine\nVERSION_ID=3.19.0\n",
        "etc/alpine-release": b"3.19.0\n",
        "lib/": b"",
        "lib/apk/": b"",
        "lib/apk/db/": b"",
        "lib/apk/db/installed": b"P:zlib\nV:1.2.11-r0\nA:x86_64\no:zlib\n\n",
    }
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


async def test_osv_scanner_looks_at_what_was_pulled(
    start: StartMirror, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tar that it gets is one that it takes, and its SARIF is understood: the guard refuses the image."""
    require("osv-scanner")
    monkeypatch.setattr(scanning, "_LOOK", 0.05)
    database = tmp_path / "db" / "osv-scanner" / "Alpine:v3.19"
    database.mkdir(parents=True)
    with zipfile.ZipFile(database / "all.zip", "w") as archive:
        archive.writestr("CVE-2022-1.json", json.dumps(ADVISORY))
    offline = ["--experimental-offline", "--experimental-local-db-path", str(tmp_path / "db")]
    command = ["osv-scanner", "--format", "sarif", *offline, "--experimental-oci-image", "{archive}"]
    layer = alpine()
    configuration = {
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer))]},
        "history": [{"created_by": "x"}],
    }
    image = upstream.add_image("library/app", "latest", layers=[layer], configuration=configuration)
    mirror = await start(settings={"scan": [{"command": command}], "guard": [{"name": "scanned", "max_severity": "low"}]})
    for path in (LATEST, f"/v2/app/blobs/{image.config}", f"/v2/app/blobs/{image.layers[0]}"):
        assert (await mirror.get(path)).status == 200
    for _ in patiently():
        if (await mirror.get(LATEST)).status == 403:
            break
        await asyncio.sleep(0.05)

    async with store(load(None, {}, {"cache": {"dir": str(mirror.directory)}})) as opened:
        [result] = await scan_results(opened, image.digest)
    # Its SARIF has no scores, and the level "warning".
    assert (result.worst, result.counts, result.fault) == ("medium", {"medium": 1}, "")
