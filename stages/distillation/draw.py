"""Which of a run's labels a training reads, known before there are any.

What a step draws depends on settings and on the sizes of parts alone (see `order`), so that labelling can leave out what no
step will draw. A column that was labelled so says of which training it is in its fingerprint; no other may read it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from manifests import fingerprint_differences
from manifests.errors import RefusedError
from stages.distillation.order import AVERAGE, BatchPlan, Strategy, all_draws, image_rank

_PREFIX = "draw."
_Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What decides which labels a training reads. `columns` and `ratios` are those of its teachers; `images` is how many it is
    to draw from, None for all; `patches` whether it reads them too; `compared` whether it reads all columns at each step,
    because it compares them."""

    seed: int
    steps: int
    batch_size: int
    strategy: Strategy
    columns: tuple[str, ...]
    ratios: tuple[float, ...]
    images: int | None
    patches: bool
    compared: bool = False
    streams: int = 1

    def fingerprint(self, catalogued: int) -> dict[str, _Scalar]:
        """What stands in the fingerprint of a column that has the labels of this draw alone, of a run of so many images."""
        own = vars(self) | {"columns": " ".join(self.columns), "ratios": " ".join(f"{ratio:g}" for ratio in self.ratios)}
        if self.streams == 1:
            del own["streams"]  # which columns of old do not have
        return {f"{_PREFIX}{name}": value for name, value in {**own, "catalogued": catalogued}.items()}

    def rows(self, parts: Mapping[str, int], contexts_per_image: int) -> dict[str, dict[str, tuple[int, ...]]]:
        """The rows that are drawn, by column and part, of which nothing is left out. parts: the images of each, in the order of
        the run. Raises RefusedError where there are fewer images than are to be drawn from."""
        places = self._places(parts, contexts_per_image)
        plan = BatchPlan(
            part_sizes=tuple(map(len, places)),
            batch_size=self.batch_size,
            steps=self.steps,
            seed=self.seed,
            strategy=self.strategy,
            ratios=self.ratios,
            flip=False,
            streams=self.streams,
        )
        drawn, teachers = all_draws(plan)
        starts = np.concatenate([[0], np.cumsum(plan.part_sizes)])
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for teacher, column in enumerate(self.columns):
            own = np.unique(drawn[(teachers == teacher) | (teachers == AVERAGE) | self.compared])
            of_parts = np.split(own, np.searchsorted(own, starts[1:-1]))
            found[column] = {
                part: tuple(rows[of - start].tolist())
                for part, rows, of, start in zip(parts, places, of_parts, starts, strict=False)
            }
        return found

    def _places(self, parts: Mapping[str, int], contexts_per_image: int) -> list[np.ndarray]:
        """The rows of each part that are drawn from."""
        if self.images is None:
            return [np.arange(images * contexts_per_image) for images in parts.values()]
        if self.images > (there := sum(parts.values())):
            raise RefusedError(f"images is {self.images:,}, but the run has {there:,}; give more, or ask for fewer")
        ranked = ((image_rank(part, image), part, image) for part, images in parts.items() for image in range(images))
        chosen: dict[str, list[int]] = {part: [] for part in parts}
        for _, part, image in heapq.nsmallest(self.images, ranked):
            chosen[part].append(image)
        contexts = np.arange(contexts_per_image)
        return [(np.sort(np.array(of, int))[:, None] * contexts_per_image + contexts).ravel() for of in chosen.values()]


def draw_differences(fingerprint: Mapping[str, _Scalar], draw: Draw, catalogued: int) -> list[str]:
    """In what words a training asks for more than a column has: empty where the column has all labels, or those of a draw that
    begins with this one."""
    found = {name: value for name, value in fingerprint.items() if name.startswith(_PREFIX)}
    wanted = draw.fingerprint(catalogued)
    for name in (f"{_PREFIX}steps", f"{_PREFIX}patches"):  # fewer steps draw the same labels, as far as they go
        if isinstance(has := found.get(name), int) and has >= int(wanted[name] or 0):
            wanted[name] = has
    return fingerprint_differences(found, wanted) if found else []


def is_of_a_draw(fingerprint: Mapping[str, _Scalar]) -> bool:
    """Whether a column has the labels of one training's draw alone."""
    return any(name.startswith(_PREFIX) for name in fingerprint)
