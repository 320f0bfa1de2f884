"""Depth edges: against the definition written out, on hand-made steps, and where there is nothing to score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.evaluation.boundaries import boundary_score

depth_maps = arrays(np.float64, (6, 7), elements=st.floats(0.5, 1.5))


def by_definition(predicted_m, depth_m, valid):
    """Precision, recall, F1, pixel by pixel: neighbour after neighbour, direction after direction."""
    thresholds = [1.05 + 0.2 * step / 9 for step in range(10)]
    rows = []
    for threshold in thresholds:
        precisions, recalls = [], []
        for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            pairs = [
                ((y, x), (y + down, x + right))
                for y in range(depth_m.shape[0])
                for x in range(depth_m.shape[1])
                if 0 <= y + down < depth_m.shape[0] and 0 <= x + right < depth_m.shape[1]
            ]
            pairs = [(a, b) for a, b in pairs if valid[a] and valid[b]]
            ours = {(a, b) for a, b in pairs if predicted_m[b] / predicted_m[a] > threshold}
            theirs = {(a, b) for a, b in pairs if depth_m[b] / depth_m[a] > threshold}
            precisions.append(len(ours & theirs) / max(len(ours), 1))
            recalls.append(len(ours & theirs) / max(len(theirs), 1))
        precision, recall = np.mean(precisions), np.mean(recalls)
        rows.append((precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0))
    return np.average(rows, axis=0, weights=thresholds)


@settings(deadline=None)
@given(depth_maps, depth_maps, arrays(np.bool_, (6, 7)))
def test_the_score_is_depth_pros_definition(predicted_m, depth_m, valid):
    depth_m[0, :2], valid[0, :2] = (0.5, 1.5), True  # at least one true edge
    found = boundary_score(predicted_m, depth_m, valid)
    assert found is not None
    assert (found.precision, found.recall, found.f1) == pytest.approx(by_definition(predicted_m, depth_m, valid))


@pytest.mark.parametrize("height", [64, 65, 130])
def test_the_score_of_a_map_higher_than_a_band_is_the_definitions_too(height: int):
    rng = np.random.default_rng(height)
    predicted_m, depth_m, valid = (
        rng.uniform(0.5, 1.5, (height, 3)),
        rng.uniform(0.5, 1.5, (height, 3)),
        rng.random((height, 3)) < 0.9,
    )
    found = boundary_score(predicted_m, depth_m, valid)
    assert found is not None
    assert (found.precision, found.recall, found.f1) == pytest.approx(by_definition(predicted_m, depth_m, valid))


@settings(deadline=None)
@given(depth_maps, st.floats(0.01, 100))
def test_the_score_ignores_scale_but_not_shift(depth_m, scale):
    depth_m[0, :2] = 0.5, 1.5
    everywhere = np.ones(depth_m.shape, np.bool_)
    scaled, shifted = boundary_score(scale * depth_m, depth_m, everywhere), boundary_score(depth_m + 50, depth_m, everywhere)
    assert scaled is not None
    assert scaled.f1 == pytest.approx((boundary_score(depth_m, depth_m, everywhere) or scaled).f1)
    assert shifted is not None
    assert shifted.f1 == 0


def test_a_blurred_step_has_the_edge_in_the_wrong_places():
    depth_m = np.tile([1.0, 1.0, 1.0, 2.0, 2.0, 2.0], (4, 1))
    blurred = np.tile([1.0, 1.0, 1.3, 1.7, 2.0, 2.0], (4, 1))
    everywhere = np.ones(depth_m.shape, np.bool_)
    exact, soft = boundary_score(depth_m, depth_m, everywhere), boundary_score(blurred, depth_m, everywhere)
    assert exact is not None
    assert soft is not None
    # One of the four directions has edges; the others count as 0. The blurred step has two or three for the true one.
    assert exact.recall == soft.recall == exact.precision == pytest.approx(0.25)
    assert soft.precision < 0.5 * exact.precision


def test_an_edge_next_to_an_invalid_pixel_is_none_and_without_true_edges_there_is_no_score():
    depth_m = np.tile([1.0, 1.0, 9.0], (3, 1))
    valid = np.tile([True, True, False], (3, 1))
    assert boundary_score(depth_m, depth_m, valid) is None
    assert boundary_score(depth_m, np.ones((3, 3)), np.ones((3, 3), np.bool_)) is None
