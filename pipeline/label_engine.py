"""The label driver: hands units to workers until none is left, over Ray or in this process.

A unit gets a bounded number of attempts; a worker that dies is replaced; what still fails leaves a failure record and the run
goes on. The driver keeps no state of its own: whatever it forgets is on disk as a manifest, or is done again.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import ray.exceptions
import torch

import manifests
from pipeline.label_run import OpenRun, WallClock
from pipeline.progress import ColumnProgress
from stages.labelling.teachers import Teacher, TeacherSpec, load_teacher
from stages.labelling.units import IMAGES, Unit, UnitResult, label_images_part, label_teacher_part


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """How a drive ended."""

    committed: int
    parts_total: int
    failures: tuple[manifests.FailureRecord, ...]
    source_problems: tuple[manifests.Problem, ...]


class LabelWorker:
    """Runs units one after the other; holds one teacher at a time, loaded when its first unit comes."""

    def __init__(self, teachers: tuple[TeacherSpec, ...], batch_size: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._specs = {spec.name: spec for spec in teachers}
        self._batch_size = batch_size
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._teacher: Teacher | None = None

    def run(self, unit: Unit) -> UnitResult:
        """Bring one unit to its commit; whatever goes wrong is raised."""
        clock = WallClock()
        if unit.column == IMAGES:
            return label_images_part(unit, clock)
        if self._teacher is None or self._teacher.spec.name != unit.column:
            self._teacher = None  # frees the former one's memory before the next is loaded
            self._teacher = load_teacher(self._specs[unit.column], device=self._device)
        return label_teacher_part(unit, self._teacher, clock, batch_size=self._batch_size)


@dataclass
class _Queue:
    """Units that wait, the attempts each has had, and what became of the others."""

    run: OpenRun
    waiting: list[Unit]
    max_attempts: int
    images_done: set[str]
    attempts: dict[tuple[str, str], int] = field(default_factory=dict)
    failures: list[manifests.FailureRecord] = field(default_factory=list)
    committed: int = 0

    def next_ready(self) -> Unit | None:
        """The first unit that can run: `images` always, a teacher's once the part's images are committed."""
        for index, unit in enumerate(self.waiting):
            if unit.column == IMAGES or unit.part in self.images_done:
                return replace(self.waiting.pop(index), attempt=secrets.token_hex(4))
        return None

    def succeeded(self, unit: Unit, result: UnitResult) -> None:
        self.committed += result.committed
        if unit.column == IMAGES:
            self.images_done.add(unit.part)

    def failed(self, unit: Unit, error: BaseException) -> bool:
        """Queue the unit again, or record its failure after the last attempt and return True."""
        key = unit.column, unit.part
        self.attempts[key] = self.attempts.get(key, 0) + 1
        if self.attempts[key] < self.max_attempts:
            self.waiting.append(unit)
            return False
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        kind = type(cause).__name__
        # The last line of a remote traceback is the error itself.
        message = str(error).strip().splitlines()[-1] if str(error).strip() else "no message"
        self._record(unit, manifests.Reason(kind=kind, message=message))
        return True

    def give_up_blocked(self) -> Iterator[Unit]:
        """What still waits when nothing runs waits for images that failed."""
        for unit in self.waiting:
            self._record(unit, manifests.Reason(kind="images_missing", message="the part's column 'images' failed"))
            yield unit
        self.waiting.clear()

    def _record(self, unit: Unit, reason: manifests.Reason) -> None:
        attempts = max(self.attempts.get((unit.column, unit.part), 0), 1)
        record = manifests.FailureRecord(
            column=unit.column, part=unit.part, attempts=attempts, problem=reason, images=len(unit.rows)
        )
        manifests.write_replacing(manifests.failure_path(unit.run_dir, unit.column, unit.part), manifests.to_json(record))
        self.failures.append(record)


def drive(
    run: OpenRun, units: list[Unit], *, workers: int, batch_size: int, max_attempts: int, address: str | None
) -> LabelReport:
    """Run every unit to its commit or its failure record; `workers` 0 works in this process."""
    for column in run.record.columns:
        manifests.column_dir(run.run_dir, column.name).mkdir(parents=True, exist_ok=True)
    images_done = manifests.committed_parts(run.run_dir, IMAGES)
    queue = _Queue(run=run, waiting=list(units), max_attempts=max_attempts, images_done=images_done)
    # Labels must not depend on how many workers share a machine, and float sums do depend on the thread count.
    arguments = (run.teachers, batch_size, 1)
    if units:
        with ColumnProgress(run.record, units) as progress:
            if workers == 0:
                _drive_here(queue, LabelWorker(*arguments), progress)
            else:
                _drive_ray(queue, arguments, min(workers, len(units)), address, progress)
            for unit in queue.give_up_blocked():
                progress.failed(unit)
    parts_total = len(manifests.parts(run.record)) * len(run.record.columns)
    return LabelReport(
        committed=queue.committed,
        parts_total=parts_total,
        failures=tuple(queue.failures),
        source_problems=tuple(problem for _, content in run.sources for problem in content.problems),
    )


def _drive_here(queue: _Queue, worker: LabelWorker, progress: ColumnProgress) -> None:
    while unit := queue.next_ready():
        try:
            result = worker.run(unit)
        except Exception as error:
            if queue.failed(unit, error):
                progress.failed(unit)
        else:
            queue.succeeded(unit, result)
            progress.done(unit, result)


def _drive_ray(queue: _Queue, arguments: tuple[Any, ...], workers: int, address: str | None, progress: ColumnProgress) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA_VISIBLE_DEVICES as the user set it
    num_cpus = None if address else workers  # a cluster has its own
    ray.init(address, num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        actor = ray.remote(num_cpus=1, num_gpus=1 if torch.cuda.is_available() else 0, max_restarts=0)(LabelWorker)
        idle = [actor.remote(*arguments) for _ in range(workers)]
        running: dict[ray.ObjectRef, tuple[Any, Unit]] = {}
        while True:
            while idle and (unit := queue.next_ready()):
                worker = idle.pop(0)
                running[worker.run.remote(unit)] = worker, unit
            if not running:
                return
            finished, _ = ray.wait(list(running), timeout=1)
            for reference in finished:
                worker, unit = running.pop(reference)
                idle.append(_settle(queue, reference, worker, unit, actor, arguments, progress))
            progress.tick()
    finally:
        ray.shutdown()


def _settle(
    queue: _Queue,
    reference: ray.ObjectRef,
    worker: Any,
    unit: Unit,
    actor: Any,
    arguments: tuple[Any, ...],
    progress: ColumnProgress,
) -> Any:
    """Take in a finished unit; returns the worker that is free now, a new one where the old one died."""
    try:
        result = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if queue.failed(unit, error):
            progress.failed(unit)
    except ray.exceptions.RayError as error:
        if queue.failed(unit, error):
            progress.failed(unit)
        return actor.remote(*arguments)
    else:
        queue.succeeded(unit, result)
        progress.done(unit, result)
    return worker
