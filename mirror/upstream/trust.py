"""Which certificates an upstream may have."""

from __future__ import annotations

import ssl
from pathlib import Path


def trusting(ca_file: Path | str | None) -> ssl.SSLContext:
    """A client's context that trusts the system's certificates, and those in a PEM file.

    As in Go, what is trusted need not be a root: an intermediate or a server's own certificate will do. Raises OSError, ssl.SSLError where the file cannot be
    read or holds no certificate.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # Python's default from 3.13 on: it refuses authorities without key identifiers, as many private ones are.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
