"""A hub cache on this disk, with small checkpoints laid out as the hub's client leaves the published ones: found offline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def cached(cache: Path, hub_id: str, commit: str, save: Callable[[Path], None], *, branch: bool = True) -> Path:
    """The snapshot's folder, filled by `save`. branch: `main` stands at this commit, as after a fetch without a revision."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    save(snapshot)
    if branch:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
    return snapshot


def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it the cache of this process, as HF_HOME does when one starts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(cache.parent / "assets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
