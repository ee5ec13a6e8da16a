"""HTTP in: what clients ask, and how they are answered. Knows names, errors and the cache; of upstreams nothing."""
