"""Scores of whole images under the protocols: against the rules written out with NumPy, and on exact predictions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stages.evaluation.benchmarks import BenchmarkSample
from stages.evaluation.metrics import depth_metrics
from stages.evaluation.protocols import BENCHMARKS, rules
from stages.evaluation.rendered import resize_bilinear
from stages.evaluation.scoring import mean_scores, score, thinned


def noisy_sample(seed: int, height: int = 40, width: int = 60) -> tuple[np.ndarray, BenchmarkSample]:
    """A prediction related to 1/depth, a tenth of it not positive, and the truth with holes."""
    rng = np.random.default_rng(seed)
    depth_m = rng.uniform(0.5, 9, (height, width)).astype(np.float32)
    prediction = (3 / depth_m + rng.normal(0, 0.3, depth_m.shape)).astype(np.float32)
    prediction[rng.random(depth_m.shape) < 0.1] = 0
    valid = rng.random(depth_m.shape) < 0.7
    return prediction, BenchmarkSample(
        name="x.png", rgb=np.zeros((height, width, 3), np.uint8), depth_m=np.where(valid, depth_m, 0), valid=valid
    )


def expected_metrics(prediction, sample, own) -> dict[str, float]:
    """PAPER's evaluation of one image, as a list of steps in float64."""
    d, truth = prediction.astype(np.float64), sample.depth_m.astype(np.float64)
    on = sample.valid & (d > 0) if own.align_in == "disparity" else sample.valid
    target = 1 / truth[on] if own.align_in == "disparity" else truth[on]
    scale, shift = np.linalg.lstsq(np.stack([d[on], np.ones(on.sum())], 1), target, rcond=None)[0]
    aligned = scale * d + shift
    if own.align_in == "disparity":
        aligned = 1 / np.maximum(aligned, 1e-3)
    far = np.inf if own.clip_max_m is None else own.clip_max_m
    d, truth = np.clip(aligned, own.clip_min_m, far)[sample.valid], truth[sample.valid]
    worse = np.maximum(d / truth, truth / d)
    logs = np.log(d / truth)
    return {
        "abs_rel": (np.abs(d - truth) / truth).mean(),
        "delta1": (worse < 1.25).mean(),
        "delta2": (worse < 1.25**2).mean(),
        "delta3": (worse < 1.25**3).mean(),
        "rmse_m": ((d - truth) ** 2).mean() ** 0.5,
        "log10": np.abs(np.log10(d / truth)).mean(),
        "silog": 100 * ((logs**2).mean() - logs.mean() ** 2) ** 0.5,
    }


def test_what_a_model_does_not_know_is_no_matter_where_the_truth_is_not_known_either():
    prediction, sample = noisy_sample(3)
    own = rules("scannet", "marigold-disparity")
    marked = np.where(sample.valid, prediction, np.float32(np.nan))
    assert score(marked, sample, own, "disparity_affine_invariant") == score(
        prediction, sample, own, "disparity_affine_invariant"
    )
    marked[np.unravel_index(sample.valid.argmax(), marked.shape)] = np.nan
    words = r"not finite in 1 of \d+ valid pixels; a model is scored in all of them, those that it marks as not known"
    with pytest.raises(ValueError, match=words):
        score(marked, sample, own, "disparity_affine_invariant")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("protocol", ["marigold-disparity", "marigold-depth"])
def test_a_score_is_the_protocol_written_out(benchmark, protocol):
    prediction, sample = noisy_sample(3)
    own = rules(benchmark, protocol)
    if own.align_in == "depth":
        prediction = (0.2 * sample.depth_m + 1).astype(np.float32)
        prediction[::3] += 0.4
    space = "depth_affine_invariant" if own.align_in == "depth" else "disparity_affine_invariant"
    found = score(prediction, sample, own, space)
    assert dataclasses.asdict(found.metrics) == pytest.approx(expected_metrics(prediction, sample, own), rel=1e-9)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_an_exact_prediction_scores_perfectly_in_metrics_and_edges(benchmark):
    _, sample = noisy_sample(4)
    disparity = np.where(sample.valid, 2 / np.maximum(sample.depth_m, 0.1) + 1, 7).astype(np.float32)
    found = score(disparity, sample, rules(benchmark, "dav2"), "disparity_affine_invariant")
    assert found.metrics.abs_rel < 1e-5 or benchmark == "diode"  # whose clip at 0.6 m the truth goes below
    assert found.boundary is not None
    assert found.boundary.f1 > 0.95


