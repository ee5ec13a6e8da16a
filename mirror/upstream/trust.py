"""TLS contexts: the certificates that are trusted for upstreams."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path


def trusting(ca_file: Path | str | None) -> ssl.SSLContext:
    """Returns a client's context that trusts the system's certificates, and those in a PEM file.

    As in Go, a trusted certificate need not be a root: an intermediate or a server's own certificate suffices. Raises OSError if the file cannot be read,
    ssl.SSLError if it holds no certificate.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # The default from Python 3.13 on. It rejects CA certificates without key identifiers, which many private ones lack.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


@functools.cache
def system_tls() -> ssl.SSLContext:
    """Returns the process's context that trusts the system's certificates. The first call reads them: a twentieth of a start, so no start makes it."""
    return trusting(None)
