"""One exception per meaning; its OCI error code and HTTP status are data on the class.

::

    MirrorError
    ├── Invalid                    the client's request is malformed (400)
    │   ├── NameInvalid
    │   ├── TagInvalid
    │   ├── DigestInvalid
    │   ├── PaginationInvalid
    │   ├── UploadInvalid          a pushed blob is not what the request says
    │   ├── ManifestInvalid        a pushed manifest is none, or not of the type that it says
    │   │   └── ManifestTooLarge   (413)
    │   └── RequestInvalid         any other part of it: target, header, encoding
    │       └── HeadTooLarge       its request line and header fields are too long (431)
    ├── RangeNotSatisfiable        the range lies outside the blob (416)
    │   └── ChunkOutOfOrder        a pushed chunk does not begin where the last one ended (416)
    ├── Unknown                    there is no such thing (404)
    │   ├── RegistryUnknown        not in the configuration
    │   ├── NameUnknown
    │   ├── ManifestUnknown
    │   ├── BlobUnknown
    │   ├── UploadUnknown          the upload was ended, or never begun
    │   ├── ReferenceUnknown       a pushed manifest names what its repository does not have
    │   ├── SearchUnknown          the registry has no search
    │   └── RouteUnknown           no such URL
    ├── Denied                     upstream wants credentials that the mirror does not have (403)
    │   └── RegionBlocked          upstream refuses this network's country or region
    ├── HostedFull                 there is no room for what is pushed (403)
    ├── InUse                      what is pushed or deleted must stay as it is (409)
    │   ├── TagImmutable
    │   └── UploadBusy             another request writes the same upload
    ├── NotAllowed                 the one who asks may see it, but not do this (403)
    │   └── LoginWrong             a wrong password, or a token that is not known or over
    ├── LoginNeeded                the same, where logging in helps and may be asked for; carries the challenge (401)
    ├── QuotaReached               more than the one who asks is allowed in a month (403)
    ├── LimitReached               more than the one who asks is allowed; carries Retry-After (429)
    │   └── TooManyGuesses         wrong passwords or tokens
    ├── AdminNeeded                a change on the dashboard without the admin token (401)
    ├── Refused                    a change that was sent from elsewhere than the dashboard (403)
    ├── HostUnknown                asked under a name that is not the mirror's (421)
    ├── ClientBusy                 too much is being sent to this client already; carries Retry-After (503)
    ├── Unsupported                a method this mirror does not answer (405)
    ├── UpstreamError              upstream could not, or did not rightly, answer (503)
    │   ├── UpstreamUnreachable    no connection, or an answer of 5xx
    │   ├── UpstreamTimeout        no answer in time
    │   ├── Offline                the settings forbid to ask upstream (404)
    │   ├── UpstreamLimited        429; carries Retry-After
    │   ├── UpstreamBusy           no further connection is allowed now; never shown to a client
    │   ├── UpstreamInvalid        an answer that breaks the protocol or lies
    │   │   ├── RangeIgnored       200 where 206 was needed
    │   │   ├── DigestMismatch     content that is not what its digest says
    │   │   └── TargetRefused      a redirect or token realm that must not be followed
    │   ├── UpstreamCut            the body ended before its length
    │   └── UpstreamStalled        the body stopped coming
    ├── Pinned                     a pinned image is not deleted (409)
    ├── CatalogFailed              the cache's catalog could not be read or written (503)
    ├── SizeDisputed               registries disagree on a blob's size; never shown to a client
    ├── StorageUnreadable          the cache's disk cannot say whether it has something; never shown to a client
    └── StorageFull                the cache's disk cannot take it; shown to whoever uploads an archive, never to a client that pulls (507)

Codes: OCI distribution-spec 1.1, "Error Codes"; UNAVAILABLE and UNKNOWN are distribution's own. Upstream's failures are 503, whatever
they were: containerd goes on to the next host on 503 and hammers the same one on 429 and 408.
"""

from __future__ import annotations

from typing import ClassVar


class MirrorError(Exception):
    """Base of all. `message` is for the person at the other end: what was wrong, where, what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Invalid(MirrorError):
    status = 400


class NameInvalid(Invalid):
    code = "NAME_INVALID"


class TagInvalid(Invalid):
    """404: the conformance suite of distribution-spec 1.1 asks for one, and TAG_INVALID is not among the spec's codes: nothing has that name."""

    status = 404
    code = "MANIFEST_UNKNOWN"


class DigestInvalid(Invalid):
    code = "DIGEST_INVALID"


class PaginationInvalid(Invalid):
    code = "PAGINATION_NUMBER_INVALID"


class RequestInvalid(Invalid):
    code = "UNSUPPORTED"


class UploadInvalid(Invalid):
    code = "BLOB_UPLOAD_INVALID"


class ManifestInvalid(Invalid):
    code = "MANIFEST_INVALID"


class ManifestTooLarge(ManifestInvalid):
    status = 413
    code = "SIZE_INVALID"


class HeadTooLarge(RequestInvalid):
    """431 (RFC 6585, section 5)."""

    status = 431


class RangeNotSatisfiable(MirrorError):
    """`size` of the blob in bytes goes into ``Content-Range: bytes */size`` (RFC 9110, section 15.5.17)."""

    status = 416
    code = "RANGE_INVALID"

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class ChunkOutOfOrder(RangeNotSatisfiable):
    """`size` is how much of the upload is here: the next chunk begins there (distribution-spec 1.1, "Pushing a blob in chunks")."""


