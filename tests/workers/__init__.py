"""Several processes: their parts. All of them together: tests/promises/test_workers.py."""
