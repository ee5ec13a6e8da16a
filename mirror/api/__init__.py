"""The HTTP API for clients. It uses the cache and knows nothing of upstreams."""
