"""``mirror ls --fleet``: the images that the mirrors of a fleet have, each once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import click

from mirror.cli.fleet import lists
from mirror.cli.text import ago, print_json, table
from mirror.fleet_documents import printable
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.config import Settings


def print_images(settings: Settings, search: str, order: str, limit: int | None, as_json: bool) -> NoReturn:
    """Prints them, and exits: with status 1 if a mirror does not answer."""
    answers, complete = lists(settings, "images", {"search": search})
    images = _sorted(merged(answers), order)
    shown = images[:limit]
    if as_json:
        print_json({"total": len(images), "images": shown})
    elif not shown:
        click.echo("mirror: no mirror has an image like that", err=True)
    else:
        right = ("SIZE", "PULLS")
        rows = [_row(image, len(settings.fleet.mirrors)) for image in shown]
        click.echo(table(("IMAGE", *right, "PULLED", "PINNED", "MIRRORS"), rows, right), nl=False)
        if len(shown) < len(images):
            click.echo(f"{len(images) - len(shown)} more", err=True)
    sys.exit(0 if complete else 1)


def merged(answers: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Returns each image once, by the keys of docs/json.md: as the mirror that has most of it tells it, with the pulls of all, the latest moments, and `mirrors` that have it.
    `same` is whether it is the same digest at all of them."""
    found: dict[str, dict[str, Any]] = {}
    for url, images in answers.items():
        for image in images:
            name = str(image.get("image"))
            known = found.get(name)
            if known is None:
                found[name] = {**image, "mirrors": [url], "same": True}
                continue
            most = image if _number(image, "size") > _number(known, "size") else known
            found[name] = {
                **most,
                "pulls": _number(known, "pulls") + _number(image, "pulls"),
                **{
                    key: max(str(known.get(key) or ""), str(image.get(key) or "")) or None
                    for key in ("fetched", "checked", "pulled")
                },
                "pinned": known.get("pinned") is True or image.get("pinned") is True,
                "mirrors": [*known["mirrors"], url],
                "same": known["same"] and known.get("digest") == image.get("digest"),
            }
    return list(found.values())


def _sorted(images: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    images.sort(key=lambda image: str(image.get("image")))
    if order == "size":
        images.sort(key=lambda image: -_number(image, "size"))
    elif order == "pinned":
        images.sort(key=lambda image: not (image.get("pinned") or image.get("listed")))
    elif order != "name":
        images.sort(key=lambda image: str(image.get(order) or ""), reverse=True)
    return images


def _row(image: Mapping[str, Any], count: int) -> tuple[str, ...]:
    have: Sequence[str] = image["mirrors"]
    where = "all" if len(have) == count else ", ".join(urlsplit(url).netloc for url in have)
    shown = (
        str(image.get("image")),
        format_size(_number(image, "size")),
        str(_number(image, "pulls")),
        _ago(image.get("pulled")),
        "pinned" if image.get("pinned") else "-",
        where if image["same"] else f"{where} (different digests)",
    )
    return tuple(map(printable, shown))


def _number(image: Mapping[str, Any], key: str) -> int:
    value = image.get(key)
    return value if isinstance(value, int) else 0


def _ago(moment: Any) -> str:
    try:
        return ago(datetime.fromisoformat(str(moment)).timestamp()) if moment else ago(None)
    except ValueError:
        return "-"
