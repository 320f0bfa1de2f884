"""View plans: which contexts and which patches of a photograph are labelled.

A pure function of (seed, key, image size, plan). All boxes live on the *context grid*, the small picture that the student
sees: a patch is a box of whole pixels there, so that cutting a patch out of the student's map is an exact slice. The place
a box has in the photograph follows by scaling and may be fractional. Pixel i covers [i, i + 1), its centre lies at i + 1/2.

Boxes are (top, left, height, width), half-open, origin top-left.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from manifests.errors import DistillError

MAX_PATCH_PIXELS = 1 << 27
"""Of all patches of a context together, as the teachers are shown them."""


Resampler = Literal["fast_image_resize", "pillow"]
"""What cuts and resizes pictures: the Rust library, of the package cykooz-resizer, takes a tenth of Pillow's time."""


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
    """How a photograph is cut into contexts, and each context into overlapping square patches.

    Patches are native: `patch_px` pixels of the photograph, to within one pixel of the context grid. They lie in the smallest
    evenly spaced grid of two or more rows and columns in which neighbours share at least a pixel; `patches_per_side` gives
    their number instead. A box is at least two pixels of the grid and at least one less than the context's short side.

    A photograph that is too small for that follows `small_images`, down to `min_image_px`, below which it is rejected:
    - `enlarge`: a square context is all of the short side where that is below `min_square_px`; in a context whose short side is
      below `patch_px` in the photograph, patches are two thirds of it, enlarged for the teacher;
    - `reject`: a photograph with a short side below `min_square_px` (for `whole`: below `patch_px`) is rejected.

    A photograph is rejected too where the patches of a context have together more than MAX_PATCH_PIXELS (134 million: 427
    patches of 560 px, 3,640 of 192). A whole photograph of 24 megapixels has 88 patches of 560 px, one of 100 has 374; a whole
    stripe may be about a hundred times as long as it is wide.
    """

    context: Literal["whole", "square"] = "square"
    """`whole`: the entire photograph, its aspect kept, its long side `context_px`. `square`: the paper's random square."""
    context_px: int = 560
    """Side of the context grid."""
    patch_px: int = 560
    """Side of the teachers' input for a patch, and its native side in the photograph."""
    min_square_px: int = 644
    """Shortest side of a square context in the photograph."""
    contexts_per_image: int = 1
    """Square contexts drawn from each photograph; more of them leave the earlier ones where they are."""
    patches_per_side: int | None = None
    """Patches along the context's short side (along its long side as many as keep the overlap), instead of native ones."""
    patch_overlap: float = 0.25
    """With `patches_per_side`: the share of a patch's side that its neighbour also shows."""
    small_images: Literal["enlarge", "reject"] = "enlarge"
    """What becomes of photographs that are smaller than the squares or the patches."""
    min_image_px: int = 32
    """Photographs with a shorter side than this are rejected."""

    @property
    def short_side_needed_px(self) -> int:
        """The least short side of a photograph that is not rejected."""
        if self.small_images == "enlarge":
            return self.min_image_px
        return max(self.min_image_px, self.min_square_px if self.context == "square" else self.patch_px)

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        least = {"context_px": 16, "patch_px": 16, "min_square_px": 16, "contexts_per_image": 1, "min_image_px": 1}
        least |= {} if self.patches_per_side is None else {"patches_per_side": 2}
        found = [
            f"{name} is {getattr(self, name)}, expected at least {bound}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        if not 0 <= self.patch_overlap < 1:
            found.append(f"patch_overlap is {self.patch_overlap}, expected a share of the patch's side, 0 or more and below 1")
        if self.context == "whole" and self.contexts_per_image > 1:
            found.append(
                f"contexts_per_image is {self.contexts_per_image}, expected 1: whole contexts of an image would all be the same"
            )
        if self.context == "square" and self.small_images == "reject" and self.min_square_px < self.patch_px:
            found.append(
                f"min_square_px is {self.min_square_px}, expected at least patch_px ({self.patch_px}):"
                " small_images `reject` accepts no square that is smaller than a patch"
            )
        fewest = (self.patches_per_side or 2) ** 2
        if fewest * self.patch_px**2 > MAX_PATCH_PIXELS:
            found.append(
                f"patch_px is {self.patch_px}, so that {fewest} patches have {fewest * self.patch_px**2:,} pixels,"
                f" expected at most {MAX_PATCH_PIXELS:,} for a context"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class ImageViews:
    """The views of one context: where it lies in the photograph, its size on the grid, and the patches' boxes."""

    source: SourceBox
    extent: tuple[int, int]
    patches: tuple[Box, ...]

    def source_box(self, box: Box) -> SourceBox:
        """Where a box of the context grid lies in the photograph."""
        y, x = self.source.height / self.extent[0], self.source.width / self.extent[1]
        return SourceBox(self.source.top + box.top * y, self.source.left + box.left * x, box.height * y, box.width * x)


class UnfitImageError(DistillError, ValueError):
    """The photograph's size does not fit the plan; `kind` as in a rejection."""

    kind: str


class ImageTooSmallError(UnfitImageError):
    """The photograph's short side is below what the plan needs."""

    kind = "too_small"


class TooManyViewsError(UnfitImageError):
    """The patches of a context have together more pixels than MAX_PATCH_PIXELS."""

    kind = "too_many_views"


def plan_views(plan: ViewPlan, *, seed: int, key: str, height_px: int, width_px: int) -> tuple[ImageViews, ...]:
    """The views of each context of the photograph `key`, whose upright size is height_px x width_px.

    Always `contexts_per_image` contexts. Raises ImageTooSmallError below `short_side_needed_px`, TooManyViewsError above
    MAX_PATCH_PIXELS, before it makes any of them, and nothing else.
    """
    if min(height_px, width_px) < plan.short_side_needed_px:
        raise ImageTooSmallError(
            f"the image is {width_px} x {height_px} px; the plan needs a short side of {plan.short_side_needed_px} px or more"
        )
    draws = (f"{seed}\0{key}\0{index}" for index in range(plan.contexts_per_image))
    return tuple(_views(plan, _context(plan, draw, height_px, width_px)) for draw in draws)


def _context(plan: ViewPlan, draw: str, height_px: int, width_px: int) -> SourceBox:
    if plan.context == "whole":
        return SourceBox(0, 0, height_px, width_px)
    short = min(height_px, width_px)
    rng = np.random.default_rng(list(hashlib.sha256(draw.encode(errors="surrogatepass")).digest()))
    side = int(rng.integers(min(plan.min_square_px, short), short + 1))
    return SourceBox(int(rng.integers(height_px - side + 1)), int(rng.integers(width_px - side + 1)), side, side)


def _views(plan: ViewPlan, source: SourceBox) -> ImageViews:
    shrink = plan.context_px / max(source.height, source.width)
    # Three pixels are the least in which two boxes of two pixels differ and overlap; only stripes are ever stretched to them.
    extent = max(round(source.height * shrink), 3), max(round(source.width * shrink), 3)
    side = _patch_side(plan, source, min(extent), shrink)
    if plan.patches_per_side is None:
        count, shared = 2, 1
    else:
        count, shared = plan.patches_per_side, max(int(plan.patch_overlap * side), 1)
    tops, lefts = (even_starts(length, side, least=count, shared=shared) for length in extent)
    if len(tops) * len(lefts) * plan.patch_px**2 > MAX_PATCH_PIXELS:
        raise TooManyViewsError(
            f"a context of {source.width:.0f} x {source.height:.0f} px would be cut into {len(tops) * len(lefts):,} patches of"
            f" {plan.patch_px} px, {len(tops) * len(lefts) * plan.patch_px**2:,} pixels together, expected at most"
            f" {MAX_PATCH_PIXELS:,}; shrink or crop the photograph, or state few patches_per_side"
        )
    return ImageViews(source=source, extent=extent, patches=tuple(Box(top, left, side, side) for top in tops for left in lefts))


def _patch_side(plan: ViewPlan, source: SourceBox, short: int, shrink: float) -> int:
    """Side of the square patches on a context grid whose short side is `short`."""
    if (n := plan.patches_per_side) is not None:
        # n patches and n - 1 overlaps fill the short side; the second bound leaves each overlap at least one pixel.
        side = math.ceil(max(short / (n - (n - 1) * plan.patch_overlap), (short + n - 1) / n))
    elif min(source.height, source.width) >= plan.patch_px:
        side = round(plan.patch_px * shrink)
    else:
        side = short * 2 // 3
    return min(max(side, 2), short - 1)


def even_starts(length: int, side: int, *, least: int, shared: int) -> list[int]:
    """Evenly spaced starts of the fewest pieces of `side`, `least` or more, that cover `length` and share `shared` pixels.

    Fewer than `least` only where `length` has not as many places.
    """
    covering = math.ceil((length - shared) / (side - shared))
    count = min(max(least, covering), length - side + 1)
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


# --- from a patch's pixels to the context grid ----------------------------------------------------------------------


def onto_grid(depth: Float32[np.ndarray, "h w"], height: int, width: int) -> Float32[np.ndarray, "h2 w2"]:
    """A patch's map, of finite values, at the size of its box on the context grid, in place to a fraction of a pixel.

    Along a side that shrinks, each pixel is the exact mean over the area that it covers; one that grows is interpolated
    linearly between pixel centres. The result depends on neither threads nor batches.
    """
    return np.ascontiguousarray(_on_grid(depth.astype(np.float64), height, width), np.float32)


def onto_grid_where(
    depth: Float32[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"], height: int, width: int
) -> tuple[Float32[np.ndarray, "h2 w2"], Bool[np.ndarray, "h2 w2"]]:
    """As `onto_grid`, of a map that holds only where `known`; and where the result holds.

    A pixel is the mean over the known share of what it covers, and valid where that is half of it or more; invalid ones are 0.
    """
    share = _on_grid(known.astype(np.float64), height, width)
    valid = share >= 0.5
    sums = _on_grid(np.where(known, depth, 0).astype(np.float64), height, width)
    return np.where(valid, sums / np.where(valid, share, 1), 0).astype(np.float32), valid


def _on_grid(values: Float64[np.ndarray, "h w"], height: int, width: int) -> Float64[np.ndarray, "h2 w2"]:
    """Both axes at another length."""
    return _resampled(np.ascontiguousarray(_resampled(values, height).T), width).T


def _resampled(lines: Float64[np.ndarray, "old n"], new: int) -> Float64[np.ndarray, "new n"]:
    """The first axis at another length: the sum of a few lines, each times its weight."""
    (first, *others), (weight, *weights) = resampling(len(lines), new)
    total = weight[:, None] * lines[first]
    for index, weight in zip(others, weights, strict=True):
        term = lines[index]
        term *= weight[:, None]
        total += term
    return total


@cache
def resampling(old: int, new: int) -> tuple[Int64[np.ndarray, "k new"], Float64[np.ndarray, "k new"]]:
    """Of which places of `old` each of `new` places is made, and the weights of these, which are 1 together: of those that it
    covers where they become fewer, of its two neighbours where they become more."""
    edges = np.arange(new + 1) * old / new
    if new > old:
        centres = np.clip((edges[:-1] + edges[1:]) / 2 - 0.5, 0, old - 1)
        low = np.minimum(centres.astype(int), max(old - 2, 0))
        return np.stack([low, np.minimum(low + 1, old - 1)]), np.stack([low + 1 - centres, centres - low])
    places = edges[:-1].astype(int) + np.arange(math.ceil(old / new) + 1)[:, None]
    shares = np.minimum(edges[1:], places + 1) - np.maximum(edges[:-1], places)
    weights = np.clip(shares, 0, None) * (new / old)
    used = weights.any(axis=1)
    return np.minimum(places, old - 1)[used], weights[used]
