"""What the driver needs of workers, be they Ray's actors or this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from manifests.errors import DistillError
from pipeline.label.queue import Outcome, Task


class Resources(NamedTuple):
    """What one worker holds of its machine. num_gpus None: one where the machines have any."""

    num_cpus: float
    num_gpus: float | None


class Pulse(NamedTuple):
    """A worker's sign of life from a task: seconds since it last got on, and images, or shares of them, that are done."""

    silence_s: float
    images: float


_LEAST_THREADS, _MOST_THREADS = 2, 16


def threads_for(cpus: float, gpus: float) -> int:
    """Threads before and behind a teacher, where so many cores serve so many GPUs. Without a GPU the network itself needs the
    cores, and two threads are enough. More than 16 do not make a worker faster."""
    return min(max(int(cpus / gpus), _LEAST_THREADS), _MOST_THREADS) if gpus >= 1 else _LEAST_THREADS


class PoolError(DistillError, RuntimeError):
    """No worker can be had."""

    exit_status = 2


class Slot(Protocol):
    """A place for one worker at a time; `loaded` is the column whose teacher it holds."""

    loaded: str | None

    @property
    def at_work(self) -> Sequence[Task]:
        """What it does, in the order in which it was begun."""
        ...


SlotT = TypeVar("SlotT", bound=Slot)


class Pool(Protocol[SlotT]):
    """Workers that take one task at a time, or begin a second one while the first comes to its end."""

    def idle(self) -> list[SlotT]:
        """Workers that are up and have nothing to do."""
        ...

    def half_idle(self) -> list[SlotT]:
        """Workers that do one task, and can begin another one beside it."""
        ...

    def workers(self) -> int:
        """How many there are, at work or not."""
        ...

    def busy(self) -> bool:
        """Whether any worker has a task."""
        ...

    def columns(self, slot: SlotT) -> Sequence[str]:
        """The columns whose tasks a slot can do."""
        ...

    def can_do(self, column: str) -> bool:
        """Whether there is a worker left for this column: one that sees the run, and has not failed to load its teacher."""
        ...

    def submit(self, slot: SlotT, task: Task) -> None:
        """Give a task to a worker that is idle, or half so."""
        ...

    def release(self, slot: SlotT) -> None:
        """End an idle worker for good, so that others can have what it holds."""
        ...

    def partly(self) -> dict[str, float]:
        """Images done of the parts that are at work, by column, as far as it is known."""
        ...

    def wait(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        """Tasks that have ended since, and how; waits up to `timeout_s` for the first one. Replaces workers that are gone."""
        ...
