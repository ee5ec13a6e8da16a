"""Scanners of [[scan]] tables (mirror/scans). The scanner is a stand-in: a program that opens the image as real ones do, and prints SARIF."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mirror.names import Digest
from mirror.scans import running, scanning
from mirror.scans.counting import count_findings
from mirror.storage.scans import ScanResult, scan_results
from mirror.wiring import store
from tests.support.dashboard import HTML
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import patiently
from tests.support.scripted import Image, Scripted

LATEST = "/v2/app/manifests/latest"
SCANNER = """
import json, os, pathlib, subprocess, sys, tarfile, time
place, found = sys.argv[1], {}
if os.path.isdir(place):
    index = json.loads(pathlib.Path(place, "index.json").read_text())
    read = lambda digest: pathlib.Path(place, "blobs", *digest.split(":")).read_bytes()
else:
    tar = tarfile.open(place)
    index = json.load(tar.extractfile("index.json"))
    read = lambda digest: tar.extractfile("blobs/" + digest.replace(":", "/")).read()
[entry] = index["manifests"]
manifest = json.loads(read(entry["digest"]))
assert entry["digest"] == sys.argv[2]
words = read(manifest["layers"][0]["digest"]).decode().split()
log = pathlib.Path(sys.argv[3])
with log.open("a") as file:
    file.write(entry["digest"] + " %s %s\\n" % (os.nice(0), "MIRROR_SECRET" in os.environ))
behaviour = pathlib.Path(sys.argv[3] + ".behaviour")
do = behaviour.read_text() if behaviour.exists() else ""
if do == "fail":
    sys.exit("no database")
if do == "hang":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(log)])
    time.sleep(600)
if do == "flood":
    while True:
        sys.stdout.write("x" * 65536)
if do == "nonsense":
    print("{}")
    sys.exit()
