"""The objects of a bucket: an S3 server's, Google's or Azure's.

obstore does it, the extra ``registry-mirror[bucket]``; it is imported where there is a bucket only. Credentials are found as that library finds them: in the environment, or from the
machine's own account; and of Amazon's tools also in the file ``~/.aws/credentials``.

============================================  ==========================================================================
blobs/sha256/ab/<hex>                         a blob
manifests/sha256/ab/<hex>                     a manifest
tags/<registry>/<repository>/<tag>.json       what a tag means: ``{"digest", "mediaType", "size", "checked"}``, the last in seconds since the epoch
hosted/blobs/sha256/ab/<hex>                  a blob that was pushed here
hosted/<mirror>/manifests/<repository>/…      a manifest that was pushed here: the repository, ``_`` and the digest with a hyphen for the colon
hosted/<mirror>/tags/<repository>/…           what a tag of a hosted repository means: the same with the tag, as ``{"digest", "pushed"}``
============================================  ==========================================================================
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from yarl import URL

from mirror.errors import MirrorError, StorageUnreadable, UpstreamError
from mirror.manifests import MAX_SIZE
from mirror.names import Digest, Repository, Tag
from mirror.regular_files import LARGEST_SECRET, read_file
from mirror.tasks import close_all
from mirror.threads import RequestThreads, ThreadPool

_T = TypeVar("_T")

PART = 5 * 1024 * 1024
"""Bytes of an object that are sent in one request, at least: the fewest that an S3 server takes, so that the slowest line sends them in time."""
_MOST_PARTS = 9000
"""An S3 server takes 10,000."""
_PARTS_AT_ONCE = 2
_SIGNED_FOR = timedelta(minutes=15)
_THREADS = 8
_PATIENCE = 2.0
"""Seconds for which requests that are under way are waited for at the end. What they wrote is written again."""
_ELSEWHERE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Variables that say where credentials are, and count more than the file."""
_ENDPOINTS = {
    "s3": ("endpoint", ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")),
    "gs": ("base_url", ("GOOGLE_BASE_URL",)),
    "az": ("endpoint", ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")),
}
"""What the library calls the URL of a server, and the variables that it reads it from."""
_MACHINES = ("169.254.169.254", "metadata.google.internal")
"""Where machines in a cloud ask for credentials, when there are none elsewhere."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account's key",
    "az": "AZURE_STORAGE_ACCOUNT_KEY",
}
_UNSIGNED = {
    "Error signing blob": "the machine's account may not sign URLs: give it the role Service Account Token Creator for itself, or set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account's key",
    "user delegation key": "the machine's account may not sign URLs: give it the role Storage Blob Delegator, or set AZURE_STORAGE_ACCOUNT_KEY",
    "Generating SAS keys with": "no URLs can be signed with AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_SAS_KEY: set AZURE_STORAGE_ACCOUNT_KEY instead, or let the machine's own account be found",
    "while skipping signatures": "no URLs can be signed while AZURE_SKIP_SIGNATURE is set: unset it",
}
"""What the library says where it cannot sign a URL, and what to do: the bucket itself may be well."""
_STATUS = re.compile(r"status code: (\d{3} [A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_LONGEST = 300


class BucketFailed(UpstreamError):
    """The bucket did not do what it was asked."""


class Objects:
    """One bucket. Its methods raise BucketFailed, which says what is wrong with it."""

    def __init__(self, url: str, endpoint: str | None, ca_file: Path | None) -> None:
        """`url` as in the setting `fleet.bucket`. `endpoint` is the URL of a server that is not Amazon's, Google's or Azure's own, and `ca_file` has certificates to trust beside the system's. Does nothing yet."""
        self.url = url
        self.kind = url.partition(":")[0]
        """``s3``, ``gs`` or ``az``."""
        self._endpoint = endpoint
        self._ca_file = ca_file
        self._threads = RequestThreads(_THREADS)
        # What is read does not wait for what is written.
        self._signer = RequestThreads(1)
        self._disk = ThreadPool(1)
        self._store: Any = None
        self._read_from: tuple[Path, int] | None = None
        """The file of credentials that counts, and when it was changed."""

    async def aclose(self) -> None:
        """Waits for the requests that are under way, but not for a bucket that hangs."""
        await close_all(lambda: self._signer.aclose(_PATIENCE), lambda: self._threads.aclose(_PATIENCE), self._close_disk)

    async def _close_disk(self) -> None:
        self._disk.close()

    def give_up(self) -> None:
        """Call this before whoever writes is closed: a bucket that hangs does not hold that up."""
        self._threads.give_up(_PATIENCE)

    async def sign(self, method: str, key: str) -> URL:
        """Returns the URL of an object, which works for some minutes."""
        if self.kind == "az" and method == "HEAD":
            # The library signs none for it; one for GET is good for both (Azure, "Create a service SAS", Permissions).
            method = "GET"
        signed: str = await self._run(
            lambda library, store: library.sign(store, method, key, _SIGNED_FOR), threads=self._signer, wait=False
        )
        return URL(signed, encoded=True)

    async def size(self, key: str) -> int | None:
        """Returns the bytes of an object; None if there is none."""

        def head(library: Any, store: Any) -> int | None:
            with contextlib.suppress(FileNotFoundError):
                return int(library.head(store, key)["size"])
            return None

        return await self._run(head)

    async def get(self, key: str) -> tuple[bytes, str] | None:
        """Returns an object of a manifest's size at most, and its media type, empty if that is not known; None if there is none. Of a larger one nothing is read."""

        def read(library: Any, store: Any) -> tuple[bytes, str] | None:
            with contextlib.suppress(FileNotFoundError):
                found = library.get(store, key)
                if int(found.meta["size"]) > MAX_SIZE:
                    return b"", ""
                return bytes(found.bytes()), str(found.attributes.get("Content-Type", ""))
            return None

        return await self._run(read)

    async def pieces(self, key: str, size: int) -> AsyncGenerator[bytes, None]:
        """Yields the `size` bytes of an object, a part at a time."""
        for start in range(0, size, PART):
            length = min(PART, size - start)
            yield await self._run(_read, key, start, length)

    async def keys(self, prefix: str) -> list[str]:
        """Returns the keys that begin with a prefix, which ends in a slash."""
        return await self._run(lambda library, store: [found["path"] for page in library.list(store, prefix) for found in page])

    async def delete(self, key: str) -> None:
        """Deletes an object, if there is one."""

        def delete(library: Any, store: Any) -> None:
            with contextlib.suppress(FileNotFoundError):
                library.delete(store, key)

        await self._run(delete)

    async def put(self, key: str, body: bytes, media_type: str = "application/octet-stream") -> None:
        """Writes an object of bytes in memory."""
        described = {"Content-Type": media_type}
        await self._run(lambda library, store: library.put(store, key, body, attributes=described, use_multipart=False))

    async def put_file(self, key: str, pieces: AsyncIterable[tuple[int, int, int]], size: int) -> None:
        """Writes an object of `size` bytes in parts, of which few are in memory at once. `pieces` are open files, with an offset and a length in bytes each. Raises what `pieces` raises, too:
        then there is no object."""
        part = max(PART, -(-size // _MOST_PARTS))
        writer = await self._run(
            lambda library, store: library.open_writer(store, key, buffer_size=part, max_concurrency=_PARTS_AT_ONCE)
        )
        async for fd, offset, length in pieces:
            for start in range(offset, offset + length, part):
                data = await self._disk.run(_read_file, fd, start, min(part, offset + length - start))
                await self._run(_send, writer, data)
        await self._run(lambda library, store: writer.close())

    async def _run(
        self, work: Callable[..., _T], *arguments: Any, threads: RequestThreads | None = None, wait: bool = True
    ) -> _T:
        """Runs `work` in a thread, with the library and its store before the `arguments`. `wait` as in `RequestThreads.run`. (Its methods for asyncio have threads of their own, which abort the process when it ends.)"""
        try:
            return await (threads or self._threads).run(self._call, work, arguments, wait=wait)
        except MirrorError:
            raise
        except Exception as error:
            # What the library raises has no common base.
            raise BucketFailed(f"{self.url}: {_told(error, self.kind)}") from None

    def _call(self, work: Callable[..., _T], arguments: Sequence[Any]) -> _T:
        try:
            import obstore
        except ImportError:
            raise BucketFailed(
                "fleet.bucket needs the extra `bucket`: pip install 'registry-mirror[bucket]', and restart"
            ) from None
        credentials = _credentials_file() if self.kind == "s3" else None
        if self._store is None or credentials != self._read_from:
            self._store, self._read_from = self._opened(credentials), credentials
        return work(obstore, self._store, *arguments)

    def _opened(self, credentials: tuple[Path, int] | None) -> Any:
        from obstore import store

        option, variables = _ENDPOINTS[self.kind]
        at = self._endpoint or next(filter(None, map(os.environ.get, variables)), None)
        plain = (at or "").startswith("http://")
        options: dict[str, Any] = {"connect_timeout": "2s", "timeout": "60s", "allow_http": plain}
        if self._ca_file is not None:
            options["root_certificate"] = self._ca_file.read_bytes()
        common: dict[str, Any] = {"client_options": options, "retry_config": {"max_retries": 0}}
        config = {option: self._endpoint} if self._endpoint else {}
        if self.kind == "az":
            account, container, *prefix = self.url.removeprefix("az://").split("/")
            azure: Any = store.AzureStore
            return azure(container, prefix="/".join(prefix) or None, account_name=account, config=config or None, **common)
        if credentials is not None:
            config |= _read_credentials(credentials[0])
        opened: Any = store.from_url
        return opened(self.url, config=config or None, **common)


def blob_key(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def manifest_key(digest: Digest) -> str:
    return f"manifests/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def tag_key(repository: Repository, tag: Tag) -> str:
    return f"tags/{repository.registry}/{repository.path}/{tag}.json"


def _told(error: Exception, kind: str) -> str:
    """Returns what went wrong in a line: of a bucket's answer its status and its code, since the rest may quote the request."""
    text = str(error).partition("Debug source")[0]
    if any(machine in text for machine in _MACHINES):
        return f"no credentials are found: set {_CREDENTIALS[kind]}, or what your cloud has in the place of that"
    for said, cure in _UNSIGNED.items():
        if said in text:
            return cure
    if (status := _STATUS.search(text)) is not None:
        code = _CODE.search(text)
        return f"it answered {status[1].strip()}{f' ({code[1]})' if code is not None else ''}"
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    # Neither what a query may hold, nor how long it took, which no two messages have in common.
    return re.sub(r"\?\S*| in [0-9.]+\S*s\b", "", line)[:_LONGEST] or type(error).__name__


def _read(library: Any, store: Any, key: str, start: int, length: int) -> bytes:
    return bytes(library.get_range(store, key, start=start, length=length))


def _send(library: Any, store: Any, writer: Any, data: bytes) -> None:
    writer.write(data)


def _read_file(fd: int, start: int, length: int) -> bytes:
    """Raises StorageUnreadable."""
    try:
        data = os.pread(fd, length, start)
    except OSError as error:
        raise StorageUnreadable(f"the disk does not give what is to be written to the bucket: {error.strerror}") from None
    if len(data) < length:
        raise StorageUnreadable("a file is shorter than it was")
    return data


def _credentials_file() -> tuple[Path, int] | None:
    """Returns Amazon's file of credentials, and when it was changed in ns; None if there is none, or credentials are elsewhere."""
    if any(os.environ.get(name) for name in _ELSEWHERE):
        return None
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    try:
        return path, path.stat().st_mtime_ns
    except OSError:
        return None


def _read_credentials(path: Path) -> dict[str, str]:
    """Returns what Amazon's file of credentials has for the profile. Raises BucketFailed."""
    profile = os.environ.get("AWS_PROFILE") or "default"
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(read_file(path, LARGEST_SECRET, follow=True).decode())
        found = parser[profile]
        key, secret = found["aws_access_key_id"], found["aws_secret_access_key"]
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError):
        # Their own text may quote the file.
        raise BucketFailed(f"{path} has no aws_access_key_id and aws_secret_access_key under [{profile}]") from None
    token = {"session_token": found["aws_session_token"]} if "aws_session_token" in found else {}
    return {"access_key_id": key, "secret_access_key": secret, **token}
