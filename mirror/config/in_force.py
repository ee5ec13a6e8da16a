"""The settings in force, as they are shown to people: with units, without secrets."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from mirror.config.cache import Expire
from mirror.config.settings import Settings
from mirror.redaction import redacted
from mirror.units import format_size, parse_cache_size, parse_duration, parse_rate

_SPANS = ((86400, "d"), (3600, "h"), (60, "m"))


def in_force(settings: Settings) -> dict[str, str]:
    """Every setting by its key; of secrets only that they are set, and empty what is not set."""
    found: dict[str, str] = {}
    for table in ("server", "cache", "hosted", "fleet", "upstream", "log"):
        found |= _shown(table, getattr(settings, table))
    for name, registry in settings.registries.items():
        found |= {key: value for key, value in _shown(f'registries."{name}"', registry).items() if value}
    for number, access in enumerate(settings.access or (), 1):
        found |= {key: value for key, value in _shown(f"access.{number}", access).items() if value}
    for issuer in settings.oidc:
        found |= {key: value for key, value in _shown(f'oidc."{issuer.name}"', issuer).items() if value}
    found |= {f"groups.{name}": ", ".join(users) for name, users in settings.groups.items()}
    for warm in settings.warm:
        found |= {key: value for key, value in _shown(f'warm."{warm.name}"', warm).items() if value}
    for guard in settings.guard:
        found |= {key: value for key, value in _shown(f'guard."{guard.name}"', guard).items() if value}
    for webhook in settings.webhook:
        found |= {key: value for key, value in _shown(f'webhook."{webhook.name}"', webhook).items() if value}
    for scan in settings.scan:
        found |= {key: value for key, value in _shown(f'scan."{scan.name}"', scan).items() if value}
    return found


def changed(before: Settings, after: Settings) -> list[str]:
    """The keys of settings that differ, those of secrets too; ``registries."NAME"`` for one that was added or removed."""
    found = [
        f"{table}.{name}"
        for table in ("server", "cache", "hosted", "fleet", "upstream", "log")
        for name in type(getattr(before, table)).model_fields
        if getattr(getattr(before, table), name) != getattr(getattr(after, table), name)
    ]
    if before.warm != after.warm:
        found.append("warm")
    if before.access != after.access:
        found.append("access")
    if before.groups != after.groups:
        found.append("groups")
    if before.oidc != after.oidc:
        found.append("oidc")
    if before.guard != after.guard:
        found.append("guard")
    if before.webhook != after.webhook:
        found.append("webhook")
    if before.scan != after.scan:
        found.append("scan")
    for name in dict.fromkeys((*before.registries, *after.registries)):
        old, new = before.registries.get(name), after.registries.get(name)
        if old is None or new is None:
            found.append(f'registries."{name}"')
        else:
            found += [f'registries."{name}".{key}' for key in type(old).model_fields if getattr(old, key) != getattr(new, key)]
    return found


def _shown(prefix: str, table: BaseModel) -> dict[str, str]:
    return {f"{prefix}.{name}": _text(getattr(table, name), field) for name, field in type(table).model_fields.items()}


def _text(value: Any, field: FieldInfo) -> str:
    parsers = [getattr(one, "func", None) for one in field.metadata]
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return "(set)"
    if isinstance(value, bool):
        return str(value).lower()
    if parse_duration in parsers:
        return _duration(value)
    if parse_rate in parsers:
        return f"{format_size(value)}/s" if value else "0"
    if parse_cache_size in parsers:
        return format_size(value)
    if isinstance(value, tuple):
        return ", ".join(
            f"{one.repositories} after {_duration(one.after)}" if isinstance(one, Expire) else redacted(str(one)) for one in value
        )
    return redacted(str(value))


def _duration(seconds: float) -> str:
    """As the settings take it: ``30 d``, ``5 m``."""
    length, unit = next(((length, unit) for length, unit in _SPANS if seconds >= length and seconds % length == 0), (1, "s"))
    return f"{seconds / length:g} {unit}"
