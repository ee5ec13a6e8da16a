"""Advisories in OSV form as block lists (mirror/guards/osv.py): which images they name, and feeds that are damaged or hostile."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mirror.guards import osv
from mirror.guards.blocklist import Files, read_list
from mirror.names import Digest

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
LONG = Digest.of(b"one", "sha512")


def record(affected: Any, **fields: Any) -> dict[str, Any]:
    return {
        "schema_version": "1.7.0",
        "id": "ACME-1",
        "modified": "2026-01-01T00:00:00Z",
        "summary": "a miner",
        "affected": affected,
        **fields,
    }


def zipped(**documents: Any) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, document in documents.items():
            archive.writestr(f"{name}.json", document if isinstance(document, bytes) else json.dumps(document))
        archive.writestr("README.txt", "nothing")
    return made.getvalue()


PURL = {
    "package": {
        "ecosystem": "",
        "name": "app",
        "purl": f"pkg:oci/app@sha256%3A{ONE.hex}?repository_url=docker.io/library/app&arch=amd64",
    }
}
NPM = {"package": {"ecosystem": "npm", "name": "left-pad", "purl": "pkg:npm/left-pad"}, "versions": ["1.0.0"]}


@pytest.mark.parametrize(
    ("affected", "named"),
    [
        ([PURL], [ONE]),
        ([{"package": {"purl": f"pkg:docker/library/app@{ONE}#sub/path"}}], [ONE]),
        ([{"package": {"purl": "pkg:oci/app"}, "versions": [str(ONE), str(TWO), "latest"]}], [ONE, TWO]),
        ([{"versions": [str(LONG), str(ONE).upper()]}], [LONG, ONE]),
        ([{"database_specific": {"digest": str(ONE), "fixed_digest": str(TWO)}}], [ONE]),
        ([{"ecosystem_specific": {"digests": [str(ONE), 7, None, "sha256:short"]}}], [ONE]),
        ([NPM, PURL, 7, {"package": 7, "versions": 7, "database_specific": []}], [ONE]),
        ([{"package": {"purl": f"pkg:npm/app@{ONE}"}}, NPM], []),
    ],
    ids=["purl", "docker purl", "versions", "algorithms and case", "database_specific", "ecosystem_specific", "odd", "others"],
)
def test_images_are_named_by_digest(affected: list[Any], named: list[Digest]) -> None:
    """In each of the ways in which feeds do it; by the same record in every form of a document. Other packages are passed over."""
    one = record(affected)
    reasons = {digest.hex: "ACME-1: a miner" for digest in named}
    documents = [one, [one], {"vulns": [one]}, {"advisories": [one]}]
    for document in documents:
        assert read_list(json.dumps(document).encode(), "feed") == reasons
        assert read_list("\ufeff".encode() + json.dumps(document, indent=1).encode(), "feed") == reasons
    assert read_list(zipped(a=one, b=record([NPM])), "feed") == reasons


def test_what_was_withdrawn_blocks_nothing() -> None:
    """The others of the feed do."""
    feed = [record([PURL], withdrawn="2026-02-01T00:00:00Z"), record([{"versions": [str(TWO)]}])]
    assert list(read_list(json.dumps(feed).encode(), "feed")) == [TWO.hex]


def test_a_reason_is_one_printable_line() -> None:
    """It is shown in headers and logs, and stored: no line ends, no escapes, no lone surrogates, no novels."""
    data = json.dumps(record([PURL], id="A\n\x1b[2J", summary="\ud800 x\r\nSet-Cookie: y " + "z" * 5000)).encode()
    [reason] = read_list(data, "feed").values()
    assert reason.startswith("A ?[2J: ? x Set-Cookie: y zzz")
    assert len(reason) == 300
    reason.encode()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"error": "log in"}', "has no record of an OSV feed"),
        (b"[]", "has no record of an OSV feed"),
        (b"[[], 7, null]", "has no record of an OSV feed"),
        (b'{"vulns": 7}', "has no record of an OSV feed"),
        (b'{"id": 7, "affected": []}', "has no record of an OSV feed"),
        (b'{"id": "A", "affected": {}}', "has no record of an OSV feed"),
        (b'{"id": "A", "affected": [', "begins as JSON, and is none"),
        (b"[" * 100_000, "nested too deeply|begins as JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "begins as JSON"),
        (b"[" + b" " * osv.LARGEST, "more than 16 MiB of JSON"),
        (zipped(a=record([PURL]))[:-30], "no zip that can be read"),
        (zipped(a=record([PURL]), b=b"{"), "'b.json' in it: it begins as JSON"),
        (zipped(), "a zip without JSON"),
        (osv.MAGIC + b"x" * 100, "no zip that can be read"),
    ],
    ids=[
        "object",
        "empty",
        "no records",
        "vulns",
        "id",
        "affected",
        "cut",
        "deep",
        "number",
        "large",
        "cut zip",
        "half zip",
        "empty zip",
        "no zip",
    ],
)
def test_a_damaged_feed_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, why: str) -> None:
    """What it said last stays, and the log says why, once; a good one counts again."""
    file, files = tmp_path / "feed.json", Files()
    with pytest.raises(ValueError, match=why):
        read_list(data, "feed")
    file.write_bytes(data)
    for _ in range(3):
        assert files.read_changed([str(file)]) == {}
    assert len([one for one in caplog.records if "stays in force" in one.message]) == 1
    file.write_text(json.dumps(record([PURL])))
    assert files.read_changed([str(file)]) == {str(file): {ONE.hex: "ACME-1: a miner"}}


def test_a_zip_that_unpacks_to_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is unpacked, in each of its documents and in all."""
    with pytest.raises(ValueError, match="more than 16 MiB of JSON"):
        read_list(zipped(a=b"[" + b" " * (osv.LARGEST + 5)), "feed")
    monkeypatch.setattr(osv, "_LARGEST_ZIP", 1000)
    with pytest.raises(ValueError, match="its documents have more than"):
        read_list(zipped(**{f"n{number}": record([PURL]) for number in range(20)}), "feed")


def test_a_feed_without_images_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """It is a feed, and blocks nothing."""
    assert read_list(json.dumps(record([NPM])).encode(), "feed") == {}
    assert "name no image by its digest" in caplog.text
