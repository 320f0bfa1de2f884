"""Depth errors of one image, as Marigold's zero-shot protocol defines them; float64 throughout.

A prediction that cannot be scored (dead, not finite, nothing valid) raises ValueError; no metric is ever NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import numpy as np
from jaxtyping import Bool, Float, Float64
from numpy.typing import NDArray

from stages.depth_space import DepthSpace, is_disparity

DISPARITY_FLOOR = 1e-3
"""Fitted disparity (1/m) below this counts as this, so that its inverse is at most 1000 m."""

_PART = 2**16


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
    _require_finite(prediction, target, valid)
    return _least_squares(_float64(prediction, valid), lambda: _float64(target, valid))


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
    return depth_errors(aligned, depth_m[valid])


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
    for pixels in (valid,) if fit_valid is None else (valid, fit_valid):
        _refuse_unscorable(prediction, depth_m, pixels)
    fit = _fit(prediction, depth_m, valid if fit_valid is None else fit_valid, space)
    values = prediction[valid].astype(
        np.float64, copy=False
    )  # a copy already: from here on in place, for maps of 24 megapixels
    values *= fit.scale
    values += fit.shift
    if is_disparity(space):
        _inverse(np.maximum(values, DISPARITY_FLOOR, out=values))
    return np.clip(values, min_depth_m, far_m, out=values)


def depth_errors(depth_m: Float64[np.ndarray, "n"], truth_m: Float[np.ndarray, "n"]) -> DepthMetrics:
    """Errors of n depths, already aligned and > 0, against the true ones, > 0; metres. Takes 8 n bytes of memory."""
    each = partial(_of_each, depth_m, truth_m, np.empty_like(depth_m))  # makes each array in place of the last
    abs_rel = each(lambda depth, truth: np.abs(depth - truth) / truth).mean()
    rmse_m = np.sqrt(each(lambda depth, truth: (depth - truth) ** 2).mean())
    ratio = each(lambda depth, truth: np.maximum(depth / truth, truth / depth))
    delta1, delta2, delta3 = (float(np.mean(ratio < 1.25**power)) for power in (1, 2, 3))
    log10 = each(lambda depth, truth: np.abs(np.log(depth) - np.log(truth))).mean() / np.log(10)
    log_error = each(lambda depth, truth: np.log(depth) - np.log(truth))
    log_error -= log_error.mean()
    silog = 100 * np.sqrt(np.square(log_error, out=log_error).mean())
    return DepthMetrics(
        abs_rel=float(abs_rel),
        delta1=delta1,
        delta2=delta2,
        delta3=delta3,
        rmse_m=float(rmse_m),
        log10=float(log10),
        silog=float(silog),
    )


def _of_each(
    depth_m: Float64[np.ndarray, "n"],
    truth_m: Float[np.ndarray, "n"],
    out: Float64[np.ndarray, "n"],
    error: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> Float64[np.ndarray, "n"]:
    """`out` with an error of each pixel, made a part at a time: what is made on the way stays in the processor's cache."""
    for start in range(0, len(out), _PART):
        part = slice(start, start + _PART)
        out[part] = error(depth_m[part], truth_m[part].astype(np.float64))
    return out


def mean_metrics(metrics: Sequence[DepthMetrics]) -> DepthMetrics:
    """The mean of each metric over images. Raises ValueError for no image."""
    if not metrics:
        raise ValueError("no image was scored: there is no mean")
    rows = np.array([dataclasses.astuple(m) for m in metrics])
    names = [field.name for field in dataclasses.fields(DepthMetrics)]
    return DepthMetrics(**dict(zip(names, rows.mean(0).tolist(), strict=True)))


def _require_finite(
    prediction: Float[np.ndarray, "..."], target: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."]
) -> None:
    if not prediction.shape == target.shape == valid.shape:
        raise ValueError(
            f"shapes differ: prediction {prediction.shape}, target {target.shape}, valid {valid.shape};"
            " resize the prediction to the target first"
        )
    if not valid.any():
        raise ValueError("the mask has no valid pixel: nothing to compare; leave this image out")
    for name, values in (("prediction", prediction), ("target", target)):
        finite = np.isfinite(values[valid])
        if bad := np.count_nonzero(~finite):
            raise ValueError(f"the {name} is not finite in {bad} of {finite.size} valid pixels")


def _float64(values: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."]) -> NDArray[np.float64]:
    """The valid values; a copy."""
    return values[valid].astype(np.float64, copy=False)


def _inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(1, values, out=values)


def _refuse_unscorable(
    prediction: Float[np.ndarray, "..."], depth_m: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."]
) -> None:
    _require_finite(prediction, depth_m, valid)
    if (least_m := float(depth_m[valid].min())) <= 0:
        raise ValueError(f"the true depth of valid pixels goes down to {least_m} m, expected > 0; mark such pixels invalid")


def _fit(
    prediction: Float[np.ndarray, "..."],
    depth_m: Float[np.ndarray, "..."],
    valid: Bool[np.ndarray, "..."],
    space: DepthSpace,
) -> AffineFit:
    """What brings values of this space to metres, or to 1/m."""
    match space:
        case "disparity_affine_invariant":
            positive = valid & (prediction > 0)
            if not positive.any():
                raise ValueError(
                    "the predicted disparity is nowhere > 0: a dead output layer predicts exactly this;"
                    " look at the checkpoint's training log"
                )
            return _least_squares(_float64(prediction, positive), lambda: _inverse(_float64(depth_m, positive)))
        case "depth_affine_invariant":
            return align_scale_shift(prediction, depth_m, valid)
        case "disparity_metric" | "depth_metric":
            return AffineFit(scale=1.0, shift=0.0)
    assert_never(space)


def _least_squares(x: NDArray[np.float64], target: Callable[[], NDArray[np.float64]]) -> AffineFit:
    """The fit of a target to x. Both are used up, and the target is made when there is room for it."""
    x_mean = x[0] + (x - x[0]).mean()  # from x[0], so that a constant has a spread of exactly 0
    x -= x_mean
    y = target()
    y_mean = y.mean()
    y -= y_mean
    variance = x @ x
    scale = float(x @ y / variance) if variance > 0 else 0.0
    return AffineFit(scale=scale, shift=float(y_mean - scale * x_mean))
