"""From the labels of views, as they come, to those of whole images, in the order of their rows.

An image's labels are handed on when its last view has come and every image before it is done. A view without a label rejects
its image, with the reason; its neighbours stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from manifests import Reason
from stages.label_store import Row
from stages.labelling.flow import PlannedContext

LabelT = TypeVar("LabelT")


@dataclass(frozen=True, kw_only=True)
class LabelledView(Generic[LabelT]):
    """What became of view `number` of image `image`: its label, or why it has none."""

    image: int
    number: int
    label: LabelT | Reason


@dataclass
class _OpenImage(Generic[LabelT]):
    """The labels of an image that have come, by the numbers of their views, and how many are missing."""

    missing: int
    labels: dict[int, LabelT] = field(default_factory=dict)


class Collector(Generic[LabelT]):
    """Takes labels in any order and appends one row per context in the images' order; None where one is rejected.

    append: takes a row. planned: the contexts of each image, None for those that are not to be labelled; None where `problems`
    has a reason. `problems` grows by the images of which a view has none but a reason.
    """

    def __init__(
        self,
        append: Callable[[Row[LabelT] | None], None],
        planned: Sequence[tuple[PlannedContext | None, ...] | None],
        problems: Sequence[Reason | None],
        contexts_per_image: int,
    ) -> None:
        self._append, self._planned, self._contexts = append, planned, contexts_per_image
        self.problems = list(problems)
        self._open: dict[int, _OpenImage[LabelT]] = {}
        self._next = 0

    def take(self, view: LabelledView[LabelT]) -> None:
        """The next label that has come, of whichever image."""
        image = self._open.get(view.image)
        if image is None:
            views = sum(1 + len(context.boxes) for context in filter(None, self._planned[view.image] or ()))
            image = self._open[view.image] = _OpenImage(missing=views)
        image.missing -= 1
        if not isinstance(view.label, Reason):
            image.labels[view.number] = view.label
        elif self.problems[view.image] is None:
            self.problems[view.image] = view.label
        self._hand_on()

    def finish(self) -> None:
        """The last rows, where the part ends in rejected images. Raises ValueError where a view never came."""
        self._hand_on()
        if self._next < len(self._planned):
            raise ValueError(f"image {self._next} has views without a prediction")

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


def _row(labels: Mapping[int, LabelT], context: PlannedContext) -> Row[LabelT]:
    """A context's label and those of its patches, which follow it."""
    patches = ((box, labels[number]) for number, box in enumerate(context.boxes, start=context.number + 1))
    return Row(context=labels[context.number], patches=tuple(patches))
