"""Alignment and depth errors, on paper-sized examples, against NumPy's own least squares, and by their invariances."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.evaluation.benchmarks import BenchmarkSample
from stages.evaluation.metrics import DISPARITY_FLOOR, align_scale_shift, depth_metrics, mean_metrics
from stages.evaluation.rendered import (
    HELD_OUT_SEED,
    MAX_DEPTH_M,
    MIN_DEPTH_M,
    evaluation_scene,
    resize_bilinear,
    scored_pixels,
)
from stages.evaluation.scoring import score_within
from stages.scenes import render_scene

depth_maps = arrays(np.float64, (8, 8), elements=st.floats(0.5, 60))
disparity_maps = arrays(np.float32, (8, 8), elements=st.floats(0.0625, 100, width=32))


def score(prediction, depth_m, valid=None, space: Any = "disparity_affine_invariant", near=1e-3, far: float | None = 80.0):
    valid = np.ones(depth_m.shape, np.bool_) if valid is None else valid
    return depth_metrics(prediction, depth_m, valid, space=space, min_depth_m=near, max_depth_m=far)


# --- alignment --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(disparity_maps, depth_maps, arrays(np.bool_, (8, 8)))
def test_alignment_is_numpys_least_squares(prediction, target, valid):
    valid[0, :2] = True
    prediction[0, :2] = 1.0, 90.0  # two distinct values determine a line
    fit = align_scale_shift(prediction, target, valid)
    design = np.stack([prediction[valid].astype(np.float64), np.ones(valid.sum())], 1)
    scale, shift = np.linalg.lstsq(design, target[valid], rcond=None)[0]
    assert fit.scale == pytest.approx(scale, rel=1e-7, abs=1e-9)
    assert fit.shift == pytest.approx(shift, rel=1e-7, abs=1e-7)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), arrays(np.float64, (7, 9), elements=st.floats(0.5, 60)))
def test_a_constant_prediction_is_aligned_to_the_targets_mean(value, target):
    fit = align_scale_shift(np.full((7, 9), value), target, np.ones((7, 9), np.bool_))
    assert fit.scale == 0
    assert fit.shift == pytest.approx(target.mean())


def test_pixels_outside_the_mask_do_not_count_in_the_fit():
    prediction, target = np.array([[1.0, 2.0, np.nan, 7.0]]), np.array([[3.0, 5.0, 1.0, np.inf]])
    fit = align_scale_shift(prediction, target, np.array([[True, True, False, False]]))
    assert (fit.scale, fit.shift) == (2, 1)


# --- depth errors -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(depth_maps, st.floats(0.01, 100), st.floats(0, 10))
def test_an_affine_copy_of_the_true_disparity_has_no_error(depth_m, scale, shift):
    metrics = score(scale / depth_m + shift, depth_m)
    assert metrics.abs_rel == pytest.approx(0, abs=1e-8)
    assert (metrics.delta1, metrics.delta2, metrics.delta3) == (1, 1, 1)
    assert metrics.rmse_m == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(disparity_maps, depth_maps, st.floats(0.1, 10), st.floats(0, 5))
def test_errors_do_not_change_with_the_predictions_scale_and_shift(disparity, depth_m, scale, shift):
    disparity[0, :2] = 1.0, 90.0  # without contrast the fit would rest on rounding alone
    one, other = score(disparity.astype(np.float64), depth_m), score(scale * disparity.astype(np.float64) + shift, depth_m)
    # The deltas are left out: a ratio that lies on a threshold may fall on either side of it.
    for name in ("abs_rel", "rmse_m", "log10", "silog"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-5, abs=1e-5)


@settings(deadline=None)
@given(disparity_maps, depth_maps, st.sampled_from(["disparity_affine_invariant", "depth_affine_invariant", "depth_metric"]))
def test_errors_are_finite_and_the_deltas_ordered_shares(prediction, depth_m, space):
    metrics = score(prediction, depth_m, space=space)
    assert all(np.isfinite(value) and value >= 0 for value in dataclasses.astuple(metrics))
    assert metrics.delta1 <= metrics.delta2 <= metrics.delta3 <= 1


def test_errors_of_two_pixels_are_those_worked_out_by_hand():
    metrics = score(np.array([[2.0, 6.0]]), np.array([[4.0, 4.0]]), space="depth_metric")
    assert dataclasses.asdict(metrics) == pytest.approx(
        {
            "abs_rel": 0.5,  # (2/4 + 2/4) / 2
            "delta1": 0.0,  # ratios 2 and 1.5
            "delta2": 0.5,  # 1.5 < 1.5625
            "delta3": 0.5,  # 2 > 1.953
            "rmse_m": 2.0,
            "log10": (np.log10(2) + np.log10(1.5)) / 2,
            "silog": 100 * (np.log(1.5) + np.log(2)) / 2,
        }
    )


def test_depth_predictions_are_aligned_in_depth_and_disparity_predictions_in_disparity():
    depth_m = np.array([[1.0, 2.0, 4.0, 8.0]])
    assert score(0.1 * depth_m + 0.05, depth_m, space="depth_affine_invariant").abs_rel == pytest.approx(0, abs=1e-12)
    assert score(0.1 * depth_m + 0.05, depth_m, space="disparity_affine_invariant").abs_rel > 0.05


def test_the_alignment_leaves_out_pixels_of_zero_disparity_but_their_error_counts():
    depth_m = np.array([[1.0, 2.0, 4.0, 5.0]])
    prediction = 1 / depth_m
    prediction[0, 3] = 0  # fitted: scale 1, shift 0, so this pixel is floored, inverted to 1000 m and clipped to 80 m
    assert score(prediction, depth_m).abs_rel == pytest.approx((80 - 5) / 5 / 4)
    assert score(prediction, depth_m, far=2000.0).abs_rel == pytest.approx((1 / DISPARITY_FLOOR - 5) / 5 / 4)


def test_metric_predictions_are_clipped_to_the_range_and_not_aligned():
    depth_m = np.array([[1.0, 10.0]])
    assert score(np.array([[2.0, 500.0]]), depth_m, space="depth_metric", far=20.0).abs_rel == pytest.approx((1 + 1) / 2)
    assert score(np.array([[0.5, -3.0]]), depth_m, space="disparity_metric", far=20.0).abs_rel == pytest.approx((1 + 1) / 2)


def test_the_fit_may_rest_on_other_pixels_than_those_scored():
    depth_m = np.array([[1.0, 2.0, 4.0, 8.0]])
    prediction = np.array([[1.0, 2.0, 4.0, 30.0]])
    first, last = np.array([[True, True, True, False]]), np.array([[False, False, False, True]])
    metrics = depth_metrics(
        prediction, depth_m, last, space="depth_affine_invariant", min_depth_m=1e-3, max_depth_m=80.0, fit_valid=first
    )
    assert metrics.abs_rel == pytest.approx(22 / 8)


def test_no_upper_bound_leaves_far_predictions_as_they_are():
    assert score(np.array([[900.0]]), np.array([[9.0]]), space="depth_metric", far=None).abs_rel == pytest.approx(99)


@pytest.mark.parametrize(
    ("prediction", "depth_m", "valid", "message"),
    [
        (np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2), np.bool_), "no valid pixel"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), np.ones((2, 2), np.bool_), "prediction is not finite in 4 of 4"),
        (np.ones((2, 2)), np.full((2, 2), np.inf), np.ones((2, 2), np.bool_), "target is not finite in 4 of 4"),
        (np.ones((2, 2)), np.zeros((2, 2)), np.ones((2, 2), np.bool_), "expected > 0"),
        (np.zeros((2, 2)), np.ones((2, 2)), np.ones((2, 2), np.bool_), "nowhere > 0: a dead output layer"),
        (np.ones((2, 3)), np.ones((2, 2)), np.ones((2, 2), np.bool_), "shapes differ"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_reason(prediction, depth_m, valid, message):
    with pytest.raises(ValueError, match=message):
        score(prediction, depth_m, valid)


def test_an_impossible_depth_range_is_refused():
    with pytest.raises(ValueError, match="0 < min < max"):
        score(np.ones((2, 2)), np.ones((2, 2)), near=0.0)


def test_the_mean_is_taken_over_images_and_not_over_pixels():
    small = score(np.array([[2.0]]), np.array([[1.0]]), space="depth_metric")
    large = score(np.full((9, 9), 3.0), np.full((9, 9), 3.0), space="depth_metric")
    assert mean_metrics([small, large]).abs_rel == 0.5
    with pytest.raises(ValueError, match="no image"):
        mean_metrics([])


# --- rendered scenes --------------------------------------------------------------------------------------------------


def scored(prediction, depth_m, name="scene"):
    valid = scored_pixels(depth_m)
    sample = BenchmarkSample(name=name, rgb=np.zeros((*valid.shape, 3), np.uint8), depth_m=depth_m, valid=valid)
    return score_within((MIN_DEPTH_M, MAX_DEPTH_M), prediction.astype(np.float32), sample, "disparity_affine_invariant").metrics


def test_the_true_disparity_seen_at_the_contexts_size_scores_nearly_perfectly():
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 3):
        scene = evaluation_scene(seed, side_px=64, input_px=64)
        assert scene.context.dtype == np.uint8
        assert scene.context.shape == (64, 64, 3)
        truth = 1 / render_scene(seed, height_px=64, width_px=64).depth_m
        assert scored(5 * truth + 1, scene.depth_m).abs_rel < 1e-3


def test_the_sky_and_what_lies_beyond_the_range_are_not_scored():
    depth_m = np.array([[1.0, 2.0, 4.0], [np.inf, 90.0, 79.0]], np.float32)
    prediction = np.where(depth_m < 80, 1 / depth_m, np.float32(50.0))  # nonsense, but only where nobody looks
    assert scored(prediction, depth_m).abs_rel < 1e-5


def test_a_prediction_that_cannot_be_scored_names_its_scene():
    scene = evaluation_scene(HELD_OUT_SEED, side_px=32, input_px=32)
    with pytest.raises(ValueError, match=rf"scene {HELD_OUT_SEED}: .*dead"):
        scored(np.zeros((32, 32)), scene.depth_m, name=f"scene {HELD_OUT_SEED}")


def test_a_prediction_is_enlarged_about_pixel_centres():
    ramp = np.arange(4, dtype=np.float32)[None].repeat(4, 0)
    enlarged = resize_bilinear(ramp, (8, 8))
    np.testing.assert_allclose(enlarged[0, 1:-1], np.arange(6) / 2 + 0.25)
