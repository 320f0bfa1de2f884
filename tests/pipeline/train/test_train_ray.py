"""Several devices share a batch: the same steps as one device, and the same promises."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import RefusedError
from pipeline.train.command import TrainingStoppedError, train
from pipeline.train.config import TrainConfig
from pipeline.train.on_ray import train_on_ray
from stages.distillation.student import load_student
from tests.faults.processes import workers_of
from tests.pipeline.train.trainings import ROOT, arguments, interrupt_at, metrics, with_weights
from tests.training_run import CONTEXT_PX

TERMS = ("total", "shared_context", "local_global", "feature", "gradient", "gradient_norm")


@pytest.fixture(scope="module")
def config(small: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Batches of five contexts on two processes."""
    output = tmp_path_factory.mktemp("ray") / "out"
    return replace(small, steps=8, batch_size=5, max_restarts=1, num_workers=2, output=output)


def steps_of(output: Path) -> list[int]:
    return [line["step"] for line in metrics(output)] if (output / "metrics.jsonl").exists() else []


def states_of(output: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (output / "states").iterdir())


def start(config: TrainConfig, steps: int) -> subprocess.Popen[str]:
    """The command on two workers, once it has taken so many steps."""
    command = [*arguments(config), "--num-workers", "2"]
    # At Ray's own niceness of 15 its workers get next to nothing beside other work.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 400
    while len(steps_of(config.output)) < steps:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.campaign
def test_two_workers_take_the_steps_of_one_and_go_on_after_a_lost_worker_a_signal_and_alone(
    config: TrainConfig, tmp_path: Path
) -> None:
    together = replace(config, steps=4000, output=tmp_path / "together", checkpoint_every=10)
    process = start(replace(together, loader_workers=1), steps=15)
    lost = workers_of(process.pid, "RayTrainWorker")
    os.kill(lost[0], signal.SIGKILL)
    while set(lost) & set(workers_of(process.pid, "RayTrainWorker")) or len(steps_of(together.output)) < 25:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=240)
    assert process.returncode == 130, messages
    assert "The same command resumes from there" in messages
    lines = metrics(together.output)
    assert states_of(together.output)[-1] == len(lines)
    assert [line["step"] for line in lines] == list(range(len(lines)))
    for step in (0, *states_of(together.output)[:-1]):
        assert_same_step(taken_alone(together, step, tmp_path / f"alone-{step}"), lines[step])
    interrupt_at(len(lines) + 1, replace(together, num_workers=1))
    assert steps_of(together.output) == list(range(len(lines) + 2))


def taken_alone(together: TrainConfig, step: int, output: Path) -> dict[str, Any]:
    """The line of the step that one process takes from the state that two have left, or from the start."""
    if step:
        (output / "states").mkdir(parents=True)
        shutil.copy(together.output / "states" / f"step-{step:09d}.pt", output / "states")
    interrupt_at(step, replace(together, num_workers=1, output=output))
    return metrics(output)[-1]


def assert_same_step(one: dict[str, Any], other: dict[str, Any]) -> None:
    """One step from the same weights differs by the order of its sums alone; what later steps make of that says nothing."""
    assert (one["step"], one["teacher"]) == (other["step"], other["teacher"])
    for term in TERMS:
        assert one[term] == pytest.approx(other[term], rel=1e-3, abs=1e-6), (one["step"], term)


@pytest.mark.campaign
def test_two_workers_end_with_a_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, output=tmp_path / "out"))
    assert steps_of(tmp_path / "out") == list(range(8))
    assert_same_step(taken_alone(config, 0, tmp_path / "alone"), metrics(tmp_path / "out")[0])
    load_student(str(tmp_path / "out"), CONTEXT_PX)


@pytest.mark.campaign
def test_more_workers_than_there_is_room_for_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"num_workers: found 2, but Ray sees 0 GPUs"):
        train_on_ray(replace(config, device="cuda", output=tmp_path / "out"))


@pytest.mark.campaign
def test_what_would_do_harm_stops_all_workers_with_the_reason(config: TrainConfig, tmp_path: Path) -> None:
    dead = with_weights(Path(config.student), tmp_path / "dead", lambda weights: weights["head.conv3.bias"].fill_(-1e4))
    with pytest.raises(
        TrainingStoppedError, match=r"step 0, labels of '\w+', images (scenes\.\w+/scene-\d+(, )?){5}: .*is 0 at"
    ):
        train(replace(config, student=str(dead), output=tmp_path / "out"))
