"""Two parts at a time through one worker: the teacher in turn, the same labels, and a pulse for each."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import manifests
from manifests.run import IMAGES
from pipeline.label.pool import threads_for
from pipeline.label.queue import Task
from pipeline.label.run import open_run, units_left
from pipeline.label.sources import read_sources
from pipeline.label.worker import LabelWorker, WallClock
from stages.labelling.units import label_teacher_part
from tests.conftest import label_config, scene_bytes, teacher_spec


def _tasks(run_dir: Path, photographs: Path, checkpoints: Path) -> list[Task]:
    """The parts of `primary` of a run whose pictures are made."""
    run = open_run(label_config(run_dir, (str(photographs),), checkpoints, part_size=3), read_sources((str(photographs),)))
    teacher = next(teacher for teacher in run.teachers if teacher.name == "primary")
    tasks = []
    for number, unit in enumerate(units_left(run)):
        task = Task(unit=replace(unit, attempt=f"a{number}"), teacher=teacher if unit.column == "primary" else None)
        if unit.column == IMAGES:
            LabelWorker(4).do(task)
        elif unit.column == "primary":
            tasks.append(task)
    return tasks


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        (folder / f"{i}.png").write_bytes(scene_bytes(i))
    return folder


def test_parts_that_are_labelled_two_at_a_time_are_those_that_are_labelled_one_by_one(
    tmp_path: Path, photographs: Path, checkpoints: Path
):
    files = {}
    for name, at_a_time in (("one", 1), ("two", 2)):
        worker, tasks = LabelWorker(4, 2, "cpu"), _tasks(tmp_path / name, photographs, checkpoints)
        with ThreadPoolExecutor(at_a_time) as threads:
            assert all(result and result.committed for result in threads.map(worker.do, tasks))
        assert worker.pulse() == {}
        parts = [manifests.load_part(tmp_path / name, "primary", task.unit.part) for task in tasks]
        files[name] = [[(Path(file.path).name, file.sha256) for file in part.files] for part in parts]
    assert len(files["one"]) == 3
    assert files["one"] == files["two"]


class _Held:
    """A teacher that says how it is called, and waits until it may go on."""

    def __init__(self, checkpoints: Path) -> None:
        self.spec = teacher_spec(checkpoints, "primary", "transformers")
        self.called, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)

    def predict(self, images: np.ndarray, seeds: Sequence[int] | None = None) -> np.ndarray:
        self.called.release()
        assert self.may_go_on.acquire(timeout=60)
        return images[..., 0].astype(np.float32) + np.linspace(0, 1, images.shape[2], dtype=np.float32)


class _Signalling(WallClock):
    """Says when it has its turn, and when it is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.committing, self.may_commit = threading.Event(), threading.Event()

    def volatile(self, attempt: str, batch_size: int | None) -> manifests.Volatile:
        self.committing.set()
        assert self.may_commit.wait(60)
        return super().volatile(attempt, batch_size)


def test_the_next_part_is_predicted_before_the_last_one_is_committed_and_not_before_its_turn(
    tmp_path: Path, photographs: Path, checkpoints: Path
):
    first, second, _ = (task.unit for task in _tasks(tmp_path / "run", photographs, checkpoints))
    teacher, device = _Held(checkpoints), threading.Lock()
    clocks = _Signalling(), _Signalling()
    with ThreadPoolExecutor(2) as threads:
        begun = []
        for unit, clock in zip((first, second), clocks, strict=True):
            turn = clock.turn(device)
            begun.append(threads.submit(label_teacher_part, unit, teacher, clock, batch_size=64, turn=turn))
            if unit is first:
                assert teacher.called.acquire(timeout=60)
        assert not teacher.called.acquire(timeout=0.5)  # the first one has the teacher
        assert clocks[1].silence_s() == 0  # and who waits for it does not hang
        teacher.may_go_on.release()
        assert clocks[0].committing.wait(60)
        assert teacher.called.acquire(timeout=60)
        assert not begun[0].done()
        teacher.may_go_on.release(100)
        for clock in clocks:
            clock.may_commit.set()
        assert [future.result().committed for future in begun] == [True, True]


@pytest.mark.parametrize(
    ("cpus", "gpus", "threads"), [(16, 1, 16), (192, 8, 16), (32, 4, 8), (2, 1, 2), (1, 1, 2), (8, 0, 2), (64, 0.5, 2)]
)
def test_each_gpu_is_served_by_its_share_of_the_cores(cpus: float, gpus: float, threads: int):
    assert threads_for(cpus, gpus) == threads
