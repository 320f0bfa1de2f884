"""The views of a part on their way to a teacher, in batches of one shape, whichever image they belong to; and from it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from manifests import Reason
from stages.label_store import QuantisedLabel
from stages.label_store.format import LABEL_BITS
from stages.labelling.quantising import label_of, labels_on_device
from stages.models.batches import Predictor, in_batches
from stages.models.family import marks_invalid_pixels
from stages.threads import ahead
from stages.views import Box


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture for a teacher: view `number` of image `image` of the part, and the seed of its noise. box: of a patch, where
    its label lies on the context grid; None for a context."""

    image: int
    number: int
    box: Box | None
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


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A view without its picture, and how its label is come by: in any thread, which waits for the device if need be."""

    image: int
    number: int
    box: Box | None
    label: Callable[[], QuantisedLabel | Reason]


def predict_in_turn(
    batches: Iterator[list[View]], predictor: Predictor, turn: AbstractContextManager[object], *, bits: int = LABEL_BITS
) -> Generator[list[Predicted], None, None]:
    """What the teacher says of each batch, as labels of so many bits.

    turn: held while the device is this one's; the first batch is ready before. Raises as `Predictor.predict` does.
    """
    first = [batch for batch in [next(batches, None)] if batch is not None]
    with turn:
        # In a thread of its own, so that nothing is between two batches but the network.
        predicted = ahead(
            lambda batch: list(predict_views(predictor, *batch, bits=bits)),
            ((batch, np.stack([view.picture for view in batch])) for batch in chain(first, batches)),
            threads=1,
            depth=1,
            initializer=_one_thread,
        )
        with closing(predicted):
            yield from predicted


def _one_thread() -> None:
    """The sums of floating-point numbers, and so the labels, depend on the number of threads: never on the machine's."""
    torch.set_num_threads(1)


def predict_views(
    predictor: Predictor, views: Sequence[View], pictures: UInt8[np.ndarray, "b h w 3"], *, bits: int = LABEL_BITS
) -> Iterator[Predicted]:
    """What the teacher says of views of equal shape, whose pictures these are. Raises as `Predictor.predict` does."""
    marks_invalid, left = marks_invalid_pixels(predictor.model), iter(views)
    for maps in predictor.parts(pictures, [view.seed for view in views]):
        some = list(islice(left, len(maps)))
        if isinstance(maps, Tensor) and maps.device.type != "cpu":
            labels = labels_on_device(
                maps, [view.box for view in some], [view.number for view in some], marks_invalid=marks_invalid, bits=bits
            )
        else:
            depths = maps.numpy() if isinstance(maps, Tensor) else maps
            labels = [
                partial(label_of, depth, view.box, view.number, marks_invalid=marks_invalid, bits=bits)
                for depth, view in zip(depths, some, strict=True)
            ]
        for view, label in zip(some, labels, strict=True):
            yield Predicted(image=view.image, number=view.number, box=view.box, label=label)
