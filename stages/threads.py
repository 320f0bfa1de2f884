"""Work in other threads, in order and bounded: computed so many items ahead, or done so many calls behind.

What comes out depends on the input alone, never on which thread was faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ahead(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, depth: int
) -> Generator[_Result, None, None]:
    """function(item) for each item, in order, computed at most `depth` items ahead of the one that is taken."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Behind:
    """Runs calls one after the other in a thread of its own, at most `depth` calls behind; errors are raised here."""

    def __init__(self, depth: int) -> None:
        self._pool, self._depth = ThreadPoolExecutor(1), depth
        self._waiting: deque[Future[None]] = deque()

    def submit(self, function: Callable[[_Item], None], item: _Item) -> None:
        """Queue function(item); waits while too much is queued."""
        self._waiting.append(self._pool.submit(function, item))
        while len(self._waiting) > self._depth:
            self._waiting.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for future in self._waiting:
                future.result()
