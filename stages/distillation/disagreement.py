"""Pixels in which the teachers of a run contradict each other: there no student learns from any of them.

A pure function of labels, as they are stored or converted. Each has a scale and a shift of its own, so all are brought to the
first column's, by medians of slopes and differences: a part of the picture in which teachers differ does not pull these away
from where they agree, as it does least squares, and a division by each map's own deviation. Not in the paper, and off unless
it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from stages.distillation.fusion import refuse_other_boxes
from stages.label_store import AnyLabel, AnyLabelT, AnyPatch, only_where

_FITTED_PIXELS = 1 << 13
"""Of more, every n-th is fitted to: the result hardly moves, and a step need not wait for its labels."""
_LEVEL = 0.1
"""Pairs of pixels between which both labels change by less than this share of their deviation say nothing of the scale."""


def agreeing_pixels(labels: Sequence[AnyLabel], most: float) -> Bool[np.ndarray, "h w"]:
    """Where no two labels of one view, of equal shape, differ by more than `most`; true where not all are valid.

    The unit is the first label's mean absolute deviation from its median, over the pixels that are valid in all; where it is
    flat there is nothing to compare, and all is true. A label without contrast, or that agrees with the first only upside
    down, counts as the first's median everywhere.
    """
    valid = np.logical_and.reduce([label.valid for label in labels])
    agree = np.ones(valid.shape, bool)
    first, *others = (label.values[valid].astype(np.float64) for label in labels)
    unit = _deviation(first)
    if unit > 0:
        low, high = first, first
        for other in others:
            aligned = _aligned(other, first)
            low, high = np.minimum(low, aligned), np.maximum(high, aligned)
        agree[valid] = high - low <= most * unit
    return agree


def without_disagreement(label: AnyLabelT, labels: Sequence[AnyLabel], most: float) -> AnyLabelT:
    """A view's label that is valid only where `labels`, those of all teachers of that view, agree (see `agreeing_pixels`)."""
    return only_where(label, agreeing_pixels(labels, most))


def patches_without_disagreement(
    patches: Sequence[AnyPatch], of_teachers: Sequence[Sequence[AnyPatch]], most: float, where: str
) -> tuple[AnyPatch, ...]:
    """`without_disagreement` for each patch of a context. Raises ValueError where the teachers' boxes differ."""
    refuse_other_boxes(of_teachers, where)
    views = zip(patches, zip(*of_teachers, strict=True), strict=True)
    return tuple(without_disagreement(patch, labels, most) for patch, labels in views)


def _aligned(values: Float64[np.ndarray, "n"], target: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Values in the target's scale and shift: those of the median slope between pairs of pixels, and the median difference.

    Theil and Sen's estimate: it is that of the pixels that agree as long as these are seven in ten, whichever of both is off
    in the others, and however far.
    """
    x, y = _fitted(values), _fitted(target)
    other = np.random.default_rng(0).permutation(x.size)
    x_step, y_step = x - x[other], y - y[other]
    telling = (np.abs(x_step) > _LEVEL * _deviation(values)) | (np.abs(y_step) > _LEVEL * _deviation(target))
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = (y_step / x_step)[telling & ((x_step != 0) | (y_step != 0))]
    scale = float(np.median(slopes)) if slopes.size else 0.0
    if not 0 < scale < np.inf:  # NaN where the two middle slopes are infinite and opposite
        return np.full(values.shape, np.median(y))
    return scale * values + np.median(y - scale * x)


def _deviation(values: Float64[np.ndarray, "n"]) -> float:
    """The mean absolute deviation from the median; 0 without any value."""
    used = _fitted(values)
    return float(np.abs(used - np.median(used)).mean()) if used.size else 0.0


def _fitted(values: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "_"]:
    return values[:: max(-(-values.size // _FITTED_PIXELS), 1)]
