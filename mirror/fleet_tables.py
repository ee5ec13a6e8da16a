"""What the mirrors of a fleet have in common beside content: users and tokens, which they tell each other of, and tables of the settings, of which they compare digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mirror.access.access import TOKENS, Access
from mirror.access.accounts import Accounts
from mirror.config import Guard, Settings
from mirror.wiring import access_folder, users_file

_OF_ISSUERS = {"name", "issuer", "audience", "claims", "client_id", "user_claim", "groups_claim"}
"""Not the files, which each mirror has where it likes."""


def accounts(settings: Settings) -> Accounts:
    """Returns the users and tokens of this mirror, to change them."""
    return Accounts(users_file(settings), access_folder(settings) / TOKENS)


def digests(settings: Settings, access: Access) -> dict[str, str]:
    """Returns a digest of each of `mirror.fleet_documents.TABLES`. What nobody's rights depend on, as the order of names in a list, is left out; the order of tables is not."""
    tables = None if settings.access is None else [table.model_dump(mode="json") for table in settings.access]
    issuers = [one.model_dump(mode="json", include=_OF_ISSUERS) for one in sorted(settings.oidc, key=lambda one: one.name)]
    return {
        "access": _digest([tables, dict(settings.groups), issuers]),
        "guards": _digest([_guard(table) for table in settings.guard]),
        "users": access.digest(),
    }


def _guard(table: Guard) -> dict[str, Any]:
    document = table.model_dump(mode="json")
    if table.signed is not None:
        # By what the files say, wherever they are.
        root = table.signed.root
        document["signed"]["keys"] = [hashlib.sha256(pem).hexdigest() for pem in table.signed.pems]
        document["signed"]["trusted_root"] = hashlib.sha256(root).hexdigest() if root else None
    return document


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(_normal(document), sort_keys=True).encode()).hexdigest()[:32]


def _normal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _normal(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return sorted(value) if all(isinstance(one, str) for one in value) else [_normal(one) for one in value]
    return value
