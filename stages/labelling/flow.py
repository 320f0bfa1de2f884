"""What flows through a worker: pictures decoded ahead, views in batches of one shape, a device that never waits.

Everything here is bounded: so many pictures ahead, so many views waiting for company, so many batches not yet written. What
comes out, and in which batches, depends on the input alone, never on which thread was faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from stages.models import Teacher

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture for a teacher: view `number` of image `image` of the part, and the seed of its noise."""

    image: int
    number: int
    picture: UInt8[np.ndarray, "h w 3"]
    seed: int


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


def in_batches(views: Iterable[View], batch_size: int, max_waiting: int) -> Iterator[list[View]]:
    """Views of equal shape together, whichever image they belong to.

    No view waits for others of its shape while more than `max_waiting` images go by: then its batch goes as it is.
    """
    waiting: dict[tuple[int, ...], list[View]] = {}  # the shape that has waited longest is first
    for view in views:
        same = waiting.setdefault(view.picture.shape, [])
        same.append(view)
        if len(same) == batch_size:
            yield waiting.pop(view.picture.shape)
        while waiting and view.image - (longest := next(iter(waiting.values())))[0].image > max_waiting:
            yield waiting.pop(longest[0].picture.shape)
    yield from waiting.values()


class Predictor:
    """A teacher whose batches halve when the device's memory does not hold them; `batch_size` is what is left of it."""

    def __init__(self, teacher: Teacher, batch_size: int) -> None:
        self.teacher, self.batch_size = teacher, batch_size

    def predict(self, views: list[View]) -> Float32[np.ndarray, "b h w"]:
        """Depth of views of equal shape. Raises torch.OutOfMemoryError when even one view is too much, and
        ValueError for a prediction of another size."""
        depths: list[Float32[np.ndarray, "_ h w"]] = []
        start = 0
        while start < len(views):
            some = views[start : start + self.batch_size]
            predicted = self._try(some)
            if predicted is not None:
                depths.append(predicted)
                start += len(some)
        return np.concatenate(depths)

    def _try(self, views: list[View]) -> Float32[np.ndarray, "b h w"] | None:
        """None where memory ran out; the batch size is halved then."""
        pictures = np.stack([view.picture for view in views])
        try:
            depth = self.teacher.predict(pictures, [view.seed for view in views])
        except torch.OutOfMemoryError:
            if len(views) == 1:
                raise
        else:
            if depth.shape != pictures.shape[:3]:
                raise ValueError(f"the prediction has shape {depth.shape}, expected {pictures.shape[:3]}: that of the pictures")
            return depth
        # Outside of the handler: the error would keep the failed batch's tensors alive.
        self.batch_size = max(len(views) // 2, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


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
