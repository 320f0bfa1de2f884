"""Pieces of work done one after the other, or several at a time in Ray's workers, until all are done or the sitting is over.

Each leaves its record as soon as it is finished, written by the process that did it: whatever is killed, what is finished
stays, and a training that was not goes on from its last saved state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from manifests.errors import DistillError
from pipeline.study.records import write_record
from pipeline.study.work import Training


class SittingOverError(DistillError):
    """The time that this call was given is over; what is finished is kept."""

    exit_status = 130


def do_all(trainings: Sequence[Training], records: Path, *, workers: int, deadline: float, tell: Callable[[str], None]) -> None:
    """Do all of this work. workers: processes; 0 works in this one. deadline: of `time.monotonic`, after which none is begun.

    Raises SittingOverError where something is left to do then, and what a training raises, once those at work have ended.
    """
    if not trainings:
        return
    if workers == 0:
        for number, training in enumerate(trainings, 1):
            _refuse_after(deadline)
            _do(training, records)
            tell(f"{number} of {len(trainings)}: {training.name}")
    else:
        _do_on_ray(trainings, records, workers, deadline, tell)


def _do_on_ray(
    trainings: Sequence[Training], records: Path, workers: int, deadline: float, tell: Callable[[str], None]
) -> None:
    import ray  # seconds, and only where there are several processes

    from pipeline.ray_start import start_ray

    start_ray(None, num_cpus=workers)
    try:
        remote = ray.remote(num_cpus=1, max_retries=2)(_do)
        waiting, at_work, done = list(reversed(trainings)), {}, 0
        while waiting or at_work:
            while waiting and len(at_work) < workers and time.monotonic() < deadline:
                training = waiting.pop()
                at_work[remote.remote(training, records)] = training
            if not at_work:
                break
            (ready, *_), _ = ray.wait(list(at_work), num_returns=1)
            training = at_work.pop(ready)
            ray.get(ready)
            done += 1
            tell(f"{done} of {len(trainings)}: {training.name}")
    finally:
        ray.shutdown()
    if waiting:
        _refuse_after(deadline)


def _do(training: Training, records: Path) -> None:
    write_record(records, training.run())


def _refuse_after(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise SittingOverError("the time given by --minutes is over")
