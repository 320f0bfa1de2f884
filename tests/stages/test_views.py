"""View plans: pure, covering, overlapping, inside the picture, and exact on the context grid."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from PIL import Image

import manifests
from pipeline.label.worker import WallClock
from stages import views as views_module
from stages.labelling.units import label_images_part
from stages.views import (
    MAX_PATCH_PIXELS,
    ImageTooSmallError,
    ImageViews,
    TooManyViewsError,
    ViewPlan,
    onto_grid,
    onto_grid_where,
    plan_views,
)
from tests.conftest import picture_bytes, scene_bytes
from tests.stages.labelling.test_units import made_units

_PLANS = st.builds(
    ViewPlan,
    context=st.sampled_from(["whole", "square"]),
    context_px=st.sampled_from([16, 97, 192, 560]),
    patch_px=st.sampled_from([61, 101, 192, 560]),
    min_square_px=st.sampled_from([16, 64, 644]),
    patches_per_side=st.sampled_from([None, None, 2, 3, 7]),
    patch_overlap=st.floats(0, 0.9),
)
_PLANS = _PLANS | _PLANS.map(lambda plan: replace(plan, context="square", contexts_per_image=3))
_SIDES = st.integers(32, 5000) | st.sampled_from([32, 33, 97, 559, 560, 561, 643, 644, 1009, 4999])
_SIZES = st.tuples(_SIDES, _SIDES) | _SIDES.flatmap(lambda side: st.sampled_from([(side, 30 * side), (30 * side, side)]))
_SEEDS = st.integers(0, 9)


def _planned(plan: ViewPlan, seed: int, key: str, size: tuple[int, int]) -> tuple[ImageViews, ...]:
    """The views of a photograph that does not have too many."""
    try:
        return plan_views(plan, seed=seed, key=key, height_px=size[0], width_px=size[1])
    except TooManyViewsError:
        reject()


@settings(deadline=None)
@given(_PLANS, _SEEDS, st.text(max_size=9), _SIZES)
def test_every_size_gives_contexts_inside_the_image_that_keep_its_aspect(plan, seed, key, size):
    height, width = size
    contexts = _planned(plan, seed, key, size)
    assert len(contexts) == plan.contexts_per_image
    for views in contexts:
        source, (rows, cols) = views.source, views.extent
        assert 0 <= source.top <= source.top + source.height <= height
        assert 0 <= source.left <= source.left + source.width <= width
        if plan.context == "whole":
            assert source == (0, 0, height, width)
        else:
            assert min(plan.min_square_px, height, width) <= source.height == source.width
        assert max(rows, cols) == plan.context_px
        wanted = plan.context_px * min(source.height, source.width) / max(source.height, source.width)
        assert min(rows, cols) == max(round(wanted), 3)


@settings(deadline=None)
@given(_PLANS, _SEEDS, st.text(max_size=9), _SIZES)
def test_patches_are_an_even_grid_that_covers_the_context_and_whose_neighbours_overlap(plan, seed, key, size):
    for views in _planned(plan, seed, key, size):
        side = views.patches[0].height
        assert {(box.height, box.width) for box in views.patches} == {(side, side)}
        tops, lefts = (sorted({box[axis] for box in views.patches}) for axis in (0, 1))
        assert [(box.top, box.left) for box in views.patches] == list(itertools.product(tops, lefts))
        for length, starts in ((views.extent[0], tops), (views.extent[1], lefts)):
            assert len(starts) >= 2
            assert starts[0] == 0
            assert starts[-1] + side == length
            steps = [after - before for before, after in itertools.pairwise(starts)]
            assert max(steps) - min(steps) <= 1
            assert max(steps) < side


@settings(deadline=None)
@given(_PLANS, _SIZES)
def test_no_smaller_grid_of_these_patches_would_cover_with_overlap(plan, size):
    plan = replace(plan, patches_per_side=None)
    for views in _planned(plan, 0, "a", size):
        side = views.patches[0].height
        for axis in (0, 1):
            fewer = len({box[axis] for box in views.patches}) - 1
            assert fewer == 1 or fewer * side - (fewer - 1) < views.extent[axis]


@settings(deadline=None)
@given(_PLANS, _SIZES)
@example(ViewPlan(context="whole"), (560, 560))
def test_patches_are_native_wherever_the_context_is_as_wide_as_a_patch_and_two_thirds_of_it_elsewhere(plan, size):
    plan = replace(plan, patches_per_side=None)
    for views in _planned(plan, 0, "a", size):
        side, short_px = views.patches[0].height, min(views.source.height, views.source.width)
        pixel = max(views.source.height, views.source.width) / plan.context_px  # one pixel of the grid in the photograph
        if short_px < plan.patch_px:
            assert side == max(min(views.extent) * 2 // 3, 2)
        elif side > 2 and min(views.extent) > 3:
            assert abs(side * pixel - plan.patch_px) <= 1.5 * pixel  # rounding, and the pixel that lets two patches differ
            if short_px > plan.patch_px + 2 * pixel:
                assert abs(side * pixel - plan.patch_px) <= 0.5 * pixel + 1e-6


@settings(deadline=None)
@given(st.integers(2, 8), st.floats(0, 0.75), _SIZES)
def test_a_given_number_of_patches_fills_the_short_side_with_the_given_overlap(count, overlap, size):
    plan = ViewPlan(context="whole", patches_per_side=count, patch_overlap=overlap)
    (views,) = _planned(plan, 0, "a", size)
    side, short = views.patches[0].height, min(views.extent)
    starts = sorted({box[views.extent.index(short)] for box in views.patches})
    assert len(starts) == min(count, short - side + 1)
    for axis in (0, 1):
        starts = sorted({box[axis] for box in views.patches})
        assert all(before + side - after >= int(overlap * side) for before, after in itertools.pairwise(starts))
    if short >= 200:
        assert side == pytest.approx(short / (count - (count - 1) * overlap), abs=2)


@settings(deadline=None)
@given(_PLANS, _SEEDS, st.text(max_size=9), _SIZES)
def test_a_plan_is_a_pure_function_of_seed_key_and_size(plan, seed, key, size):
    first, second = (_planned(plan, seed, key, size) for _ in range(2))
    assert first == second


def test_more_contexts_leave_the_former_where_they_are_and_show_other_places():
    one, three = (
        plan_views(ViewPlan(contexts_per_image=count), seed=0, key="a", height_px=1500, width_px=2250) for count in (1, 3)
    )
    assert three[:1] == one
    assert len({views.source for views in three}) == 3


def test_the_papers_square_lies_between_644_px_and_the_short_side_and_differs_by_key_and_seed():
    sides = [
        plan_views(ViewPlan(), seed=seed, key=str(i), height_px=1500, width_px=2250)[0].source.height
        for seed in (0, 1)
        for i in range(200)
    ]
    assert 644 <= min(sides) < 700
    assert 1440 < max(sides) <= 1500
    assert sides[:200] != sides[200:]
    assert np.mean(sides) == pytest.approx((644 + 1500) / 2, abs=50)


@pytest.mark.parametrize(
    ("height", "width", "patches"), [(352, 352, (2, 2)), (352, 469, (2, 3)), (1500, 2250, (9, 13)), (192, 192, (2, 2))]
)
def test_the_demos_plan_gives_the_smallest_grid_that_overlaps(height: int, width: int, patches: tuple[int, int]):
    plan = ViewPlan(context="whole", context_px=192, patch_px=192)
    (views,) = plan_views(plan, seed=0, key="a", height_px=height, width_px=width)
    assert (len({box.top for box in views.patches}), len({box.left for box in views.patches})) == patches


def test_the_source_box_of_a_patch_scales_exactly():
    plan = ViewPlan(context="whole", context_px=100, patch_px=90)
    (views,) = plan_views(plan, seed=0, key="a", height_px=150, width_px=333)
    box = views.source_box(views.patches[-1])
    assert box.top + box.height == pytest.approx(150)
    assert box.left + box.width == pytest.approx(333)


def test_a_picture_below_the_smallest_side_is_refused_with_both_sizes():
    with pytest.raises(ImageTooSmallError, match=r"31 x 900 px.*32 px"):
        plan_views(ViewPlan(), seed=0, key="a", height_px=900, width_px=31)


@settings(deadline=None)
@given(_PLANS, _SEEDS, st.text(max_size=9), _SIZES)
def test_a_photograph_is_refused_exactly_where_a_context_would_have_too_many_pixels_of_patches(plan, seed, key, size):
    arguments = {"seed": seed, "key": key, "height_px": size[0], "width_px": size[1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views_module, "MAX_PATCH_PIXELS", 1 << 60)
        unlimited = plan_views(plan, **arguments)
    most = max(len(views.patches) for views in unlimited) * plan.patch_px**2
    if most > MAX_PATCH_PIXELS:
        with pytest.raises(TooManyViewsError):
            plan_views(plan, **arguments)
    else:
        assert plan_views(plan, **arguments) == unlimited


@pytest.mark.parametrize(
    ("width", "height", "patches"), [(6000, 4000, 88), (9504, 6336, 216), (11656, 8742, 374), (100, 9000, 374)]
)
def test_large_photographs_and_panoramas_are_below_the_limit(width: int, height: int, patches: int):
    (views,) = plan_views(ViewPlan(context="whole"), seed=0, key="a", height_px=height, width_px=width)
    assert len(views.patches) == patches


def test_a_stripe_with_too_many_views_is_rejected_by_name_and_its_neighbour_is_kept(tmp_path: Path, checkpoints: Path):
    files = {"a.png": picture_bytes(Image.new("RGB", (32, 40_000))), "b.png": scene_bytes(1)}
    images, *_ = made_units(tmp_path, checkpoints, files, plan=ViewPlan(context="whole"))
    result = label_images_part(images, WallClock())
    assert (result.labelled, result.rejected) == (1, 1)
    problem = manifests.load_part(images.run_dir, "images", images.part).images[0].problem
    assert problem
    assert problem.kind == "too_many_views"
    assert re.search(r"32 x 40000 px .* 1,118 patches of 560 px, 350,604,800 pixels .* 134,217,728; shrink", problem.message)
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    assert "| `too_many_views` |" in page


@pytest.mark.parametrize(("context", "needed"), [("square", 644), ("whole", 560)])
def test_small_images_are_rejected_instead_of_enlarged_where_the_plan_says_so(context: str, needed: int):
    enlarge = ViewPlan(context=context)  # type: ignore[arg-type]
    reject = replace(enlarge, small_images="reject")
    assert plan_views(enlarge, seed=0, key="a", height_px=needed - 1, width_px=900)
    for short in (needed, needed + 1, 900):
        sizes = {"height_px": short, "width_px": 900}
        assert plan_views(reject, seed=0, key="a", **sizes) == plan_views(enlarge, seed=0, key="a", **sizes)
    with pytest.raises(ImageTooSmallError, match=rf"900 x {needed - 1} px.*{needed} px"):
        plan_views(reject, seed=0, key="a", height_px=needed - 1, width_px=900)


def test_all_problems_of_a_plan_are_named_at_once():
    plan = ViewPlan(context="whole", context_px=3, patch_px=0, patches_per_side=1, patch_overlap=1, contexts_per_image=2)
    found = plan.problems()
    for name in ("context_px", "patch_px", "patches_per_side", "patch_overlap", "contexts_per_image"):
        assert sum(problem.startswith(name) for problem in found) == 1
    assert len(found) == 5
    assert len(ViewPlan(small_images="reject", min_square_px=500).problems()) == 1
    assert ViewPlan().problems() == []


@pytest.mark.parametrize("plan", [ViewPlan(patch_px=5800), ViewPlan(patches_per_side=21)])
def test_a_plan_that_would_refuse_every_photograph_is_a_problem(plan: ViewPlan):
    (problem,) = plan.problems()
    assert "134,217,728" in problem
    with pytest.raises(TooManyViewsError):
        plan_views(plan, seed=0, key="a", height_px=6000, width_px=6000)


# --- from a patch's pixels to the context grid ----------------------------------------------------------------------


@given(st.integers(2, 90), st.integers(2, 90))
def test_a_map_of_coordinates_comes_onto_the_grid_in_place(old, new):
    """A ramp keeps its value at each new pixel's centre; a shared old pixel is flat, which moves it by an eighth."""
    ramp = np.tile(np.arange(old, dtype=np.float32) + 0.5, (3, 1))
    wanted = (np.arange(new) + 0.5) * old / new
    found = onto_grid(ramp, 3, new)
    np.testing.assert_allclose(found, np.tile(wanted.clip(0.5, old - 0.5), (3, 1)), atol=0.126 if old % new else 1e-4)
    np.testing.assert_allclose(onto_grid(ramp.T.copy(), new, 3), found.T, rtol=1e-6)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
