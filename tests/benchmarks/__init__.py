"""Tests of the benchmark harness and of the eviction simulator."""
