"""Durations, sizes, addresses and numbers of processes, as people write them."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(i?)B?|B)?", re.IGNORECASE)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_duration(value: Any) -> float:
    """Seconds, from a number of them or ``"500ms"``, ``"2s"``, ``"5m"``, ``"6h"``, ``"7d"``. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _SECONDS[match[2]]
    else:
        raise ValueError('a duration such as "500ms", "30s", "5m" or "1h" is expected')
    if not 0 <= seconds <= 10 * 365 * 86400:
        raise ValueError("a duration between 0 and ten years is expected")
    return seconds


def parse_size(value: Any) -> int:
    """Bytes, from a number of them or ``"50GiB"``, ``"500MB"``. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        base = 1024 if match[3] else 1000
        size = int(float(match[1]) * base ** _POWERS.get((match[2] or "").upper(), 0))
    else:
        raise ValueError('a size such as "50GiB" or "500MB" is expected')
    if not 0 < size < 2**60:
        raise ValueError("a size above 0 is expected")
    return size


_BARE = 50_000
"""Numbers below it are taken for a size whose unit was forgotten."""


def parse_cache_size(value: Any) -> int:
    """Bytes, as `parse_size` has them. A small number without a unit is refused: a forgotten unit would empty the cache. Raises ValueError."""
    size = parse_size(value)
    if size < _BARE and (isinstance(value, int) or value.strip().replace(".", "").isdigit()):
        raise ValueError(f"a size with its unit is expected, such as 50GiB: is {str(value).strip()}GiB meant?")
    return size


_BITS = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTkmgt]?)(?:(?<=[KMGT])b(?:/s)?|bps|[bB]its?(?:/s|ps)?)")
_SLOWEST = 1000


def parse_rate(value: Any) -> int:
    """Bytes a second, from a number of them or ``"2MB"``, ``"500KiB/s"``; 0 for no limit, or for never. Raises ValueError."""
    if value in (0, "0") and value is not False:
        return 0
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str):
        if bits := _BITS.fullmatch(text):
            raise ValueError(f"bytes a second are expected, not bits: write {float(bits[1]) / 8:g}{bits[2].upper()}B")
        text = re.sub(r"(?:/s|ps)$", "", text)
    try:
        rate = parse_size(text)
    except ValueError:
        raise ValueError('bytes a second such as "2MB" or "500KiB" are expected, or 0') from None
    if rate < _SLOWEST:
        unit = f": is {text}MB meant?" if str(text).isdigit() else ""
        raise ValueError(f"at least 1KB a second is expected, or 0{unit}")
    return rate


def format_size(count: float) -> str:
    """Bytes, for people; without its space `parse_size` takes it again."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1023.5:
            return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TiB" if count < 999.5 else f"{count:.0f} TiB"


def moment(when: float | None) -> str | None:
    """Formats seconds since the epoch for programs: RFC 3339, in UTC."""
    return None if when is None else datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port. Raises ValueError."""
    host, colon, port = listen.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError('an address and a port are expected, such as "127.0.0.1:5000" or "[::]:5000"')
    return host, int(port)


_LABEL = re.compile(r"(?!-)[\w-]{1,63}(?<!-)")
_LONGEST_HOST = 253
"""Characters of a name, and of a label in it (RFC 1035, section 2.3.4)."""


def parse_endpoint(url: str) -> str:
    """Returns a URL without a slash at its end. Raises ValueError."""
    parts = _url(url, ("http", "https"), "https://registry.example")
    if "@" in parts.netloc:
        raise ValueError("a URL without user and password is expected: they have settings of their own")
    if "?" in url or "#" in url:
        raise ValueError("a URL without query and fragment is expected")
    if {".", ".."} & set(unquote(parts.path).split("/")):
        raise ValueError("a URL without . and .. in its path is expected")
    return url.rstrip("/")


def _url(url: str, schemes: Collection[str], example: str) -> SplitResult:
    """Returns the parts of a URL whose scheme is known, and whose host and port can be dialled. Raises ValueError."""
    if not url.isprintable() or " " in url or "\\" in url:
        raise ValueError(f"a URL without spaces, backslashes and control characters is expected, such as {example}")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise ValueError(f"a URL such as {example} is expected, an IPv6 address in brackets") from None
    if parts.scheme not in schemes or not host:
        raise ValueError(f"a URL such as {example} is expected")
    try:
        port_is_good = parts.port != 0
    except ValueError:
        port_is_good = False
    if not port_is_good:
        raise ValueError("a URL whose port is a number from 1 to 65535 is expected, an IPv6 address in brackets")
    if not _is_host(host):
        raise ValueError(f"a URL with the name or the address of a host is expected, such as {example}")
    return parts


def _is_host(host: str) -> bool:
    if ":" in host or re.fullmatch(r"[\d.]+", host):
        try:
            return bool(ipaddress.ip_address(host))
        except ValueError:
            return False
    return len(host) <= _LONGEST_HOST and all(map(_LABEL.fullmatch, host.removesuffix(".").split(".")))


_MOST_WORKERS = 64
_ENOUGH = 8


def parse_workers(value: Any) -> int:
    """A number of processes; ``"auto"`` is one for each CPU that this one may use, and not more than eight. Raises ValueError."""
    if value == "auto":
        return min(len(os.sched_getaffinity(0)), _ENOUGH)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_WORKERS:
        raise ValueError(f'a number from 1 to {_MOST_WORKERS} or "auto" is expected')
    return value


def parse_proxy(value: Any) -> str | None:
    """Returns ``"none"``, ``"environment"``, or the URL of a proxy. Raises ValueError."""
    if value is None or value in ("none", "environment"):
        return None if value is None else str(value)
    if not isinstance(value, str) or "://" not in value:
        raise ValueError('"none", "environment" or a URL such as http://proxy.lan:3128 or socks5h://proxy.lan:1080 is expected')
    parts = _url(value, ("http", "https", "socks5", "socks5h"), "http://proxy.lan:3128 or socks5h://proxy.lan:1080")
    if "@" in parts.netloc:
        raise ValueError(
            "a URL without user and password is expected: put user:password into a file, and name it in proxy_credentials_file"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("a URL of a host and a port is expected, without a path")
    return value.rstrip("/")
