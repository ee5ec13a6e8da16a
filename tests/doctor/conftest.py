"""What every test of the doctor needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mirror.config import DEFAULT_ENDPOINTS, Settings, load
from mirror.doctor import Finding


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """Settings whose default registries all are refused at once, so that only what a test sets is asked."""
    (tmp_path / "cache").mkdir(exist_ok=True)
    return {
        "cache": {"dir": str(tmp_path / "cache"), "max_size": "1MiB"},
        "registries": {name: {"endpoints": ["http://127.0.0.1:1"]} for name in DEFAULT_ENDPOINTS},
    }


def settings(tree: dict[str, Any], **registries: dict[str, Any]) -> Settings:
    """The settings of a tree, with docker.io (``hub``) or a registry of one's own (``lan``) as given."""
    names = {"hub": "docker.io", "lan": "lan.example:5000"}
    for key, registry in registries.items():
        tree["registries"][names[key]] = registry
    return load(None, {}, tree)


def of(findings: list[Finding], check: str) -> list[Finding]:
    """Those of one part."""
    return [finding for finding in findings if finding.check == check]


def one(findings: list[Finding], check: str) -> Finding:
    """The only one of a part; with a cure where something is to be done."""
    (found,) = of(findings, check)
    assert bool(found.cure) == (found.level != "ok"), found
    return found
