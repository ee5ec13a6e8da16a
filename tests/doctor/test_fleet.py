"""What the doctor says of a fleet: each mirror is asked for its own list."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirror import __version__
from mirror.doctor import fleet
from mirror.fleet_documents import FIGURES
from tests.doctor.conftest import settings
from tests.support.scripted import Scripted, Status

TOKEN = "of-this-fleet-only"
OWN = "http://127.0.0.1:1"
TABLES = {"access": "0", "guards": "1", "users": "2"}


def state(mirror: str, mirrors: list[str], **other: Any) -> dict[str, Any]:
    """As a mirror tells it."""
    return {
        "mirror": mirror,
        "version": __version__,
        "time": time.time(),
        "mirrors": mirrors,
        "parents": [],
        "degraded": [],
        "tables": TABLES,
        **dict.fromkeys(FIGURES, 0),
        **other,
    }


def refusal(status: int, message: str) -> Status:
    body = json.dumps({"errors": [{"code": "DENIED", "message": message}]}).encode()
    return Status(status, {"Content-Type": "application/json"}, body)


def answer(document: Any) -> Status:
    return Status(200, {"Content-Type": "application/json"}, json.dumps(document).encode())


def told(url: str, **other: Any) -> Status:
    """One that is well, but for this."""
    return answer(state(url, [OWN, url]) | other)


CASES: dict[str, tuple[Callable[[str], Status], str, str]] = {
    "another list": (
        lambda url: told(url, mirrors=[url, "http://c.lan:5000"]),
        "lacks http://127.0.0.1:1 and has http://c.lan:5000",
        "fleet.mirrors",
    ),
    "another one": (lambda url: told(url, mirror="http://c.lan:5000"), "calls itself http://c.lan:5000", "fleet.own"),
    "another token": (
        lambda url: refusal(403, "the token is another one"),
        "HTTP 403: the token is another one",
        "fleet.token_file",
    ),
    "an older version": (lambda url: Status(404), "HTTP 404", "version"),
    "no mirror": (lambda url: Status(200, {"Content-Type": "text/html"}, b"<html>"), "no mirror of this version", "version"),
    "nonsense": (lambda url: answer({"mirrors": []}), "does not say how it is", "version"),
    "a clock ahead": (lambda url: told(url, time=time.time() + 60), "s ahead of this machine's", "NTP"),
    "a clock behind": (lambda url: told(url, time=time.time() - 60), "s behind this machine's", "NTP"),
    "other access tables": (lambda url: told(url, tables={**TABLES, "access": "9"}), "other [[access]] tables", "mirror reload"),
    "other guards": (lambda url: told(url, tables={**TABLES, "guards": "9"}), "other [[guard]] tables", "mirror reload"),
    "other users": (lambda url: told(url, tables={**TABLES, "users": "9"}), "other users or tokens", "mirror user send"),
    "tables that are none": (lambda url: told(url, tables="access"), "does not say how it is", "version"),
    "another version": (lambda url: told(url, version="0.0.1", tables={}), "0.0.1", "same one"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_each_way_in_which_a_mirror_differs_is_told_with_what_to_do(
    tree: dict[str, Any], tmp_path: Path, case: tuple[Callable[[str], Status], str, str]
) -> None:
    """By its URL. What differs at one is said of that one."""
    fault, said, cure = case
    async with Scripted() as own, Scripted() as other:
        (tmp_path / "token").write_text(TOKEN)
        mirrors = [own.url, other.url]
        tree["fleet"] = {"mirrors": mirrors, "own": own.url, "token_file": str(tmp_path / "token")}
        own.fail("/fleet/state", answer(state(own.url, mirrors)))
        status = fault(other.url)
        if status.status == 200 and b'"mirrors": [' in status.body:
            document = json.loads(status.body)
            document["mirrors"] = [own.url if url == OWN else url for url in document["mirrors"]]
            status = answer(document)
        other.fail("/fleet/state", status)
        (finding,) = await fleet.examine(settings(tree))
        assert finding.level != "ok"
        assert said.replace(OWN, own.url) in finding.message
        assert other.url in finding.message
        assert cure in finding.cure
        assert (own.count("GET", "/fleet/state"), other.count("GET", "/fleet/state")) == (1, 1)


async def test_a_dead_mirror_and_parents_that_let_nobody_in_are_told(tree: dict[str, Any], tmp_path: Path) -> None:
    """And that without a token little is known: whether the others answer, it is."""
    async with Scripted() as own, Scripted() as parent:
        dead = "http://127.0.0.1:1"
        (tmp_path / "token").write_text(TOKEN)
        mirrors, parents = [own.url, dead], [parent.url, "http://127.0.0.1:2"]
        tree["fleet"] = {"mirrors": mirrors, "own": own.url, "parents": parents, "token_file": str(tmp_path / "token")}
        own.fail("/fleet/state", answer(state(own.url, mirrors)))
        parent.fail("/v2/", refusal(401, "log in"))
        found = await fleet.examine(settings(tree))
        assert [finding.level for finding in found] == ["problem"] * 3
        said = ((dead, "does not answer"), (parent.url, "does not let this mirror in"), (parents[1], "does not answer"))
        assert all(url in finding.message and what in finding.message for (url, what), finding in zip(said, found, strict=True))
        del tree["fleet"]["token_file"]
        tree["fleet"]["parents"] = [parent.url]
        own.fail("/fleet/state", refusal(403, "no token"))
        found = await fleet.examine(settings(tree))
        assert [(finding.level, "token" in finding.message) for finding in found] == [("advice", True), ("problem", False)]
        assert all(asked.authorization is None for asked in parent.asked)


async def test_a_fleet_that_agrees_is_well(tree: dict[str, Any], tmp_path: Path) -> None:
    """In whatever order the lists are: that does not matter. Without a fleet nothing is said."""
    assert await fleet.examine(settings(tree)) == []
    async with Scripted() as own, Scripted() as other:
        (tmp_path / "token").write_text(TOKEN)
        tree["fleet"] = {"mirrors": [own.url, other.url], "own": own.url, "token_file": str(tmp_path / "token")}
        for one in (own, other):
            one.fail("/fleet/state", answer(state(one.url, [other.url, own.url])))
        (finding,) = await fleet.examine(settings(tree))
        assert finding.level == "ok"
