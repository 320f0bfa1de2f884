"""Depth becomes disparity only by a conversion chosen by name, and exactly as that says."""

from __future__ import annotations

import numpy as np
import pytest

from stages.depth_space import DEPTH_CONVERSIONS, DEPTH_SPACES, DepthConversion, DepthSpace, can_convert, convert_to_disparity

VALUES = np.array([[2.0, 4.0, 0.0], [8.0, np.nan, 6.0]], np.float32)
VALID = np.array([[True, True, True], [True, False, True]])


def test_what_each_conversion_can_is_what_it_does() -> None:
    able = {conversion: [space for space in DEPTH_SPACES if can_convert(space, conversion)] for conversion in DEPTH_CONVERSIONS}
    disparities = ["disparity_affine_invariant", "disparity_metric"]
    assert sorted(able["refuse"]) == disparities
    assert sorted(able["metric"]) == ["depth_metric", *disparities]
    assert sorted(able["approximate"]) == sorted(DEPTH_SPACES)
    for conversion in DEPTH_CONVERSIONS:
        for space in set(DEPTH_SPACES) - set(able[conversion]):
            with pytest.raises(ValueError, match=f"depth_space: {space} does not become .* '{conversion}'"):
                convert_to_disparity(VALUES, VALID, space, conversion)


@pytest.mark.parametrize("space", ["disparity_affine_invariant", "disparity_metric"])
def test_a_disparity_is_taken_as_it_is(space: DepthSpace) -> None:
    for conversion in DEPTH_CONVERSIONS:
        assert convert_to_disparity(VALUES, VALID, space, conversion) is VALUES


@pytest.mark.parametrize("conversion", ["metric", "approximate"])
def test_metric_depth_becomes_its_inverse_down_to_a_millimetre(conversion: DepthConversion) -> None:
    found = convert_to_disparity(VALUES, VALID, "depth_metric", conversion)
    assert found.dtype == np.float32
    assert found.tolist() == [pytest.approx([0.5, 0.25, 1000]), pytest.approx([0.125, 0, 1 / 6])]


def test_affine_depth_becomes_a_disparity_by_the_range_of_the_view_alone() -> None:
    found = convert_to_disparity(VALUES, VALID, "depth_affine_invariant", "approximate")
    assert found.tolist() == [pytest.approx([1 / 2.8, 1 / 4.8, 1 / 0.8]), pytest.approx([1 / 8.8, 0, 1 / 6.8])]
    moved = convert_to_disparity(VALUES * 4 - 100, VALID, "depth_affine_invariant", "approximate")
    assert np.allclose(moved * 4, found, rtol=1e-5)


def test_a_view_without_range_or_without_values_becomes_zeros() -> None:
    nothing, flat = np.zeros_like(VALID), np.full_like(VALUES, 3)
    for values, valid in ((VALUES, nothing), (flat, VALID)):
        assert not convert_to_disparity(values, valid, "depth_affine_invariant", "approximate").any()
