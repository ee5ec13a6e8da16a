"""Names what an upstream's refusal (401, 403, 451) means: credentials, a country, or a list of allowed images."""

from __future__ import annotations

import re

from mirror.errors import Denied, MirrorError, RegionBlocked, UpstreamLimited, UpstreamTimeout, UpstreamUnreachable
from mirror.upstream.receiver import Response

_REGION = re.compile(
    rb"export[\s-]+(?:control|administration|law|restriction|compliance)|sanction|embargo|\bOFAC\b|denied[\s-]+part(?:y|ies)"
    rb"|(?:(?:not|un)[\s-]*(?:be[\s-]+)?(?:available|supported|permitted|allowed|accessible)|block(?:ed|s|[\s-]+access)?|restrict(?:ed|ions?)?|prohibited|forbidden)"
    rb"[^.<>{}]{0,60}\byour[\s-]+(?:current[\s-]+)?(?:country|region|location|territory|jurisdiction)"
    rb"|geo[\s-]*(?:block|fenc|restrict|graphic(?:al)?[\s-]+restrict)",
    re.IGNORECASE,
)
_LIST = re.compile(rb"white[\s_-]*list|allow[\s_-]*list|\xe7\x99\xbd\xe5\x90\x8d\xe5\x8d\x95", re.IGNORECASE)
"""Also in Chinese, in UTF-8."""


def refusal(where: str, response: Response, body: bytes) -> Denied:
    """Returns the error for a refusal by `where`, whose `body` says more than its status."""
    status = response.status
    if status == 451 or _REGION.search(body):
        return RegionBlocked(
            f"{where} answered {status}: it blocks this network's country or region (export control or sanctions), whatever the credentials;"
            " reach it through a proxy elsewhere, or set another endpoint for this registry (docs/upstreams.md)"
        )
    if _LIST.search(body):
        return Denied(
            f"{where} answered {status}: it has a list of the images that it serves, and this one is not on it; set another endpoint too"
        )
    if body.lstrip()[:1] == b"<":
        return Denied(
            f"{where} answered {status} with a web page, not as a registry does: it does not serve this, or something between refuses it"
        )
    return Denied(f"{where} answered {status}: pulling this needs credentials that are not set, or is not allowed")


def kind_of(error: MirrorError) -> str:
    """Returns the value of the label `kind` in metrics of errors."""
    match error:
        case UpstreamLimited():
            return "limited"
        case UpstreamTimeout():
            return "timeout"
        case UpstreamUnreachable():
            return "unreachable"
        case Denied():
            return "denied"
    return "invalid"
