"""How far two teachers agree on a view: AbsRel, correlation and edge F1, once one is aligned to the other.

Neither is the truth, and disparity says nothing of how deep a scene is. So that these numbers mean the same for all teachers
and views, the first one's disparity is put on a scale of its own: its 2 % quantile at 0.1 and its 98 % quantile at 1, as if its
farthest point were ten times as far as its nearest. The other one is brought to that by least squares; AbsRel and edges are
those of the depths that result. Nothing depends on the scale and shift that either label has. Depths become disparities as in
`convert_to_disparity`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manifests.schema import DepthSpace
from stages.coloring import robust_range
from stages.depth_space import convert_to_disparity
from stages.evaluation.boundaries import boundary_score
from stages.evaluation.metrics import align_scale_shift
from stages.label_store import AnyLabel

_FAR, _NEAR = 0.1, 1.0
_FARTHEST = 0.05
"""Disparities on that scale below this count as this: no point is farther than twenty times the nearest."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of two labels of one view. All but `shared` are None where the first one has no contrast in the pixels that both have.

    shared: of the pixels, those that are valid in both. abs_rel: |d - d*| / d*, the mean over them, d* of the first.
    correlation: of the disparities, from -1 to 1. edge_f1: from 0 to 1 (see `stages.evaluation.boundaries`), None where the
    first has no edge.
    """

    shared: float
    abs_rel: float | None = None
    correlation: float | None = None
    edge_f1: float | None = None


def agreement(first: AnyLabel, second: AnyLabel, first_space: DepthSpace, second_space: DepthSpace) -> Agreement:
    """How far the second label of a view agrees with the first, of equal shape.

    A second one that agrees only upside down, or has no contrast, counts as the first's mean everywhere.
    """
    valid = first.valid & second.valid
    target = convert_to_disparity(first.values, first.valid, first_space, "approximate")
    other = convert_to_disparity(second.values, second.valid, second_space, "approximate")
    shared = float(valid.mean()) if valid.size else 0.0
    low, high = robust_range(target, valid)
    if not (valid.any() and low < high):
        return Agreement(shared=shared)
    scaled = _FAR + (_NEAR - _FAR) * (target.astype(np.float64) - low) / (high - low)
    fit = align_scale_shift(other, scaled, valid)
    aligned = fit.scale * other + fit.shift if fit.scale > 0 else np.full(scaled.shape, scaled[valid].mean())
    theirs, ours = (1 / np.maximum(disparity, _FARTHEST) for disparity in (aligned, scaled))
    edges = boundary_score(theirs, ours, valid)
    spread = float(scaled[valid].std())
    return Agreement(
        shared=shared,
        abs_rel=float((np.abs(theirs - ours) / ours)[valid].mean()),
        correlation=float(np.clip(fit.scale * other[valid].astype(np.float64).std() / spread, -1, 1)),
        edge_f1=None if edges is None else edges.f1,
    )