def test_a_map_that_shrinks_keeps_its_mean_and_a_whole_multiple_is_block_averaged(factor, new, seed):
    depth = np.random.default_rng(seed).random((factor * new, factor * new), dtype=np.float32)
    blocks = depth.reshape(new, factor, new, factor).mean((1, 3))
    np.testing.assert_allclose(onto_grid(depth, new, new), blocks, atol=1e-5)


@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 9))
def test_of_a_map_that_is_known_in_part_each_pixel_is_the_mean_of_what_is_known_under_it(old, new, seed):
    rng = np.random.default_rng(seed)
    depth, known = rng.random((old, old), dtype=np.float32), rng.random((old, old)) < 0.6
    holes = np.where(known, depth, np.float32(np.nan))
    values, valid = onto_grid_where(holes, known, new, new)
    share = onto_grid(known.astype(np.float32), new, new)
    assert np.array_equal(valid[np.abs(share - 0.5) > 1e-5], (share > 0.5)[np.abs(share - 0.5) > 1e-5])
    sums = onto_grid(np.where(known, depth, 0).astype(np.float32), new, new)
    np.testing.assert_allclose(values[valid], (sums / np.where(valid, share, 1))[valid], rtol=1e-4)
    assert not values[~valid].any()
    whole, everywhere = onto_grid_where(depth, np.ones_like(known), new, new)
    assert everywhere.all()
    np.testing.assert_allclose(whole, onto_grid(depth, new, new), rtol=1e-6)
