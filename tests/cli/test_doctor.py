"""``mirror doctor`` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

from mirror.config import DEFAULT_ENDPOINTS
from tests.support.commands import Commands, mirror
from tests.support.mirrors import Mirror
from tests.support.scripted import Scripted


async def test_all_is_well(mirror: Mirror, upstream: Scripted, tmp_path: Path) -> None:
    """Every part has a finding, in words and as JSON; without a problem the status is 0."""
    commands = Commands(mirror.directory)
    commands.flags += [flag for name in DEFAULT_ENDPOINTS for flag in ("--upstream", f"{name}={upstream.url}")]
    commands.flags += ["--mirror", mirror.url]
    nowhere = {"PATH": str(tmp_path), "MIRROR_CACHE__MAX_SIZE": "1MiB"}
    done = await commands.run("doctor", **nowhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("No problems found.\n")
    found = json.loads((await commands.run("doctor", "--json", **nowhere)).stdout)
    assert found["well"]
    assert {"settings", "disk", "clock", "mirror", *DEFAULT_ENDPOINTS} <= {finding["check"] for finding in found["findings"]}


async def test_a_dead_endpoint_before_a_good_one_is_no_problem(mirror: Mirror, upstream: Scripted, tmp_path: Path) -> None:
    """A list of public mirrors, of which some are expected to be dead, ends well: with status 0, and a word about the dead one."""
    commands = Commands(mirror.directory)
    others = [name for name in DEFAULT_ENDPOINTS if name != "docker.io"]
    commands.flags += [flag for name in others for flag in ("--upstream", f"{name}={upstream.url}")]
    commands.flags += ["--upstream", "docker.io=http://127.0.0.1:1", "--upstream", f"docker.io={upstream.url}"]
    commands.flags += ["--mirror", mirror.url]
    done = await commands.run("doctor", PATH=str(tmp_path), MIRROR_CACHE__MAX_SIZE="1MiB")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "advice   docker.io" in done.stdout
    assert "http://127.0.0.1:1" in done.stdout
    assert done.stdout.endswith("No problems found.\n")


def test_wrong_settings_are_findings(tmp_path: Path) -> None:
    """Every fault with a cure and status 1; nothing else is looked at."""
    config = tmp_path / "mirror.toml"
    config.write_text('[cache]\ntag_tl = 1\nmax_size = "x"\n')
    done = mirror("doctor", "--config", str(config), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["well"]
    assert {finding["check"] for finding in found["findings"]} == {"settings"}
    assert len(found["findings"]) == 2
    assert all(finding["cure"] for finding in found["findings"])
    assert mirror("doctor", "--mirror", "nonsense").returncode == 2


def test_problems_end_with_status_1(tmp_path: Path) -> None:
    """And are told with what to do."""
    upstreams = [flag for name in DEFAULT_ENDPOINTS for flag in ("--upstream", f"{name}=http://127.0.0.1:1")]
    done = mirror("doctor", "--cache-dir", str(tmp_path / "cache"), "--mirror", "http://127.0.0.1:1", *upstreams)
    assert done.returncode == 1
    assert "problem  upstreams" in done.stdout
    assert f"none of {len(DEFAULT_ENDPOINTS)} registries can be reached; docker.io: " in done.stdout
    assert "without a network this is as intended" in done.stdout
    assert done.stdout.count("curl -v http://127.0.0.1:1/v2/") == 1, "every registry has the same cure"
    assert "No problems found" not in done.stdout


def test_a_proxy_that_cannot_be_used_is_a_finding(tmp_path: Path) -> None:
    """The mirror does not start with it, and the doctor says why, instead of failing as well."""
    done = mirror("doctor", "--cache-dir", str(tmp_path), "--json", HTTPS_PROXY="socks4://proxy:1080")
    found = [finding for finding in json.loads(done.stdout)["findings"] if finding["check"] == "upstreams"]
    assert done.returncode == 1
    assert len(found) == 1
    assert "HTTPS_PROXY names a socks4 proxy" in found[0]["message"]
    assert found[0]["cure"]
