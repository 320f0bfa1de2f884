"""How far two labels agree: blind to scale, shift and depth space, the numbers of the definition, and none without contrast."""

from __future__ import annotations

import numpy as np
import pytest

from manifests import DepthSpace
from stages.agreement import agreement
from stages.label_store import Label

DISPARITY: DepthSpace = "disparity_affine_invariant"


def _label(values: np.ndarray, hole: bool = False) -> Label:
    valid = np.ones(values.shape, bool)
    valid[:5, :5] = not hole
    return Label(values=values.astype(np.float32), valid=valid)


def _scene(seed: int = 0) -> np.ndarray:
    """A slanted wall with a box before it: an edge, and nothing below 0.1."""
    values = 0.2 + np.add.outer(np.arange(40), np.arange(40)) / 400
    values[10:25, 12:30] += 0.5
    return values + np.random.default_rng(seed).normal(0, 1e-3, values.shape)


@pytest.mark.parametrize("space", ["disparity_affine_invariant", "disparity_metric", "depth_metric"])
def test_labels_that_differ_by_scale_shift_and_space_alone_agree_in_full(space: DepthSpace):
    scene = _scene()
    values = 1 / (3 * scene + 1) if space == "depth_metric" else 7 * scene - 4
    found = agreement(_label(scene, hole=True), _label(values), DISPARITY, space)
    assert (found.abs_rel, found.correlation, found.edge_f1) == pytest.approx((0, 1, 1), abs=1e-4)
    assert found.shared == 1 - 25 / 1600


def test_the_numbers_are_those_of_the_definition():
    first, second = _scene(1), 0.5 * _scene(2) + 0.2
    second[:, :15] += 0.1
    found = agreement(_label(first, hole=True), _label(second), DISPARITY, DISPARITY)
    valid = _label(first, hole=True).valid
    ours, theirs = first[valid], second[valid]
    low, high = np.quantile(ours, (0.02, 0.98))
    ours = 0.1 + 0.9 * (ours - low) / (high - low)
    scale, shift = np.linalg.lstsq(np.stack([theirs, np.ones_like(theirs)], 1), ours, rcond=None)[0]
    depths = [1 / np.maximum(values, 0.05) for values in (scale * theirs + shift, ours)]
    assert found.abs_rel == pytest.approx(np.mean(np.abs(depths[0] / depths[1] - 1)), rel=1e-4)
    assert found.correlation == pytest.approx(np.corrcoef(first[valid], second[valid])[0, 1], rel=1e-4)
    assert 0 < (found.edge_f1 or 0) < 1


def test_upside_down_is_no_agreement():
    found = agreement(_label(_scene()), _label(-_scene()), DISPARITY, DISPARITY)
    flat = agreement(_label(_scene()), _label(np.ones((40, 40))), DISPARITY, DISPARITY)
    assert found.correlation == pytest.approx(-1, abs=1e-4)
    assert (found.abs_rel, found.edge_f1) == pytest.approx((flat.abs_rel, flat.edge_f1), rel=1e-5)
    assert flat.correlation == 0
    assert (flat.abs_rel or 0) > 0.1


@pytest.mark.parametrize("valid", [True, False])
def test_where_there_is_nothing_to_compare_there_are_no_numbers(valid: bool):
    flat = Label(values=np.ones((8, 8), np.float32), valid=np.full((8, 8), valid))
    found = agreement(flat, _label(_scene()[:8, :8]), DISPARITY, DISPARITY)
    assert (found.shared, found.abs_rel, found.correlation, found.edge_f1) == (float(valid), None, None, None)
