"""Checks upstreams: name resolution, TLS, latency, credentials, the clock, and Docker Hub's remaining pulls."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from yarl import URL

from mirror import metrics
from mirror.clients import runs_systemd
from mirror.config import DEFAULT_REGISTRY, Endpoint, Registry, Settings
from mirror.doctor.findings import Finding, Level, advice, ok, problem
from mirror.doctor.ranking import Measured, image_of, measure, ranking
from mirror.doctor.waiting import within
from mirror.errors import Denied, ManifestUnknown, MirrorError, RegionBlocked, UpstreamError
from mirror.names import Repository, Tag
from mirror.upstream import Connections, Timeouts, Upstreams
from mirror.upstream.challenges import choose, parse_challenges
from mirror.upstream.endpoint import endpoint_label, is_page
from mirror.upstream.guard import Guard
from mirror.upstream.proxies import Proxy, Way
from mirror.upstream.receiver import Response
from mirror.upstream.settings import endpoint_way, registry_way, upstream_way
from mirror.upstream.tokens import Authenticator
from mirror.upstream.transport import Transport, read_bounded
from mirror.upstream.trust import trusting
from mirror.upstream.urls import gets_credentials, is_own

_TIMEOUTS = Timeouts(connect=3, header=5, stall=5, attempts=1)
_ONE_EACH = Connections(per_blob=1, per_endpoint=1, in_all=64)
_RESOLVE = 4.0
_ENDPOINT = 10.0
"""Seconds for all requests of the check of one endpoint."""
_LONGEST_ROOT = 64 * 1024
_SLOW = 2.0
_SPANS = ((86400, "days"), (3600, "hours"), (60, "minutes"))
_ALL_AWAY = 3
"""Number of similar findings from which they are reported as one."""
_URL_OR_HOST = re.compile(r"https?://[^\s;,]+|(?<=the host )\S+")
_PREVIEW = Repository.parse("docker.io", "ratelimitpreview/test")
"""The repository that Docker provides for checking the limit ("Docker Hub usage and limits"); HEAD is not counted."""


async def examine(settings: Settings) -> list[Finding]:
    """Returns findings about every registry. Raises only CancelledError."""
    if settings.upstream.offline:
        return [
            ok("upstreams", "offline (upstream.offline): no registry is asked, and none was checked; what is cached is served")
        ]
    # A name server that does not answer holds a thread for as long as this says (resolv.conf(5)).
    os.environ.setdefault("RES_OPTIONS", "timeout:2 attempts:1")
    try:
        transport = Transport(_TIMEOUTS, _ONE_EACH, upstream_way(settings.upstream))
    except OSError as error:
        return [
            problem(
                "upstreams",
                str(error),
                "set the variable to a proxy's URL, or unset it; the mirror does not start otherwise",
            )
        ]
    skews: list[float] = []
    cache, line = settings.cache.dir, asyncio.Lock()
    try:
        asked = [_registry(name, registry, transport, skews, cache, line) for name, registry in settings.registries.items()]
        parts = await asyncio.gather(*asked)
    finally:
        await transport.aclose()
    return [*_summed_up([finding for part in parts for finding in part]), *_clock(skews)]


def _summed_up(found: list[Finding]) -> list[Finding]:
    """Replaces findings that differ only in the host by one if no registry answers, because then the network is down."""
    if any(finding.level is Level.OK for finding in found):
        return found
    alike: dict[str, list[Finding]] = {}
    for finding in found:
        alike.setdefault(_URL_OR_HOST.sub("", finding.message), []).append(finding)
    summary: list[Finding] = []
    for group in alike.values():
        first = group[0]
        if len(group) < _ALL_AWAY:
            summary += group
            continue
        names = len({finding.check for finding in group})
        message = f"none of {names} registries can be reached; {first.check}: {first.message}"
        cure = f"without a network this is as intended: cached content is served. Otherwise {first.cure}"
        summary.append(problem("upstreams", message, cure))
    return summary


@dataclass(frozen=True)
class _Checked:
    """The finding about an endpoint."""

    endpoint: Endpoint
    finding: Finding
    account_refused: bool = False
    """True if the problem is the user name and password that are set."""

    @property
    def is_well(self) -> bool:
        return self.finding.level is not Level.PROBLEM


async def _registry(
    name: str, registry: Registry, transport: Transport, skews: list[float], cache: Path, line: asyncio.Lock
) -> list[Finding]:
    """Returns findings about a registry. An endpoint that is dead is no problem while another one works, since public mirrors come and go.

    `line` is held while an endpoint's throughput is measured.
    """
    try:
        tls = trusting(registry.ca_file) if registry.ca_file is not None else None
    except (OSError, ssl.SSLError) as error:
        return [
            problem(
                name,
                f"{registry.ca_file} holds no certificates: {error.strerror or error}",
                f'set ca_file under [registries."{name}"] to a PEM file',
            )
        ]
    checks = asyncio.gather(*(_check(name, registry, endpoint, transport, tls, skews) for endpoint in registry.endpoints))
    several = len(registry.endpoints) > 1
    image = await image_of(name, cache) if several else None
    measured: list[Measured] = []
    if image is not None:
        measured = await measure(name, registry, image, transport.way, line)
    checked = await checks
    works = any(one.is_well for one in checked) or any(one.is_usable for one in measured)
    found = [
        one.finding
        if one.is_well or one.account_refused or not works
        else advice(
            name,
            one.finding.message,
            f"another endpoint serves, and this one is asked last: remove it from endpoints, or {one.finding.cure}",
        )
        for one in checked
    ]
    if image is not None:
        found += ranking(name, image, measured, dead=[one.endpoint for one in checked if not one.is_well])
    elif several:
        found.append(ok(name, "its endpoints are not ranked: no image of it is cached to measure them with"))
    if name == DEFAULT_REGISTRY and works:
        found += await _limit(name, registry, transport.way)
    return found


async def _check(
    name: str, registry: Registry, endpoint: Endpoint, transport: Transport, tls: ssl.SSLContext | None, skews: list[float]
) -> _Checked:
    base = URL(endpoint.url)
    way = endpoint_way(name, endpoint, registry_way(name, registry, transport.way))
    proxy = way.of(base)
    urls = [URL(one.url) for one in registry.endpoints]
    authenticator = Authenticator(name, registry.account if gets_credentials(name, base, urls) else None)
    has_account = registry.username is not None and gets_credentials(name, base, urls)
    try:
        async with asyncio.timeout(_ENDPOINT):
            guard = Guard(transport, base, tls, way)
            return _Checked(endpoint, await _endpoint(name, base, guard, authenticator if has_account else None, proxy, skews))
    except TimeoutError:
        message = f"{base} did not answer all requests within {_ENDPOINT:g} s"
        cure = "check the connection, and the proxy if there is one"
    except RegionBlocked as error:
        message, cure = error.message, "set upstream.proxy"
    except Denied as error:
        account = (
            f'check username and password_file under [registries."{name}"]; with two-factor authentication, use an access token'
        )
        return _Checked(endpoint, problem(name, error.message, account), account_refused=True)
    except MirrorError as error:
        message, cure = error.message, _cure(error, base, proxy)
    finally:
        await authenticator.aclose()
    return _Checked(endpoint, problem(name, message, cure))


async def _endpoint(
    name: str, base: URL, guard: Guard, authenticator: Authenticator | None, proxy: Proxy | None, skews: list[float]
) -> Finding:
    """Requests the API's root as `docker login` does, with credentials if there are any for it. Raises MirrorError, and Denied if the credentials are refused."""
    host = base.raw_host or ""
    if proxy is None or not proxy.resolves:
        fault = await _resolve(host)
        if fault:
            return problem(
                name,
                f"the host {host} cannot be resolved: {fault}",
                "check /etc/resolv.conf and the name server, and the endpoint's spelling; behind a proxy, set upstream.proxy, with socks5h:// or http:// for one that resolves names",
            )
    url = URL(f"{str(base).rstrip('/')}/v2/")
    began = time.monotonic()
    response = await guard.request("GET", (), url, {}, _TIMEOUTS.header)
    seconds = time.monotonic() - began
    how = "open to anybody"
    skews += _skew(response)
    if response.status == 401:
        response.release()
        if authenticator is None:
            # Most images are public; only a pull shows which.
            return _latency(name, base, seconds, proxy, "without credentials")
        challenge = choose(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
        if challenge is None:
            return problem(
                name,
                f"{base} asks for credentials by a scheme that this mirror does not support",
                "use another endpoint, or remove the credentials",
            )
        header, _ = await authenticator.header(challenge, "", guard, [url], _TIMEOUTS.header)
        how = "with credentials"
        response = await guard.request("GET", (), url, {"Authorization": header}, _TIMEOUTS.header)
        if response.status in (401, 403):
            response.release()
            raise Denied(f"{base} answered {response.status} to the credentials")
    # Quay's root is a word that is called HTML.
    body = await read_bounded(response, _LONGEST_ROOT, _TIMEOUTS.header) if response.status == 200 and is_page(response) else b""
    response.release()
    if response.status == 200 and not body.lstrip().startswith(b"<"):
        return _latency(name, base, seconds, proxy, how)
    what = "with a web page" if response.status == 200 else str(response.status)
    return problem(
        name,
        f"{base} answered {what} to a request for /v2/",
        "check that this is a registry's address; a captive portal or a proxy may answer like this too",
    )


def _latency(name: str, base: URL, seconds: float, proxy: Proxy | None, how: str) -> Finding:
    by = f", through {proxy.name}" if proxy else ""
    message = f"{base} answers in {seconds * 1000:.0f} ms, {how}{by}"
    return (
        ok(name, message)
        if seconds < _SLOW
        else advice(name, message, "a nearer mirror of this registry can be set as its first endpoint")
    )


def _cure(error: MirrorError, base: URL, proxy: Proxy | None) -> str:
    if "TLS" in error.message or "ertificate" in error.message:
        return "for a private registry, set ca_file; behind a proxy that intercepts TLS, add its certificate to the system's; check the clock"
    if proxy:
        exempt = (
            "NO_PROXY exempts hosts from it" if proxy.origin.isupper() else 'proxy = "none" under a registry exempts that one'
        )
        return f"check the proxy named by {proxy.origin}; {exempt}"
    return f"try: curl -v {base}/v2/ ; a firewall, a missing proxy (upstream.proxy) or the registry itself may be the cause. Cached content is served"


async def _resolve(host: str) -> str:
    """Resolves a host name. Returns what is wrong; empty if nothing is."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
        return ""
    except ValueError:
        pass
    try:
        await within(_RESOLVE, socket.getaddrinfo, host, None)
    except TimeoutError:
        return f"no answer in {_RESOLVE:g} s"
    except (OSError, UnicodeError) as error:
        return str(getattr(error, "strerror", None) or error)
    return ""


async def _limit(name: str, registry: Registry, way: Way) -> list[Finding]:
    """Checks Docker Hub's remaining pulls, with a request as the mirror makes it."""
    own = tuple(endpoint for endpoint in registry.endpoints if is_own(name, URL(endpoint.url)))
    asked = registry.model_copy(update={"endpoints": own or registry.endpoints})
    async with Upstreams({name: asked}, _TIMEOUTS, _ONE_EACH, way=way) as upstreams:
        try:
            await upstreams.registry(name).head_manifest(_PREVIEW, Tag("latest"))
        except ManifestUnknown:
            # A mirror of Docker Hub may not have it.
            return []
        except (Denied, UpstreamError) as error:
            if len(registry.endpoints) > 1:
                # The ranking shows which endpoints can be pulled from.
                return []
            return [
                problem(
                    name,
                    f"an image cannot be requested: {error.message}",
                    "check the credentials, and that the endpoint is a registry",
                )
            ]
    found = []
    for endpoint in registry.endpoints:
        labels = {"upstream_host": name, "endpoint": endpoint_label(URL(endpoint.url), endpoint.path, endpoint.proxy)}
        left, limit = (
            metrics.REGISTRY.get_sample_value(f"mirror_upstream_ratelimit_{what}", labels) for what in ("remaining", "limit")
        )
        if left is not None and limit:
            message = f"{left:.0f} of {limit:.0f} pulls are left in this window of six hours"
            cure = (
                "set username and password_file, which doubles the limit"
                if registry.username is None
                else "wait; cached content is served meanwhile"
            )
            found.append(ok(name, message) if left >= 0.1 * limit else problem(name, message, cure))
    return found


def _skew(response: Response) -> Iterator[float]:
    """Yields the seconds by which this machine's clock is ahead of a response's Date (RFC 9110, section 6.6.1)."""
    try:
        yield time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return


def _clock(skews: list[float]) -> Iterator[Finding]:
    if not skews:
        return
    # The smallest: one registry's clock may be wrong, but not all of them.
    skew = min(skews, key=abs)
    if abs(skew) < 30:
        yield ok("clock", "it agrees with upstream's")
    else:
        where = f"it is {_span(abs(skew))} {'ahead of' if skew > 0 else 'behind'} upstream's"
        yield problem(
            "clock",
            where,
            f"enable time synchronization{' (timedatectl set-ntp true)' if runs_systemd() else ', such as chrony'}, since tokens and certificates expire",
        )


def _span(seconds: float) -> str:
    """A duration in the largest unit of which there are two."""
    length, unit = next(((length, unit) for length, unit in _SPANS if seconds >= 2 * length), (1, "s"))
    return f"{seconds / length:.0f} {unit}"
