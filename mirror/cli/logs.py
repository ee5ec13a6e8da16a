"""The log on standard error. Requests have a log of their own, the access log (mirror/api/access.py).

A message that repeats is written once, and at the end of a minute once more with the number of times that it was left out. What repeats is the same text
from the same logger at the same level. Where a name in the text varies and the cause does not (one full disk, a thousand blobs that cannot be kept), the caller
names the cause, and what has the same template and cause is one message:

    log.warning("cannot keep %s: %s", digest, error, extra={"cause": str(error)})

What answers somebody who has done something, such as sending SIGHUP, is written each time: with ``extra={"each": True}``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from dataclasses import dataclass

_INTERVAL = 60.0
"""Seconds from a message's first line to the line with the count."""
_SECONDS = re.compile(r"\b\d+(\.\d+)? s\b")
"""In a cause, where they count down."""
_MOST_MESSAGES = 256
"""Messages that are remembered at a time: of more, the oldest has its count written early."""


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _Identity:
    """What two records share that are the same message."""

    logger: str
    level: int
    what: object
    fault: object

    @classmethod
    def of(cls, record: logging.LogRecord, text: str) -> _Identity:
        cause = getattr(record, "cause", None)
        what: object = text if cause is None else (record.msg, _SECONDS.sub("", str(cause)))
        return cls(record.name, record.levelno, what, _fault(record))


@dataclass(slots=True)
class _Repeats:
    began: float
    count: int = 0
    """Records that were not written."""
    text: str = ""
    """Of the last one."""


class CountRepeats(logging.Handler):
    """Passes a record on to `target` unless it repeats an earlier one; passes on how many did after `interval` seconds, and when it is closed.

    Each process counts for itself: a child forgets what its parent has counted.
    """

    def __init__(self, target: logging.Handler, interval: float = _INTERVAL) -> None:
        super().__init__()
        self._target = target
        self._interval = interval
        self._messages: dict[_Identity, _Repeats] = {}
        """The oldest first."""
        self._timer: threading.Timer | None = None
        self._process = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        # `handle` holds the handler's lock.
        if self._process != os.getpid():
            self._process, self._timer = os.getpid(), None
            self._messages.clear()
        try:
            text = record.getMessage()
        except Exception:
            self.handleError(record)
            return
        self._end_intervals()
        if getattr(record, "each", False):
            self._target.handle(record)
            return
        identity = _Identity.of(record, text)
        found = self._messages.get(identity)
        if found is None:
            if len(self._messages) >= _MOST_MESSAGES:
                self._end(next(iter(self._messages)))
            self._messages[identity] = _Repeats(time.monotonic())
            self._target.handle(record)
        else:
            found.count, found.text = found.count + 1, text
            self._start_timer()

    def flush(self) -> None:
        self._target.flush()

    def close(self) -> None:
        """Writes all counts."""
        self.acquire()
        try:
            if self._process == os.getpid():
                if self._timer is not None:
                    self._timer.cancel()
                for identity in list(self._messages):
                    self._end(identity)
        finally:
            self.release()
        self._target.close()
        super().close()

    def _start_timer(self) -> None:
        if self._timer is None:
            due = next(iter(self._messages.values())).began + self._interval
            self._timer = threading.Timer(max(0.0, due - time.monotonic()), self._on_timer)
            self._timer.daemon = True
            self._timer.start()

    def _on_timer(self) -> None:
        self.acquire()
        try:
            self._timer = None
            self._end_intervals()
            if any(repeats.count for repeats in self._messages.values()):
                self._start_timer()
        finally:
            self.release()

    def _end_intervals(self) -> None:
        while self._messages:
            identity, repeats = next(iter(self._messages.items()))
            if time.monotonic() - repeats.began < self._interval:
                break
            self._end(identity)

    def _end(self, identity: _Identity) -> None:
        """Writes the count, if there is one. The next record like these is written at once."""
        repeats = self._messages.pop(identity)
        if repeats.count:
            seconds = max(1, round(time.monotonic() - repeats.began))
            arguments = (repeats.text, repeats.count, seconds)
            self._target.handle(
                logging.LogRecord(identity.logger, identity.level, "", 0, "%s (%d more like this in %d s)", arguments, None)
            )


def _fault(record: logging.LogRecord) -> object:
    """Identifies an exception: its type, its text, and where it was raised."""
    if not record.exc_info or record.exc_info[1] is None:
        return None
    kind, error, trace = record.exc_info
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return kind, str(error), trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno)


def set_up(level: str, form: str) -> None:
    """Sends the log to standard error, as text or as one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[CountRepeats(handler)], force=True)
