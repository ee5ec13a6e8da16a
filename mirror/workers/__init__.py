"""Several processes that serve together: a parent, which binds the address, and its workers.

They share the listening socket (acceptor.py); the cache directory, where a download belongs to one of them (mirror/storage/disk/spool.py) and the others read along;
the metrics (mirror/metrics.py); and what each has heard of upstreams (mirror/readiness.py).
"""
