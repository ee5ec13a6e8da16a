"""Every metric of the program. Everything may import this module; it imports nothing of the program.

The ``registry_proxy_*`` names and their labels are those of distribution's proxy, so that dashboards made for it work. `upstream_host` is the
registry's name as configured (``docker.io``), `type` is ``blob`` or ``manifest``; sizes are in bytes, times in seconds.

Each of several workers counts in files of its own, in a folder that all of them read; `exposition` returns the sums. A worker that replaces a dead one continues its
files, so no counter goes backwards. A gauge that is the same in all workers has the value that was set last (``mostrecent``); others are sums over the living
(``livesum``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the workers' folder. It is set before this module is imported, or never: see workers/parent.py."""
FOLDER = "mirror-workers-"
"""The prefix of that folder's name. Any other folder belongs to another program."""

_shared = os.environ.get(VARIABLE, "")
_counts_for = "parent"
if not Path(_shared).name.startswith(FOLDER):
    _shared = ""
    values.ValueClass = values.MutexValue
else:
    values.ValueClass = values.MultiProcessValue(lambda: _counts_for)  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=True)
"""The metrics of this process only."""
if not _shared:
    ProcessCollector(registry=REGISTRY)

_KIND = ("upstream_host", "type")
_ENDPOINT = ("upstream_host", "endpoint")

requests = Counter("registry_proxy_requests", "Requests for content by clients", _KIND, registry=REGISTRY)
hits = Counter("registry_proxy_hits", "Requests answered from the cache", _KIND, registry=REGISTRY)
misses = Counter("registry_proxy_misses", "Requests that needed upstream", _KIND, registry=REGISTRY)
pulled_bytes = Counter("registry_proxy_pulled_bytes", "Bytes fetched from upstream", _KIND, registry=REGISTRY)
pushed_bytes = Counter("registry_proxy_pushed_bytes", "Bytes sent to clients", _KIND, registry=REGISTRY)

