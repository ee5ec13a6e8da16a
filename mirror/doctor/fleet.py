"""Checks the fleet and the parents: whether each mirror answers, is the one that it is listed as, and has the same list, token, version and time; and whether parents let this one in."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Sequence

from yarl import URL

from mirror.config import Parent, Settings
from mirror.doctor.findings import Finding, advice, ok, problem
from mirror.errors import MirrorError
from mirror.fleet_documents import MOST_LATE, Member, differing
from mirror.upstream import Connections, Timeouts
from mirror.upstream.members import Members
from mirror.upstream.places import authorization
from mirror.upstream.settings import upstream_way
from mirror.upstream.transport import Transport
from mirror.upstream.trust import trusting

_CHECK = "fleet"
_TABLES = {
    "access": (
        "[[access]] tables, groups or issuers",
        "give all of them the same, and run mirror reload there; until then each decides otherwise who may do what",
    ),
    "guards": (
        "[[guard]] tables",
        "give all of them the same, and run mirror reload there; until then each refuses something else",
    ),
    "users": (
        "users or tokens",
        "run mirror user send and mirror token send at the one that has the right ones, and mirror user rm or mirror token rm for those that are to go",
    ),
}
_TIMEOUTS = Timeouts(connect=3, header=5, stall=5, attempts=1)


async def examine(settings: Settings) -> list[Finding]:
    """Returns what is wrong with each of the mirrors, or one finding if nothing is; none without a fleet and parents. Raises only CancelledError."""
    fleet = settings.fleet
    if not fleet.mirrors and not fleet.parents:
        return []
    mirrors, parents = await asyncio.gather(Members(fleet).states(fleet.mirrors), _ask_parents(settings))
    findings = []
    if mirrors and not fleet.has_token:
        findings.append(
            advice(
                _CHECK,
                "there is no fleet.token_file: changes by hand are for one mirror each, and lists, versions and clocks of the others are not known",
                "set fleet.token_file to a file with the same token at each mirror",
            )
        )
    for member in mirrors:
        findings += _mirror(member, fleet.mirrors, has_token=fleet.has_token)
    findings += _versions(mirrors)
    findings += _tables(mirrors, fleet.own)
    findings += parents
    if in_clear := fleet.in_clear:
        cure = "use https URLs, with fleet.ca_file for an authority of your own, unless the network between them is trusted: whoever reads the token may use it"
        findings.append(advice(_CHECK, f"a token is sent unencrypted to {', '.join(in_clear)}", cure))
    if findings:
        return findings
    return [ok(_CHECK, f"{_counted(len(mirrors), 'mirror')} and {_counted(len(fleet.parents), 'parent')} answer, and agree")]


def _mirror(member: Member, mirrors: Sequence[str], *, has_token: bool) -> Iterator[Finding]:
    url, state = member.url, member.state
    if not member.alive:
        cure = "start it, or take it out of fleet.mirrors at all of them; until then the next one in the order of each content does its part"
        yield problem(_CHECK, f"{url} does not answer: {member.fault}", cure)
    elif state is None:
        if has_token:
            cure = "give it the same fleet.token_file, fleet.mirrors and version; changes by hand do not reach it until then"
            yield problem(_CHECK, f"{url} says nothing: {member.fault}", cure)
    elif member.is_another:
        cure = "correct fleet.own there, or the name or address: each mirror is to be reached by its own URL in the list, and no other one"
        yield problem(_CHECK, f"{url} is answered by one that calls itself {state.mirror or 'nothing'}", cure)
    else:
        if not member.has_list(mirrors):
            lacks, besides = sorted(set(mirrors) - set(state.mirrors)), sorted(set(state.mirrors) - set(mirrors))
            parts = [f"lacks {', '.join(lacks)}"] * bool(lacks) + [f"has {', '.join(besides)} besides"] * bool(besides)
            cure = "give all of them the same fleet.mirrors, and restart those that change; until then content is downloaded more than once"
            yield problem(_CHECK, f"{url} has another list: it {' and '.join(parts)}", cure)
        yield from _clock(member)


def _clock(member: Member) -> Iterator[Finding]:
    if abs(member.late) > MOST_LATE:
        way = "ahead of" if member.late > 0 else "behind"
        cure = "set both by NTP, with chrony or systemd-timesyncd: tokens, logs and the ages of tags go by the clock"
        yield problem(_CHECK, f"the clock of {member.url} is {abs(member.late):.0f} s {way} this machine's", cure)


def _versions(members: Sequence[Member]) -> Iterator[Finding]:
    versions = {member.url: member.state.version for member in members if member.state is not None}
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{url} has {version}" for url, version in versions.items())
        yield advice(_CHECK, f"versions differ: {told}", "bring all of them to the same one, one after the other")


def _tables(members: Sequence[Member], own: str | None) -> Iterator[Finding]:
    for url, names in differing(members, own).items():
        for name in names:
            what, cure = _TABLES[name]
            yield problem(_CHECK, f"{url} has other {what} than this mirror", cure)


async def _ask_parents(settings: Settings) -> list[Finding]:
    """Asks each parent as a pull begins, with what is meant for it alone."""
    fleet = settings.fleet
    if not fleet.parents:
        return []
    try:
        tls = await asyncio.to_thread(trusting, fleet.ca_file)
        transport = Transport(_TIMEOUTS, Connections(1, 1, 1), upstream_way(settings.upstream))
    except OSError:
        # Of the proxy's file, which upstreams.py reports.
        return []
    try:
        found = await asyncio.gather(*(_parent(transport, parent, tls) for parent in fleet.parents))
    finally:
        await transport.aclose()
    return [finding for finding in found if finding is not None]


async def _parent(transport: Transport, parent: Parent, tls: ssl.SSLContext | None) -> Finding | None:
    try:
        token = parent.token()
    except (OSError, ValueError) as error:
        cure = "correct token_file in fleet.parents; until then it is asked without a token"
        return problem(_CHECK, f"the token for the parent {parent.url} cannot be read: {error}", cure)
    try:
        response = await transport.request("GET", URL(f"{parent.url}/v2/"), authorization(token), tls=tls)
        response.release()
    except MirrorError as error:
        cure = "start it, or take it out of fleet.parents; until then the registries are asked, once it is known to be dead"
        return problem(_CHECK, f"the parent {parent.url} does not answer: {error.message}", cure)
    if response.status == 200:
        return None
    cure = "set token_file in fleet.parents to a file with a token of that mirror (mirror token add); until then the registries are asked"
    said = "does not let this mirror in" if response.status in (401, 403) else "does not answer as a mirror does"
    return problem(_CHECK, f"the parent {parent.url} {said}: HTTP {response.status}", cure)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
