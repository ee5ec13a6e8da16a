"""Takes archives of images that are uploaded with the admin token: as the body of a request (``curl -T``), or as the file of a form.

The bytes go from the socket into the cache as they come, so an archive may be of any size; nothing is kept of it but verified blobs.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import BodyPartReader, web

from mirror.api.request_body import continue_, reader
from mirror.api.targets import platforms_in
from mirror.cache.guarding import Guard
from mirror.errors import ClientBusy, MirrorError, RequestInvalid
from mirror.names import Reference, Repository, Tag
from mirror.storage.store import Store
from mirror.tasks import SingleFlight
from mirror.web.admin import Admin

if TYPE_CHECKING:
    from mirror.bundles.importing import Import

log = logging.getLogger(__name__)

SECRET, NAME, PLATFORM, PIN, ARCHIVE = "secret", "as", "platform", "pin", "archive"
"""Fields of the form, of which the file is the last. NAME, PLATFORM and PIN may be in the query as well."""
_MOST = 8
"""Uploads at the same time."""
_MOST_FIELDS = 10
_LARGEST_FIELD = 16 * 1024
_PIECE = 128 * 1024
_SILENCE = 60.0
"""Seconds without a byte after which an upload ends. Other imports may be waiting for the blob that it is writing."""


class Uploads:
    """Imports uploaded archives."""

    def __init__(
        self,
        store: Store,
        admin: Admin,
        parse: Callable[[str], tuple[Repository, Reference]],
        forget: Callable[[Iterable[tuple[Repository, Tag]]], None],
        guard: Callable[[], Guard | None],
    ) -> None:
        """`parse` takes an image's name as people write it; `forget` drops what is remembered of tags; `guard` returns what decides what may be taken in."""
        self._store = store
        self._admin = admin
        self._parse = parse
        self._forget = forget
        self._guard = guard
        self._imports: SingleFlight[Import] = SingleFlight()
        self._requests: dict[int, web.BaseRequest] = {}
        self._numbers = itertools.count()
        self._closing = False

    async def aclose(self) -> None:
        """Ends uploads. What has come of them stays."""
        self._closing = True
        for request in self._requests.values():
            # Wakes the thread that waits for bytes.
            request.content.set_exception(ConnectionAbortedError("the mirror is being stopped"))
        await self._imports.aclose()

    async def take(self, request: web.BaseRequest, query: Mapping[str, str]) -> Import:
        """Imports the archive that a request carries. It ends when the client leaves, unless all bytes have come.

        Raises AdminNeeded, Refused, TooManyGuesses before anything is read; RequestInvalid, of which ArchiveInvalid is one; StorageFull; ClientBusy.
        """
        if request.content_type == "multipart/form-data":
            wishes, read = await self._form(request)
        else:
            await self._admin.allow(request, "")
            wishes, read = {}, reader(request)
        if self._closing or len(self._imports) >= _MOST:
            raise ClientBusy(f"{_MOST} archives are being uploaded already: wait for one of them")
        return await self._import(request, {**query, **wishes}, read)

    async def _import(self, request: web.BaseRequest, wanted: Mapping[str, str], read: Callable[[], Awaitable[bytes]]) -> Import:
        # Not at every start: hardly any mirror is asked for this.
        from mirror.bundles.importing import Import, Wishes
        from mirror.bundles.sources import Pipe

        name = wanted.get(NAME, "").strip() or None
        if name is not None:
            self._parse(name)
        wishes = Wishes(self._parse, platforms_in(wanted.get(PLATFORM, "")), name, pin=wanted.get(PIN, "") not in ("", "no", "0"))
        this = Import(Pipe(_Body(read), "the upload"), wishes)
        number = next(self._numbers)
        self._requests[number] = request
        # In a task of its own: a client that leaves ends its bytes, but never a change of the cache half way.
        task, _ = self._imports.start(number, lambda: self._run(this))
        task.add_done_callback(lambda _: self._requests.pop(number))
        await asyncio.wait([task])
        if self._closing and (task.cancelled() or task.exception() is not None):
            raise ClientBusy("the mirror is being stopped: upload it again later, what has come is kept")
        return task.result()

    async def _run(self, this: Import) -> Import:
        from mirror.bundles.importing import Importer

        importer = Importer(self._store, self._guard())
        try:
            await importer.run(this)
        except MirrorError as error:
            log.info("an upload failed: %s", error.message)
            raise
        finally:
            importer.close()
            this.source.close()
        self._forget(
            (image.repository, image.reference)
            for image in this.images
            if image.repository is not None and isinstance(image.reference, Tag)
        )
        return this

    async def _form(self, request: web.BaseRequest) -> tuple[dict[str, str], Callable[[], Awaitable[bytes]]]:
        """Reads the fields before the file. Returns them, and what reads the file."""
        continue_(request)
        fields: dict[str, str] = {}
        try:
            async with asyncio.timeout(_SILENCE):
                form = await request.multipart()
                for _ in range(_MOST_FIELDS):
                    part = await form.next()
                    if not isinstance(part, BodyPartReader) or part.name is None:
                        break
                    if part.name == ARCHIVE:
                        await self._admin.allow(request, fields.get(SECRET, ""))
                        return fields, partial(part.read_chunk, _PIECE)
                    value = bytearray()
                    while not part.at_eof() and len(value) <= _LARGEST_FIELD:
                        value += await part.read_chunk()
                    if len(value) > _LARGEST_FIELD:
                        raise RequestInvalid(f"the field {part.name[:80]!r} of the form has more than {_LARGEST_FIELD} bytes")
                    fields[part.name] = value.decode(errors="replace")
        except (ValueError, TimeoutError, OSError) as error:
            raise RequestInvalid(f"the form cannot be read: {error}") from None
        await self._admin.allow(request, fields.get(SECRET, ""))
        raise RequestInvalid(f"a form with a file in its last field, {ARCHIVE!r}, is expected")


class _Body(io.RawIOBase):
    """The bytes of a request, for the thread that reads the archive."""

    def __init__(self, read: Callable[[], Awaitable[bytes]]) -> None:
        """`read` returns the next bytes, none at the end."""
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._rest:
            self._rest = memoryview(asyncio.run_coroutine_threadsafe(self._next(), self._loop).result())
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(_SILENCE):
                return await self._read()
        except TimeoutError:
            raise OSError(f"no bytes came for {_SILENCE:g} s") from None
        except Exception as error:
            # Of aiohttp's classes, some are no OSErrors: a client that leaves, a body that is not framed as its header says.
            raise OSError(str(error) or "the connection ended") from None
