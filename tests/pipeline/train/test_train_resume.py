"""A training resumes exactly where it ended, however it ended, and with nothing but what it began with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import manifests
from pipeline.train.command import TrainingInterruptedError, main, train
from pipeline.train.config import TrainConfig
from pipeline.train.log import TrainingLog
from pipeline.train.state import OutputMismatchError
from stages.demo_networks import build_depth_anything, save_depth_anything
from tests.pipeline.forked import ended_by
from tests.pipeline.train.trainings import ROOT, arguments, interrupt_at, metrics, one_bit_flipped
from tests.training_run import CONTEXT_PX, write_run


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_training_killed_at_a_step_and_run_again_ends_with_the_same_weights(
    small: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    config = replace(small, output=tmp_path / "out")
    _, _, _, *flags = arguments(config)
    printed = tmp_path / "printed"
    assert ended_by(signal.SIGKILL, (TrainingLog, "record"), main, flags, printed, nth=8) == -signal.SIGKILL, (
        printed.read_text()
    )
    _assert_killed_after_eight_steps_and_ends_the_same(config, trained)


@pytest.mark.campaign
def test_no_process_of_its_loader_outlives_a_killed_training(small: TrainConfig, trained: Path, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out")
    killer = """
import os, signal, pipeline.train.command as command
train = command.train
command.train = lambda config: train(config, lambda r: r["step"] == 7 and os.kill(os.getpid(), signal.SIGKILL))
if __name__ == "__main__":
    raise SystemExit(command.main())
