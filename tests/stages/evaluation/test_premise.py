"""Close-ups against slices, with labels of which it is known which are better."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.evaluation.premise import premise_score
from stages.label_store import ImageLabels, Label, PatchLabel
from stages.scenes import scene_depth
from stages.scenes.errors import Errors, with_errors
from stages.views import Box

_SIDE, _BOXES = 48, (Box(0, 0, 28, 28), Box(20, 20, 28, 28))


def _labels(disparity: np.ndarray, whole: Errors, close_up: Errors) -> ImageLabels:
    def label(values: np.ndarray, errors: Errors, seed: int) -> np.ndarray:
        return with_errors(values, errors, bias_seed=1, view_seed=seed)

    context = Label(values=label(disparity, whole, 7), valid=np.ones((_SIDE, _SIDE), bool))
    patches = []
    for number, box in enumerate(_BOXES):
        exact = disparity[box.top : box.top + box.height, box.left : box.left + box.width]
        patches.append(PatchLabel(values=label(exact, close_up, number), valid=np.ones(exact.shape, bool), box=box))
    return ImageLabels(context=context, patches=tuple(patches))


def test_equal_labels_are_equal_whatever_their_scale_and_shift() -> None:
    depth_m = scene_depth(3, height_px=_SIDE, width_px=_SIDE)
    score = premise_score(_labels(1 / depth_m, Errors(), Errors(scale=0.5, shift=2)), depth_m)
    assert score is not None
    assert (score.slice_abs_rel, score.close_up_abs_rel) == pytest.approx((0, 0), abs=1e-4)
    assert (score.slice_edge_f1, score.close_up_edge_f1) == pytest.approx((1, 1), abs=1e-3)


@pytest.mark.parametrize(
    ("worse", "metric"), [(Errors(blur=0.1), "edge_f1"), (Errors(bias=0.6), "abs_rel"), (Errors(noise=0.6), "abs_rel")]
)
def test_whichever_label_has_the_error_is_the_worse_one(worse: Errors, metric: str) -> None:
    depth_m = scene_depth(4, height_px=_SIDE, width_px=_SIDE)
    better_close_ups = premise_score(_labels(1 / depth_m, worse, Errors()), depth_m)
    better_slices = premise_score(_labels(1 / depth_m, Errors(), worse), depth_m)
    gains = [getattr(s, f"close_up_{metric}") - getattr(s, f"slice_{metric}") for s in (better_close_ups, better_slices)]
    assert (gains[0] > 0, gains[1] > 0) == ((True, False) if metric == "edge_f1" else (False, True))


def test_patches_of_the_sky_are_left_out() -> None:
    depth_m = scene_depth(4, height_px=_SIDE, width_px=_SIDE)
    depth_m[:30] = math.inf
    labels = _labels(1 / depth_m, Errors(), Errors())
    score = premise_score(labels, depth_m)
    assert score is not None
    assert score.patches == 1
    assert premise_score(labels, np.full_like(depth_m, math.inf)) is None
    with pytest.raises(ValueError, match="expected the size of the context"):
        premise_score(labels, depth_m[1:])
