"""Photographs that take a worker's process down, or hold it for ever: found and rejected; their neighbours are labelled."""

from __future__ import annotations

from pathlib import Path

import pytest

import manifests
from tests.conftest import scene_bytes
from tests.faults.processes import label_arguments, start
from tests.faults.steps import Fault, Step

_DEEDS = {"a_crash": "segfault", "b_hang": "sleep", "c_stuck": "sleep with the GIL"}
_ENDS = {
    "a_crash": "crashes_worker",
    "a_good": "labelled",
    "b_good": "labelled",
    "b_hang": "timed_out",
    "c_good": "labelled",
    "c_stuck": "timed_out",
}

pytestmark = pytest.mark.campaign


def test_images_that_crash_or_hang_their_worker_are_rejected_and_their_neighbours_are_labelled(
    tmp_path: Path, checkpoints: Path
):
    """A real SIGSEGV; a thread that sleeps; C code that sleeps and lets no other thread of Python run. Two images to a part."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed, name in enumerate(_ENDS):
        (photos / f"{name}.png").write_bytes(scene_bytes(seed, side_px=64))
    opened = {name: Step("open", rf"photos/{name}\.png$") for name in _DEEDS}
    faults = [Fault(opened[name], deed, once=False, spares_driver=True) for name, deed in _DEEDS.items()]
    limits = ["--max-attempts", "1", "--stall-timeout-s", "15", "--max-rejected-fraction", "0.5"]
    arguments = label_arguments(tmp_path / "run", photos, checkpoints, "--workers", "2", *limits)
    process = start(arguments, faults, tmp_path / "marks")
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    for column in ("images", "primary", "assistant"):
        parts = [
            manifests.load_part(tmp_path / "run", column, part) for part in manifests.committed_parts(tmp_path / "run", column)
        ]
        images = [image for part in parts for image in part.images]
        assert {
            image.key.removesuffix(".png"): image.problem.kind if image.problem else image.status for image in images
        } == _ENDS
    assert manifests.verify(tmp_path / "run", deep=True) == []
