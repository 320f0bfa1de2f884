"""From a prediction and a benchmark's sample to the numbers of one image, and from those to means over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from stages.depth_space import DepthSpace
from stages.evaluation.benchmarks import BenchmarkSample
from stages.evaluation.boundaries import BoundaryScore, boundary_score
from stages.evaluation.metrics import DepthMetrics, aligned_depth, depth_errors, mean_metrics
from stages.evaluation.protocols import BenchmarkRules, refuse_space
from stages.evaluation.rendered import resize_bilinear

_AFFINE: dict[DepthSpace, DepthSpace] = {
    "depth_metric": "depth_affine_invariant",
    "disparity_metric": "disparity_affine_invariant",
}
"""Metric predictions are aligned too: the tables are of zero-shot, affine-invariant depth."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """One image. boundary: null where the true depth has no edge between valid neighbours."""

    metrics: DepthMetrics
    boundary: BoundaryScore | None


@dataclass(frozen=True, kw_only=True)
class MeanScore:
    """Means over `images`; those of the boundary over the `images_with_edges`, null where there are none."""

    metrics: DepthMetrics
    boundary: BoundaryScore | None
    images: int
    images_with_edges: int


def score(
    prediction: Float32[np.ndarray, "h w"], sample: BenchmarkSample, rules: BenchmarkRules, space: DepthSpace
) -> ImageScore:
    """A prediction of any size, in `space`, resized bilinearly to the truth, aligned, clipped and compared by the rules.

    Raises ValueError, naming the image, as `aligned_depth` and `refuse_space` do.
    """
    refuse_space(rules, space)
    fit_valid = None if rules.fit_long_side_px is None else thinned(sample.valid, rules.fit_long_side_px)
    affine, bounds_m = _AFFINE.get(space, space), (rules.clip_min_m, rules.clip_max_m)
    return score_within(bounds_m, prediction, sample, affine, fit_valid=fit_valid)


def score_within(
    bounds_m: tuple[float, float | None],
    prediction: Float32[np.ndarray, "h w"],
    sample: BenchmarkSample,
    space: DepthSpace,
    *,
    fit_valid: Bool[np.ndarray, "h2 w2"] | None = None,
) -> ImageScore:
    """As `score`, with the bounds that the aligned prediction is clipped to and the pixels to fit on given outright."""
    shape, valid = sample.depth_m.shape, sample.valid
    resized = prediction if prediction.shape == shape else resize_bilinear(prediction, shape)
    near_m, far_m = bounds_m
    try:
        aligned = aligned_depth(
            resized, sample.depth_m, valid, space=space, min_depth_m=near_m, max_depth_m=far_m, fit_valid=fit_valid
        )
    except ValueError as error:
        every = "; a model is scored in all of them, those that it marks as not known (NaN) too"
        raise ValueError(f"{sample.name}: {error}{every * bool(np.isnan(resized[valid]).any())}") from error
    metrics = depth_errors(aligned, sample.depth_m[valid])
    depth_m = np.ones(shape)
    depth_m[valid] = aligned
    return ImageScore(metrics=metrics, boundary=boundary_score(depth_m, sample.depth_m, valid))


def mean_scores(scores: Sequence[ImageScore]) -> MeanScore:
    """Each image counts once. Raises ValueError for no image."""
    metrics = mean_metrics([each.metrics for each in scores])
    edges = [each.boundary for each in scores if each.boundary is not None]
    rows = np.array([(each.precision, each.recall, each.f1) for each in edges])
    means = dict(zip(("precision", "recall", "f1"), rows.mean(0).tolist(), strict=True)) if edges else None
    return MeanScore(
        metrics=metrics,
        boundary=BoundaryScore(**means) if means else None,
        images=len(scores),
        images_with_edges=len(edges),
    )


def thinned(valid: Bool[np.ndarray, "h w"], long_side_px: int) -> Bool[np.ndarray, "h w"]:
    """The valid pixels that a nearest-neighbour copy with at most this long side would keep.

    PAPER has both sides thinned. Marigold's own code thins only the columns, as torch takes its array for a sequence of rows:
    the same estimate from six times as many pixels.
    """
    longest = max(valid.shape)
    if longest <= long_side_px:
        return valid
    rows, columns = (np.arange(side * long_side_px // longest) * longest // long_side_px for side in valid.shape)
    kept = np.zeros_like(valid)
    kept[np.ix_(rows, columns)] = valid[np.ix_(rows, columns)]
    return kept
