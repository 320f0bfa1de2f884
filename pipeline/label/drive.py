"""The label driver: hands tasks to workers until none is left, over Ray or in this process."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import manifests
from manifests.location import Location, Url
from manifests.run import IMAGES
from pipeline.interrupts import handled_by
from pipeline.label.in_process import InProcessPool
from pipeline.label.pool import Pool, Resources, SlotT
from pipeline.label.queue import Ending, LabelQueue, Outcome, RunNotSharedError, Task, TeacherUnusableError
from pipeline.label.run import OpenRun
from pipeline.progress import ColumnProgress
from stages.labelling.unit import Unit, UnitResult


@dataclass(frozen=True, kw_only=True)
class DriveOptions:
    """How a run is driven; nothing here changes a label."""

    workers: int | None
    """Ray workers of each kind; None is one per GPU of the cluster, else one per core. 0 works in this process."""
    resources: dict[str, Resources]
    """What a worker holds of its machine, by column."""
    address: str | None = None
    batch_size: int = 8
    decode_threads: int | None = None
    """None: what the machines have for each worker (see `threads_for`)."""
    max_attempts: int = 3
    stall_timeout_s: float = 600
    sight_timeout_s: float = 60
    """How long a manifest that a worker has committed may take to be seen here, as on a network file system."""


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """How a drive ended."""

    committed: int
    parts_done: int
    """Committed in the columns, sources and shard of this drive, by it and before."""
    parts_total: int
    failures: tuple[manifests.FailureRecord, ...]
    columns_given_up: dict[str, str]
    interrupted: bool
    source_problems: tuple[manifests.Problem, ...]


class _Drive:
    """A queue, the progress shown to a person, and the tally of what ended how."""

    def __init__(self, queue: LabelQueue, progress: ColumnProgress, sight_timeout_s: float) -> None:
        self.queue, self.progress, self._sight_timeout_s = queue, progress, sight_timeout_s
        self.committed = 0
        self.failures: list[manifests.FailureRecord] = []
        self._told: set[str] = set()

    def end(self, endings: list[tuple[Unit, Ending]]) -> None:
        """Count and show units that have ended."""
        for unit, ending in endings:
            if isinstance(ending, UnitResult):
                self.committed += ending.committed
                self.progress.done(unit, ending)
            else:
                name = manifests.failure_path(Path(), unit.column, unit.part).as_posix()
                manifests.place_of(unit.run_dir).replace(name, manifests.to_json(ending))
                self.failures.append(ending)
                self.progress.failed(unit)

    def run(self, pool: Pool[SlotT]) -> None:
        """All tasks, each on the first worker that is free for it."""
        while True:
            for slot in pool.idle():
                if task := self.queue.take(pool.columns(slot), slot.loaded):
                    pool.submit(slot, task)
                elif not self.queue.has_more(pool.columns(slot)):
                    pool.release(slot)
            for slot in pool.half_idle():
                if task := self.queue.take_beside(slot.at_work[0], pool.workers()):
                    pool.submit(slot, task)
            if not pool.busy() and not self.queue.has_more(self.progress.columns):
                self._count_elsewhere()
                return
            for task, outcome in pool.wait(timeout_s=1):
                self._take_in(pool, task, outcome)
            self.progress.partly(pool.partly())
            self._count_elsewhere()
            self.progress.tick()

    def _take_in(self, pool: Pool[SlotT], task: Task, outcome: Outcome) -> None:
        """How a worker's task went. Raises the outcome where, with the workers that are left, nothing can come of the run."""
        if isinstance(outcome, RunNotSharedError) and str(outcome) not in self._told:
            self._told.add(str(outcome))  # once for all workers of a machine
            print(f"\nWorkers are left out: {outcome}", file=sys.stderr, flush=True)
        if isinstance(outcome, RunNotSharedError | TeacherUnusableError) and not pool.can_do(task.unit.column):
            if task.only_teacher or isinstance(outcome, RunNotSharedError):
                raise outcome
            self.queue.give_up(task.unit.column, str(outcome))
        if isinstance(outcome, UnitResult):
            require_seen(task.unit.run_dir, _manifest(task.unit), timeout_s=self._sight_timeout_s)
        self.end(self.queue.settle(task, outcome))

    def _count_elsewhere(self) -> None:
        while self.queue.elsewhere:
            self.progress.elsewhere(self.queue.elsewhere.pop())


