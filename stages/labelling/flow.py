"""The views of a part on their way to a teacher: in batches of one shape, whichever image they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from stages.models.batches import Predictor, in_batches
from stages.views import Box


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture for a teacher: view `number` of image `image` of the part, and the seed of its noise."""

    image: int
    number: int
    picture: UInt8[np.ndarray, "h w 3"]
    seed: int


@dataclass(frozen=True, kw_only=True)
class PlannedContext:
    """A context that is to be labelled: the number of its view in its image, after which those of its patches follow, and the
    places of these."""

    number: int
    boxes: tuple[Box, ...]


def views_in_batches(views: Iterable[View], batch_size: int, max_waiting: int) -> Iterator[list[View]]:
    """Views of equal shape together, whichever image they belong to; none waits while more than `max_waiting` images go by."""
    return in_batches(
        views,
        batch_size,
        shape_of=lambda view: view.picture.shape,
        position_of=lambda view: view.image,
        max_waiting=max_waiting,
    )


def predict_views(predictor: Predictor, views: Sequence[View]) -> Float32[np.ndarray, "b h w"]:
    """Depth of views of equal shape. Raises as `Predictor.predict` does."""
    return predictor.predict([view.picture for view in views], [view.seed for view in views])