request_seconds = Histogram(
    "mirror_request_seconds",
    "Time until a request for content was answered to its last byte, by whether the cache had it",
    ("type", "cache"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    registry=REGISTRY,
)

flights = Gauge("mirror_flights", "Downloads in progress", registry=REGISTRY, multiprocess_mode="livesum")
readers = Gauge("mirror_readers", "Clients reading a download in progress", registry=REGISTRY, multiprocess_mode="livesum")

prefetched = Counter("mirror_prefetched", "Blobs fetched before a client asked for them", ("upstream_host",), registry=REGISTRY)

scans = Counter(
    "mirror_scans", "Images that a scanner of a [[scan]] table has looked at", ("scanner", "result"), registry=REGISTRY
)
tag_moves = Counter(
    "mirror_tag_moves", "Tags that were seen to mean another digest than before", ("upstream_host",), registry=REGISTRY
)
guarded = Counter(
    "mirror_guard",
    "Requests that a [[guard]] table, or a block by hand, held or refused, or would have",
    ("rule", "check", "verdict"),
    registry=REGISTRY,
)
guard_lists_unreadable = Gauge(
    "mirror_guard_lists_unreadable",
    "Block lists that cannot be read now, so that what they said last counts",
    registry=REGISTRY,
    multiprocess_mode="livemax",
)
guard_held_tags = Gauge(
    "mirror_guard_held_tags",
    "Tags that mean something else at their registry than what clients get",
    registry=REGISTRY,
    multiprocess_mode="livemax",
)
guard_held_seconds = Gauge(
    "mirror_guard_held_seconds", "How long the longest of them has been so", registry=REGISTRY, multiprocess_mode="livemax"
)

prefetched_bytes = Counter(
    "mirror_prefetched_bytes",
    "Bytes fetched before a client asked for them, by `prefetch` or by `pull`",
    ("upstream_host", "by"),
    registry=REGISTRY,
)

cache_bytes = Gauge("mirror_cache_bytes", "Size of the cached content", registry=REGISTRY, multiprocess_mode="mostrecent")
cache_max_bytes = Gauge(
    "mirror_cache_max_bytes", "Size that eviction keeps the cache within", registry=REGISTRY, multiprocess_mode="mostrecent"
)
hosted_bytes = Gauge(
    "mirror_hosted_bytes", "Size of what was pushed, beside the cache", registry=REGISTRY, multiprocess_mode="mostrecent"
)
hosted_pushes = Counter("mirror_hosted_pushes_total", "Blobs and manifests that were pushed", ("type",), registry=REGISTRY)
cache_blobs = Gauge("mirror_cache_blobs", "Cached blobs and manifests", registry=REGISTRY, multiprocess_mode="mostrecent")
disk_bytes = Gauge(
    "mirror_disk_bytes", "Size of the file system that the cache is on", registry=REGISTRY, multiprocess_mode="mostrecent"
)
disk_free_bytes = Gauge("mirror_disk_free_bytes", "What is free on it", registry=REGISTRY, multiprocess_mode="mostrecent")
certificate_expiry_seconds = Gauge(
    "mirror_certificate_expiry_seconds",
    "Seconds until the mirror's own certificate ends",
    ("certificate",),
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
evictions = Counter("mirror_evictions", "Blobs evicted", registry=REGISTRY)
evicted_bytes = Counter("mirror_evicted_bytes", "Bytes evicted", registry=REGISTRY)
scrubbed_bytes = Counter("mirror_scrubbed_bytes", "Bytes of cached content read again, to find rot", registry=REGISTRY)
scrub_damaged = Counter("mirror_scrub_damaged", "Damaged content found on disk and removed", registry=REGISTRY)

upstream_up = Gauge(
    "mirror_upstream_up",
    "0 while an endpoint is paused after failures, else 1",
    _ENDPOINT,
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
upstream_seconds = Histogram(
    "mirror_upstream_request_seconds",
    "Time until upstream's response headers",
    (*_ENDPOINT, "method"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20),
    registry=REGISTRY,
)
upstream_errors = Counter(
    "mirror_upstream_errors", "Failed requests to upstream, by kind of failure", (*_ENDPOINT, "kind"), registry=REGISTRY
)
ratelimit_limit = Gauge(
    "mirror_upstream_ratelimit_limit",
    "Pulls that upstream allows in its window",
    _ENDPOINT,
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
ratelimit_remaining = Gauge(
    "mirror_upstream_ratelimit_remaining",
    "Pulls that upstream still allows",
    _ENDPOINT,
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
verification_failures = Counter(
    "mirror_verification_failures", "Downloads whose digest was wrong", ("upstream_host",), registry=REGISTRY
)
stale_served = Counter(
    "mirror_stale_served", "Manifests served stale because upstream could not be asked", ("upstream_host",), registry=REGISTRY
)

_PEER = ("peer",)
peer_requests = Counter(
    "mirror_peer_requests",
    "Requests for content by other mirrors of the fleet, by whether the cache had it; they do not count as clients'",
    (*_KIND, "cache"),
    registry=REGISTRY,
)
peer_sent_bytes = Counter("mirror_peer_sent_bytes", "Bytes sent to other mirrors of the fleet", _KIND, registry=REGISTRY)
peer_received_bytes = Counter(
    "mirror_peer_received_bytes",
    "Bytes fetched from another mirror, of the fleet or a parent, instead of from upstream",
    (*_PEER, "type"),
    registry=REGISTRY,
)
peer_errors = Counter(
    "mirror_peer_errors",
    "Requests to another mirror that failed, so that the next one or upstream was asked",
    _PEER,
    registry=REGISTRY,
)
peer_up = Gauge(
    "mirror_peer_up", "0 while another mirror does not answer, else 1", _PEER, registry=REGISTRY, multiprocess_mode="mostrecent"
)

_BUCKET = ("bucket",)
bucket_up = Gauge(
    "mirror_bucket_up",
    "0 while the bucket is not used since it does not answer as it should, else 1",
    _BUCKET,
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
bucket_received_bytes = Counter(
    "mirror_bucket_received_bytes",
    "Bytes fetched from the bucket, instead of from upstream",
    (*_BUCKET, "type"),
    registry=REGISTRY,
)
bucket_sent_bytes = Counter("mirror_bucket_sent_bytes", "Bytes written to the bucket", (*_BUCKET, "type"), registry=REGISTRY)
bucket_errors = Counter(
    "mirror_bucket_errors", "Requests to the bucket that failed, to `read` or `write`", (*_BUCKET, "operation"), registry=REGISTRY
)
bucket_waiting = Gauge(
    "mirror_bucket_waiting",
    "Objects that wait to be written to the bucket",
    _BUCKET,
    registry=REGISTRY,
    multiprocess_mode="livemax",
)
bucket_dropped = Counter(
    "mirror_bucket_dropped", "Objects that were not written to the bucket since too many waited", _BUCKET, registry=REGISTRY
)

access_decisions = Counter(
    "mirror_access_decisions",
    "Requests that were decided on where there are `[[access]]` tables, by `allowed`, `denied`, `limited` or `wrong login`",
    ("action", "verdict"),
    registry=REGISTRY,
)

_WEBHOOK = ("webhook",)
webhook_events = Counter(
    "mirror_webhook_events",
    "Events for a `[[webhook]]`: `delivered`, `refused` by its receiver, or `dropped` since too many waited or the mirror ended",
    (*_WEBHOOK, "result"),
    registry=REGISTRY,
)
webhook_pending = Gauge(
    "mirror_webhook_pending", "Events that wait to be delivered", _WEBHOOK, registry=REGISTRY, multiprocess_mode="livesum"
)
webhook_failing = Gauge(
    "mirror_webhook_failing",
    "1 while the last try to deliver an event has failed",
    _WEBHOOK,
    registry=REGISTRY,
    multiprocess_mode="livemax",
)

access_month_bytes = Gauge(
    "mirror_access_month_bytes",
    "Bytes that `bytes_per_month` of `[[access]]` tables has counted this month, of all users and addresses together",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
access_quotas_reached = Counter(
    "mirror_access_quotas_reached",
    "Users and addresses that have reached `bytes_per_month` of an `[[access]]` table, by its number",
    ("table",),
    registry=REGISTRY,
)
_LIST = ("list",)
warm_pulls = Counter(
    "mirror_warm_pulls", "Pulls of images of `[[warm]]` lists, `pulled` or `failed`", (*_LIST, "result"), registry=REGISTRY
)
warm_images = Gauge("mirror_warm_images", "Images in a `[[warm]]` list", _LIST, registry=REGISTRY, multiprocess_mode="mostrecent")
warm_failing = Gauge(
    "mirror_warm_failing",
    "Those whose last pull failed, 0 while the mirror is offline",
    _LIST,
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
warm_unreadable = Gauge(
    "mirror_warm_unreadable",
    "1 while a file of a `[[warm]]` list cannot be used, so that the list stays as it was",
    _LIST,
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
warm_last = Gauge(
    "mirror_warm_last_pull_timestamp_seconds",
    "When the last successful pull of one began, 0 if there was none",
    _LIST,
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
warm_next = Gauge(
    "mirror_warm_next_pull_timestamp_seconds",
    "When the next one is pulled, 0 if the list is empty",
    _LIST,
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)


def begin(registries: Iterable[str], cache: Path) -> None:
    """Sets the counters of each registry to 0, since Prometheus' `increase` misses a counter's first event otherwise, and the folder whose disk is measured."""
    global _folder
    _folder = cache
    count_registries(registries)
    for kind in ("blob", "manifest"):
        for cache_had_it in ("hit", "miss"):
            request_seconds.labels(kind, cache_had_it)
        hosted_pushes.labels(kind)


def count_registries(registries: Iterable[str]) -> None:
    """Sets the counters of each registry that has none to 0."""
    for registry in registries:
        for counter in (requests, hits, misses, pulled_bytes, pushed_bytes):
            for kind in ("blob", "manifest"):
                counter.labels(registry, kind)
        prefetched.labels(registry)
        for by in ("prefetch", "pull"):
            prefetched_bytes.labels(registry, by)
        verification_failures.labels(registry)
        stale_served.labels(registry)
        tag_moves.labels(registry)


_folder: Path | None = None
_certificate: tuple[str, Callable[[], float | None]] = "", lambda: None


def watch_certificate(name: str, ends: Callable[[], float | None]) -> None:
    """Sets the certificate of `mirror_certificate_expiry_seconds`; `ends` returns when it ends, in seconds since the epoch."""
    global _certificate
    _certificate = name, ends


def exposition() -> bytes:
    """Returns all metrics of all workers in Prometheus' text format. The disk and the certificate are read now."""
    name, ends = _certificate
    if (end := ends()) is not None:
        certificate_expiry_seconds.labels(name).set(end - time.time())
    if _folder is not None:
        size, free = _disk(_folder)
        disk_bytes.set(size)
        disk_free_bytes.set(free)
    if not _shared:
        return generate_latest(REGISTRY)
    publish_process()
    everybody = CollectorRegistry()
    MultiProcessCollector(everybody, _shared)  # type: ignore[no-untyped-call]
    return generate_latest(everybody)


def _disk(folder: Path) -> tuple[float, float]:
    """Returns the bytes of a file system, and those free for users other than root; NaN where the system does not say."""
    try:
        state = os.statvfs(folder)
    except OSError:
        return float("nan"), float("nan")
    return float(state.f_blocks * state.f_frsize), float(state.f_bavail * state.f_frsize)


# ------------------------------------------------------------------ workers


class _Process:
    """The CPU time, memory and files of this process, for the other workers. Memory is added up; open files are those of the worker with the most."""

    _MODES: ClassVar[dict[str, Literal["livesum", "livemax", "livemin"]]] = {
        "process_resident_memory_bytes": "livesum",
        "process_virtual_memory_bytes": "livesum",
        "process_open_fds": "livemax",
        "process_max_fds": "livemin",
        "process_start_time_seconds": "livemin",
    }

    def __init__(self) -> None:
        self._source = ProcessCollector(registry=None)
        self._gauges = {
            family.name: Gauge(family.name, family.documentation, registry=REGISTRY, multiprocess_mode=self._MODES[family.name])
            for family in self._source.collect()
            if family.name in self._MODES
        }
        self._cpu = Counter("process_cpu_seconds", "Total user and system CPU time spent in seconds.", registry=REGISTRY)
        self._published = 0.0

    def publish(self) -> None:
        for family in self._source.collect():
            value = family.samples[0].value
            if family.name in self._gauges:
                self._gauges[family.name].set(value)
            elif family.name == "process_cpu_seconds":
                self._cpu.inc(max(0.0, value - self._published))
                self._published = value


_process: _Process | None = None


def count_for(worker: int) -> None:
    """Makes this process count as the worker of that number from now on."""
    global _counts_for, _process
    _counts_for = str(worker)
    _process = _Process()


def publish_process() -> None:
    """Publishes the CPU time, memory and files of this worker; does nothing where it is the only process."""
    if _process is not None:
        _process.publish()


def forget(worker: int) -> None:
    """Drops the gauges of a worker that has died. Its counters stay in the sums."""
    assert _shared
    mark_process_dead(worker, _shared)  # type: ignore[no-untyped-call]
