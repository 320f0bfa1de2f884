"""What is to be done next, and what happens to failures. Knows no process, file or network: tasks out, outcomes in.

    a unit fails -> tried again, up to `max_attempts` -> its images are tried one by one -> those that fail twice, alone, are
    rejected with the reason and the unit runs without them; where no image fails, or all do and nothing of the column has
    ever gone well, the unit has failed

Where several drivers are at work in a run, they begin it in the same order; once one of them finds a part that another has
made, it does the rest in an order drawn by itself.

Before any unit, teachers are loaded once and shown a picture; one that nobody can load ends it all before anything is labelled.
What cannot be read is not rejected but fails: it may be there again tomorrow.

The queue keeps nothing that must survive: whatever it forgets is on disk as a manifest, or is done again.
"""

from __future__ import annotations

import errno
import random
import secrets
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import manifests
from manifests.errors import DistillError
from manifests.location import Location, Url
from manifests.run import IMAGES
from stages.labelling.unit import InputChangedError, Unit, UnitResult

if TYPE_CHECKING:
    from stages.labelling.teacher import TeacherSpec  # which would import the networks

WORKER_TROUBLE = frozenset({"crashes_worker", "timed_out", "raises_error"})
"""Kinds of rejection that say what an image did to its worker, tried alone."""
_TRIES_PER_IMAGE = 2
_HOPELESS = 3  # images in a row that fail alone: then it is not the images
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit to be labelled. Or, without writing anything: one image of it to be tried, where `index` is given, or its teacher
    to be loaded and shown a picture, where `only_teacher` is.

    alone: no other task beside it, so that it is known what takes the worker down."""

    unit: Unit
    teacher: TeacherSpec | None
    index: int | None = None
    only_teacher: bool = False
    alone: bool = False

    @property
    def may_overlap(self) -> bool:
        """Whether the next unit of the column may be begun beside it, while the last labels of this one are written."""
        return not (self.alone or self.only_teacher or self.index is not None or self.teacher is None)


class TeacherUnusableError(DistillError, RuntimeError):
    """A teacher cannot be loaded, or predicts nothing but constants: no unit of its column can be labelled."""

    exit_status = 2


class RunNotSharedError(DistillError, RuntimeError):
    """What a machine sees under the run's path is not the run that the driver sees there."""

    exit_status = 2


def what_machines_need(run_dir: Location) -> str:
    """What to do where a machine does not see the run."""
    if isinstance(run_dir, Url):
        return "all machines must see the run under this URL: compare their settings of the store, such as AWS_ENDPOINT_URL"
    return "all machines must see the run under this path, so put it on a disk that they share"


class WorkerDiedError(DistillError, RuntimeError):
    """The process at work is gone."""


class WorkerStalledError(DistillError, RuntimeError):
    """The process at work has given no sign of life for too long, and was killed."""


class UnitInterruptedError(DistillError, RuntimeError):
    """The process at work is gone, but it may have been another unit, begun beside this one, that took it down."""


class OutputUnwritableError(DistillError, OSError):
    """The run's folder cannot be written to; nothing else can be done."""


Outcome = UnitResult | Exception | None
"""Of a unit: its result. Of an image that was tried: None. Or what was raised instead."""
Ending = UnitResult | manifests.FailureRecord
"""How a unit ended."""


@dataclass
class _Suspects:
    """A unit whose images are tried one by one."""

    unit: Unit
    untried: int
    cause: Exception
    failures: Counter[int] = field(default_factory=Counter)
    guilty: dict[int, manifests.Reason] = field(default_factory=dict)


