"""View plans: which context and which patches of a photograph are labelled.

A pure function of (seed, key, image size, plan). All boxes live on the *context grid*, the small picture that the student
sees: a patch is a box of whole pixels there, so that cutting a patch out of the student's map is an exact slice. The place
a box has in the photograph follows by scaling and may be fractional.

Boxes are (top, left, height, width), half-open, origin top-left.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


class Box(NamedTuple):
    """Whole pixels on the context grid."""

    top: int
    left: int
    height: int
    width: int


class SourceBox(NamedTuple):
    """A region of the upright photograph in its pixels; edges may lie between pixels."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """How a photograph is cut into a context and its patches.

    A patch is native, `patch_px` source pixels wide, wherever that gives a useful grid. It never spans more than two thirds
    of the context's short side (it would show hardly more than the context; small photographs are enlarged instead), and it
    grows beyond native where `max_patches_short_side` of them would not cover the short side with a tenth of overlap.
    """

    context: Literal["whole", "square"] = "square"
    """`whole`: the entire photograph, its aspect kept, its long side `context_px`. `square`: the paper's random square."""
    context_px: int = 560
    """Side of the context grid."""
    patch_px: int = 560
    """Side of the teachers' input for a patch, and its native side in the photograph."""
    min_square_px: int = 644
    """Shortest side of a square context in the photograph; a photograph whose short side is less gives all of that."""
    max_patches_short_side: int = 6
    """Most patches along the context's short side."""
    min_image_px: int = 32
    """Photographs with a shorter side than this are rejected."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        least = {"context_px": 16, "patch_px": 16, "min_square_px": 16, "max_patches_short_side": 2, "min_image_px": 1}
        return [
            f"{name} is {getattr(self, name)}, expected at least {bound}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]


@dataclass(frozen=True, kw_only=True)
class ImageViews:
    """The views of one photograph: where its context lies in it, the context's size on the grid, and the patches' boxes."""

    source: SourceBox
    extent: tuple[int, int]
    patches: tuple[Box, ...]

    def source_box(self, box: Box) -> SourceBox:
        """Where a box of the context grid lies in the photograph."""
        y, x = self.source.height / self.extent[0], self.source.width / self.extent[1]
        return SourceBox(self.source.top + box.top * y, self.source.left + box.left * x, box.height * y, box.width * x)


class ImageTooSmallError(ValueError):
    """The photograph's short side is below the plan's `min_image_px`."""


def plan_views(plan: ViewPlan, *, seed: int, key: str, height_px: int, width_px: int) -> ImageViews:
    """The views of the photograph `key`, whose upright size is height_px x width_px.

    Raises ImageTooSmallError below `min_image_px`.
    """
    if min(height_px, width_px) < plan.min_image_px:
        raise ImageTooSmallError(
            f"the image is {width_px} x {height_px} px; the plan needs a short side of {plan.min_image_px} px or more"
        )
    source = _context(plan, seed, key, height_px, width_px)
    shrink = plan.context_px / max(source.height, source.width)
    extent = max(round(source.height * shrink), 1), max(round(source.width * shrink), 1)
    side = _patch_side(plan, extent, shrink)
    patches = (Box(top, left, side, side) for top in _starts(extent[0], side) for left in _starts(extent[1], side))
    return ImageViews(source=source, extent=extent, patches=tuple(patches))


def _context(plan: ViewPlan, seed: int, key: str, height_px: int, width_px: int) -> SourceBox:
    if plan.context == "whole":
        return SourceBox(0, 0, height_px, width_px)
    short = min(height_px, width_px)
    rng = np.random.default_rng(list(hashlib.sha256(f"{seed}\0{key}".encode()).digest()))
    side = int(rng.integers(min(plan.min_square_px, short), short + 1))
    return SourceBox(int(rng.integers(height_px - side + 1)), int(rng.integers(width_px - side + 1)), side, side)


def _patch_side(plan: ViewPlan, extent: tuple[int, int], shrink: float) -> int:
    """Side of the square patches on the context grid."""
    short = min(extent)
    smallest = math.ceil(1.1 * short / plan.max_patches_short_side)
    largest = max(short * 2 // 3, 1)
    return min(max(round(plan.patch_px * shrink), smallest), largest)


def _starts(length: int, side: int) -> list[int]:
    """Evenly spaced starts of the fewest patches, two or more, that cover `length` and overlap."""
    count = max(2, length // side + 1)
    return [round(i * (length - side) / (count - 1)) for i in range(count)]
