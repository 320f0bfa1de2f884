"""How sharp depth edges are: Depth Pro's scale-invariant boundary metric, on the pixels whose true depth is known.

Between two neighbouring pixels there is an occlusion edge, at threshold t, where the depth of one is more than t times that of
the other (Depth Pro, arXiv 2410.02073, section 3.2, equations 2 to 4). For each of ten thresholds evenly spaced in
[1.05, 1.25], and each of the four directions in which depth can grow, precision is the share of predicted edges that are true
and recall the share of true edges that are predicted; both are averaged over the directions, and F1 is their harmonic mean.
What is reported is the mean over thresholds with weights in proportion to t. As in the authors' code, a direction without
edges counts as 0. Ratios ignore scale but not shift: a prediction is aligned first. Sparse truth, as of a
laser scanner, has few neighbours that are both known, and says little here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

_THRESHOLDS = np.linspace(1.05, 1.25, 10)
_BAND_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class BoundaryScore:
    """Of one image, or means over images; each in [0, 1]."""

    precision: float
    recall: float
    f1: float


def boundary_score(
    predicted_m: Float[np.ndarray, "h w"], depth_m: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]
) -> BoundaryScore | None:
    """Edges of a predicted depth against those of the true one, between neighbours that are both valid.

    Both depths are finite and > 0 where valid, in one unit or not. None where the truth has no edge at any threshold.
    """
    counts = np.zeros((4, 3, _THRESHOLDS.size), np.int64)
    for top in range(0, valid.shape[0], _BAND_ROWS):  # little memory, and that in the processor's cache
        for axis in (0, 1):
            rows = slice(top, top + _BAND_ROWS + (axis == 0))  # from row to row, with the next band's first
            counts[2 * axis : 2 * axis + 2] += _edge_counts(predicted_m[rows], depth_m[rows], valid[rows], axis)
    true_and_predicted, predicted, true = np.moveaxis(counts, 1, 0)  # each [4 directions, 10 thresholds]
    if not true.any():
        return None
    precision = (true_and_predicted / np.maximum(predicted, 1)).mean(0)
    recall = (true_and_predicted / np.maximum(true, 1)).mean(0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    weights = _THRESHOLDS / _THRESHOLDS.sum()
    return BoundaryScore(precision=float(weights @ precision), recall=float(weights @ recall), f1=float(weights @ f1))


def _edge_counts(
    predicted_m: Float[np.ndarray, "h w"], depth_m: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], axis: int
) -> list[Int[np.ndarray, "3 t"]]:
    """For depth that grows along the axis, and against it: how many edges both have, the prediction, and the truth."""
    before, after = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
    known = valid[before] & valid[after]
    near, far = predicted_m[before][known].astype(np.float64), predicted_m[after][known].astype(np.float64)
    true_near, true_far = depth_m[before][known].astype(np.float64), depth_m[after][known].astype(np.float64)
    growing = (far / near, true_far / true_near)
    shrinking = (near / far, true_near / true_far)
    return [
        np.stack([_count_above(np.minimum(ours, theirs)), _count_above(ours), _count_above(theirs)])
        for ours, theirs in (growing, shrinking)
    ]


def _count_above(ratios: Float[np.ndarray, "n"]) -> Int[np.ndarray, "t"]:
    """How many ratios lie above each threshold; few lie above any, so only those are sorted in."""
    passed = np.searchsorted(_THRESHOLDS, ratios[ratios > _THRESHOLDS[0]])
    return np.bincount(passed, minlength=_THRESHOLDS.size + 1)[::-1].cumsum()[::-1][1:]
