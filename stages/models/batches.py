"""Prediction in batches: items of one shape together, in batches that halve when a device's memory does not hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from stages.models.family import DepthModel, PredictsOnDevice
from stages.models.precision import tf32

ItemT = TypeVar("ItemT")


def in_batches(
    items: Iterable[ItemT],
    batch_size: int,
    *,
    shape_of: Callable[[ItemT], Hashable],
    position_of: Callable[[ItemT], int],
    max_waiting: int,
    weight_of: Callable[[ItemT], float] = lambda _: 0.0,
    most: float = math.inf,
) -> Iterator[list[ItemT]]:
    """Items of equal shape together, in the order in which they come.

    most: that the items of a batch may weigh together; one that weighs more than half of it goes alone.
    None waits for others of its shape while the position moves on by more than `max_waiting`: then its batch goes as it is.
    """
    waiting: dict[Hashable, list[ItemT]] = {}  # the shape that has waited longest is first
    for item in items:
        same = waiting.setdefault(shape_of(item), [])
        same.append(item)
        if len(same) == batch_size or (len(same) + 1) * weight_of(item) > most:
            yield waiting.pop(shape_of(item))
        while waiting and position_of(item) - position_of((longest := next(iter(waiting.values())))[0]) > max_waiting:
            yield waiting.pop(shape_of(longest[0]))
    yield from waiting.values()


class Predictor:
    """A model whose batches halve when the device's memory does not hold them; `batch_size` is what is left of it."""

    def __init__(self, model: DepthModel, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size

    def predict(
        self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]], seeds: Sequence[int] | None = None
    ) -> Float32[np.ndarray, "b h w"]:
        """Depth of pictures of equal shape; seeds as for `DepthModel.predict`.

        Raises torch.OutOfMemoryError when even one picture is too much, and ValueError for a prediction of another size.
        """
        parts = self.parts(np.stack(pictures), seeds)
        return np.concatenate([part.cpu().numpy() if isinstance(part, Tensor) else part for part in parts])

    def parts(
        self, pictures: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None
    ) -> Iterator[Float32[np.ndarray, "_ h w"] | Float32[Tensor, "_ h w"]]:
        """As `predict`, in as many parts as the memory needs; a part that a GPU has begun to make is still there."""
        seeds = [0] * len(pictures) if seeds is None else seeds
        start = 0
        while start < len(pictures):
            end = start + self.batch_size
            predicted = self._try(pictures[start:end], seeds[start:end])
            if predicted is not None:
                yield predicted
                start += len(predicted)

    def _try(
        self, pictures: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int]
    ) -> Float32[np.ndarray, "b h w"] | Float32[Tensor, "b h w"] | None:
        """None where memory ran out; the batch size is halved then."""
        predict = self.model.predict
        if isinstance(self.model, PredictsOnDevice) and type(self.model).predict is PredictsOnDevice.predict:
            predict = self.model.predict_on_device
        try:
            with tf32(self.model.spec.dtype == "tf32"):
                depth = predict(pictures, seeds)
        except torch.OutOfMemoryError:
            if len(pictures) == 1:
                raise
        else:
            if tuple(depth.shape) != pictures.shape[:3]:
                found = tuple(depth.shape)
                raise ValueError(f"the prediction has shape {found}, expected {pictures.shape[:3]}: that of the pictures")
            return depth
        # Outside of the handler: the error would keep the failed batch's tensors alive.
        self.batch_size = max(len(pictures) // 2, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
