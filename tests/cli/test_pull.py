"""``mirror pull`` and ``mirror tags``."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mirror.downloads.active import merged
from mirror.manifests import OCI_INDEX, OCI_MANIFEST, this_platform
from mirror.names import Digest, natural
from mirror.storage.disk.statuses import Statuses
from tests.support.commands import Commands, mirror
from tests.support.images import make_index
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Hold, Scripted, Status

MIB = 1024 * 1024


MIRROR = f"{shlex.quote(sys.executable)} -m mirror"


async def shell(script: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of it."""
    return await asyncio.to_thread(
        subprocess.run,
        ["sh", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def cached(directory: Path, digest: Digest | str) -> bool:
    return (directory / "blobs" / "sha256" / str(digest).partition(":")[2]).exists()


@pytest.fixture
def commands(upstream: Scripted, tmp_path: Path) -> Commands:
    """On a cache directory that does not exist yet."""
    return Commands(tmp_path / "cache", upstream)


async def test_a_list_is_pulled_whole_and_a_second_time_for_nothing(
    commands: Commands, upstream: Scripted, tmp_path: Path
) -> None:
    """Names in files, on standard input and as arguments, each once; upstream gives each blob once; the second run asks with HEAD alone."""
    base = os.urandom(50_000)
    images = {
        name: upstream.add_image(f"library/{name}", "1", layers=[base, os.urandom(20_000)]) for name in ("one", "two", "three")
    }
    file = tmp_path / "images.txt"
    file.write_text("# what we need\n\none:1   # the first\n  docker.io/library/two:1\none:1\n")
    text = await commands("pull", "-f", str(file), "--file", "-", stdin="three:1\n")
    assert "3 images: 3 fetched, 0 already there, 0 failed" in text
    for image in images.values():
        for digest in (image.digest, image.config, *image.layers):
            assert cached(tmp_path / "cache", digest)
            assert upstream.count("GET", str(digest)) == (0 if digest == image.digest else 1)
    asked = len(upstream.asked)
    assert "3 images: 0 fetched, 3 already there, 0 failed; 0 B in all" in await commands("pull", "one:1", "two:1", "three:1")
    assert [one.method for one in upstream.asked[asked:]] == ["HEAD"] * 3
    await upstream.stop()
    found = await commands.json("pull", "one:1")
    assert found[0]["fault"] is None
    assert "no connection" in found[0]["unchecked"]


async def test_images_and_their_layers_come_side_by_side(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """None of them waits for another to be there; and whoever looks at a dashboard on this directory sees them all, until they are."""
    images = [upstream.add_image(f"library/{name}", "1", layers=[os.urandom(1000), os.urandom(1000)]) for name in ("one", "two")]
    holds = {layer: Hold(100) for image in images for layer in image.layers}
    for layer, hold in holds.items():
        upstream.fail(str(layer), hold)
    pulling = asyncio.create_task(commands("pull", "one:1", "two:1", MIRROR_UPSTREAM__STALL_TIMEOUT="60"))
    for hold in holds.values():
        await hold.reached.wait()
    active = Statuses(tmp_path / "cache")
    await until(lambda: set(map(str, holds)) <= {line.digest for line in merged(active.read()) if not line.ended})
    for hold in holds.values():
        hold.release.set()
    assert "2 images: 2 fetched" in await pulling
    assert list((tmp_path / "cache" / "live").iterdir()) == []


async def test_a_changed_tag_is_fetched_though_it_is_fresh(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """And only what is new of it."""
    base = os.urandom(50_000)
    upstream.add_image("library/app", "1", layers=[base])
    await commands("pull", "app:1")
    image = upstream.add_image("library/app", "1", layers=[base, os.urandom(1000)])
    (told,) = await commands.json("pull", "app:1")
    assert told["fetched"] == 1000 + len(upstream.blobs[str(image.config)])
    assert cached(tmp_path / "cache", image.layers[1])
    assert upstream.count("GET", str(image.layers[0])) == 1


@pytest.mark.parametrize(
    ("flags", "architectures"),
    [
        ((), {this_platform().removeprefix("linux/")}),
        (("--platform", "arm64"), {"arm64"}),
        (("--platform", "linux/arm64/v8"), {"arm64"}),
        (("--platform", "linux/amd64", "--platform", "linux/arm64"), {"amd64", "arm64"}),
        (("--all-platforms",), {"amd64", "arm64"}),
    ],
)
async def test_platforms_are_chosen(
    commands: Commands, upstream: Scripted, tmp_path: Path, flags: tuple[str, ...], architectures: set[str]
) -> None:
    """This machine's, those that are named, or all; of the others nothing is fetched."""
    made = make_index(1)
    for data in made.blobs.values():
        upstream.add_blob(data)
    for number, (media_type, body) in enumerate(made.manifests):
        upstream.add_manifest("library/app", "1" if number == 2 else None, body, media_type)
    await commands("pull", "app:1", *flags)
    configs = {json.loads(data)["architecture"]: name for name, data in made.blobs.items() if data.startswith(b'{"architecture"')}
    assert {name for name, digest in configs.items() if cached(tmp_path / "cache", digest)} == architectures


async def test_failures_are_told_and_the_rest_is_pulled(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """An image that is not there, a platform that it or its index is not for, a blob that upstream lacks: each with its reason, status 1."""
    image = upstream.add_image("library/good", "1")
    broken = upstream.add_image("library/broken", "1", layers=[b"gone", b"here"])
    del upstream.blobs[str(broken.layers[0])]
    upstream.add_index("library/other", "1", [image])
    upstream.manifests["library/other", str(image.digest)] = upstream.manifests["library/good", str(image.digest)]
    found = await commands.json("pull", "good:1", "absent:1", "broken:1", "--platform", "linux/amd64", status=1)
    faults = {told["image"]: told["fault"] for told in found}
    assert faults["docker.io/library/good:1"] is None
    assert "has no manifest 1" in faults["docker.io/library/absent:1"]
    assert str(broken.layers[0]) in faults["docker.io/library/broken:1"]
    assert cached(tmp_path / "cache", image.layers[0])
    assert cached(tmp_path / "cache", broken.layers[1])
    asked = len(upstream.asked)
    found = await commands.json("pull", "good:1", "other:1", "--platform", "linux/riscv64", status=1)
    for told in found:
        assert told["fault"] == f"{told['image']} is not for linux/riscv64, but for linux/amd64"
    assert not [one for one in upstream.asked[asked:] if "/blobs/" in one.path]
    done = await commands.run("pull", "absent:1")
    assert done.returncode == 1
    assert "mirror: docker.io/library/absent:1: docker.io has no manifest 1" in done.stderr


async def test_an_index_of_indexes_with_gaps_is_pulled_as_far_as_it_goes(
    commands: Commands, upstream: Scripted, tmp_path: Path
) -> None:
    """All that any level lists; what upstream lacks of it is named, with status 1; once it is there, the next run is content."""
    amd, arm = (upstream.add_image("library/app") for _ in range(2))
    inner, body = upstream.add_index("library/app", "inner", [amd, arm])
    outer = {"mediaType": OCI_INDEX, "manifests": [{"mediaType": OCI_INDEX, "digest": str(inner), "size": len(body)}]}
    upstream.add_manifest("library/app", "1", json.dumps(outer).encode(), OCI_INDEX)
    lacking = upstream.manifests.pop(("library/app", str(arm.digest)))
    (told,) = await commands.json("pull", "app:1", "--all-platforms", status=1)
    assert told["fault"] == f"upstream lacks 1 manifest that docker.io/library/app:1 lists: {arm.digest} (linux/arm64)"
    assert told["fetched"] == told["size"] == 1000 + len(upstream.blobs[str(amd.config)])
    assert "already there" in await commands("pull", "app:1", "--platform", "amd64")
    upstream.manifests["library/app", str(arm.digest)] = lacking
    (told,) = await commands.json("pull", "app:1", "--all-platforms")
    assert (told["fault"], told["blobs"]) == (None, 4)
    for image in (amd, arm):
        assert cached(tmp_path / "cache", image.layers[0])
        assert upstream.count("GET", str(image.layers[0])) == 1


async def test_all_bytes_that_come_are_counted_once(commands: Commands, upstream: Scripted) -> None:
    """However fast they come, from whatever image or platform they are asked for first: together they are what upstream sent."""
    base = os.urandom(3 * MIB)
    for name in ("one", "two", "three"):
        upstream.add_image(f"library/{name}", "1", layers=[base, os.urandom(2 * MIB), os.urandom(100_000)])
    found = await commands.json("pull", "one:1", "two:1", "three:1")
    assert sum(told["fetched"] for told in found) == sum(upstream.sent.values())
    assert sum(told["fetched"] for told in await commands.json("pull", "one:1", "two:1", "three:1")) == 0


async def test_what_a_running_mirror_brings_meanwhile_is_counted(start: StartMirror, upstream: Scripted) -> None:
    """Prefetched by another process while this one waits for the image's other blobs; what was there before the pull is not."""
    mirror: Mirror = await start(prefetch=True, settings={"upstream": {"stall_timeout": 60}})
    image = upstream.add_image("library/app", "1", layers=[os.urandom(MIB), os.urandom(MIB), os.urandom(MIB)])
    held, prefetched, before = image.layers
    await mirror.get(f"/v2/app/blobs/{before}")
    await mirror.until_cached(before)
    holds = [Hold(100_000), Hold(0)]
    for layer, hold in zip((held, prefetched), holds, strict=True):
        upstream.fail(str(layer), hold)
    pulling = asyncio.create_task(Commands(mirror.directory, upstream).json("pull", "app:1"))
    await holds[0].reached.wait()
    await mirror.get("/v2/app/manifests/1")
    client = asyncio.create_task(mirror.get(f"/v2/app/blobs/{held}"))
    for hold in holds:
        hold.release.set()
    (told,) = await pulling
    assert (await client).digest() == held
    assert told["fetched"] == 2 * MIB + len(upstream.blobs[str(image.config)])


async def test_a_blob_that_is_embedded_need_not_be_upstream(commands: Commands, upstream: Scripted) -> None:
    """The image is there whole, since its manifest has the bytes."""
    embedded = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(b"{}")), "size": 2, "data": "e30="}
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": embedded, "layers": [embedded]}
    upstream.add_manifest("library/app", "1", json.dumps(body).encode())
    (told,) = await commands.json("pull", "app:1")
    assert told["fault"] is None


async def test_what_refers_to_an_image_comes_if_it_is_asked_for(
    commands: Commands, upstream: Scripted, start: StartMirror, tmp_path: Path
) -> None:
    """With --referrers: an SBOM, what refers to that, and cosign's tags are then served offline; a list that cannot be had is status 1. Without, nothing of it is asked."""
    image = upstream.add_image("library/app", "1", layers=[b"app"])
    subject = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(image.digest), "size": len(image.body)}
    sbom = upstream.add_image("library/app", layers=[b"sbom"], subject=subject)
    subject = {**subject, "digest": str(sbom.digest), "size": len(sbom.body)}
    nested = upstream.add_image("library/app", layers=[b"of the sbom"], subject=subject)
    signature = upstream.add_image("library/app", f"sha256-{image.digest.hex}.sig", layers=[b"signature"])
    await commands("pull", "app:1", "--all-platforms")
    assert not [asked for asked in upstream.asked if "referrers" in asked.path or ".sig" in asked.path]
    upstream.fail("/referrers/", Status(500), times=50)
    done = await commands.run("pull", "app:1", "--all-platforms", "--referrers")
    assert (done.returncode, "signatures and the like may be missing" in done.stderr) == (1, True)
    upstream.heal()
    await commands("pull", "app:1", "--all-platforms", "--referrers")
    asked = len(upstream.asked)
    mirror = await start(directory=tmp_path / "cache", settings={"upstream": {"offline": True}})
    listed = json.loads((await mirror.get(f"/v2/app/referrers/{image.digest}")).body)["manifests"]
    assert [entry["digest"] for entry in listed] == [str(sbom.digest)]
    for one in (image, sbom, nested, signature):
        assert (await mirror.get(f"/v2/app/manifests/{one.digest}")).body == one.body
        assert (await mirror.get(f"/v2/app/blobs/{one.layers[0]}")).status == 200
    assert (await mirror.get(f"/v2/app/manifests/sha256-{image.digest.hex}.sig")).body == signature.body
    assert len(upstream.asked) == asked


async def test_what_has_been_attached_a_moment_ago_comes_too(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """A list of referrers that is fresh for clients is asked for anew, as tags are; one that cannot be had then is taken as it was."""
    image = upstream.add_image("library/app", "1")
    subject = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(image.digest), "size": len(image.body)}
    named = ("app:1", "--platform", "linux/amd64", "-o", str(tmp_path / "lab.tar"))
    assert (await commands.json("export", *named))["referrers"] == 0
    first, second = (upstream.add_image("library/app", layers=[layer], subject=subject) for layer in (b"first", b"second"))
    assert (await commands.json("export", *named))["referrers"] == 2
    upstream.fail("/referrers/", Status(500), times=50)
    assert (await commands.json("export", *named))["referrers"] == 2
    assert [upstream.count("GET", f"/manifests/{one.digest}") for one in (first, second)] == [1, 1]


async def test_build_caches_and_artifacts_have_no_platform(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """BuildKit's cache, an index of layers, and an index of artifacts come whole, whatever the platform: each blob once, and no layer is asked for as a manifest."""
    layer, config = os.urandom(1000), json.dumps({"layers": [], "records": []}).encode()
    listed = [
        {"mediaType": media_type, "digest": str(upstream.add_blob(data)), "size": len(data)}
        for media_type, data in (
            ("application/vnd.oci.image.layer.v1.tar+gzip", layer),
            ("application/vnd.buildkit.cacheconfig.v0", config),
        )
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    upstream.add_manifest("library/app", "cache", json.dumps(document).encode(), OCI_INDEX)
    artifacts = []
    for number in range(2):
        chart, empty = upstream.add_blob(b"chart %d" % number), upstream.add_blob(b"{}")
        body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "artifactType": "application/vnd.example",
                "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(empty), "size": 2},
                "layers": [{"mediaType": "application/vnd.example", "digest": str(chart), "size": 7}],
            }
        ).encode()
        digest = upstream.add_manifest("library/app", None, body, OCI_MANIFEST)
        artifacts.append({"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(body)})
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": artifacts}
    upstream.add_manifest("library/app", "charts", json.dumps(document).encode(), OCI_INDEX)
    for platforms in (["--platform", "linux/arm64"], ["--all-platforms"]):
        found = await commands.json("pull", "app:cache", "app:charts", *platforms)
        assert [(told["fault"], told["blobs"]) for told in found] == [(None, 2), (None, 3)]
    for data in (layer, config, b"chart 0", b"chart 1", b"{}"):
        assert cached(tmp_path / "cache", Digest.of(data))
        assert upstream.count("GET", f"/blobs/{Digest.of(data)}") == 1
        assert upstream.count("GET", f"/manifests/{Digest.of(data)}") == 0


async def test_wrong_use_is_status_2_and_says_where(commands: Commands, tmp_path: Path) -> None:
    """Nothing is fetched before every name has been read."""
    file = tmp_path / "images.txt"
    file.write_text("app:1\nhttps://app\n")
    for arguments, told in (
        ((), "give image names"),
        (("-f", str(file)), "images.txt, line 2: 'https://app' is a URL"),
        (("-f", str(tmp_path / "absent")), "cannot be read"),
        (("app", "--platform", "x y"), "a platform such as"),
        (("app", "--platform", "arm64", "--all-platforms"), "exclude each other"),
        (("APP",), "lower-case"),
    ):
        done = await commands.run("pull", *arguments)
        assert done.returncode == 2, arguments
        assert told in " ".join(done.stderr.split()).replace("│", ""), done.stderr
    done = await commands.run("pull", "lan.example/app")
    assert done.returncode == 1
    assert 'does not serve lan.example: to have it do so, add a table [registries."lan.example"]' in done.stderr


async def test_lists_come_from_other_systems_too(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """With a byte order mark and CRLF; a standard input that is closed is told as a file is that cannot be read."""
    upstream.add_image("library/app", "1")
    upstream.add_image("library/app", "2")
    file = tmp_path / "images.txt"
    file.write_bytes("\ufeffapp:1\r\n# und so fort: ü\r\napp:2\r\n".encode())
    assert "2 images: 2 fetched" in await commands("pull", "-f", str(file), LC_ALL="C", PYTHONUTF8="0")
    done = await shell(f"{MIRROR} pull -f - {shlex.join(commands.flags)} <&-")
    assert done.returncode == 2
    assert "--file -: cannot be read" in done.stderr


async def test_output_that_is_not_taken_is_no_fault_of_the_cache(commands: Commands, upstream: Scripted) -> None:
    """A reader who leaves ends a command without a word, as with other programs; a full disk is told; a closed standard error harms nothing."""
    upstream.add_image("library/app", "1")
    flags = shlex.join(commands.flags)
    assert "1 image: 1 fetched" in (await shell(f"{MIRROR} pull app:1 {flags} 2>&-")).stdout
    for command in ("pull app:1", "pin app:1", "ls", "verify"):
        done = await shell(f"{{ {MIRROR} {command} {flags}; echo $? >&2; }} | true")
        assert done.stderr == "1\n", command
    done = await shell(f"{MIRROR} ls {flags} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == "mirror: the output cannot be written: No space left on device\n"


async def test_ctrl_c_leaves_a_pull_to_be_gone_on_with(commands: Commands, upstream: Scripted, tmp_path: Path) -> None:
    """Status 130 and a sentence; the second run asks upstream for the missing bytes alone. So it is where SIGINT is ignored by the parent, as under nohup."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(3 * MIB)])
    hold = Hold(MIB)
    upstream.fail(str(image.layers[0]), hold)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mirror",
        "pull",
        "app:1",
        *commands.flags,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    await hold.reached.wait()
    spool = tmp_path / "cache" / "spool" / f"sha256-{image.layers[0].hex}.have"
    while spool.stat().st_size < 48:
        await asyncio.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = await process.communicate()
    assert process.returncode == 130
    assert b"interrupted; run it again to go on" in stderr
    assert b"Traceback" not in stderr
    hold.release.set()
    await commands("pull", "app:1")
    assert cached(tmp_path / "cache", image.layers[0])
    ranges = [one.range for one in upstream.asked if str(image.layers[0]) in one.path]
    assert ranges[0] is None
    assert ranges[1] is not None and int(ranges[1].removeprefix("bytes=").partition("-")[0]) > 0
    assert upstream.count("GET", str(image.config)) == 1


async def test_beside_a_running_mirror_each_blob_is_fetched_once(start: StartMirror, upstream: Scripted) -> None:
    """A client's download under way is shared, by the lease in the directory; what the command has fetched, clients get."""
    # What is held must not count as stalled while the command starts.
    mirror: Mirror = await start(settings={"upstream": {"stall_timeout": 60}})
    image = upstream.add_image("library/app", "1", layers=[os.urandom(MIB), os.urandom(1000)])
    hold = Hold(100_000)
    upstream.fail(str(image.layers[0]), hold)
    await mirror.get("/v2/app/manifests/1")
    client = asyncio.create_task(mirror.get(f"/v2/app/blobs/{image.layers[0]}"))
    await hold.reached.wait()
    pulling = asyncio.create_task(Commands(mirror.directory, upstream)("pull", "app:1"))
    await mirror.until_cached(image.layers[1])
    hold.release.set()
    assert "1 fetched" in await pulling
    assert (await client).digest() == image.layers[0]
    assert (await mirror.get(f"/v2/app/blobs/{image.layers[1]}")).cache == "mirror; hit"
    for blob in (image.config, *image.layers):
        assert upstream.count("GET", str(blob)) == 1


async def test_a_cache_that_is_too_small_is_told(upstream: Scripted, tmp_path: Path) -> None:
    """Not all of the images are there in the end, and so not all is well."""
    for name in ("one", "two", "three"):
        upstream.add_image(f"library/{name}", "1", layers=[os.urandom(MIB)])
    commands = Commands(tmp_path / "cache", upstream)
    done = await commands.run("pull", "one:1", "two:1", "three:1", MIRROR_CACHE__MAX_SIZE="2MiB")
    assert done.returncode == 1
    assert "within cache.max_size (2 MiB)" in done.stderr


async def test_bars_are_for_terminals(commands: Commands, upstream: Scripted) -> None:
    """There they are drawn; elsewhere lines are printed, without a control character."""
    upstream.add_image("library/app", "1", layers=[os.urandom(100_000)])
    image = upstream.add_image("library/app", "2", layers=[os.urandom(100_000)])
    done = await commands.run("pull", "app:1")
    assert done.stdout.startswith("docker.io/library/app:1: fetched 97.7 KiB of 97.7 KiB\n")
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()
    hold = Hold(50_000)
    upstream.fail(str(image.layers[0]), hold)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mirror", "pull", "app:2", *commands.flags),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    while b"docker.io/library/app:2" not in shown:
        shown += await asyncio.to_thread(os.read, ours, 65536)
    hold.release.set()
    assert await process.wait() == 0
    os.close(ours)


# ---------------------------------------------------------------------- tags


def test_tags_are_in_the_order_of_versions() -> None:
    """Numbers as numbers, a version before what is made of it, names first."""
    ordered = ["alpine", "latest", "6", "7", "7-alpine", "7.2", "7.2-alpine", "v7.2.1", "7.2.3", "7.10", "7.10.1", "20240101"]
    assert sorted(sorted(ordered), key=natural) == ordered


async def test_tags_are_upstreams_and_stale_when_it_is_away(commands: Commands, upstream: Scripted) -> None:
    """All pages of them, filtered and limited; one request while they are fresh; without upstream the last answer, and it says so."""
    upstream.page_size = 3
    for tag in ("7.2", "7.10", "latest", "7.9", "6.0", "7.10-alpine"):
        upstream.add_image("library/redis", tag)
    assert (await commands("tags", "redis")).split() == ["latest", "6.0", "7.2", "7.9", "7.10", "7.10-alpine"]
    asked = len(upstream.asked)
    assert (await commands("tags", "redis", "--filter", "7.*0")).split() == ["7.10"]
    assert (await commands("tags", "redis", "--filter", "alpine")).split() == ["7.10-alpine"]
    assert (await commands("tags", "redis", "--limit", "2")).split() == ["7.10", "7.10-alpine"]
    assert len(upstream.asked) == asked
    done = await commands.run("tags", "redis", "--filter", "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no tag of docker.io/library/redis matches 'nothing'" in done.stderr
    await upstream.stop()
    done = await commands.run("tags", "redis", "--json", MIRROR_CACHE__TAG_TTL="0")
    assert json.loads(done.stdout)["stale"]
    assert len(json.loads(done.stdout)["tags"]) == 6
    assert "upstream cannot be reached" in done.stderr
    assert (await commands.run("tags", "never")).returncode == 1
    assert (await commands.run("tags", "redis:7")).returncode == 2


async def test_upstreams_refusal_is_told(commands: Commands, upstream: Scripted, start: StartMirror) -> None:
    """A repository that is not there, and one that is limited."""
    done = await commands.run("tags", "absent")
    assert done.returncode == 1
    assert "docker.io has no repository library/absent" in done.stderr
    upstream.add_image("library/app", "1")
    upstream.fail("/manifests/1", Status(429, {"Retry-After": "60"}), times=9, method="HEAD")
    upstream.fail("/manifests/1", Status(429, {"Retry-After": "60"}), times=9)
    done = await commands.run("pull", "app:1")
    assert done.returncode == 1
    assert "429" in done.stderr or "limit" in done.stderr, done.stderr


def test_help_tells_everything() -> None:
    """Each command explains itself."""
    assert "--all-platforms" in mirror("pull", "--help").stdout
    assert "--filter" in mirror("tags", "--help").stdout
