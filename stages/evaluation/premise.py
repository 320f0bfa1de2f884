"""Is a close-up's label better than the same place in the whole view's label? The local-global loss assumes that it is.

Both are on the context grid, and so is the exact depth they are held against: scenes are rendered anew at the grid's size, so
that nothing is resampled. Each is fitted by scale and shift inside the patch, as the loss compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from stages.evaluation.benchmarks import BenchmarkSample
from stages.evaluation.rendered import MAX_DEPTH_M, MIN_DEPTH_M, scored_pixels
from stages.evaluation.scoring import score_within
from stages.label_store import ImageLabels

_LEAST_SCORED = 0.25
"""Patches of which less than this share has a true depth, the sky for the most part, are left out."""


@dataclass(frozen=True, kw_only=True)
class PremiseScore:
    """Means over the patches of one photograph; edge F1 is NaN where no patch has an edge."""

    slice_abs_rel: float
    close_up_abs_rel: float
    slice_edge_f1: float
    close_up_edge_f1: float
    patches: int


def premise_score(labels: ImageLabels, depth_m: Float[np.ndarray, "h w"]) -> PremiseScore | None:
    """What the labels of one context are worth, inside each patch. labels: disparity. depth_m: exact, on the context's grid.

    None where no patch has enough to compare. A label that is constant where it is compared is scored as it is.
    Raises ValueError where the depth has another size than the context.
    """
    if labels.context.values.shape != depth_m.shape:
        raise ValueError(f"found a depth of {depth_m.shape}, expected the size of the context, {labels.context.values.shape}")
    rows = []
    for patch in labels.patches:
        top, left, height, width = patch.box
        place = np.s_[top : top + height, left : left + width]
        truth = depth_m[place]
        valid = scored_pixels(truth) & patch.valid & labels.context.valid[place]
        if valid.mean() < _LEAST_SCORED:
            continue
        sample = BenchmarkSample(name="patch", rgb=np.zeros((height, width, 3), np.uint8), depth_m=truth, valid=valid)
        rows.append([*_scores(labels.context.values[place], sample), *_scores(patch.values, sample)])
    if not rows:
        return None
    values = np.array(rows)
    with_edges = values[~np.isnan(values[:, 1])]
    f1 = with_edges[:, [1, 3]].mean(0) if len(with_edges) else (np.nan, np.nan)
    return PremiseScore(
        slice_abs_rel=float(values[:, 0].mean()),
        close_up_abs_rel=float(values[:, 2].mean()),
        slice_edge_f1=float(f1[0]),
        close_up_edge_f1=float(f1[1]),
        patches=len(rows),
    )


def _scores(values: Float32[np.ndarray, "h w"], sample: BenchmarkSample) -> tuple[float, float]:
    """AbsRel and edge F1 of an affine-invariant disparity, brought to [1, 2] first: the fit leaves out what is not above 0."""
    low, high = values[sample.valid].min(), values[sample.valid].max()
    positive = (values - low) / (high - low if high > low else np.float32(1)) + np.float32(1)
    scored = score_within((MIN_DEPTH_M, MAX_DEPTH_M), positive, sample, "disparity_affine_invariant")
    return scored.metrics.abs_rel, scored.boundary.f1 if scored.boundary else float("nan")
