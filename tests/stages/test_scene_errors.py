"""Exact depth spoilt in known ways: each error is of the size that was asked for, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from stages.scenes import render_scene, scene_depth
from stages.scenes.errors import Errors, smooth_field, with_errors


@pytest.fixture(scope="module")
def disparity() -> np.ndarray:
    return 1 / scene_depth(1, height_px=64, width_px=64)


def _spread(values: np.ndarray) -> float:
    return float(np.abs(values - np.median(values)).mean())


def test_the_depth_alone_is_that_of_the_rendered_scene() -> None:
    for seed in (0, 1):
        assert np.array_equal(
            scene_depth(seed, height_px=24, width_px=40), render_scene(seed, height_px=24, width_px=40).depth_m
        )


def test_without_errors_nothing_changes(disparity: np.ndarray) -> None:
    assert np.array_equal(with_errors(disparity, Errors(), bias_seed=0, view_seed=5), disparity)


def test_bias_is_the_same_in_every_view_and_noise_is_not(disparity: np.ndarray) -> None:
    for errors, is_same in ((Errors(bias=0.3), True), (Errors(noise=0.3), False)):
        first, second = (with_errors(disparity, errors, bias_seed=0, view_seed=seed) - disparity for seed in (1, 2))
        assert np.allclose(first, second, atol=1e-6) == is_same
        for change in (first, second):
            assert np.sqrt((change**2).mean()) == pytest.approx(0.3 * _spread(disparity), rel=1e-3)


def test_a_views_own_scale_and_shift_change_no_shape(disparity: np.ndarray) -> None:
    moved = with_errors(disparity, Errors(scale=0.5, shift=0.5), bias_seed=0, view_seed=9)
    assert not np.allclose(moved, disparity)
    assert np.corrcoef(moved.ravel(), disparity.ravel())[0, 1] == pytest.approx(1)


def test_two_teachers_differ_in_a_view_only_by_what_is_said(disparity: np.ndarray) -> None:
    """Sizes of errors do not change what is drawn: half the noise is half of the same noise."""
    whole, half = (with_errors(disparity, Errors(noise=size), bias_seed=0, view_seed=3) - disparity for size in (0.4, 0.2))
    assert np.allclose(whole, 2 * half, atol=1e-6)


def test_a_smooth_field_is_the_same_at_every_size() -> None:
    large, small = (smooth_field(np.random.default_rng(0), side, side) for side in (96, 32))
    assert np.allclose(large.reshape(32, 3, 32, 3).mean((1, 3)), small, atol=0.02)


def test_negative_sizes_are_named() -> None:
    assert Errors(blur=-1, noise=float("nan")).problems() == [
        "blur is -1, expected 0 or more",
        "noise is nan, expected 0 or more",
    ]
