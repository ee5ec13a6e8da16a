"""Block lists: what files may look like, and what counts while one cannot be read (mirror/guards/blocklist.py, in_force.py)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mirror.errors import UpstreamInvalid
from mirror.guards import blocklist, in_force
from mirror.guards.blocklist import Files, parse
from mirror.guards.gate import Gate
from mirror.guards.in_force import Guarding
from mirror.guards.rules import Rule
from mirror.guards.sources import FromCache
from mirror.names import Digest, Repository
from mirror.storage.memory import MemoryStore
from tests.support.patience import patiently

APP = Repository("docker.io", "library/app")
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
LONG = Digest.of(b"one", "sha512")
URL, OTHER_URL = "https://lists.example/blocked.txt", "https://lists.example/other.txt"


@pytest.mark.parametrize(
    "data",
    [
        f"{ONE} why\n".encode(),
        f"\ufeff{ONE} why\n".encode(),
        f"\ufeff{ONE} why\r\n".encode("utf-16-le"),
        f"\ufeff{ONE} why\r\n".encode("utf-16-be"),
        f"# Monday\r\n\r\n{ONE}\twhy\r\n".encode(),
        f"{str(ONE).upper()} why".encode(),
        f"nonsense\n  {ONE} why\n\xff\xfe\n".encode("latin-1"),
    ],
    ids=["plain", "BOM", "UTF-16 LE", "UTF-16 BE", "CRLF", "upper case", "other lines are nonsense"],
)
def test_a_list_is_understood_as_editors_write_it(tmp_path: Path, data: bytes) -> None:
    """Whatever its line ends and byte order mark, the first line too."""
    file = tmp_path / "blocked.txt"
    file.write_bytes(data)
    assert Files().read_changed([str(file)]) == {str(file): {ONE.hex: "why"}}


def test_digests_of_both_algorithms_are_taken() -> None:
    """A list may have sha256 and sha512, with a reason or without."""
    assert parse(f"{LONG} why\n{ONE}", "list") == {LONG.hex: "why", ONE.hex: ""}


def test_the_reason_of_a_line_is_printable_and_short() -> None:
    """As that of an advisory: whoever writes a list must not write to a terminal or a log, nor make each refusal as long as the list may be."""
    [reason] = parse(f"{ONE} a\x1b[2J \t\u202eminer {'z' * 100_000}", "list").values()
    assert reason.startswith("a?[2J ?miner zzz")
    assert len(reason) == 300


@pytest.mark.parametrize("fault", ["FIFO", "folder", "gone", "HTML", "too long", "no permission"])
def test_what_cannot_be_read_keeps_what_it_said_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """It is logged once, and read as soon as that is possible, though the file did not change meanwhile."""
    file, files = tmp_path / "blocked.txt", Files()
    good = tmp_path / "good"
    good.write_text(f"{ONE} why\n")
    with monkeypatch.context() as patch:
        if fault == "FIFO":
            os.mkfifo(file)
        elif fault == "folder":
            file.mkdir()
        elif fault == "HTML":
            file.write_text("<html>\n<p>Log in</p>\n")
        elif fault == "too long":
            file.write_text(f"{ONE}\n")
            patch.setattr(blocklist, "LARGEST", 10)
        elif fault == "no permission":
            good.rename(file)

            def deny(*_: object, **__: object) -> bytes:
                raise PermissionError(13, "Permission denied")

            patch.setattr(blocklist, "read_file", deny)
        for _ in range(3):
            assert files.read_changed([str(file)]) == {}
    assert len([record for record in caplog.records if "stays in force" in record.message]) == 1
    if fault == "folder":
        file.rmdir()
    if good.exists():
        good.replace(file)
    assert files.read_changed([str(file)]) == {str(file): {ONE.hex: "why"}}
    assert files.read_changed([str(file)]) == {}


class Lists:
    """Lists at URLs, and what decides by them."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.gate: Gate | None = None
        store = MemoryStore()
        self.guarding = Guarding(store, FromCache(store), self._put_in_force, self._download)

    def _put_in_force(self, gate: Gate | None) -> None:
        self.gate = gate

    async def _download(self, url: str, etag: str) -> tuple[bytes, str] | None:
        self.asked.append((url, etag))
        await self.answers.wait()
        if url not in self.texts:
            raise UpstreamInvalid("nothing there")
        text = self.texts[url]
        return None if etag == str(hash(text)) else (text.encode(), str(hash(text)))

    def take(self, *tables: tuple[str, ...]) -> None:
        """One table for each list, for an image of its own: library/0, library/1…"""
        self.guarding.take([(Rule(str(number)), sources) for number, sources in enumerate(tables)])

    def blocked(self, digest: Digest) -> list[str]:
        """The rules that block a digest, in one of the lists."""
        assert self.gate is not None
        return [rule.name for rule in self.gate._rules if digest.hex in rule.blocked]


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Lists:
    monkeypatch.setattr(in_force, "_LOOK", 0.0)
    return Lists()


async def until_blocked(lists: Lists, digest: Digest, names: list[str]) -> None:
    for _ in patiently():
        if lists.blocked(digest) == names:
            return
        await asyncio.sleep(0)


async def test_a_url_in_several_tables_counts_in_all_and_is_asked_once(lists: Lists, tmp_path: Path) -> None:
    """Also in a table that SIGHUP brings: it need not wait until the list changes."""
    (tmp_path / "file").write_text(f"{TWO}\n")
    lists.texts[URL] = f"{ONE}\n"
    lists.take((URL,), (str(tmp_path / "file"), URL))
    await lists.guarding.load()
    lists.guarding.start()
    try:
        await until_blocked(lists, ONE, ["0", "1"])
        assert lists.blocked(TWO) == ["1"]
        lists.take((URL, str(tmp_path / "file")))
        # At once, without a moment in which nothing is blocked.
        assert (lists.blocked(ONE), lists.blocked(TWO)) == (["0"], ["0"])
        assert lists.asked == [(URL, "")]
    finally:
        await lists.guarding.aclose()


async def test_a_url_that_does_not_answer_holds_up_no_file(lists: Lists, tmp_path: Path) -> None:
    """Files are looked at each second all the same."""
    lists.answers.clear()
    file = tmp_path / "file"
    lists.take((URL, str(file)))
    await lists.guarding.load()
    lists.guarding.start()
    try:
        for _ in patiently():
            if lists.asked:
                break
            await asyncio.sleep(0)
        file.write_text(f"{TWO}\n")
        await until_blocked(lists, TWO, ["0"])
    finally:
        await lists.guarding.aclose()


@pytest.mark.parametrize("text", ["<html>\n<p>Log in</p>", None], ids=["a page", "an error"])
async def test_a_url_that_answers_with_something_else_keeps_what_it_said(
    lists: Lists, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    """A network that asks for a password unblocks nothing; a list that is empty does."""
    monkeypatch.setattr(in_force, "_ASK", 0.0)
    lists.texts[URL] = f"{ONE}\n"
    lists.take((URL,))
    await lists.guarding.load()
    lists.guarding.start()
    try:
        await until_blocked(lists, ONE, ["0"])
        if text is None:
            del lists.texts[URL]
        else:
            lists.texts[URL] = text
        asked = len(lists.asked)
        for _ in patiently():
            if len(lists.asked) > asked + 2:
                break
            await asyncio.sleep(0)
        assert lists.blocked(ONE) == ["0"]
        lists.texts[URL] = "# none today\n"
        await until_blocked(lists, ONE, [])
    finally:
        await lists.guarding.aclose()
