"""Several devices share a batch: the same curve as one device, and the same promises."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.train import TrainingStoppedError, train
from pipeline.train_config import TrainConfig
from tests.pipeline.test_train import ROOT, arguments, metrics, with_weights
from tests.training_run import write_run, write_student

TERMS = ("total", "shared_context", "local_global", "feature", "gradient", "gradient_norm")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Eight steps of five contexts on two processes, from a student that has found a shape: before it has, its output is
    constant up to rounding, and so is all that follows."""
    folder = tmp_path_factory.mktemp("ray")
    begun = TrainConfig(
        run=write_run(folder / "run"),
        output=folder / "shaped",
        student=str(write_student(folder / "student")),
        steps=25,
        batch_size=5,
        lr_encoder=2e-3,
        lr_decoder=2e-3,
        warmup_steps=2,
        loader_workers=0,
        device="cpu",
        checkpoint_every=3,
        max_restarts=1,
    )
    train(begun)
    return replace(
        begun, student=str(begun.output), steps=8, lr_encoder=1e-4, lr_decoder=1e-4, num_workers=2, output=folder / "out"
    )


def test_two_workers_have_the_curve_of_one_and_stop_and_go_on_with_another_number(config: TrainConfig) -> None:
    alone = replace(config, num_workers=1, output=config.output / "alone")
    train(alone)
    together = replace(config, output=config.output / "together")
    # one process of the command, ended by SIGTERM on its way, and then by one worker alone
    command = [*arguments(together), "--num-workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (together.output / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=120)
    assert process.returncode in (0, 130), messages
    if process.returncode == 130:
        assert "the same command goes on from there" in messages
        train(replace(together, num_workers=1))
    for one, other in zip(metrics(alone.output), metrics(together.output), strict=True):
        assert one["teacher"] == other["teacher"]
        for term in TERMS:
            # The first step differs by the order of its sums alone; every update then enlarges that, in the gradient most.
            tolerance = 1e-4 if one["step"] == 0 else 0.05 if term == "gradient_norm" else 5e-3
            assert other[term] == pytest.approx(one[term], rel=tolerance, abs=1e-5), (one["step"], term)
    ours, theirs = (load_file(c.output / "model.safetensors") for c in (alone, together))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)


def test_what_would_do_harm_stops_all_workers_with_the_reason(config: TrainConfig, tmp_path: Path) -> None:
    dead = with_weights(Path(config.student), tmp_path / "dead", lambda weights: weights["head.conv3.bias"].fill_(-1e4))
    with pytest.raises(
        TrainingStoppedError, match=r"step 0, labels of '\w+', images (scenes\.\w+/scene-\d+(, )?){5}: .*is 0 at"
    ):
        train(replace(config, student=str(dead), output=tmp_path / "out"))
