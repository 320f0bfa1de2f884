"""Ray actors that label: started as resources allow, watched while they work, replaced when they die or hang."""

from __future__ import annotations

import os
import select
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
import ray.exceptions

from manifests.run import IMAGES
from pipeline.label.pool import PoolError, Pulse, Resources, threads_for
from pipeline.label.queue import (
    Outcome,
    RunNotSharedError,
    Task,
    TeacherUnusableError,
    UnitInterruptedError,
    WorkerDiedError,
    WorkerStalledError,
)
from pipeline.label.worker import LabelWorker
from pipeline.ray_start import start_ray
from stages.labelling.unit import InputChangedError

_PULSES_PER_TIMEOUT = 10
_PULSE_EVERY_S = 1.0
"""For the progress that is shown; of many workers, so many that the driver has 50 answers a second to read."""
_WORKERS_PER_S = 50
_DEATHS_AT_START = 5
_MAKE_WAY_AFTER_S = 10.0
_END_TIMEOUT_S = 60.0


@dataclass(eq=False)
class Slot:
    """A place for one actor at a time. `tasks` is what it does; `loaded` is the column whose teacher it holds."""

    resources: Resources
    actor: Any
    starting: ray.ObjectRef | None
    """None once it is up."""
    tasks: dict[ray.ObjectRef, Task] = field(default_factory=dict)
    loaded: str | None = None
    unusable: frozenset[str] = frozenset()
    """Columns whose teacher could not be loaded here."""
    pulse: ray.ObjectRef | None = None
    asked_at: float = 0.0
    images: dict[str, float] = field(default_factory=dict)
    """Done of its tasks, by their attempts, as it last said."""

    @property
    def at_work(self) -> list[Task]:
        """What it does, in the order in which it was begun."""
        return list(self.tasks.values())


