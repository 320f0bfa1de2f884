"""Depth errors of one image, as Marigold's zero-shot protocol defines them; float64 throughout.

A prediction that cannot be scored (dead, not finite, nothing valid) raises ValueError; no metric is ever NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from jaxtyping import Bool, Float, Float64
from numpy.typing import NDArray

from stages.depth_space import DepthSpace

DISPARITY_FLOOR = 1e-3
"""Fitted disparity (1/m) below this counts as this, so that its inverse is at most 1000 m."""


@dataclass(frozen=True, kw_only=True)
class AffineFit:
    """target is about scale * prediction + shift."""

    scale: float
    shift: float


@dataclass(frozen=True, kw_only=True)
class DepthMetrics:
    """Means over the valid pixels of one image; d is the aligned prediction, d* the true depth.

    abs_rel: |d - d*| / d*. delta1, delta2, delta3: share of pixels with max(d/d*, d*/d) < 1.25, 1.25^2, 1.25^3.
    rmse_m: root of the mean squared error, metres. log10: |log10 d - log10 d*|.
    silog: 100 * the standard deviation of ln d - ln d*.
    """

    abs_rel: float
    delta1: float
    delta2: float
    delta3: float
    rmse_m: float
    log10: float
    silog: float


def align_scale_shift(
    prediction: Float[np.ndarray, "..."], target: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."]
) -> AffineFit:
    """Plain least squares over the valid pixels: the scale and shift that bring the prediction closest to the target.

    The three arrays have one shape, any. The scale may come out negative. A constant prediction says nothing about
    shape: scale 0, shift the target's mean.
    Raises ValueError for shapes that differ, for no valid pixel, and for values that are not finite on valid pixels.
    """
    x, y = _valid_values(prediction, target, valid)
    x_mean, y_mean = x[0] + (x - x[0]).mean(), y.mean()  # from x[0], so that a constant has a spread of exactly 0
    spread = x - x_mean
    variance = spread @ spread
    scale = float(spread @ (y - y_mean) / variance) if variance > 0 else 0.0
    return AffineFit(scale=scale, shift=float(y_mean - scale * x_mean))


def depth_metrics(
    prediction: Float[np.ndarray, "..."],
    depth_m: Float[np.ndarray, "..."],
    valid: Bool[np.ndarray, "..."],
    *,
    space: DepthSpace,
    min_depth_m: float,
    max_depth_m: float | None,
    fit_valid: Bool[np.ndarray, "..."] | None = None,
) -> DepthMetrics:
    """Errors of one prediction against true depth (PAPER: zero-shot evaluation); arguments and errors as `aligned_depth`."""
    aligned = aligned_depth(
        prediction,
        depth_m,
        valid,
        space=space,
        min_depth_m=min_depth_m,
        max_depth_m=max_depth_m,
        fit_valid=fit_valid,
    )
    return depth_errors(aligned, depth_m[valid].astype(np.float64))


def aligned_depth(
    prediction: Float[np.ndarray, "..."],
    depth_m: Float[np.ndarray, "..."],
    valid: Bool[np.ndarray, "..."],
    *,
    space: DepthSpace,
    min_depth_m: float,
    max_depth_m: float | None,
    fit_valid: Bool[np.ndarray, "..."] | None = None,
) -> Float64[np.ndarray, "n"]:
    """What a prediction says of the depth of the n valid pixels, metres, in their order.

    prediction: in `space`. depth_m: metres, of the same shape; where `valid`, finite and > 0. An affine-invariant prediction
    is first aligned to the truth by least squares: disparity to 1/d* on the valid pixels where the prediction is > 0, then
    floored at DISPARITY_FLOOR and inverted; depth to d*. Metric predictions are not aligned. Depth is then clipped to
    [min_depth_m, max_depth_m], where None is no bound. `fit_valid`: the pixels to fit on, where these are not the valid ones.
    Raises ValueError as `align_scale_shift` does, for a disparity that is nowhere > 0, for true depth that is not > 0, and
    for a range that is not 0 < min < max.
    """
    far_m = np.inf if max_depth_m is None else max_depth_m
    if not 0 < min_depth_m < far_m:
        raise ValueError(f"the depth range is [{min_depth_m}, {max_depth_m}] m, expected 0 < min < max")
    scored = _scored_values(prediction, depth_m, valid)
    fitted = scored if fit_valid is None else _scored_values(prediction, depth_m, fit_valid)
    return np.clip(_depth(scored[0], fitted, space), min_depth_m, far_m)


def depth_errors(depth_m: Float64[np.ndarray, "n"], truth_m: Float64[np.ndarray, "n"]) -> DepthMetrics:
    """Errors of n depths, already aligned and > 0, against the true ones, > 0; metres."""
    ratio = np.maximum(depth_m / truth_m, truth_m / depth_m)
    log_error = np.log(depth_m) - np.log(truth_m)
    return DepthMetrics(
        abs_rel=float(np.mean(np.abs(depth_m - truth_m) / truth_m)),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
        rmse_m=float(np.sqrt(np.mean((depth_m - truth_m) ** 2))),
        log10=float(np.mean(np.abs(log_error)) / np.log(10)),
        silog=float(100 * np.std(log_error)),
    )


def mean_metrics(metrics: Sequence[DepthMetrics]) -> DepthMetrics:
    """The mean of each metric over images. Raises ValueError for no image."""
    if not metrics:
        raise ValueError("no image was scored: there is no mean")
    rows = np.array([dataclasses.astuple(m) for m in metrics])
    names = [field.name for field in dataclasses.fields(DepthMetrics)]
    return DepthMetrics(**dict(zip(names, rows.mean(0).tolist(), strict=True)))


def _valid_values(
    prediction: Float[np.ndarray, "..."], target: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not prediction.shape == target.shape == valid.shape:
        raise ValueError(
            f"shapes differ: prediction {prediction.shape}, target {target.shape}, valid {valid.shape};"
            " resize the prediction to the target first"
        )
    if not valid.any():
        raise ValueError("the mask has no valid pixel: nothing to compare; leave this image out")
    x, y = prediction[valid].astype(np.float64), target[valid].astype(np.float64)
    for name, values in (("prediction", x), ("target", y)):
        if bad := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(f"the {name} is not finite in {bad} of {values.size} valid pixels")
    return x, y


def _scored_values(
    prediction: Float[np.ndarray, "..."], depth_m: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    predicted, truth = _valid_values(prediction, depth_m, valid)
    if truth.min() <= 0:
        raise ValueError(f"the true depth of valid pixels goes down to {truth.min()} m, expected > 0; mark such pixels invalid")
    return predicted, truth


def _depth(
    values: NDArray[np.float64], fitted: tuple[NDArray[np.float64], NDArray[np.float64]], space: DepthSpace
) -> NDArray[np.float64]:
    predicted, truth = fitted
    match space:
        case "disparity_affine_invariant":
            positive = predicted > 0
            if not positive.any():
                raise ValueError(
                    "the predicted disparity is nowhere > 0: a dead output layer predicts exactly this;"
                    " look at the checkpoint's training log"
                )
            fit = align_scale_shift(predicted, 1 / truth, positive)
            return 1 / np.maximum(fit.scale * values + fit.shift, DISPARITY_FLOOR)
        case "depth_affine_invariant":
            fit = align_scale_shift(predicted, truth, np.ones(truth.shape, np.bool_))
            return fit.scale * values + fit.shift
        case "disparity_metric":
            return 1 / np.maximum(values, DISPARITY_FLOOR)
        case "depth_metric":
            return values
    assert_never(space)
