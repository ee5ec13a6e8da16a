"""HTTP out: registries, their endpoints, and how they are asked. Knows nothing of the cache, nor of clients."""

from mirror.upstream.registry import Registry, Upstreams
from mirror.upstream.transport import Connections, Timeouts

__all__ = ["Connections", "Registry", "Timeouts", "Upstreams"]