def test_a_metric_prediction_is_aligned_as_an_affine_one():
    _, sample = noisy_sample(5)
    doubled = np.maximum(2 * sample.depth_m, 0.1).astype(np.float32)
    assert score(doubled, sample, rules("nyuv2", "marigold-depth"), "depth_metric").metrics.abs_rel < 1e-6


def test_a_smaller_prediction_is_resized_bilinearly():
    prediction, sample = noisy_sample(6)
    own = rules("scannet", "marigold-disparity")
    small = resize_bilinear(prediction, (20, 30))
    assert score(small, sample, own, "disparity_affine_invariant") == score(
        resize_bilinear(small, (40, 60)), sample, own, "disparity_affine_invariant"
    )


def test_what_cannot_be_scored_names_the_image():
    prediction, sample = noisy_sample(7)
    own = rules("scannet", "marigold-disparity")
    with pytest.raises(ValueError, match=r"x\.png: .*nowhere > 0"):
        score(np.zeros_like(prediction), sample, own, "disparity_affine_invariant")
    with pytest.raises(ValueError, match="fits scale and shift in disparity"):
        score(prediction, sample, own, "depth_affine_invariant")


def test_eth3d_is_fitted_on_the_pixels_of_a_nearest_neighbour_copy_and_scored_on_all():
    prediction, sample = noisy_sample(8, 32, 2048)
    own = rules("eth3d", "marigold-disparity")
    every_second = np.zeros_like(sample.valid)
    every_second[::2, ::2] = sample.valid[::2, ::2]
    assert (thinned(sample.valid, 1024) == every_second).all()
    expected = depth_metrics(
        prediction,
        sample.depth_m,
        sample.valid,
        space="disparity_affine_invariant",
        min_depth_m=1e-5,
        max_depth_m=None,
        fit_valid=every_second,
    )
    found = score(prediction, sample, own, "disparity_affine_invariant").metrics
    assert found == expected
    assert (
        found
        != score(prediction, sample, dataclasses.replace(own, fit_long_side_px=None), "disparity_affine_invariant").metrics
    )


def test_the_copy_for_the_fit_has_the_pixels_that_torch_would_take():
    """Of 4032 x 6048, as ETH3D has, to a long side of 1024."""
    kept = thinned(np.ones((4032, 6048), np.bool_), 1024)
    rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
    scale = 6048 / 1024
    assert (rows == np.floor(np.arange(682) * scale)).all()
    assert (columns == np.floor(np.arange(1024) * scale)).all()


def test_means_are_over_images_and_those_of_edges_over_images_that_have_some():
    own = rules("scannet", "marigold-disparity")
    prediction, sample = noisy_sample(9)
    flat = dataclasses.replace(sample, depth_m=np.full_like(sample.depth_m, 2))
    with_edges = score(prediction, sample, own, "disparity_affine_invariant")
    without = score(prediction, flat, own, "disparity_affine_invariant")
    assert without.boundary is None
    mean = mean_scores([with_edges, without])
    assert mean.metrics.abs_rel == pytest.approx((with_edges.metrics.abs_rel + without.metrics.abs_rel) / 2)
    assert (mean.boundary, mean.images, mean.images_with_edges) == (with_edges.boundary, 2, 1)
    assert mean_scores([without]).boundary is None
    with pytest.raises(ValueError, match="no image"):
        mean_scores([])
