"""Work in other threads, in order and bounded: computed so many items ahead, or done so many calls behind.

What comes out depends on the input alone, never on which thread was faster.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def ahead(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    threads: int,
    depth: int,
    initializer: Callable[[], None] | None = None,
    weight_of: Callable[[_Item], float] = lambda _: 0.0,
    most: float = math.inf,
) -> Generator[_Result, None, None]:
    """function(item) for each item, in order, computed at most `depth` items ahead of the one that is taken.

    initializer: called in each thread before all else. most: that items which are begun and not taken may weigh together, such
    as their pixels; an item that weighs more than that goes alone.
    """
    with ThreadPoolExecutor(threads, initializer=initializer) as pool:
        waiting: deque[tuple[Future[_Result], float]] = deque()
        try:
            for item in items:
                weight = weight_of(item)
                while waiting and sum(begun for _, begun in waiting) + weight > most:
                    yield waiting.popleft()[0].result()
                waiting.append((pool.submit(function, item), weight))
                if len(waiting) > depth:
                    yield waiting.popleft()[0].result()
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


class Behind(Generic[_Item, _Result]):
    """Calls `make` of each item in several threads, and `take` of each result in one more, in the order of the items.

    depth: items that may be given and not taken yet, after which `submit` waits. What either raises is raised by the next
    `submit`, or at the end.
    """

    def __init__(
        self, make: Callable[[_Item], _Result], take: Callable[[_Result], object], *, threads: int, depth: int
    ) -> None:
        self._make, self._take, self._depth = make, take, depth
        self._makers, self._taker = ThreadPoolExecutor(threads), ThreadPoolExecutor(1)
        self._waiting: deque[Future[object]] = deque()

    def submit(self, item: _Item) -> None:
        """Queue an item; waits while too much is queued."""
        made = self._makers.submit(self._make, item)
        self._waiting.append(self._taker.submit(lambda: self._take(made.result())))
        while len(self._waiting) > self._depth:
            self._waiting.popleft().result()

    def __enter__(self) -> Behind[_Item, _Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The taker waits for the makers: what was cancelled there must not keep it waiting.
        self._taker.shutdown(wait=error is None, cancel_futures=error is not None)
        self._makers.shutdown(cancel_futures=error is not None)
        self._taker.shutdown()
        if error is None:
            for future in self._waiting:
                future.result()


def keep_freed_memory() -> None:
    """Has the C library keep what NumPy and Pillow free, instead of giving it back to the kernel and asking for it again.

    Each photograph and map is megabytes, which the kernel would hand out page by page: 40 % of the CPU time of a view. The peak
    stays as it is. Only where there is a C library that has the choice (glibc).
    """
    with suppress(OSError, AttributeError):
        for option, value in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 1 << 30)):
            ctypes.CDLL(None).mallopt(option, value)
