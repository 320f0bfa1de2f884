"""From predictions, as they come, to the labels of whole images, in the order of their rows.

An image's labels are handed on when its last view has come and every image before it is done. A view whose prediction
is constant or not finite rejects its image, with the reason; its neighbours stay. NaN of a teacher that marks what it does not
know is no reason: those pixels have no label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from manifests import Reason
from stages.label_store import ImageLabels, Label, PatchLabel
from stages.labelling.flow import PlannedContext, View
from stages.views import Box, onto_grid, onto_grid_where


@dataclass
class _OpenImage:
    """The views of an image that are to be labelled, by their numbers: a box for each patch and None for each context; and what
    came of them."""

    boxes: dict[int, Box | None]
    labels: dict[int, Label]
    missing: int


class Collector:
    """Takes predictions in any order and appends one row per context in the images' order; None where one is rejected.

    append: takes a row. planned: the contexts of each image, None for those that are not to be labelled; None where `problems`
    has a reason. marks_invalid: whether NaN is a pixel that the teacher does not know. `problems` grows by the images that are
    rejected here: `non_finite_label`, `constant_label`.
    """

    def __init__(
        self,
        append: Callable[[ImageLabels | None], None],
        planned: Sequence[tuple[PlannedContext | None, ...] | None],
        problems: Sequence[Reason | None],
        contexts_per_image: int,
        *,
        marks_invalid: bool = False,
    ) -> None:
        self._append, self._planned, self._contexts = append, planned, contexts_per_image
        self._marks_invalid = marks_invalid
        self.problems = list(problems)
        self._open: dict[int, _OpenImage] = {}
        self._next = 0

    def take(self, predicted: tuple[list[View], Float32[np.ndarray, "b h w"]]) -> None:
        """Views and what the teacher said of each."""
        for view, depth in zip(*predicted, strict=True):
            image = self._open.get(view.image) or self._start(view.image)
            image.missing -= 1
            box = image.boxes[view.number]
            known = ~np.isnan(depth) if self._marks_invalid else np.ones(depth.shape, bool)
            problem = _problem(depth, known, view.number, box)
            if problem is None:
                image.labels[view.number] = _label(depth, known, box)
            elif self.problems[view.image] is None:
                self.problems[view.image] = problem
        self._hand_on()

    def finish(self) -> None:
        """The last rows, where the part ends in rejected images. Raises ValueError where a view never came."""
        self._hand_on()
        if self._next < len(self._planned):
            raise ValueError(f"image {self._next} has views without a prediction")

    def _start(self, image: int) -> _OpenImage:
        boxes: dict[int, Box | None] = {}
        for context in filter(None, self._planned[image] or ()):
            boxes |= dict(enumerate([None, *context.boxes], start=context.number))
        self._open[image] = _OpenImage(boxes=boxes, labels={}, missing=len(boxes))
        return self._open[image]

    def _hand_on(self) -> None:
        while self._next < len(self._planned):
            image, planned = self._open.get(self._next), self._planned[self._next]
            if planned is not None and any(planned) and (image is None or image.missing):
                return
            self._open.pop(self._next, None)
            rejected = self.problems[self._next] is not None
            for context in planned if planned and not rejected else [None] * self._contexts:
                self._append(_row(image.labels, context) if image and context else None)
            self._next += 1


def _row(labels: Mapping[int, Label], context: PlannedContext) -> ImageLabels:
    """A context's label and those of its patches, which follow it."""
    patches = (
        PatchLabel(box=box, values=labels[number].values, valid=labels[number].valid)
        for number, box in enumerate(context.boxes, start=context.number + 1)
    )
    return ImageLabels(context=labels[context.number], patches=tuple(patches))


def _label(depth: Float32[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"], box: Box | None) -> Label:
    """A prediction at the size in which it is stored; what is not known is invalid and 0."""
    if known.all():
        values = depth if box is None else onto_grid(depth, box.height, box.width)
        return Label(values=values, valid=np.ones(values.shape, bool))
    if box is None:
        return Label(values=np.where(known, depth, np.float32(0)), valid=known)
    values, valid = onto_grid_where(depth, known, box.height, box.width)
    return Label(values=values, valid=valid)


def _problem(depth: Float32[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"], number: int, box: Box | None) -> Reason | None:
    """Why this prediction is no label. A patch may be constant, such as the sky's, or nowhere known; a context may not."""
    where = f"view {number}, {'a context' if box is None else 'a patch'}"
    values = depth[known]
    wrong = int(np.count_nonzero(~np.isfinite(values)))
    if wrong:
        return Reason(kind="non_finite_label", message=f"{where}: {wrong} of {depth.size} values are not finite")
    if box is None and not values.size:
        message = f"{where}: all {depth.size} values are NaN, so the teacher knows none of its pixels"
        return Reason(kind="non_finite_label", message=message)
    if box is None and values.max() == values.min():
        everywhere = "everywhere" if values.size == depth.size else f"at all {values.size} pixels that are known"
        return Reason(kind="constant_label", message=f"{where}: the prediction is {values[0]} {everywhere}")
    return None
