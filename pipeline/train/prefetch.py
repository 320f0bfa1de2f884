"""Parts of runs in a bucket are fetched before the steps that read them, since it is known which those are."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from manifests.errors import DistillError
from manifests.location import Url
from stages.distillation.joined import JoinedLabels, PartNeed
from stages.distillation.order import PARTS_IN_WINDOW, BatchPlan

_AHEAD = 2 * PARTS_IN_WINDOW
"""Parts of each stream that are fetched before a step reads them; each with its columns."""
_AT_ONCE = 4
"""Parts of columns: each is a few round trips, one after the other."""


class _Fetcher:
    """Threads that fetch, in the order of the plan, and stay a few parts ahead of the step at work."""

    def __init__(self, dataset: JoinedLabels, plan: BatchPlan) -> None:
        self._dataset, self._plan = dataset, plan
        self._step, self._ends = plan.first_step, False
        self._room = _AHEAD * plan.streams_read
        self._on_its_way: set[PartNeed] = set()
        self._changed = threading.Condition()
        self._ahead: OrderedDict[PartNeed, int] = OrderedDict()
        """The step that first reads each part which is ahead."""
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def reached(self, step: int) -> None:
        """The training is at this step."""
        with self._changed:
            self._step = step
            self._changed.notify()

    def _run(self) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="prefetch") as pool:
            for step in range(self._plan.first_step, self._plan.steps):
                for micro in range(self._plan.accumulation):
                    for request in self._plan.chunk(step, micro):
                        for need in self._dataset.needs(request):
                            if not self._waits_for_room(need, step):
                                pool.shutdown(cancel_futures=True)
                                return
                            if need not in self._on_its_way:
                                self._on_its_way.add(need)
                                pool.submit(self._fetch, need)

    def _fetch(self, need: PartNeed) -> None:
        with suppress(DistillError, OSError):  # who reads the part meets it again, and can say for what
            self._dataset.fetch(need)
        self._on_its_way.discard(need)

    def _waits_for_room(self, need: PartNeed, step: int) -> bool:
        """Returns when the part may be fetched; False at the end."""
        with self._changed:
            while not self._ends:
                for past in [other for other, first in self._ahead.items() if first < self._step]:
                    del self._ahead[past]
                if need in self._ahead or len({(other.run, other.part) for other in self._ahead}) < self._room:
                    self._ahead.setdefault(need, step)
                    return True
                self._changed.wait()
        return False

    @contextmanager
    def working(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._ends = True
                self._changed.notify()
            self._thread.join()


@contextmanager
def prefetching(dataset: JoinedLabels, plan: BatchPlan) -> Iterator[_Fetcher | None]:
    """Fetches what this process will read, while the block runs; nothing where all runs are on this machine."""
    if not any(isinstance(run.run_dir, Url) for run in dataset.runs):
        yield None
        return
    fetcher = _Fetcher(dataset, plan)
    with fetcher.working():
        yield fetcher
