"""``docker search HOST/TERM``: two requests of Docker's first registry API, which no other client needs."""

from __future__ import annotations

import json
from collections.abc import Callable

from aiohttp import web

from mirror.api.targets import Target
from mirror.cache.cache import Cache
from mirror.cache.search import Answer, Found
from mirror.errors import Offline, PaginationInvalid, RequestInvalid, SearchUnknown
from mirror.names import Repository, short_name

_USUAL, _MOST = 25, 100
_MOST_TAGS = 3


def ping() -> web.Response:
    """Answers ``GET /v1/_ping``, which dockerd sends before a search."""
    return _response({"standalone": True}, {"X-Docker-Registry-Standalone": "true"})


async def search(cache: Cache, target: Target, may_name: Callable[[Repository], bool] | None) -> web.Response:
    """Answers ``GET /v1/search?q=[REGISTRY/]TERM&n=COUNT`` like Docker Hub, with the repositories that it `may_name`; all if that is None.

    A description begins with what is cached, and with what is wrong if upstream's search did not answer. Raises MirrorError; if nothing is found, the one that
    tells why.
    """
    if "q" not in target.query:
        raise RequestInvalid("q is missing: /v1/search?q=redis searches for redis")
    answer = await cache.search.find(target.query["q"], _count(target.query.get("n")))
    named = [found for found in answer.found if may_name is None or may_name(found.repository)]
    if answer.problem is not None and not named:
        raise answer.problem
    results = [
        {
            "name": short_name(found.repository),
            "description": _description(answer, found),
            "star_count": found.stars,
            "is_official": found.official,
            "is_automated": False,
        }
        for found in named
    ]
    return _response({"num_results": len(results), "query": answer.term, "results": results}, {})


def _count(number: str | None) -> int:
    """Raises PaginationInvalid."""
    if number is None:
        return _USUAL
    if not (number.isascii() and number.isdigit() and 0 < int(number[:9]) <= _MOST):
        raise PaginationInvalid(f"n is the number of results wanted, 1 to {_MOST}, not {number[:40]!r}")
    return int(number)


def _description(answer: Answer, found: Found) -> str:
    """docker shows the first 45 characters."""
    notes = []
    if isinstance(answer.problem, SearchUnknown):
        notes.append(f"{answer.registry} has no search")
    elif answer.problem is not None:
        why = "mirror offline" if isinstance(answer.problem, Offline) else f"{answer.registry} not reached"
        notes.append(f"{why}{', old answer' if answer.searched else ''}")
    if found.tags:
        shown = [tag[1:] if tag[0] == ":" else tag[:16] for tag in found.tags[:_MOST_TAGS]]
        notes.append(f"cached: {', '.join(shown)}{', …' if len(found.tags) > _MOST_TAGS else ''}")
    return " ".join(filter(None, (f"[{'; '.join(notes)}]" if notes else "", found.description)))


def _response(document: object, headers: dict[str, str]) -> web.Response:
    body = json.dumps(document, ensure_ascii=False).encode(errors="backslashreplace")
    return web.Response(body=body, headers={"Content-Type": "application/json", "Cache-Control": "no-store", **headers})
