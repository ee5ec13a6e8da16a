"""The settings as they are shown to people, without secrets."""

from __future__ import annotations

from pydantic import BaseModel, SecretStr

from mirror.config import Expire, Settings
from mirror.units import format_size, parse_duration, parse_rate, parse_size


def in_force(settings: Settings) -> dict[str, str]:
    """Every setting by its key, as people read it: sizes and durations with their units, secrets only as set or not."""
    found: dict[str, str] = {}

    def add(prefix: str, table: BaseModel) -> None:
        for name, field in type(table).model_fields.items():
            value = getattr(table, name)
            if isinstance(value, SecretStr):
                value = "set"
            elif isinstance(value, bool):
                value = str(value).lower()
            elif isinstance(value, float) and parse_duration in [getattr(one, "func", None) for one in field.metadata]:
                value = f"{value:g} s"
            elif isinstance(value, int) and {parse_size, parse_rate} & {getattr(one, "func", None) for one in field.metadata}:
                value = format_size(value)
            elif isinstance(value, tuple):
                value = ", ".join(
                    f"{one.repositories} after {one.after:g} s" if isinstance(one, Expire) else str(one) for one in value
                )
            found[f"{prefix}.{name}"] = "" if value is None else str(value)

    for name in ("server", "cache", "upstream", "log"):
        add(name, getattr(settings, name))
    for name, registry in settings.registries.items():
        add(f'registries."{name}"', registry)
    return {key: value for key, value in found.items() if value or not key.startswith("registries.")}
