"""How URLs that may hold secrets are shown: in errors, logs and pages."""

from __future__ import annotations

import re

_USER = re.compile(r"//.*@", re.DOTALL)
_QUERY = re.compile(r"(//[^?#]*)[?#].*", re.DOTALL)


def redacted(text: str) -> str:
    """Returns a text that is a URL without its user and password, query and fragment, with ``…`` in their place. Other texts stay as they are.

    All up to the last ``@`` is taken for a user and a password, since these may hold any character where somebody has not encoded them.
    """
    return _QUERY.sub(r"\1?…", _USER.sub("//…@", text))
