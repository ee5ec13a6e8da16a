"""Which certificates an upstream may have."""

from __future__ import annotations

import ssl
from pathlib import Path


def trusting(ca_file: Path | str | None) -> ssl.SSLContext:
    """A client's context: the system's roots, and beside them what is in a PEM file: a root, an intermediate or a server's own certificate.

    Raises OSError, ssl.SSLError where the file cannot be read or holds none.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if ca_file is not None:
        context.load_default_certs()
        # As Go does: what is trusted need not be a root.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
