"""Colours of maps: Matplotlib's own, with a range that a few outliers do not move."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps

from stages.coloring import COLOR_MAP, DIFFERENCE_MAP, INVALID_GREY, colorize_difference, colorize_disparity, robust_range


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_colours_are_matplotlibs_and_what_is_not_shown_is_grey(scale: float):
    rng = np.random.default_rng(0)
    disparity = (scale * rng.normal(size=(60, 80))).astype(np.float32)
    disparity[0], valid = np.nan, rng.random((60, 80)) < 0.9
    shown = valid & np.isfinite(disparity)
    low, high = np.quantile(disparity[shown], (0.02, 0.98))
    expected = colormaps[COLOR_MAP](np.where(shown, (disparity - low) / (high - low), 0).clip(0, 1), bytes=True)[..., :3]
    expected[~shown] = 128
    np.testing.assert_array_equal(colorize_disparity(disparity, valid), expected)


def test_the_range_of_a_large_map_is_that_of_its_parts():
    values = np.random.default_rng(0).normal(size=(1500, 1000)).astype(np.float32)
    np.testing.assert_allclose(robust_range(values), np.quantile(values, (0.02, 0.98)), atol=0.02)
    outliers = values.copy()
    outliers[:10] = 1e6
    np.testing.assert_allclose(robust_range(outliers), robust_range(values), atol=0.3)


def test_a_difference_is_white_where_there_is_none_red_where_nearer_blue_where_farther_and_grey_where_unknown():
    difference = np.array([[0.0, 0.2, 5.0, -0.2, -5.0, 0.1, np.nan]])
    picture = colorize_difference(difference, np.array([[True] * 5 + [False, True]]), 0.2)[0].astype(int)
    assert picture[0].min() > 240
    expected = [colormaps[DIFFERENCE_MAP](end, bytes=True)[:3] for end in (1.0, 1.0, 0.0, 0.0)]
    np.testing.assert_array_equal(picture[1:5], expected)
    assert picture[1][0] > picture[1][2]
    assert (picture[5:] == INVALID_GREY).all()
