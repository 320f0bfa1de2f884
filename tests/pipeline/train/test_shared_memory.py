"""Loader processes and a /dev/shm that is too small for them, as containers have it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.errors import RefusedError
from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from tests.pipeline.train.trainings import ROOT, arguments, metrics

_SMALL = "mount -t tmpfs -o size=64k tmpfs /dev/shm"


def _may_mount() -> bool:
    """Whether this user may give a process a /dev/shm of its own."""
    tools = shutil.which("unshare") and shutil.which("mount")
    return (
        bool(tools) and subprocess.run(["unshare", "-m", "sh", "-c", _SMALL], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.campaign
@pytest.mark.skipif(not _may_mount(), reason="this user may not mount")
def test_a_small_one_is_refused_with_what_to_do(small: TrainConfig, tmp_path: Path) -> None:
    command = arguments(replace(small, output=tmp_path / "out", loader_workers=1))
    script = ["unshare", "-m", "sh", "-c", f'{_SMALL} && exec "$@"', "-", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert result.returncode == 2, result.stderr
    assert re.search(r"/dev/shm: 0\.\d MB free, but --loader-workers 1 keeps 3 batches of 0\.\d MB there", result.stderr)
    assert "docker run --shm-size 2g, or give fewer --loader-workers" in result.stderr


def test_what_is_free_decides(small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(RefusedError, match=r"/dev/shm: 0\.0 MB free"):
        train(replace(small, output=tmp_path / "refused", loader_workers=1))
    train(replace(small, output=tmp_path / "none", loader_workers=0, steps=1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000_000))
    train(replace(small, output=tmp_path / "enough", loader_workers=1, steps=1))
    assert metrics(tmp_path / "enough") == metrics(tmp_path / "none")
