"""View plans: pure, covering, overlapping, inside the picture, and exact on the context grid."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.views import ImageTooSmallError, ViewPlan, plan_views

_PLANS = st.builds(
    ViewPlan,
    context=st.sampled_from(["whole", "square"]),
    context_px=st.sampled_from([64, 192, 560]),
    patch_px=st.sampled_from([64, 192, 560]),
    min_square_px=st.sampled_from([64, 644]),
    max_patches_short_side=st.integers(2, 6),
)
_SIDES = st.integers(32, 5000)


@given(_PLANS, st.integers(0, 9), st.text(max_size=9), _SIDES, _SIDES)
def test_patches_cover_the_context_and_overlap_and_stay_inside(plan, seed, key, height, width):
    views = plan_views(plan, seed=seed, key=key, height_px=height, width_px=width)
    rows, cols = views.extent
    assert max(rows, cols) == plan.context_px
    assert views.source.top + views.source.height <= height
    assert views.source.left + views.source.width <= width
    assert min(box.top for box in views.patches) == min(box.left for box in views.patches) == 0
    assert max(box.top + box.height for box in views.patches) == rows
    assert max(box.left + box.width for box in views.patches) == cols
    for length, starts, side in (
        (rows, sorted({box.top for box in views.patches}), views.patches[0].height),
        (cols, sorted({box.left for box in views.patches}), views.patches[0].width),
    ):
        assert all(after - before <= side for before, after in itertools.pairwise(starts))
        if min(rows, cols) >= 8:
            assert len(starts) >= 2
            assert len(starts) * side > length


@given(_PLANS, st.integers(0, 9), st.text(max_size=9), _SIDES, _SIDES)
def test_a_plan_is_a_pure_function_of_seed_key_and_size(plan, seed, key, height, width):
    first = plan_views(plan, seed=seed, key=key, height_px=height, width_px=width)
    assert plan_views(plan, seed=seed, key=key, height_px=height, width_px=width) == first


def test_the_whole_context_keeps_the_aspect():
    views = plan_views(ViewPlan(context="whole", context_px=560), seed=0, key="a", height_px=1200, width_px=1800)
    assert views.extent == (373, 560)
    assert views.source == (0, 0, 1200, 1800)


def test_the_papers_square_lies_between_644_px_and_the_short_side_and_differs_by_key():
    sides = {plan_views(ViewPlan(), seed=0, key=str(i), height_px=1500, width_px=2250).source.height for i in range(200)}
    assert 644 <= min(sides) < 700
    assert 1440 < max(sides) <= 1500


def test_patches_of_the_paper_are_native():
    views = plan_views(ViewPlan(), seed=0, key="3", height_px=1500, width_px=2250)
    assert views.source_box(views.patches[0]).height == pytest.approx(560, abs=views.source.height / 560)


def test_a_patch_of_a_small_photograph_still_shows_more_than_the_context():
    views = plan_views(ViewPlan(context="whole"), seed=0, key="a", height_px=300, width_px=400)
    assert views.patches[0].height * 3 <= views.extent[0] * 2


def test_the_source_box_of_a_patch_scales_exactly():
    views = plan_views(ViewPlan(context="whole", context_px=100, patch_px=90), seed=0, key="a", height_px=150, width_px=333)
    box = views.source_box(views.patches[-1])
    assert box.top + box.height == pytest.approx(150)
    assert box.left + box.width == pytest.approx(333)


def test_a_picture_below_the_smallest_side_is_refused_with_both_sizes():
    with pytest.raises(ImageTooSmallError, match=r"31 x 900 px.*32 px"):
        plan_views(ViewPlan(), seed=0, key="a", height_px=900, width_px=31)


def test_all_problems_of_a_plan_are_named_at_once():
    assert len(ViewPlan(context_px=3, patch_px=0, max_patches_short_side=1).problems()) == 3
