"""The mirror's own TLS certificate: checked before use, and reloaded without a restart when its files change.

A connection keeps what it began with. A pair that cannot be used is logged once, and the earlier one stays in use.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from datetime import datetime
from pathlib import Path

from mirror.regular_files import LARGEST_SECRET, read_file
from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)

_INTERVAL = 10.0
"""Seconds between two checks of the files."""


def load(certificate: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """Returns a server's context from PEM files: the certificate with its intermediates, and its key. With `client_ca`, clients may send certificates of these
    authorities. Raises ValueError, which says what is wrong with which file."""
    for file in (certificate, key, *([] if client_ca is None else [client_ca])):
        try:
            read_file(file, LARGEST_SECRET, follow=True)
        except OSError as error:
            raise ValueError(f"the file {file} cannot be read: {error.strerror}") from None
    text = read_file(key, LARGEST_SECRET, follow=True)
    if b"PRIVATE KEY-----" not in text:
        raise ValueError(f"the file {key} holds no private key in PEM")
    if b"-----BEGIN CERTIFICATE-----" not in read_file(certificate, LARGEST_SECRET, follow=True):
        raise ValueError(f"the file {certificate} holds no certificate in PEM")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=_refuse)
    except _EncryptedError:
        raise ValueError(
            f"the key in {key} is encrypted, which is not supported; decrypt it: openssl pkey -in {key} -out PLAIN"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"the key in {key} is not that of the certificate in {certificate}") from None
        raise ValueError(
            f"the certificate in {certificate} and its key in {key} cannot be used: {error.reason or error}"
        ) from None
    except OSError as error:
        raise ValueError(f"the files {certificate} and {key} cannot be read: {error.strerror}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError):
            raise ValueError(f"the file {client_ca} holds no certificates in PEM") from None
        # One that is sent must be good; without one, a client is whoever else it proves to be.
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def ends(certificate: Path) -> float | None:
    """Returns when the first certificate of a PEM file expires, in seconds since the epoch; None if that cannot be read.

    Reads the field ``notAfter`` (RFC 5280, section 4.1.2.5), which the standard library exposes for verified peers only.
    """
    try:
        pem = read_file(certificate, LARGEST_SECRET, follow=True).decode(errors="replace")
        begin, end = pem.index("-----BEGIN CERTIFICATE-----"), pem.index("-----END CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len("-----END CERTIFICATE-----")])
        signed = _parts(_parts(der)[0][1])[0][1]
        # Serial number, algorithm, issuer, validity. In all but version 1 the version comes first.
        fields = [part for part in _parts(signed) if part[0] != 0xA0]
        kind, value = _parts(fields[3][1])[1]
        text = value.decode("ascii")
        if kind == 0x17:
            # UTCTime has two digits for the years from 1950 to 2049.
            text = ("19" if text >= "50" else "20") + text
        return datetime.strptime(text, "%Y%m%d%H%M%S%z").timestamp()
    except (OSError, ValueError, IndexError):
        return None


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """Splits DER (X.690, section 8.1) into its values, each with its tag. Raises IndexError."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        found.append((tag, der[at : at + length]))
        at += length
    return found


class _EncryptedError(Exception):
    pass


def _refuse() -> str:
    raise _EncryptedError


class Certificate:
    """A certificate that follows its files. `context`, to listen with, stays the same object."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises ValueError."""
        self._files = (certificate, key) if client_ca is None else (certificate, key, client_ca)
        self._seen = self._versions()
        self._current = self.context = load(*self._files)
        # Called in each handshake, with a name or without one.
        self.context.sni_callback = self._choose
        self._background_task = BackgroundTask(self._watch)

    def start(self) -> None:
        """Starts to check the files from time to time."""
        self._background_task.start()

    async def aclose(self) -> None:
        await self._background_task.aclose()

    def refresh(self) -> None:
        """Loads the files again where they have changed. Never raises."""
        seen = self._versions()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._current = load(*self._files)
        except ValueError as error:
            log.error("the new TLS certificate cannot be used, and the previous one stays: %s", error, extra={"each": True})
        else:
            log.info("loaded a new TLS certificate from %s", self._files[0], extra={"each": True})

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if self._current is not context:
            connection.context = self._current

    def _versions(self) -> list[tuple[int, int, int] | None]:
        """Identifies the content of each file. Links are followed: Kubernetes and certbot replace the link, not the file."""
        found: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                state = os.stat(file)
                found.append((state.st_ino, state.st_size, state.st_mtime_ns))
            except OSError:
                found.append(None)
        return found

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            self.refresh()
