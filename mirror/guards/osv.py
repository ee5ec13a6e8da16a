"""Advisories in OSV form (OpenSSF's "Open Source Vulnerability format", 1.7): which images they name, by their digests.

OSV has no ecosystem for images, so feeds name them in three ways, all of which count: ``affected[].versions`` that are digests; the version of a package URL of the
types ``oci`` and ``docker`` in ``affected[].package.purl`` (purl-spec, "oci-definition"), such as ``pkg:oci/app@sha256%3A…``; and ``digest`` or ``digests`` in
``affected[].database_specific`` or ``ecosystem_specific``. Whatever else a record says, of other packages or of ranges, is passed over.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from mirror.errors import DigestInvalid
from mirror.names import Digest

MAGIC = b"PK\x03\x04"
"""How a zip begins."""
LARGEST = 16 * 1024 * 1024
"""Bytes of one JSON document, which is read as a whole."""
_LARGEST_ZIP = 256 * 1024 * 1024
"""Bytes of all documents of a zip together, unpacked."""
_LONGEST_REASON = 300
_LISTS = ("vulns", "advisories")
"""Names by which a document may have a list of records; the first is that of OSV's own API."""


def parse_json(data: bytes) -> dict[str, str]:
    """Returns the reasons of the digests in one document, by their hexadecimal digits: a record, a list of them, or an answer of OSV's API.

    Raises ValueError if it is no such thing, and has no record.
    """
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MiB of JSON: a zip of smaller documents can be larger")
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it begins as JSON, and is none: {error}") from None
    found: dict[str, str] = {}
    records = 0
    for record in _records(document):
        records += 1
        # What was withdrawn counts no longer.
        if not record.get("withdrawn"):
            found.update(dict.fromkeys(_digests(record), _reason(record)))
    if not records:
        raise ValueError('it is JSON, and has no record of an OSV feed, with "id" and "affected"')
    return found


def parse_zip(data: bytes) -> dict[str, str]:
    """Like `parse_json`, of all documents in a zip, as OSV exports them. Raises ValueError, also if one of them is damaged: half a feed is none."""
    found: dict[str, str] = {}
    size = count = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".json"):
                    continue
                with archive.open(member) as file:
                    # What a zip says of the sizes in it may be wrong.
                    document = file.read(LARGEST + 1)
                size += len(document)
                if size > _LARGEST_ZIP:
                    raise ValueError(f"its documents have more than {_LARGEST_ZIP >> 20} MiB")
                count += 1
                try:
                    found.update(parse_json(document))
                except ValueError as error:
                    raise ValueError(f"{member.filename[:200]!r} in it: {error}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"it is no zip that can be read: {error}") from None
    if not count:
        raise ValueError("it is a zip without JSON")
    return found


def _records(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        if isinstance(document.get("id"), str) and isinstance(document.get("affected", []), list):
            yield document
            return
        document = next((document[name] for name in _LISTS if isinstance(document.get(name), list)), [])
    for one in document if isinstance(document, list) else ():
        if isinstance(one, dict) and isinstance(one.get("id"), str) and isinstance(one.get("affected", []), list):
            yield one


def _digests(record: dict[str, Any]) -> Iterator[str]:
    """Yields the hexadecimal digits of what a record says is affected."""
    for affected in record.get("affected", []):
        if not isinstance(affected, dict):
            continue
        named: list[Any] = list(_list(affected.get("versions")))
        package = affected.get("package")
        purl = package.get("purl") if isinstance(package, dict) else None
        if isinstance(purl, str) and purl.startswith(("pkg:oci/", "pkg:docker/")):
            # The version is what follows the last @ before qualifiers and subpath.
            named.append(unquote(purl.partition("#")[0].partition("?")[0].rpartition("@")[2]))
        for place in ("database_specific", "ecosystem_specific"):
            more = affected.get(place)
            if isinstance(more, dict):
                named += [more.get("digest"), *_list(more.get("digests"))]
        for one in named:
            if isinstance(one, str):
                try:
                    yield Digest.parse(one.lower()).hex
                except DigestInvalid:
                    # A version of some other kind.
                    continue


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _reason(record: dict[str, Any]) -> str:
    summary = record.get("summary") or record.get("details")
    return reason_in(f"{record['id']}: {summary}" if isinstance(summary, str) else record["id"])


def reason_in(text: str) -> str:
    """Returns what a list says as one printable line: it is shown in responses, logs and pages."""
    line = " ".join(text[: 4 * _LONGEST_REASON].split())
    if not line.isprintable():
        line = "".join(character if character.isprintable() else "?" for character in line)
    return line[:_LONGEST_REASON]
