"""The fleet as a whole, seen from any of its mirrors: commands with --fleet, and the dashboard's page."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from mirror.api.fleet import FleetRequests
from mirror.fleet_documents import State
from mirror.web import worked_out
from tests.fleet.test_changes import NAME, TOKEN, Setting, pull_at, setting
from tests.promises.test_fleet import processes
from tests.support.commands import Commands
from tests.support.dashboard import HTML
from tests.support.members import StartMembers
from tests.support.mirrors import Mirror, until
from tests.support.scripted import Scripted

__all__ = ["setting"]


async def test_commands_show_what_all_mirrors_have_and_which_does_not_answer(setting: Setting) -> None:
    """Each image once, with who has it. A mirror that is down is named, and the exit status is 1; the others are shown all the same."""
    image = setting.upstream.add_image("library/app", "1")
    first, second, third = setting.mirrors
    await pull_at([second, third], image)
    setting.upstream.asked.clear()
    status, output, errors = await setting.command("ls", "--fleet", "--json")
    assert (status, errors) == (0, "")
    document = json.loads(output)
    # The first one may be the home of the tag, or of the manifest, which it has then too.
    (found,) = [one for one in document["images"] if one["image"] == NAME]
    assert document["total"] == len(document["images"])
    assert [url for url in found["mirrors"] if url != first.url] == [second.url, third.url]
    status, output, _ = await setting.command("stats", "--fleet", "--json")
    figures = {one["mirror"]: one for one in json.loads(output)["mirrors"]}
    assert (status, list(figures)) == (0, [mirror.url for mirror in setting.mirrors])
    assert all(figures[mirror.url]["images"] for mirror in (second, third))
    assert all(one["same_list"] and one["version"] and one["size"] >= 0 for one in figures.values())
    await third.stop()
    for command in ("stats", "ls"):
        status, output, errors = await setting.command(command, "--fleet")
        assert (status, third.url in errors, first.url in errors) == (1, True, False), (command, output, errors)
    assert second.url.removeprefix("http://") in output
    assert setting.upstream.asked == []


async def test_a_command_needs_no_more_than_the_cache_of_a_mirror_that_runs(tmp_path: Path, upstream: Scripted) -> None:
    """It takes the fleet and its token from the mirror, though that got them by its environment: and tells all others, two workers each."""
    (tmp_path / "token").write_text(TOKEN)
    environment = {"FLEET__TOKEN_FILE": str(tmp_path / "token"), "SERVER__WORKERS": "2"}
    with processes(tmp_path, {"docker.io": upstream.url}, **environment) as fleet:
        first, *others = fleet.values()
        pin = await Commands(first.directory).run("pin", "app:1")
        assert (pin.returncode, pin.stderr) == (0, "")
        for other in others:
            done = await Commands(other.directory).run("unpin", "app:1", "--here")
            assert done.returncode == 0, "it was pinned there"
        others[0].kill()
        block = await Commands(first.directory).run("block", f"sha256:{'0' * 64}")
        assert (block.returncode, others[0].url in block.stderr, "refused" in block.stderr) == (1, True, True)


async def test_who_reads_the_logs_of_all(members: StartMembers, upstream: Scripted, tmp_path: Path) -> None:
    """A client's pull is found at whichever mirror it was, once: not what that one asked another one for it."""
    (tmp_path / "token").write_text(TOKEN)
    # In one loop they share a log, where each has its own elsewhere.
    log = tmp_path / "audit.log"
    tables = {"fleet": {"token_file": str(tmp_path / "token")}, "server": {"audit_log": str(log)}}
    fleet = Setting(await members(2, settings=tables), upstream, tmp_path / "token")
    image = upstream.add_image("library/app", "1")
    await pull_at(fleet.mirrors, image)

    def by_clients() -> int:
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        return sum(entry.get("reference") == "1" and "token" not in entry for entry in entries)

    # What is noted is written by a thread of each mirror.
    await until(lambda: by_clients() == len(fleet.mirrors) and '"token": "fleet:' in log.read_text())
    at = fleet.mirrors[1]
    await fleet.mirrors[0].stop()
    status, output, errors = await fleet.command("who", "app:1", "--fleet", "--json", at=at)
    assert (status, fleet.mirrors[0].url in errors) == (1, True)
    found = json.loads(output)
    assert {entry["mirror"] for entry in found} == {at.url}
    assert not any(entry.get("token", "").startswith("fleet:") for entry in found)
    assert len(found) == len(fleet.mirrors)


@pytest.mark.parametrize("language", ["en", "zh"])
async def test_the_dashboard_shows_each_mirror(setting: Setting, language: str) -> None:
    """Its state, version and figures; and of one that is down that it is."""
    first, _, third = setting.mirrors
    await third.stop()
    page = (await first.get("/fleet", Accept_Language=language, **HTML)).body.decode()
    assert all(mirror.url.removeprefix("http://") in page.replace("<wbr>", "") for mirror in setting.mirrors)
    assert (page.count("badge good"), page.count("badge bad")) == (2, 1)
    assert 'href="/fleet"' in (await first.get("/class", **HTML)).body.decode()


async def test_however_many_look_the_mirrors_are_asked_once_in_a_while(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever looks at the page, together or one after the other: one request must not become one to each mirror."""
    asked, ask = list[str](), FleetRequests.state

    async def state(of: FleetRequests) -> State:
        asked.append("")
        return await ask(of)

    monkeypatch.setattr(FleetRequests, "state", state)
    monkeypatch.setattr(worked_out, "_FRESH", 3600.0)
    for _ in range(2):
        await asyncio.gather(*(setting.mirrors[0].get("/fleet", **HTML) for _ in range(5)))
        assert len(asked) == len(setting.mirrors) - 1


async def test_a_mirror_alone_has_no_such_page(mirror: Mirror) -> None:
    """Nor a link to it."""
    assert (await mirror.get("/fleet", **HTML)).status == 404
    assert (await mirror.get("/fleet/state")).status == 404
    assert 'href="/fleet"' not in (await mirror.get("/class", **HTML)).body.decode()