def drive(run: OpenRun, units: list[Unit], options: DriveOptions) -> LabelReport:
    """Run every unit to its commit or its failure record.

    Raises TeacherUnusableError, before any unit, for a teacher that no worker can load; OutputUnwritableError where the disk is
    full or read-only; PoolError where no worker can be had, RunNotSharedError where none sees the run; KeyboardInterrupt at the
    second Ctrl-C. What is committed stays.
    """
    columns = tuple(column.name for column in run.columns)
    queue = LabelQueue(
        units,
        {teacher.name: teacher for teacher in run.teachers},
        images_done=manifests.committed_parts(run.run_dir, IMAGES),
        is_committed=lambda unit: manifests.place_of(unit.run_dir).exists(_manifest(unit)),
        max_attempts=options.max_attempts,
        proven=_proven(run, units),
        teachers_first=True,
    )
    committed, failures = 0, list[manifests.FailureRecord]()
    if units:
        images = sum(part.images for part in run.parts)
        with ColumnProgress(columns, images, units, _rejected_before(run, units), run.shard) as progress:
            state = _Drive(queue, progress, options.sight_timeout_s)
            # In this order: Ray's start sets a handler of its own for SIGTERM.
            with _pool(columns, len(units), options, progress) as pool, _stop_on_interrupt(queue):
                state.run(pool)
            if not queue.stopping:
                state.end(queue.give_up_blocked())
            committed, failures = state.committed, state.failures
    return LabelReport(
        committed=committed,
        parts_done=_parts_done(run),
        parts_total=len(run.parts) * len(columns),
        failures=tuple(failures),
        columns_given_up=queue.given_up,
        interrupted=queue.stopping,
        source_problems=run.source_problems,
    )


def _pool(
    columns: Sequence[str], most_workers: int, options: DriveOptions, progress: ColumnProgress
) -> AbstractContextManager[Pool[Any]]:
    def tell(images: Mapping[str, float]) -> None:
        progress.partly(images)
        progress.tick()

    arguments = (options.batch_size, options.decode_threads)
    if options.workers == 0:
        return InProcessPool(columns, arguments, tell)
    from pipeline.label.ray_pool import RayPool  # takes a second, and `--workers 0` needs no Ray

    return RayPool(
        {column: options.resources[column] for column in columns},
        arguments,
        workers=options.workers,
        most_workers=most_workers,
        address=options.address,
        stall_timeout_s=options.stall_timeout_s,
    )


def _manifest(unit: Unit) -> str:
    return manifests.manifest_path(Path(), unit.column, unit.part).as_posix()


def require_seen(run_dir: Location, manifest: str, *, timeout_s: float) -> None:
    """Raises RunNotSharedError where a manifest that a worker has committed is not to be seen here in time. A bucket shows at
    once what was written, and is the same for all."""
    if isinstance(run_dir, Url):
        return
    place, deadline = manifests.place_of(run_dir), time.monotonic() + timeout_s
    while not place.exists(manifest):
        if time.monotonic() > deadline:
            raise RunNotSharedError(
                f"{place.shown(manifest)}: a worker has committed it, but after {timeout_s:g} s it cannot be seen on "
                f"{os.uname().nodename}; "
                "all machines must see the run under this path, so put it on a disk that they share"
            )
        time.sleep(0.05)
        place.entries(manifest.rpartition("/")[0])  # a network file system looks again, and forgets that there was nothing


def _parts_done(run: OpenRun) -> int:
    """The parts of all columns that are committed now, whoever made them."""
    parts = {part.name for part in run.parts}
    return sum(len(parts & manifests.committed_parts(run.run_dir, column.name)) for column in run.columns)


def _proven(run: OpenRun, units: list[Unit]) -> set[str]:
    """Columns of which a part is committed."""
    left, parts = Counter(unit.column for unit in units), len(run.parts)
    return {column.name for column in run.columns if left[column.name] < parts}


def _rejected_before(run: OpenRun, units: list[Unit]) -> dict[str, int]:
    """Images that earlier runs of the command rejected, by column; nothing is read where there were none."""
    if len(units) == len(run.parts) * len(run.columns):
        return {}
    summary = manifests.summarize(run.run_dir, counted=run.shard.has if run.shard else None)
    return {column.name: sum(column.rejected.values()) for column in summary.columns}


@contextmanager
def _stop_on_interrupt(queue: LabelQueue) -> Iterator[None]:
    """The first Ctrl-C lets the units at work come to their end, the second abandons them; SIGTERM abandons at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if queue.stopping or number == signal.SIGTERM:
            raise KeyboardInterrupt
        queue.stopping = True
        print("\nFinishing the parts at work; press Ctrl-C again to abandon them.", file=sys.stderr, flush=True)

    with handled_by(interrupt):
        yield
