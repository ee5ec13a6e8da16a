"""Every metric of the program, in one place. Imported by all, imports nothing of ours.

The ``registry_proxy_*`` names and their labels are those of distribution's proxy, so that dashboards made for it work. `upstream_host` is the
registry's name as configured (``docker.io``), `type` is ``blob`` or ``manifest``; sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)

_KIND = ("upstream_host", "type")
_ENDPOINT = ("upstream_host", "endpoint")

requests = Counter("registry_proxy_requests", "Requests for content by clients", _KIND, registry=REGISTRY)
hits = Counter("registry_proxy_hits", "Requests answered from the cache", _KIND, registry=REGISTRY)
misses = Counter("registry_proxy_misses", "Requests that needed upstream", _KIND, registry=REGISTRY)
pulled_bytes = Counter("registry_proxy_pulled_bytes", "Bytes fetched from upstream", _KIND, registry=REGISTRY)
pushed_bytes = Counter("registry_proxy_pushed_bytes", "Bytes sent to clients", _KIND, registry=REGISTRY)

flights = Gauge("mirror_flights", "Downloads in progress", registry=REGISTRY)
readers = Gauge("mirror_readers", "Clients reading a download in progress", registry=REGISTRY)

fetched_ahead = Counter(
    "mirror_fetched_ahead", "Blobs fetched before a client asked for them", ("upstream_host",), registry=REGISTRY
)

cache_bytes = Gauge("mirror_cache_bytes", "Size of the cached content", registry=REGISTRY)
cache_max_bytes = Gauge("mirror_cache_max_bytes", "Size that eviction keeps the cache within", registry=REGISTRY)
cache_blobs = Gauge("mirror_cache_blobs", "Cached blobs and manifests", registry=REGISTRY)
evictions = Counter("mirror_evictions", "Blobs evicted", registry=REGISTRY)
evicted_bytes = Counter("mirror_evicted_bytes", "Bytes evicted", registry=REGISTRY)

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
    "mirror_upstream_ratelimit_limit", "Pulls that upstream allows in its window", _ENDPOINT, registry=REGISTRY
)
ratelimit_remaining = Gauge(
    "mirror_upstream_ratelimit_remaining", "Pulls that upstream still allows", _ENDPOINT, registry=REGISTRY
)
verification_failures = Counter(
    "mirror_verification_failures", "Downloads whose digest was wrong", ("upstream_host",), registry=REGISTRY
)
stale_served = Counter(
    "mirror_stale_served", "Manifests served stale because upstream could not be asked", ("upstream_host",), registry=REGISTRY
)