class RayPool:
    """Slots of workers by the resources that they hold; a context manager that starts and ends Ray."""

    def __init__(
        self,
        columns: Mapping[str, Resources],
        arguments: tuple[int, int | None],
        *,
        workers: int | None,
        most_workers: int,
        address: str | None,
        stall_timeout_s: float,
    ) -> None:
        self._arguments, self._workers, self._most_workers, self._address = arguments, workers, most_workers, address
        self._stall_timeout_s = stall_timeout_s
        self._columns = columns
        self._kinds: dict[Resources, list[str]] = {}
        self._slots: list[Slot] = []
        self._deaths_at_start = 0
        self._at_rest_since = time.monotonic()

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA_VISIBLE_DEVICES as the user set it
        # On one machine all kinds of workers run side by side.
        wanted_cpus = sum((self._workers or 1) * resources.num_cpus for resources in set(self._columns.values()))
        start_ray(self._address, num_cpus=round(wanted_cpus))
        try:
            found = ray.cluster_resources()
            gpus = found.get("GPU", 0)
            self._threads = threads_for(found.get("CPU", 1), gpus)
            workers = min(self._workers or int(gpus) or int(found.get("CPU", 1)), self._most_workers)
            for column, (cpus, num_gpus) in self._columns.items():
                kind = Resources(cpus, float(gpus >= 1) if num_gpus is None else num_gpus)
                self._kinds.setdefault(kind, []).append(column)
            # As in the queue, teachers come first: where there is no room for all, pictures wait until they are loaded.
            for resources in sorted(self._kinds, key=lambda kind: IMAGES in self._kinds[kind]):
                self._refuse_impossible(resources)
                self._slots += [self._slot(resources) for _ in range(workers)]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def columns(self, slot: Slot) -> Sequence[str]:
        """The columns whose tasks a slot can do."""
        return [column for column in self._kinds[slot.resources] if column not in slot.unusable]

    def can_do(self, column: str) -> bool:
        """Whether there is a worker left for this column: one that sees the run, and has not failed to load its teacher."""
        return any(column in self.columns(slot) for slot in self._slots)

    def idle(self) -> list[Slot]:
        """Workers that are up and have nothing to do."""
        return [slot for slot in self._slots if slot.starting is None and not slot.tasks]

    def half_idle(self) -> list[Slot]:
        """Workers that do one task, and can begin another one beside it."""
        return [slot for slot in self._slots if len(slot.tasks) == 1]

    def workers(self) -> int:
        """How many there are, at work or not."""
        return len(self._slots)

    def busy(self) -> bool:
        """Whether any worker has a task."""
        return any(slot.tasks for slot in self._slots)

    def submit(self, slot: Slot, task: Task) -> None:
        """Give a task to a worker that is idle, or half so."""
        if not slot.tasks:
            slot.asked_at = time.monotonic()
        if task.teacher:  # pictures are made beside the teacher that is there
            slot.loaded = task.unit.column
        slot.tasks[slot.actor.do.remote(task)] = task

    def release(self, slot: Slot) -> None:
        """End an idle worker for good, so that others can have what it holds."""
        ray.kill(slot.actor)
        self._slots.remove(slot)

    def partly(self) -> dict[str, float]:
        """Images done of the parts that are at work, by column, as workers last said."""
        images: dict[str, float] = {}
        for slot in self._slots:
            for unit in (task.unit for task in slot.at_work if task.index is None):
                images[unit.column] = images.get(unit.column, 0.0) + slot.images.get(unit.attempt, 0.0)
        return images

    def wait(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        """Tasks that have ended since, and how; waits up to `timeout_s` for the first one. Replaces workers that are gone."""
        pending = {reference: slot for slot in self._slots for reference in (slot.starting, *slot.tasks) if reference}
        finished, _ = ray.wait(list(pending), timeout=timeout_s) if pending else ([], [])
        ended = [end for reference in finished for end in self._finish(pending[reference], reference)]
        self._make_way()
        return ended + self._stalled()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """End Ray. On this machine no worker is left then, not even one that hangs: `ray.shutdown` waits for its own raylet
        only, and a worker notices that the raylet is gone some seconds later where the machine is busy."""
        workers = [] if self._address else _children_of_own_raylet()
        ray.shutdown()
        _kill_and_wait(workers, _END_TIMEOUT_S)

    def _slot(self, resources: Resources) -> Slot:
        # Two threads for two tasks, and one that answers `pulse` while they work.
        options = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus, "max_restarts": 0, "max_concurrency": 3}
        device = "cuda" if resources.num_gpus else "cpu"
        batch_size, threads = self._arguments
        threads = threads or (self._threads if resources.num_gpus else threads_for(1, 0))
        actor = ray.remote(**options)(LabelWorker).remote(batch_size, threads, device)
        return Slot(resources=resources, actor=actor, starting=actor.pulse.remote())

    def _replace(self, slot: Slot, unusable: frozenset[str] = frozenset()) -> None:
        fresh = self._slot(slot.resources)
        fresh.unusable = slot.unusable | unusable
        self._slots[self._slots.index(slot)] = fresh

    def _finish(self, slot: Slot, reference: ray.ObjectRef) -> list[tuple[Task, Outcome]]:
        """How a call ended that was waited for: a slot's start, or a task, and with it perhaps the other one of its worker."""
        if slot not in self._slots:
            return []  # it went with the other task, a moment ago
        if reference == slot.starting:
            self._started(slot, reference)
            return []
        task, outcome = slot.tasks[reference], None
        try:
            outcome = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            outcome = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(outcome, RunNotSharedError):
                self.release(slot)  # for good: another one on the same machine would see no more
                return [(other, outcome) for other in slot.at_work]
            if not isinstance(outcome, OSError | InputChangedError):
                # A process whose GPU has failed once fails at everything, fast, and would take all the work.
                unusable = isinstance(outcome, TeacherUnusableError)
                return self._lose(slot, {task.unit.attempt: outcome}, frozenset({task.unit.column} if unusable else ()))
        except ray.exceptions.RayError as error:
            return self._lose(slot, {}, cause=WorkerDiedError(f"the worker died: {type(error).__name__}"))
        del slot.tasks[reference]
        slot.pulse, slot.asked_at = None, time.monotonic()
        return [(task, outcome)]

    def _started(self, slot: Slot, start: ray.ObjectRef) -> None:
        try:
            ray.get(start)
        except ray.exceptions.RayError as error:
            self._replace(slot)
            self._refuse_dying(error)
        else:
            slot.starting, self._deaths_at_start = None, 0

    def _lose(
        self,
        slot: Slot,
        known: Mapping[str, Exception],
        unusable: frozenset[str] = frozenset(),
        cause: Exception | None = None,
    ) -> list[tuple[Task, Outcome]]:
        """Ends a worker, whose place another one takes; and what its tasks ended with: `known`, by their attempts; for a task
        that was alone, `cause`; a task of two may not have been to blame."""
        ray.kill(slot.actor)
        self._replace(slot, unusable)
        interrupted = UnitInterruptedError("its worker is gone, which did another part beside it")
        rest = cause if cause and len(slot.tasks) == 1 else interrupted
        return [(task, known.get(task.unit.attempt) or _result(reference) or rest) for reference, task in slot.tasks.items()]

    def _stalled(self) -> list[tuple[Task, Outcome]]:
        """Ends the workers that have stood still for too long, or no longer answer."""
        stalled: list[tuple[Task, Outcome]] = []
        now = time.monotonic()
        every_s = min(max(_PULSE_EVERY_S, len(self._slots) / _WORKERS_PER_S), self._stall_timeout_s / _PULSES_PER_TIMEOUT)
        for slot in [slot for slot in self._slots if slot.tasks]:
            if slot.pulse is None:
                if now - slot.asked_at > every_s:
                    slot.pulse, slot.asked_at = slot.actor.pulse.remote(), now
                continue
            if ray.wait([slot.pulse], timeout=0)[0]:
                try:
                    pulses: dict[str, Pulse] = ray.get(slot.pulse)
                except ray.exceptions.RayError:
                    continue  # it died; the next wait says so
                slot.pulse, slot.asked_at = None, now
                slot.images = {attempt: pulse.images for attempt, pulse in pulses.items()}
                silent_s = {attempt: pulse.silence_s for attempt, pulse in pulses.items()}
                hanging = {attempt: self._silence(s) for attempt, s in silent_s.items() if s > self._stall_timeout_s}
                stalled += self._lose(slot, hanging) if hanging else []
            elif (silence_s := now - slot.asked_at) > self._stall_timeout_s:  # even the thread that answers stands still
                stalled += self._lose(slot, {}, cause=self._silence(silence_s))
        return stalled

    def _silence(self, silence_s: float) -> WorkerStalledError:
        return WorkerStalledError(f"no sign of life for {silence_s:.0f} s (--stall-timeout-s {self._stall_timeout_s:g})")

    def _make_way(self) -> None:
        """Restarts idle workers when none has had work for a while: one that is yet to start may wait for what they hold."""
        now = time.monotonic()
        if self.busy() or all(slot.starting is None for slot in self._slots):
            self._at_rest_since = now
        elif now - self._at_rest_since > _MAKE_WAY_AFTER_S:
            self._at_rest_since = now
            for slot in self.idle():
                ray.kill(slot.actor)
                self._replace(slot)

    def _refuse_dying(self, error: Exception) -> None:
        self._deaths_at_start += 1
        if self._deaths_at_start >= _DEATHS_AT_START:
            raise PoolError(f"{self._deaths_at_start} workers in a row died before they were ready; the last: {error}")

    def _refuse_impossible(self, resources: Resources) -> None:
        """A worker that fits on no machine would be waited for forever."""
        nodes = [Counter(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        if not any(node["CPU"] >= resources.num_cpus and node["GPU"] >= (resources.num_gpus or 0) for node in nodes):
            found = "; ".join(f"{node['CPU']:g} CPUs, {node['GPU']:g} GPUs" for node in nodes)
            raise PoolError(
                f"a worker for {', '.join(self._kinds[resources])} asks for {resources.num_cpus:g} CPUs and "
                f"{resources.num_gpus or 0:g} GPUs, which no machine has (found: {found}); ask for less"
            )


def _result(reference: ray.ObjectRef) -> Outcome:
    """What a call has returned, if it has."""
    with suppress(ray.exceptions.RayError):
        return ray.get(reference, timeout=0)
    return None


def _children_of_own_raylet() -> list[int]:
    """File descriptors (pidfd) of Ray's processes on this machine, as a number alone may come to mean another process."""
    names, parents = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(ProcessLookupError, FileNotFoundError):  # it ended meanwhile
            start, _, rest = entry.read_text().rpartition(") ")
            pid, _, name = start.partition(" (")
            names[int(pid)], parents[int(pid)] = name, int(rest.split()[1])
    found = []
    for pid, parent in parents.items():
        if names.get(parent) == "raylet" and parents[parent] == os.getpid():
            with suppress(ProcessLookupError):
                found.append(os.pidfd_open(pid))
    return found


def _kill_and_wait(processes: Sequence[int], timeout_s: float) -> None:
    """Kills what is left of processes given as pidfds, and waits until they are gone; longest for one that the kernel holds."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
    for process in processes:
        select.select([process], [], [], max(deadline - time.monotonic(), 0))  # readable once it has ended
        os.close(process)
