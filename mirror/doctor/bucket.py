"""Checks the bucket as the mirror uses it, also while no mirror runs: whether it answers, may be written to, read by a signed URL, listed and deleted from, and agrees about the time.

It writes an object of its own for that, and deletes it.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from secrets import token_hex

from mirror.config import Settings
from mirror.doctor.findings import Finding, advice, ok, problem
from mirror.errors import MirrorError
from mirror.tasks import close_all
from mirror.upstream import Connections, Timeouts
from mirror.upstream.bucket import Bucket
from mirror.upstream.objects import Objects
from mirror.upstream.receiver import Response
from mirror.upstream.transport import Transport, read_bounded, shown
from mirror.upstream.trust import trusting

_CHECK = "bucket"
_PATIENCE = 8.0
"""Seconds for all of it."""
_TIMEOUTS = Timeouts(connect=2, header=4, stall=4, attempts=1)
_MOST_LATE = 60.0
"""Seconds by which clocks may differ. At 15 minutes an S3 server refuses requests."""
_FOLDER = "mirror-doctor/"
_RIGHTS = "allow these credentials what docs/scale.md lists: s3:GetObject, s3:PutObject, s3:AbortMultipartUpload, s3:ListBucket and s3:DeleteObject, or what it is called there"
_CURES = (
    (r"the extra `bucket`", "install that where the mirror runs"),
    (r"no credentials|sign URLs|be signed", "give the mirror that, in its environment; this command reads its own"),
    (r"TimeTooSkewed|time frame", "set the clock by NTP, with chrony or systemd-timesyncd"),
    (r"NoSuchBucket|ContainerNotFound", "create it, or correct fleet.bucket: the mirror creates none"),
    (
        r"PermanentRedirect|HeaderMalformed|QueryParameters|answered 301",
        "set AWS_REGION to the bucket's region, in the mirror's environment",
    ),
    (
        r"Signature|AccessKey|UserNotFound|Authentication|AuthorizationFailure|Token|answered 401",
        "correct the credentials in the mirror's environment; this command reads its own",
    ),
    (r"answered 403", _RIGHTS),
    (
        r"Quota|Full|NoSpace|Insufficient|answered 507",
        "make room, or raise its quota: docs/scale.md says which objects may expire",
    ),
    (r"answered 5\d\d", "look into its own log; until it is well the registries are asked, and what is to be written waits"),
)
"""What to do about what it says, the first that fits."""
_OTHERWISE = "start it, or correct fleet.bucket and fleet.bucket_endpoint; until then the registries are asked"


async def examine(settings: Settings) -> list[Finding]:
    """Returns what is wrong with the bucket, or one finding if nothing is; none without a bucket. Raises only CancelledError."""
    fleet = settings.fleet
    if fleet.bucket is None:
        return []
    objects = Objects(fleet.bucket, fleet.bucket_endpoint, fleet.ca_file)
    try:
        tls = trusting(fleet.ca_file) if fleet.ca_file is not None else None
        transport = Transport(_TIMEOUTS, Connections(1, 1, 1))
        bucket = Bucket(objects, transport, tls)
    except OSError as error:
        await objects.aclose()
        return [
            problem(_CHECK, str(error), "set the variable to a proxy's URL, or unset it; the mirror does not start otherwise")
        ]
    examination = asyncio.create_task(_findings(bucket, transport, tls, has_hosted=bool(settings.hosted.repositories)))
    try:
        done, _ = await asyncio.wait([examination], timeout=_PATIENCE)
        if done:
            return examination.result()
        return [problem(_CHECK, f"{fleet.bucket} does not answer all requests within {_PATIENCE:g} s", _OTHERWISE)]
    finally:
        # What is under way is not waited for.
        objects.give_up()
        examination.cancel()
        await asyncio.wait([examination])
        await close_all(bucket.aclose, transport.aclose)


async def _findings(bucket: Bucket, transport: Transport, tls: ssl.SSLContext | None, *, has_hosted: bool) -> list[Finding]:
    if not await bucket.look():
        return [_problem(f"{bucket.name} cannot be used: {bucket.why}")]
    objects, key, body = bucket.objects, f"{_FOLDER}{token_hex(8)}", token_hex(16).encode()
    try:
        await objects.put(key, body)
    except MirrorError as error:
        return [_problem(f"it cannot be written to: {error.message}")]
    found = []
    try:
        url = await objects.sign("GET", key)
        response = await transport.request("GET", url, {}, tls=tls, timeout=_TIMEOUTS.header, way=bucket.way)
        try:
            read = await read_bounded(response, len(body), _TIMEOUTS.header)
        finally:
            response.release()
        if response.status != 200:
            found.append(_problem(f"{shown(url)} answered {response.status} though it was written a moment before"))
        elif read != body:
            cure = "look for a proxy, or for another program that writes there; what is wrong reaches no client, but is fetched from the registries"
            found.append(problem(_CHECK, f"{shown(url)} is not what was written a moment before", cure))
        found += _clock(bucket.name, response)
    except MirrorError as error:
        found.append(_problem(f"it cannot be read by a signed URL: {error.message}"))
    try:
        if key not in await objects.keys(_FOLDER):
            found.append(_problem(f"{bucket.name} does not list what was written a moment before"))
    except MirrorError as error:
        found.append(_problem(f"it cannot be listed: {error.message}"))
    try:
        await objects.delete(key)
    except MirrorError as error:
        message = f"nothing can be deleted from it, so {key} is left: {error.message}"
        why = (
            "hosted repositories need that"
            if has_hosted
            else "only hosted repositories need that; delete the object by other means"
        )
        found.append((problem if has_hosted else advice)(_CHECK, message, f"{_RIGHTS}: {why}"))
    return found or [
        ok(
            _CHECK,
            f"{bucket.name} is written to, read by signed URLs, listed and deleted from; whether a rule aborts incomplete uploads is not known",
        )
    ]


def _clock(name: str, response: Response) -> Iterator[Finding]:
    """Compares clocks by the response's Date (RFC 9110, section 6.6.1)."""
    try:
        late = time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return
    if abs(late) > _MOST_LATE:
        message = f"this machine's clock is {abs(late):.0f} s {'ahead of' if late > 0 else 'behind'} that of {name}"
        yield problem(
            _CHECK, message, "set both by NTP, with chrony or systemd-timesyncd: signed URLs and the ages of tags go by the clock"
        )


def _problem(message: str) -> Finding:
    return problem(_CHECK, message, next((cure for said, cure in _CURES if re.search(said, message)), _OTHERWISE))
