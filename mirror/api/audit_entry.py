"""What the audit log has of a request (see mirror/access/audit.py)."""

from __future__ import annotations

from mirror.access.rules import Identity, Rule
from mirror.api.context import RequestContext
from mirror.cache.guarding import Guarded

_LONGEST_REASON = 500
"""Characters of a guard's reason: block lists come from anywhere."""


def why_refused(error: Guarded) -> str:
    """The reason of what a guard refused, as `mirror.access.audit` reads it."""
    return f'guard "{error.rule}"; refused{f": {error.reason[:_LONGEST_REASON]}" if error.reason else ""}'


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