class LabelQueue:
    """Units that wait, the attempts each has had, and the failures of those that are given up."""

    def __init__(
        self,
        units: Sequence[Unit],
        teachers: Mapping[str, TeacherSpec],
        *,
        images_done: set[str],
        is_committed: Callable[[Unit], bool],
        max_attempts: int,
        proven: Iterable[str] = (),
        teachers_first: bool = False,
        seed: int | None = None,
    ) -> None:
        """proven: columns of which parts are committed already, so that neither their teacher nor the machine is to blame.
        teachers_first: begin by loading each teacher that has units, the first of them last: it is needed next.
        seed: of the order in which units are done once there is another driver; None is another order for each driver."""
        self._rng, self._is_apart = random.Random(seed), False
        self._proven = set(proven)
        self._to_load: dict[str, Task] = {}
        self._loading: set[str] = set()
        self._load_failures = Counter[str]()
        self._teachers, self._is_committed, self._max_attempts = teachers, is_committed, max_attempts
        self._ready: defaultdict[str, deque[Unit]] = defaultdict(deque)
        self._blocked: defaultdict[str, list[Unit]] = defaultdict(list)
        self._blocked_in = Counter[str]()
        self._tries: defaultdict[str, deque[Task]] = defaultdict(deque)
        self._suspects: dict[tuple[str, str], _Suspects] = {}
        self._attempts = Counter[tuple[str, str]]()
        self._alone: set[tuple[str, str]] = set()
        self._running = Counter[str]()
        self.given_up: dict[str, str] = {}
        """Columns that cannot be labelled at all, and why."""
        self.elsewhere: list[Unit] = []
        """Units that another driver has committed meanwhile."""
        self.stopping = False
        for unit in units:
            if unit.column == IMAGES or unit.part in images_done:
                self._ready[unit.column].append(unit)
            else:
                self._blocked[unit.part].append(unit)
                self._blocked_in[unit.column] += 1
        if teachers_first:
            first = {unit.column: unit for unit in reversed(units)}
            for name in reversed([name for name in teachers if name in first]):
                self._to_load[name] = Task(unit=first[name], teacher=teachers[name], only_teacher=True)

    def take_beside(self, task: Task, workers: int) -> Task | None:
        """A unit to be begun while a worker still does `task`: where so many are ready that no other worker is kept waiting."""
        column = task.unit.column
        ready = self._ready[column]
        if not task.may_overlap or column in self.given_up or self._tries[column] or len(ready) < workers:
            return None
        return None if (ready[0].column, ready[0].part) in self._alone else self.take([column], column)

    def take(self, columns: Sequence[str], loaded: str | None = None) -> Task | None:
        """The next task of one of these columns; rather of the one whose teacher is loaded, then of the one with fewest
        workers. None when there is nothing now."""
        if self.stopping:
            return None
        if self._to_load or self._loading:
            return self._take_teacher(columns)
        columns = [column for column in columns if column not in self.given_up]
        for column in sorted(columns, key=lambda name: (name != IMAGES, name != loaded, self._running[name])):
            if self._tries[column]:
                self._running[column] += 1
                return self._tries[column].popleft()
            while self._ready[column]:
                unit = self._ready[column].popleft()
                if self._is_committed(unit):  # another driver was faster
                    self._unblock(unit)
                    self.elsewhere.append(unit)
                    self._part_ways()
                    continue
                self._running[column] += 1
                alone = (unit.column, unit.part) in self._alone
                return Task(unit=replace(unit, attempt=secrets.token_hex(4)), teacher=self._teachers.get(column), alone=alone)
        return None

    def _take_teacher(self, columns: Sequence[str]) -> Task | None:
        for column in self._to_load:
            if column in columns:
                self._loading.add(column)
                return self._to_load.pop(column)
        return None

    def has_more(self, columns: Sequence[str]) -> bool:
        """Whether there is, or may yet come, anything to do in these columns."""
        if self.stopping:
            return False
        more_images = self._is_active(IMAGES)
        columns = [column for column in columns if column not in self.given_up]
        return any(self._is_active(name) or (more_images and self._blocked_in[name] > 0) for name in columns)

    def _is_active(self, column: str) -> bool:
        waiting = self._ready[column] or self._tries[column] or column in self._to_load
        return bool(waiting or self._running[column] or column in self._loading)

    def settle(self, task: Task, outcome: Outcome) -> list[tuple[Unit, Ending]]:
        """Take in how a task went; returns the units that have ended by it.

        Raises OutputUnwritableError where nothing can be written any more, TeacherUnusableError for a teacher whose loading
        takes down one worker after the other.
        """
        if task.only_teacher:
            self._settle_teacher(task, outcome)
            return []
        self._running[task.unit.column] -= 1
        if isinstance(outcome, TeacherUnusableError | RunNotSharedError):  # a machine's fault, perhaps; another one may do it
            if task.index is None:
                self._ready[task.unit.column].append(task.unit)
            else:
                self._tries[task.unit.column].append(task)
            return []
        if isinstance(outcome, UnitInterruptedError):  # not one of its attempts; the next is its own
            self._alone.add((task.unit.column, task.unit.part))
            self._ready[task.unit.column].append(task.unit)
            return []
        if isinstance(outcome, OSError) and outcome.errno in _UNWRITABLE:
            raise OutputUnwritableError(outcome.errno, f"{task.unit.run_dir}: {outcome.strerror}")
        if task.index is not None:
            return self._settle_try(task, task.index, outcome)
        if isinstance(outcome, UnitResult):
            self._unblock(task.unit)
            if not outcome.committed:  # another driver was faster
                self._part_ways()
            self._proven.add(task.unit.column)
            return [(task.unit, outcome)]
        assert isinstance(outcome, Exception)
        return self._retry(task.unit, outcome)

    def _settle_teacher(self, task: Task, outcome: Outcome) -> None:
        column = task.unit.column
        self._loading.remove(column)
        if outcome is None:
            return
        if isinstance(outcome, OSError):
            raise outcome
        self._to_load[column] = task
        if isinstance(outcome, TeacherUnusableError | RunNotSharedError):  # another machine may do it
            return
        self._load_failures[column] += 1
        if (failures := self._load_failures[column]) >= self._max_attempts:
            last = f"{type(outcome).__name__}: {outcome}"
            raise TeacherUnusableError(f"teacher {column} was to be loaded, {failures} times; the last time: {last}")

    def give_up(self, column: str, reason: str) -> None:
        """Take no more tasks from a column that no worker can do; its units stay for the next run."""
        self.given_up[column] = reason

    def give_up_blocked(self) -> list[tuple[Unit, Ending]]:
        """What still waits, when nothing runs, waits for images that failed."""
        waiting = [unit for units in self._blocked.values() for unit in units if unit.column not in self.given_up]
        self._blocked.clear()
        reason = manifests.Reason(kind="images_missing", message="the part's column 'images' failed")
        return [(unit, self._fail(unit, reason)) for unit in waiting]

    def _unblock(self, unit: Unit) -> None:
        if unit.column == IMAGES:
            for waiting in self._blocked.pop(unit.part, []):
                self._ready[waiting.column].append(waiting)
                self._blocked_in[waiting.column] -= 1

    def _part_ways(self) -> None:
        """Do what is left in an order of our own: two drivers with the same one would do each unit twice."""
        if not self._is_apart:
            self._is_apart = True
            for ready in self._ready.values():
                self._rng.shuffle(ready)

    def _retry(self, unit: Unit, error: Exception) -> list[tuple[Unit, Ending]]:
        key = unit.column, unit.part
        self._attempts[key] += 1
        if isinstance(error, InputChangedError):
            return [(unit, self._fail(unit, _reason(error)))]
        if self._attempts[key] < self._max_attempts:
            self._ready[unit.column].append(unit)
            return []
        indices = [index for index in range(len(unit.rows)) if index not in unit.excluded]
        if not indices or isinstance(error, OSError):  # a disk or a network may come back; no image is to blame
            return [(unit, self._fail(unit, _reason(error)))]
        self._suspects[key] = _Suspects(unit=unit, untried=len(indices), cause=error)
        tries = (Task(unit=unit, teacher=self._teachers.get(unit.column), index=index) for index in indices)
        self._tries[unit.column].extend(tries)
        return []

    def _settle_try(self, task: Task, index: int, outcome: Outcome) -> list[tuple[Unit, Ending]]:
        unit = task.unit
        key = unit.column, unit.part
        suspects = self._suspects.get(key)
        if suspects is None:
            return []  # the unit was given up meanwhile
        if isinstance(outcome, OSError | InputChangedError):
            return self._give_up(key, _reason(outcome))
        if isinstance(outcome, Exception):
            suspects.failures[index] += 1
            if suspects.failures[index] < _TRIES_PER_IMAGE:
                self._tries[unit.column].appendleft(task)
                return []
            suspects.guilty[index] = _image_reason(outcome)
        suspects.untried -= 1
        tried = len(unit.rows) - len(unit.excluded) - suspects.untried
        all_guilty = len(suspects.guilty) == tried
        hopeless = all_guilty and tried >= _HOPELESS
        if suspects.untried and not hopeless:
            return []
        if hopeless or not suspects.guilty or (all_guilty and unit.column not in self._proven):
            return self._give_up(key, _reason(suspects.cause))
        del self._suspects[key]
        self._attempts[key] = 0
        self._ready[unit.column].appendleft(replace(unit, excluded={**unit.excluded, **suspects.guilty}))
        return []

    def _give_up(self, key: tuple[str, str], reason: manifests.Reason) -> list[tuple[Unit, Ending]]:
        """Try no more images of this unit."""
        unit = self._suspects.pop(key).unit
        self._tries[unit.column] = deque(other for other in self._tries[unit.column] if other.unit is not unit)
        return [(unit, self._fail(unit, reason))]

    def _fail(self, unit: Unit, reason: manifests.Reason) -> manifests.FailureRecord:
        attempts = max(self._attempts[unit.column, unit.part], 1)
        return manifests.FailureRecord(
            column=unit.column, part=unit.part, attempts=attempts, problem=reason, images=len(unit.rows)
        )


def _reason(error: Exception) -> manifests.Reason:
    return manifests.Reason(kind=type(error).__name__, message=str(error).strip() or "no message")


def _image_reason(error: Exception) -> manifests.Reason:
    """Why an image is rejected that failed by itself, twice."""
    kinds = {WorkerDiedError: "crashes_worker", WorkerStalledError: "timed_out"}
    message = f"tried alone, {_TRIES_PER_IMAGE} times: {type(error).__name__}: {str(error).strip()}"
    return manifests.Reason(kind=kinds.get(type(error), "raises_error"), message=message)
