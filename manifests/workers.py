"""Many calls, several at once, whose results come in the order of the calls; in threads of this process or in processes.

The processes are started anew (spawn), so that they share nothing with this one; they leave interrupts to it, and end with it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from manifests.errors import DistillError

ResultT = TypeVar("ResultT")
_THREADS = 8  # reading and hashing release the interpreter's lock; a network disk wants several requests at once


class WorkerDiedError(DistillError, RuntimeError):
    """A process ended before its calls did."""


def in_order(calls: Iterable[Callable[[], ResultT]], workers: int, *, bunch: int = 8) -> Iterator[ResultT]:
    """What each call returns. Calls are taken as results are, not all at the start, and `bunch` of them are sent to a process
    together. With one worker they need not be picklable.

    Raises WorkerDiedError where a process dies, and whatever a call raises.
    """
    if workers == 1:
        with ThreadPoolExecutor(_THREADS) as threads:
            yield from _results(threads, calls, 4 * _THREADS)
        return
    context = multiprocessing.get_context("spawn")
    processes = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        for results in _results(processes, _bunches(calls, bunch), 3 * workers):
            yield from results
    except BrokenProcessPool as error:
        raise WorkerDiedError(
            "a worker process died before its work was done: it was killed, or memory ran out; nothing is known of the rest: "
            "try again, with fewer --workers"
        ) from error
    finally:
        processes.shutdown(cancel_futures=True)


def _bunches(calls: Iterable[Callable[[], ResultT]], size: int) -> Iterator[Callable[[], list[ResultT]]]:
    left = iter(calls)
    while bunch := list(itertools.islice(left, size)):
        yield partial(_called, bunch)


def _called(calls: Sequence[Callable[[], ResultT]]) -> list[ResultT]:
    return [call() for call in calls]


def _results(executor: Executor, calls: Iterable[Callable[[], ResultT]], ahead: int) -> Iterator[ResultT]:
    waiting: deque[Future[ResultT]] = deque()
    for call in calls:
        waiting.append(executor.submit(call))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
