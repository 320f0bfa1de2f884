"""How many of a run's images a training uses, and why it does not use the others.

Takes the records of a run and what is in use of it, and counts every catalogued image once: in use, rejected by the first
column that rejects it, or in a part that is failed, not yet labelled, or newer than the training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from manifests import Run, parts
from manifests.run import ColumnListing
from stages.distillation.columns import Opened


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Numbers of images, which add up to `catalogued`. Its text says them in words."""

    catalogued: int
    used: int
    rejected: Mapping[str, Mapping[str, int]]
    """By column, and kind of problem."""
    failed: Mapping[str, int]
    """By column; the next labelling tries them again."""
    pending: Mapping[str, int]
    """Not yet labelled, by the first column that lacks them."""
    newer: int
    """In parts that all columns have, but that are not among those the training began with."""
    not_drawn: int = 0
    """Never drawn by the training that the columns were labelled for."""
    not_chosen: int = 0
    """Labelled, but not among those that were chosen of all that are."""

    @property
    def unfinished(self) -> bool:
        """Whether labelling would bring more."""
        return bool(self.failed or self.pending)

    def __str__(self) -> str:
        rejected = (
            f"{sum(kinds.values())} rejected in {column!r} ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))})"
            for column, kinds in self.rejected.items()
        )
        failed = (f"{count} failed in {column!r}" for column, count in self.failed.items())
        pending = (f"{count} not yet labelled in {column!r}" for column, count in self.pending.items())
        newer = [f"{self.newer} in parts labelled since the training began"] * bool(self.newer)
        drawn = [f"{self.not_drawn} are never drawn by the training they were labelled for"] * bool(self.not_drawn)
        chosen = [f"{self.not_chosen} are more than was asked for"] * bool(self.not_chosen)
        reasons = [*rejected, *failed, *pending, *newer, *drawn, *chosen]
        return f"{self.used} of {self.catalogued} images are in use" + f"; left out: {', '.join(reasons)}" * bool(reasons)


def coverage_of(run: Run, listings: Mapping[str, ColumnListing], opened: Opened) -> Coverage:
    """listings: of `images` and the teachers' columns in use; opened: the parts in use, maybe fewer than are complete."""
    contexts = int(run.plan.get("contexts_per_image", 1))
    in_use = dict(zip(opened.names, opened.parts.images_in_use(contexts), strict=True))
    columns = list(listings)
    rejected: dict[str, Counter[str]] = {column: Counter() for column in columns}
    failed: Counter[str] = Counter()
    pending: Counter[str] = Counter()
    newer, not_drawn, in_use_images = 0, 0, 0
    for part in parts(run):
        missing = [column for column in columns if part.name not in listings[column].manifests]
        if part.name in in_use:
            left_out = opened.rejected.get(part.name, {})
            for (column, kind), count in left_out.items():
                rejected[column][kind] += count
            in_use_images += in_use[part.name]
            not_drawn += part.images - in_use[part.name] - sum(left_out.values())
        elif not missing:
            newer += part.images
        elif failures := [column for column in missing if part.name in listings[column].failures]:
            failed[failures[0]] += part.images
        else:
            pending[missing[0]] += part.images
    return Coverage(
        catalogued=sum(part.images for part in parts(run)),
        used=in_use_images,
        rejected={column: dict(kinds) for column, kinds in rejected.items() if kinds},
        failed=dict(failed),
        pending=dict(pending),
        newer=newer,
        not_drawn=not_drawn,
    )
