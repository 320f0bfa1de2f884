"""Several devices share a batch: the same curve as one device, and the same promises."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.ranks import RefusedError
from pipeline.train import TrainingStoppedError, train
from pipeline.train_config import TrainConfig
from pipeline.train_ray import train_on_ray
from tests.faults.processes import workers_of
from tests.pipeline.trainings import ROOT, arguments, metrics, with_weights

TERMS = ("total", "shared_context", "local_global", "gradient")


@pytest.fixture(scope="module")
def config(small: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Eight steps of five contexts on two processes, from a student that has found a shape: before it has, its output is
    constant up to rounding, and so is all that follows."""
    folder = tmp_path_factory.mktemp("ray")
    rates = {"lr_encoder": 2e-3, "lr_decoder": 2e-3}
    begun = replace(small, output=folder / "shaped", steps=25, batch_size=5, max_restarts=1, **rates)
    train(begun)
    return replace(
        begun, student=str(begun.output), steps=8, lr_encoder=1e-4, lr_decoder=1e-4, num_workers=2, output=folder / "out"
    )


def steps_of(output: Path) -> list[int]:
    return [line["step"] for line in metrics(output)] if (output / "metrics.jsonl").exists() else []


def start(config: TrainConfig, steps: int) -> subprocess.Popen[str]:
    """The command on two workers, once it has taken so many steps."""
    command = [*arguments(config), "--num-workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(steps_of(config.output)) < steps:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_two_workers_have_the_curve_of_one_and_go_on_after_a_lost_worker_a_signal_and_alone(config: TrainConfig) -> None:
    alone = replace(config, num_workers=1, steps=150, output=config.output / "alone")
    train(alone)
    together = replace(alone, output=config.output / "together", checkpoint_every=10)
    process = start(replace(together, loader_workers=1), steps=15)
    lost = workers_of(process.pid, "RayTrainWorker")
    os.kill(lost[0], signal.SIGKILL)
    while set(lost) & set(workers_of(process.pid, "RayTrainWorker")) or len(steps_of(together.output)) < 25:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130, messages
    assert "the same command goes on from there" in messages
    taken = len(steps_of(together.output))
    assert (together.output / "states" / f"step-{taken:09d}.pt").exists()

    train(together)
    assert steps_of(together.output) == list(range(150))
    for one, other in zip(metrics(alone.output)[:8], metrics(together.output)[:8], strict=True):
        assert one["teacher"] == other["teacher"]
        for term in TERMS:
            # The first step differs by the order of its sums alone; every update then enlarges that.
            assert other[term] == pytest.approx(one[term], rel=5e-3 if one["step"] else 1e-4, abs=1e-5), (one["step"], term)
    first = [metrics(output)[0]["gradient_norm"] for output in (alone.output, together.output)]
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    assert metrics(together.output)[-1]["total"] == pytest.approx(metrics(alone.output)[-1]["total"], rel=0.05)


def test_more_workers_than_there_is_room_for_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"num_workers: found 2, but Ray sees 0 GPUs"):
        train_on_ray(replace(config, device="cuda", output=tmp_path / "out"))


def test_what_would_do_harm_stops_all_workers_with_the_reason(config: TrainConfig, tmp_path: Path) -> None:
    dead = with_weights(Path(config.student), tmp_path / "dead", lambda weights: weights["head.conv3.bias"].fill_(-1e4))
    with pytest.raises(
        TrainingStoppedError, match=r"step 0, labels of '\w+', images (scenes\.\w+/scene-\d+(, )?){5}: .*is 0 at"
    ):
        train(replace(config, student=str(dead), output=tmp_path / "out"))
