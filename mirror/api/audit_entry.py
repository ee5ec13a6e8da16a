"""What the audit log has of a request (see mirror/access/audit.py)."""

from __future__ import annotations

from mirror.access.rules import Identity, Rule
from mirror.api.context import RequestContext
from mirror.api.targets import Resource
from mirror.cache.guarding import Guarded

_LONGEST_REASON = 500
"""Characters of a guard's reason: block lists come from anywhere."""


def is_push(context: RequestContext) -> bool:
    """True if a request brings content to a hosted repository."""
    target = context.target
    brings = target is not None and target.resource in (Resource.MANIFEST, Resource.UPLOAD)
    return brings and context.request.method in ("POST", "PUT", "PATCH")


def why_refused(error: Guarded) -> tuple[str, str]:
    """The reason of what a guard refused, as `mirror.access.audit` reads it, and its digest."""
    why = f": {error.reason[:_LONGEST_REASON]}" if error.reason else ""
    return f'guard "{error.rule}"; refused{why}', "" if error.digest is None else str(error.digest)


def audit_entry(
    context: RequestContext,
    identity: Identity,
    rule: Rule | None,
    action: str,
    verdict: str,
    reason: str = "",
    digest: str = "",
) -> tuple[str, ...]:
    """The values of an entry of the audit log, in its order."""
    target = context.target
    certificate = None if identity.certificate is None else f"cert:{identity.certificate}"
    # Only once the registry has taken it: people type passwords where their names belong.
    login = "" if identity.login is None or verdict != "allowed" else f"login:{identity.login}"
    return (
        identity.user or "",
        identity.token or certificate or identity.subject or login,
        context.request.remote or "",
        action,
        str(target.repository) if target is not None and target.repository is not None else "",
        str(target.reference) if target is not None and target.reference is not None else "",
        digest,
        rule.name if rule is not None else "",
        verdict,
        reason,
    )
