"""Local labels as one map, and disparity as colours."""

import numpy as np
import pytest

from stages.coloring import colorize_disparity
from stages.label_store import ImageLabels, Label, PatchLabel
from stages.stitching import stitch_patches
from stages.views import Box, ViewPlan, plan_views


def patched_labels(disparity, distort, boxes):
    valid = np.isfinite(disparity)
    patches = []
    for index, box in enumerate(boxes):
        window = np.s_[box.top : box.top + box.height, box.left : box.left + box.width]
        patches.append(PatchLabel(values=distort(index, disparity[window]).astype(np.float32), valid=valid[window], box=box))
    return ImageLabels(context=Label(values=disparity.astype(np.float32), valid=valid), patches=tuple(patches))


def test_patches_cut_from_one_map_each_with_its_own_scale_and_shift_are_stitched_to_that_map():
    rng = np.random.default_rng(3)
    disparity = rng.uniform(0.05, 1, (60, 72)).cumsum(0).cumsum(1) / 1000
    (views,) = plan_views(
        ViewPlan(context="whole", context_px=72, patch_px=200, min_image_px=8), seed=0, key="a", height_px=300, width_px=360
    )
    stitched = stitch_patches(patched_labels(disparity, lambda i, d: (i + 0.5) * d - 3 * i, views.patches))
    assert len(views.patches) >= 4
    assert stitched.valid.all()
    np.testing.assert_allclose(stitched.values, disparity, atol=1e-4)


def test_stitched_labels_keep_the_context_where_no_patch_is_valid_and_stay_invalid_where_nothing_is():
    disparity = np.linspace(1, 2, 16 * 16).reshape(16, 16)
    disparity[0, 0] = np.nan
    labels = patched_labels(disparity, lambda i, d: 2 * d, [Box(0, 0, 8, 8), Box(4, 4, 8, 8)])
    stitched = stitch_patches(labels)
    assert not stitched.valid[0, 0]
    assert stitched.valid.sum() == 255
    np.testing.assert_allclose(stitched.values[stitched.valid], disparity[stitched.valid], atol=1e-5)


def test_the_detail_of_a_patch_comes_through():
    yy, xx = np.mgrid[:32, :32] / 32
    smooth, detailed = yy + xx, yy + xx + 0.05 * np.sin(40 * xx)
    labels = patched_labels(detailed, lambda i, d: (i + 1) * d, [Box(0, 0, 32, 20), Box(0, 12, 32, 20)])
    context = Label(values=smooth.astype(np.float32), valid=np.ones((32, 32), np.bool_))
    stitched = stitch_patches(ImageLabels(context=context, patches=labels.patches)).values
    assert np.abs(stitched - detailed).mean() < 0.3 * np.abs(smooth - detailed).mean()


def test_no_seam_is_left_between_patches_that_disagree():
    down = np.linspace(0, 1, 32)[:, None].repeat(32, 1)
    tilt = np.linspace(-0.15, 0.15, 20)  # across, which no scale and shift of a map that runs down undoes
    boxes = [Box(0, 0, 32, 20), Box(0, 12, 32, 20)]
    stitched = stitch_patches(patched_labels(down, lambda i, d: d + tilt, boxes)).values
    disagreement = tilt[12] - tilt[0]
    assert np.abs(np.diff(stitched, axis=1)).max() < 0.25 * disagreement


def test_a_patch_outside_the_context_or_of_another_size_than_its_box_is_refused():
    disparity = np.ones((16, 16))
    for box, size in ((Box(12, 0, 8, 8), (8, 8)), (Box(0, 0, 8, 8), (7, 8))):
        patch = PatchLabel(values=np.ones(size, np.float32), valid=np.ones(size, np.bool_), box=box)
        context = Label(values=disparity.astype(np.float32), valid=np.ones((16, 16), np.bool_))
        with pytest.raises(ValueError, match="inside the context"):
            stitch_patches(ImageLabels(context=context, patches=(patch,)))


def test_far_is_blue_near_is_red_invalid_is_grey_and_the_given_range_clips():
    disparity = np.array([[0.0, 1.0, 5.0, np.nan]])
    rgb = colorize_disparity(disparity, low=0.0, high=1.0)
    far, near, beyond, invalid = rgb[0].astype(int)
    assert far[2] > far[0]
    assert near[0] > near[2]
    assert (beyond == near).all()
    assert (invalid == 128).all()


def test_a_map_of_one_value_and_a_map_without_values_have_colours_too():
    assert len(np.unique(colorize_disparity(np.full((3, 3), 2.0)).reshape(-1, 3), axis=0)) == 1
    assert (colorize_disparity(np.full((3, 3), np.nan)) == 128).all()
