"""The pool of `--workers 0`: one worker, in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pipeline.label.queue import Outcome, RunNotSharedError, Task, TeacherUnusableError
from pipeline.label.worker import LabelWorker


@dataclass(eq=False)
class _Slot:
    task: Task | None = None
    loaded: str | None = None

    @property
    def at_work(self) -> Sequence[Task]:
        return [self.task] if self.task else []


class InProcessPool:
    """`pipeline.label.pool.Pool` with one worker, which works while the driver waits for it.

    tell: called meanwhile with the images done of the part at work, by its column.
    """

    def __init__(
        self,
        columns: Sequence[str],
        arguments: tuple[int, int | None],
        tell: Callable[[Mapping[str, float]], None] | None = None,
    ) -> None:
        self._worker = LabelWorker(*arguments, tell=(lambda unit, images: tell({unit.column: images})) if tell else None)
        self._columns = list(columns)
        self._slots = [_Slot()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def idle(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.task is None]

    def half_idle(self) -> list[_Slot]:
        return []

    def workers(self) -> int:
        return len(self._slots)

    def busy(self) -> bool:
        return any(slot.task for slot in self._slots)

    def columns(self, slot: _Slot) -> Sequence[str]:
        return self._columns

    def can_do(self, column: str) -> bool:
        return column in self._columns

    def submit(self, slot: _Slot, task: Task) -> None:
        slot.task = task
        if task.teacher:  # pictures are made beside the teacher that is there
            slot.loaded = task.unit.column

    def release(self, slot: _Slot) -> None:
        self._slots.remove(slot)

    def partly(self) -> dict[str, float]:
        return {}  # while the driver asks, no part is at work

    def wait(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        """Does the task, however long it takes."""
        return [(task, self._do(slot, task)) for slot in self._slots if (task := slot.task)]

    def _do(self, slot: _Slot, task: Task) -> Outcome:
        slot.task = None
        try:
            return self._worker.do(task)
        except RunNotSharedError as error:
            self._columns = []
            return error
        except TeacherUnusableError as error:
            self._columns.remove(task.unit.column)
            return error
        except Exception as error:  # becomes another attempt, or the failure record
            return error
