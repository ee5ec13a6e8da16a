"""Checks the fleet and the parents: whether each mirror answers, is the one that it is listed as, and has the same list, token, version and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mirror.config import Settings
from mirror.doctor.findings import Finding, advice, ok, problem
from mirror.fleet_documents import MOST_LATE, Member
from mirror.upstream.members import Members

_CHECK = "fleet"


async def examine(settings: Settings) -> list[Finding]:
    """Returns what is wrong with each of the mirrors, or one finding if nothing is; none without a fleet and parents. Raises only CancelledError."""
    fleet = settings.fleet
    if not fleet.mirrors and not fleet.parents:
        return []
    found = await Members(fleet).states([*fleet.mirrors, *fleet.parents])
    mirrors = [member for member in found if member.url in fleet.mirrors]
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
    for member in found:
        if member.url in fleet.parents:
            findings += _parent(member, fleet.own)
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


def _parent(member: Member, own: str | None) -> Iterator[Finding]:
    if not member.alive:
        cure = "start it, or take it out of fleet.parents; until then the registries are asked, once it is known to be dead"
        yield problem(_CHECK, f"the parent {member.url} does not answer: {member.fault}", cure)
    elif member.state is not None and own is not None and own in (*member.state.parents, *member.state.mirrors):
        as_what = "in its fleet.mirrors" if own in member.state.mirrors else "as its parent"
        cure = f"take {own} out there, or {member.url} out of fleet.parents here; they refuse each other's requests (508)"
        yield problem(_CHECK, f"the parent {member.url} has this mirror {as_what}: requests would go around in a circle", cure)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