rules = [{"id": word, "properties": {"security-severity": word}} for word in words]
print(json.dumps({"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "x", "rules": rules}}, "results": [{"ruleId": word} for word in words]}]}))
sys.exit(1 if words else 0)
"""


class Lab:
    """A mirror with the stand-in."""

    def __init__(self, start: StartMirror, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scanning, "_LOOK", 0.02)
        monkeypatch.setenv("MIRROR_SECRET", "x")
        (folder / "scanner.py").write_text(SCANNER)
        self._start = start
        self._folder = folder

    async def mirror(self, place: str = "{archive}", scan: dict[str, Any] | None = None, **guard: Any) -> Mirror:
        command = [sys.executable, str(self._folder / "scanner.py"), place, "{digest}", str(self._folder / "log")]
        settings: dict[str, Any] = {"scan": [{"name": "stand-in", "command": command, **(scan or {})}]}
        if guard:
            settings["guard"] = [{"name": "rule", **guard}]
        mirror: Mirror = await self._start(tag_ttl=0, settings=settings)
        return mirror

    def behave(self, how: str) -> None:
        (self._folder / "log.behaviour").write_text(how)

    def looked(self) -> list[str]:
        """A line for each image that was looked at."""
        log = self._folder / "log"
        return log.read_text().splitlines() if log.exists() else []

    async def pull(self, mirror: Mirror, image: Image) -> None:
        assert (await mirror.get(LATEST)).status == 200
        for blob in (image.config, *image.layers):
            assert (await mirror.get(f"/v2/app/blobs/{blob}")).status == 200
            await mirror.until_cached(blob)

    async def result(self, digest: Digest, *, fault: bool = False) -> ScanResult:
        """What was found, once there is a result."""
        from mirror.config import load

        settings = load(None, {}, {"cache": {"dir": str(self._folder / "cache")}})
        async with store(settings) as opened:
            for _ in patiently():
                found = await scan_results(opened, digest)
                if found and bool(found[0].fault) == fault:
                    return found[0]
                await asyncio.sleep(0.02)
        raise AssertionError


@pytest.fixture
def lab(start: StartMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(start, tmp_path, monkeypatch)


@pytest.mark.parametrize("place", ["{archive}", "{layout}"])
async def test_what_was_pulled_is_scanned_once(lab: Lab, upstream: Scripted, place: str) -> None:
    """With a low priority and without the mirror's own variables, also after a restart; the registry is not asked for it, and nothing is left on the disk.
    The image's page shows it."""
    image = upstream.add_image("library/app", "latest", layers=[b"9.8 5.0 5.0"])
    mirror = await lab.mirror(place)
    await lab.pull(mirror, image)
    asked = len(upstream.asked)
    result = await lab.result(image.digest)
    assert (result.worst, result.counts) == ("critical", {"critical": 1, "medium": 2})
    page = (await mirror.get("/image/docker.io/library/app:latest", **HTML)).body.decode()
    assert "worst: critical" in page
    assert "2 medium" in page
    await mirror.stop()
    other = upstream.add_image("library/app", "latest", layers=[b" "])
    mirror = await lab.mirror(place)
    await lab.pull(mirror, other)
    assert (await lab.result(other.digest)).worst == "none"
    assert lab.looked() == [f"{image.digest} 10 False", f"{other.digest} 10 False"]
    assert upstream.count("GET", str(image.layers[0])) == 1
    assert len(upstream.asked) > asked
    assert os.listdir(mirror.directory / "scans") == ["lock"]


async def test_what_a_scanner_found_is_refused(lab: Lab, upstream: Scripted) -> None:
    """By tag its last good image is served instead, by digest it is refused, for GET, HEAD and in an index; what is not above the limit is served."""
    old = upstream.add_image("library/app", "latest", layers=[b"7.5"])
    mirror = await lab.mirror(max_severity="high")
    await lab.pull(mirror, old)
    assert (await lab.result(old.digest)).worst == "high"
    assert (await mirror.get(LATEST)).body == old.body
    new = upstream.add_image("library/app", "latest", layers=[b"9.1"])
    index, _ = upstream.add_index("library/app", "both", [new])
    await lab.pull(mirror, new)
    assert (await mirror.get("/v2/app/manifests/both")).status == 200
    assert (await lab.result(new.digest)).worst == "critical"
    for _ in patiently():
        if (await mirror.get(LATEST)).body == old.body:
            break
    got = await mirror.get(LATEST, "HEAD")
    assert got.headers["Docker-Content-Digest"] == str(old.digest)
    assert "severity critical" in got.headers["Mirror-Guard"]
    for reference in (new.digest, index, "both"):
        for method in ("GET", "HEAD"):
            assert (await mirror.get(f"/v2/app/manifests/{reference}", method)).status == 403
    assert (await mirror.get("/export/app:both.tar")).status == 403


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("fail", "it printed nothing, and ended with status 1: no database"),
        ("hang", "it did not end in 1 s"),
        ("flood", "it printed more than"),
        ("nonsense", "it printed JSON that is neither SARIF nor CycloneDX"),
    ],
)
async def test_a_scanner_that_fails_is_told_and_no_pull_fails(
    lab: Lab, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    """What it found before stays, and counts; what it has started does not go on. It is tried again."""
    monkeypatch.setattr(running, "_MOST_OUTPUT", 1_000_000)
    image = upstream.add_image("library/app", "latest", layers=[b"9.8"])
    mirror = await lab.mirror(scan={"timeout": "1s"} if how == "hang" else None)
    lab.behave(how)
    await lab.pull(mirror, image)
    result = await lab.result(image.digest, fault=True)
    assert why in result.fault
    assert (await mirror.get(LATEST)).status == 200
    log = str(mirror.directory.parent / "log").encode()
    for _ in patiently():
        if not any(log in _command_line(pid) for pid in os.listdir("/proc") if pid.isdigit()):
            break
    lab.behave("")
    monkeypatch.setattr(scanning, "_AGAIN", 0.0)
    await mirror.stop()
    mirror = await lab.mirror()
    assert (await lab.result(image.digest)).worst == "critical"


def _command_line(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""


async def test_an_image_whose_scan_breaks_keeps_no_other_from_being_scanned(
    lab: Lab, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its report makes of the mirror: the others have their turn, and it is not scanned each few seconds."""

    async def count(report: Path) -> Mapping[str, int]:
        if b'"9.9"' in report.read_bytes():
            raise RuntimeError("a fault in the mirror")
        return await count_findings(report)

    monkeypatch.setattr(running, "count_findings", count)
    other = upstream.add_image("library/other", "latest", layers=[b"1.0"])
    bad = upstream.add_image("library/app", "latest", layers=[b"9.9"])
    mirror = await lab.mirror()
    assert (await mirror.get("/v2/other/manifests/latest")).status == 200
    for blob in (other.config, *other.layers):
        await mirror.get(f"/v2/other/blobs/{blob}")
    await lab.pull(mirror, bad)
    assert (await lab.result(other.digest)).worst == "low"
    for _ in patiently():
        if len(lab.looked()) == 2:
            break
        await asyncio.sleep(0.02)
    # A full round after both.
    await asyncio.sleep(0.2)
    assert sorted(line.split()[0] for line in lab.looked()) == sorted([str(bad.digest), str(other.digest)])


async def test_a_program_that_is_not_there_is_told(lab: Lab, upstream: Scripted, start: StartMirror) -> None:
    """With its name."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(settings={"scan": [{"command": ["/no/such/scanner", "{archive}"]}]})
    await lab.pull(mirror, image)
    assert (await lab.result(image.digest, fault=True)).fault == "/no/such/scanner cannot be run: No such file or directory"


async def test_an_image_is_scanned_again(lab: Lab, upstream: Scripted) -> None:
    """After the interval: there are new advisories each day."""
    image = upstream.add_image("library/app", "latest", layers=[b"1.0"])
    mirror = await lab.mirror(scan={"interval": "1s"})
    await lab.pull(mirror, image)
    for _ in patiently():
        if len(lab.looked()) >= 2:
            break
        await asyncio.sleep(0.05)


async def test_a_scanner_is_for_the_images_that_its_table_names(lab: Lab, upstream: Scripted) -> None:
    """Others are not looked at."""
    image = upstream.add_image("library/app", "latest", layers=[b"1.0"])
    upstream.add_image("library/other", "latest", layers=[b"1.0"])
    mirror = await lab.mirror(scan={"images": ["app"]})
    other = json.loads((await mirror.get("/v2/other/manifests/latest")).body)
    for blob in (other["config"], *other["layers"]):
        await mirror.get(f"/v2/other/blobs/{blob['digest']}")
    await lab.pull(mirror, image)
    await lab.result(image.digest)
    assert [line.split()[0] for line in lab.looked()] == [str(image.digest)]
