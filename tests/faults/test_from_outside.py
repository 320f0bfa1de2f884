"""Nothing that comes from outside is executed or escapes: names in tars, weights, settings of another run."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import manifests
from pipeline.label.command import label, main
from pipeline.label.sources import RunMismatchError
from stages.views import ViewPlan
from tests.conftest import label_config, scene_bytes, write_tar
from tests.faults.processes import label_arguments

_NAMES = ["../../escaped.png", "/absolute.png", "a/../../b.png", "line\nbreak.png", "..png", "sub/c.json.png", "\x1b[2J.png"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_no_name_of_a_tars_member_becomes_a_path(tmp_path: Path, checkpoints: Path):
    source = write_tar(_made(tmp_path / "in") / "odd.tar", {name: scene_bytes(i, side_px=64) for i, name in enumerate(_NAMES)})
    before = _listing(tmp_path)
    run = tmp_path / "deep/er/run"
    report = label(label_config(run, (str(source),), checkpoints))
    assert not report.failures
    new = {name for name in _listing(tmp_path) - before if not name.startswith("deep/er/run/")}
    assert new == {"deep", "deep/er", "deep/er/run"}
    words = ("escaped", "absolute", "break", "sub", "..", "\x1b")
    assert not [name for name in _listing(run) if any(word in name for word in words)]
    assert not Path("/absolute.png").exists()
    keys = {
        image.key
        for part in manifests.committed_parts(run, "images")
        for image in manifests.load_part(run, "images", part).images
    }
    assert "../../escaped" in keys
    assert all(key.isprintable() for key in keys)
    assert manifests.verify(run, deep=True) == []


class _Escape:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def _pickled(checkpoints: Path, to: Path, trap: Path) -> Path:
    """The teachers with `primary` as a pickle that runs code when it is loaded."""
    shutil.copytree(checkpoints, to)
    (weights,) = (to / "primary").glob("*.safetensors")
    torch.save(load_file(weights) | {"trap": _Escape(trap)}, to / "primary/pytorch_model.bin")
    weights.unlink()
    return to


def test_a_checkpoint_of_pickled_weights_is_refused_and_never_loaded(
    tmp_path: Path, five: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    trap = tmp_path / "executed"
    pickled = _pickled(checkpoints, tmp_path / "checkpoints", trap)
    assert main(label_arguments(tmp_path / "run", five, pickled, "--workers", "0")) == 2
    message = capsys.readouterr().err
    assert "safetensors" in message
    assert str(pickled / "primary") in message
    assert not trap.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(pickled / "primary/pytorch_model.bin", weights_only=True)
    torch.load(pickled / "primary/pytorch_model.bin", weights_only=False)
    assert trap.exists()  # the trap is one


def test_a_teacher_that_cannot_be_loaded_ends_the_command_before_anything_is_labelled(
    tmp_path: Path, five: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    for weights in (tmp_path / "checkpoints/assistant").rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-100])
    assert main(label_arguments(tmp_path / "run", five, tmp_path / "checkpoints", "--workers", "0")) == 2
    assert "teacher assistant cannot be loaded" in capsys.readouterr().err
    assert [column.pending for column in manifests.summarize(tmp_path / "run").columns] == [5, 5, 5]


def test_another_plan_is_refused_naming_the_field_and_both_values(labelled_run: Path, checkpoints: Path, scenes_tar: Path):
    config = label_config(labelled_run, (str(scenes_tar),), checkpoints)
    other = replace(config, seed=9, plan=ViewPlan(context="whole", context_px=48, patch_px=24, min_image_px=8))
    with pytest.raises(RunMismatchError) as refusal:
        label(other)
    message = str(refusal.value)
    for field, found, wanted in [("plan.patch_px", 48, 24), ("seed", 0, 9)]:
        (line,) = {line.partition(": ")[2] for line in message.splitlines() if f" {field}" in line}
        assert str(found) in line, message
        assert str(wanted) in line, message
