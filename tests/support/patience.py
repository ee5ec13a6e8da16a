"""How long tests wait for what must come."""

from __future__ import annotations

PATIENCE = 120.0
"""Seconds: enough for a machine ten times as slow as a usual one. Only a test that fails waits that long."""