class Unknown(MirrorError):
    status = 404
    certain = True
    """False where upstream answered 404 in words that are no registry's: an ingress, a proxy. Then nothing is forgotten for it."""


class RegistryUnknown(Unknown):
    code = "NAME_UNKNOWN"

    @classmethod
    def named(cls, registry: str) -> RegistryUnknown:
        return cls(
            f"this mirror does not serve {registry}: to have it do so, add a table"
            f' [registries."{registry}"] with endpoints = ["https://{registry}"] to its configuration'
        )


class NameUnknown(Unknown):
    code = "NAME_UNKNOWN"


class ManifestUnknown(Unknown):
    code = "MANIFEST_UNKNOWN"


class BlobUnknown(Unknown):
    code = "BLOB_UNKNOWN"


class UploadUnknown(Unknown):
    code = "BLOB_UPLOAD_UNKNOWN"


class ReferenceUnknown(Unknown):
    code = "MANIFEST_BLOB_UNKNOWN"


class SearchUnknown(Unknown):
    code = "UNSUPPORTED"


class RouteUnknown(Unknown):
    code = "NAME_UNKNOWN"


class Denied(MirrorError):
    """Answered 403, never 401: a 401 makes dockerd send the user's Hub credentials here, then bypass the mirror."""

    status = 403
    code = "DENIED"


class RegionBlocked(Denied):
    """No credentials help."""


class NotAllowed(MirrorError):
    """403, never 401: see `Denied`."""

    status = 403
    code = "DENIED"


class HostedFull(MirrorError):
    """403, not 507: clients try a push again on a 5xx, and show the message of this."""

    status = 403
    code = "DENIED"


class InUse(MirrorError):
    status = 409
    code = "DENIED"


class TagImmutable(InUse):
    pass


class UploadBusy(InUse):
    code = "BLOB_UPLOAD_INVALID"


class LoginWrong(NotAllowed):
    pass


class LoginNeeded(MirrorError):
    """Only for addresses and host names that are for logging in: see `Denied`. `challenge` is the value of WWW-Authenticate (RFC 9110, section 11.6.1)."""

    status = 401
    code = "UNAUTHORIZED"

    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


class QuotaReached(MirrorError):
    """403, not 429: podman and containerd would try again for minutes before they show the message of a 429, and it will not change for days."""

    status = 403
    code = "DENIED"


class LimitReached(MirrorError):
    """`retry_after` in seconds."""

    status = 429
    code = "TOOMANYREQUESTS"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AdminNeeded(MirrorError):
    """For the dashboard only: see `Denied` for why no client of the registry's API may get it."""

    status = 401
    code = "UNAUTHORIZED"


class Refused(MirrorError):
    status = 403
    code = "DENIED"


class HostUnknown(MirrorError):
    """421 (RFC 9110, section 15.5.20): the request was not meant for this server."""

    status = 421
    code = "DENIED"


class ClientBusy(MirrorError):
    status = 503
    code = "UNAVAILABLE"


class TooManyGuesses(LimitReached):
    pass


class Unsupported(MirrorError):
    """`allow` lists the methods that the URL does answer (RFC 9110, section 10.2.1)."""

    status = 405
    code = "UNSUPPORTED"

    def __init__(self, message: str, allow: str = "GET, HEAD") -> None:
        super().__init__(message)
        self.allow = allow


class UpstreamError(MirrorError):
    status = 503
    code = "UNAVAILABLE"
    partly_refused = False
    """True if some endpoints of the registry answered that they do not have, or do not give out, what was asked for, and the others gave no answer at all."""


class UpstreamUnreachable(UpstreamError):
    pass


class UpstreamFailed(UpstreamUnreachable):
    """There was a connection, but no good answer: 408, 5xx, or none before the connection ended. It may concern one repository only."""


class UpstreamTimeout(UpstreamError):
    """No answer in time, though there was a connection. It may concern one repository only."""


class Offline(UpstreamError):
    """`upstream.offline` is set, and the cache does not have what was asked for.

    404, since dockerd shows the message of a 4xx only; but never with a code for absent content, so that another mirror in front of this one forgets nothing.
    """

    status = 404


class UpstreamLimited(UpstreamError):
    """`retry_after` is upstream's Retry-After in seconds, None when it said nothing."""

    code = "TOOMANYREQUESTS"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TokenServiceFailed(UpstreamError):
    """Says nothing of the registry itself, which may be asked again."""


class UpstreamBusy(UpstreamError):
    pass


class UpstreamInvalid(UpstreamError):
    pass


class RangeIgnored(UpstreamInvalid):
    pass


class DigestMismatch(UpstreamInvalid):
    pass


class TargetRefused(UpstreamInvalid):
    pass


class UpstreamCut(UpstreamError):
    pass


class UpstreamStalled(UpstreamError):
    pass


class SizeDisputed(MirrorError):
    """The download goes by another registry's word: its bytes are not for the readers of this one, which says `size` bytes."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class Pinned(MirrorError):
    status = 409
    code = "DENIED"


class CatalogFailed(MirrorError):
    status = 503
    code = "UNAVAILABLE"


class StorageUnreadable(MirrorError):
    status = 503
    code = "UNAVAILABLE"


class StorageFull(MirrorError):
    """507 (RFC 4918, section 11.5)."""

    status = 507


def is_refusal(error: MirrorError) -> bool:
    """Returns whether upstream does not have something, or does not give it out, as far as it could be asked: dead endpoints in a list are usual."""
    return isinstance(error, Unknown | Denied) or (isinstance(error, UpstreamError) and error.partly_refused)