"""
    command = arguments(replace(config, loader_workers=1))
    (tmp_path / "killed.py").write_text(killer)  # worker processes import the main module again, which must be a file
    command[1:3] = [str(tmp_path / "killed.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # the pipe of stderr closes when the last process has ended: no worker outlives the training
    killed = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    _assert_killed_after_eight_steps_and_ends_the_same(config, trained)


def _assert_killed_after_eight_steps_and_ends_the_same(config: TrainConfig, trained: Path) -> None:
    assert not (config.output / "model.safetensors").exists()
    assert len(metrics(config.output)) == 8
    result = train(config)
    assert result.resumed_from == 6
    assert (config.output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert metrics(config.output) == metrics(trained)


def test_a_finished_training_is_left_untouched(small: TrainConfig, trained: Path) -> None:
    before = snapshot(trained)
    result = train(replace(small, output=trained, loader_workers=1))
    assert (result.images, result.resumed_from) == (None, 12)
    assert snapshot(trained) == before


def test_the_command_says_that_it_is_done(small: TrainConfig, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, _, *flags = arguments(replace(small, output=trained))
    assert main(flags) == 0
    assert "already trained" in capsys.readouterr().out


def test_an_output_begun_with_other_settings_is_refused_naming_each_field(
    small: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputMismatchError, match=r"(?s)seed: begun with 0, now 5.*steps: begun with 12, now 20"):
        train(replace(small, output=trained, seed=5, steps=20))
    config = replace(small, output=tmp_path / "out")
    interrupt_at(4, config)
    with pytest.raises(OutputMismatchError, match="batch_size: begun with 4, now 2"):
        train(replace(config, batch_size=2))
    other = write_run(tmp_path / "other", images=9)
    with pytest.raises(OutputMismatchError, match=r"(?s)labels are not those.*scenes\.00001"):
        train(replace(config, run=(other,)))
    assert train(config).resumed_from == 3


def test_what_says_nothing_of_streams_has_one(small: TrainConfig, trained: Path, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out")
    interrupt_at(4, config)
    path = config.output / "states" / "step-000000003.pt"
    state = torch.load(path, weights_only=True)
    settings = json.loads(state["settings"])
    assert settings.pop("streams") == 1
    torch.save(state | {"settings": json.dumps(settings)}, path)
    with pytest.raises(OutputMismatchError, match="streams: begun with 1, now 2"):
        train(replace(config, streams=2))
    assert train(config).resumed_from == 3
    assert (config.output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    record = json.loads((config.output / "training.json").read_text())
    del record["settings"]["streams"]
    (config.output / "training.json").write_text(json.dumps(record))
    assert train(config).images is None
    with pytest.raises(OutputMismatchError, match="streams: begun with 1, now 2"):
        train(replace(config, streams=2))


def test_sigterm_saves_the_step_and_the_same_command_goes_on(small: TrainConfig, trained: Path, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out", checkpoint_every=100)

    def terminate(line: Any) -> None:
        if line["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterruptedError, match="after 6 steps"):  # seen when step 5 begins, which is still taken
        train(config, terminate)
    assert [path.name for path in (config.output / "states").iterdir()] == ["step-000000006.pt"]
    assert train(config).resumed_from == 6
    assert (config.output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def cut_short(content: bytes) -> bytes:
    return content[:1000]


@pytest.mark.parametrize("damage", [cut_short, one_bit_flipped])
def test_the_latest_states_are_kept_and_a_damaged_one_is_passed_over(
    small: TrainConfig, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    config = replace(small, output=tmp_path / "out", checkpoint_every=2, keep_checkpoints=3)
    interrupt_at(9, config)
    states = sorted(path.name for path in (config.output / "states").iterdir())
    assert states == ["step-000000004.pt", "step-000000006.pt", "step-000000008.pt"]
    newest = config.output / "states" / states[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    interrupt_at(7, replace(config, keep_checkpoints=1, checkpoint_every=1))
    assert not newest.exists()  # it would be taken for the latest
    assert train(config).resumed_from == 7
    assert "step-000000008.pt: cannot be read" in capsys.readouterr().err
    assert (config.output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_an_unfinished_output_is_refused_where_resuming_is_forbidden(small: TrainConfig, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out", resume=False)
    interrupt_at(4, config)
    with pytest.raises(ValueError, match="holds a training of 3 steps"):
        train(config)


def test_every_option_of_the_training_resumes_to_the_bit(small: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    wider = build_depth_anything(hidden=48, layers=4, heads=2, patch_px=12, fusion=16, image_px=CONTEXT_PX)
    save_depth_anything(wider, tmp_path / "wider", torch.float32, CONTEXT_PX)
    options = {
        "anchor_weight": 0.1,
        "ema_decay": 0.9,
        "color_jitter": 0.4,
        "trim_fraction": 0.1,
        "strategy": "average",
        "feature_encoder": str(tmp_path / "wider"),
        "feature_margin": 1.0,
        "bf16": True,
        "accumulation": 2,
        "streams": 3,
        "activation_checkpointing": True,
        "fresh_head": True,
        "steps": 8,
    }
    config = replace(small, **options)
    train(replace(config, output=tmp_path / "whole"))
    interrupt_at(5, replace(config, output=tmp_path / "torn"))
    assert train(replace(config, output=tmp_path / "torn")).resumed_from == 3
    whole, torn = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "torn"))
    assert all(torch.equal(whole[name], torn[name]) for name in whole)
    assert {line["teacher"] for line in metrics(tmp_path / "whole")} == {"average"}
    assert all(line["anchor"] >= 0 < line["feature"] for line in metrics(tmp_path / "whole"))
    train(replace(config, ema_decay=0.0, output=tmp_path / "last"))
    last = load_file(tmp_path / "last" / "model.safetensors")
    assert any(not torch.equal(whole[name], last[name]) for name in whole)  # what is exported is the average


def test_a_finished_output_is_not_taken_for_that_of_other_labels_or_weights(
    small: TrainConfig, trained: Path, student: Path, tmp_path: Path
) -> None:
    finished = replace(small, output=trained)
    other = write_run(tmp_path / "other", images=12)
    with pytest.raises(OutputMismatchError, match="dataset_sha256"):
        train(replace(finished, run=(other,)))
    assert train(replace(finished, run=(tmp_path / "gone",))).images is None
    before = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(one_bit_flipped(before))
    with pytest.raises(OutputMismatchError, match="student_sha256"):
        train(finished)
    (student / "model.safetensors").write_bytes(before)


def test_a_training_goes_on_with_the_labels_it_began_with_though_there_are_more(small: TrainConfig, tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", images=11)
    partial = write_run(tmp_path / "partial", images=11, without=[("assistant", 1)])
    config = replace(small, run=(partial,), output=tmp_path / "out", allow_partial=True)
    interrupt_at(4, config)
    result = train(replace(config, run=(whole,)))
    assert (result.resumed_from, result.images) == (3, 6)


def test_another_major_version_of_a_library_does_not_go_on(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small, output=tmp_path / "out")
    interrupt_at(4, config)
    monkeypatch.setattr("pipeline.train.state.version", lambda name: "99.1")
    with pytest.raises(OutputMismatchError, match=r"torch_major: begun with '2', now '99'"):
        train(config)


def test_two_trainings_never_share_an_output(small: TrainConfig, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out")

    def begin_another(line: Any) -> None:
        if line["step"] == 1:
            with pytest.raises(manifests.RunInUseError, match="in use by another training"):
                train(config)

    train(config, begin_another)
    assert len(metrics(config.output)) == 12


@pytest.mark.campaign
def test_a_signal_to_the_whole_group_saves_the_step_too(small: TrainConfig, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out", loader_workers=1, steps=4000, checkpoint_every=5000)
    process = subprocess.Popen(arguments(config), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    while not (config.output / "metrics.jsonl").exists() or len(metrics(config.output)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, messages = process.communicate(timeout=240)
    assert process.returncode == 130, messages
    (state,) = (config.output / "states").iterdir()
    assert state.name == f"step-{len(metrics(config.output)):09d}.pt"
