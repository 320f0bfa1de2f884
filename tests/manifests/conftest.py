"""A small run whose index is there."""

from __future__ import annotations

from pathlib import Path

import pytest

import manifests
from manifests import facts, local_folder
from tests.manifests.small_run import write_run


@pytest.fixture
def indexed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small run is indexed too, and though it was written just now."""
    monkeypatch.setattr(facts, "WORTH_AN_INDEX", 1)
    monkeypatch.setattr(local_folder, "_RECENT_NS", 0)


@pytest.fixture
def indexed_run(indexed_at_once: None, tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run")
    manifests.summarize(run)
    return run
