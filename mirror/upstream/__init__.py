"""The client side: requests to registries and their endpoints. Depends on neither the cache nor the API."""

from mirror.upstream.registry import Registry
from mirror.upstream.transport import Connections, Timeouts
from mirror.upstream.upstreams import Upstreams

__all__ = ["Connections", "Registry", "Timeouts", "Upstreams"]
