"""Photographs that take a worker's process down, or hold it for ever: found, rejected by name, and their neighbours labelled."""

from __future__ import annotations

from pathlib import Path

import pytest

import manifests
from tests.conftest import scene_bytes
from tests.faults.processes import label_arguments, start
from tests.faults.steps import Fault, Step


@pytest.mark.parametrize("deed", [*_KINDS])
def test_an_image_that_crashes_or_hangs_its_worker_is_rejected_and_its_neighbours_are_labelled(
    tmp_path: Path, checkpoints: Path, deed: str
):
    """A real SIGSEGV; a thread that sleeps; C code that sleeps and lets no other thread of Python run."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed, name in enumerate(["crash", "crash_beside", "hang", "hang_beside", "hang_all", "hang_all_beside"]):
        (photos / f"{name}.png").write_bytes(scene_bytes(seed, side_px=64))
    faults = [
        Fault(Step("open", rf"photos/{name}\.png$"), deed, once=False, spares_driver=True) for name, deed in deeds.items()
    ]
    arguments = label_arguments(tmp_path / "run", photos, checkpoints, "--max-attempts", "1", "--stall-timeout-s", "3")
    process = start([*arguments, "--workers", "2", "--max-rejected-fraction", "0.5"], faults, tmp_path / "marks")
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    kinds = {
        image.key: image.problem.kind if image.problem else image.status
        for part in manifests.committed_parts(tmp_path / "run", "primary")
        for image in manifests.load_part(tmp_path / "run", "primary", part).images
    }
    assert kinds == dict.fromkeys(["crash_beside", "hang_beside", "hang_all_beside"], "labelled") | {
        "crash": "crashes_worker",
        "hang": "timed_out",
        "hang_all": "timed_out",
    }
    assert manifests.verify(tmp_path / "run", deep=True) == []
