"""Fused labels: our definition of the average, against the same written pixel by pixel."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from stages.distillation.fusion import agreement_weighted_average, fused_patches
from stages.label_store import Label, PatchLabel
from stages.views import Box


def labels(count: int, height: int = 9, width: int = 7) -> list[Label]:
    """Noisy views of one surface, each in a scale of its own and with a few invalid pixels of its own."""
    rng = np.random.default_rng(count)
    surface = rng.random((height, width))
    return [
        Label(
            values=((surface + 0.3 * rng.random((height, width))) * 10.0**i - i).astype(np.float32),
            valid=rng.random((height, width)) < 0.9,
        )
        for i in range(count)
    ]


def reference(views: list[Label]) -> np.ndarray:
    """The docstring's formula in Python's float64, a pixel at a time; NaN where not all are valid."""
    height, width = views[0].values.shape
    pixels = [(y, x) for y in range(height) for x in range(width) if all(view.valid[y, x] for view in views)]
    maps = []
    for view in views:
        values = [float(view.values[p]) for p in pixels]
        median = statistics.median(values)
        deviation = math.fsum(abs(v - median) for v in values) / len(values)
        maps.append([(v - median) / deviation for v in values])
    result = np.full((height, width), np.nan)
    for i, pixel in enumerate(pixels):
        weights = [math.exp(-abs(m[i] - maps[0][i])) for m in maps]
        result[pixel] = sum(w * m[i] for w, m in zip(weights, maps, strict=True)) / sum(weights)
    return result


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_average_is_its_definition(count: int) -> None:
    views = labels(count)
    fused, wanted = agreement_weighted_average(views), reference(views)
    assert np.array_equal(fused.valid, np.isfinite(wanted))
    assert np.abs(fused.values - wanted)[fused.valid].max() < 1e-6
    assert not fused.values[~fused.valid].any()
    assert fused.values.dtype == np.float32


def test_no_teachers_scale_or_shift_matters() -> None:
    first, second = labels(2)
    moved = replace(second, values=second.values * 4 + 100)
    ours, theirs = agreement_weighted_average([first, second]), agreement_weighted_average([first, moved])
    assert np.allclose(ours.values, theirs.values, atol=1e-4)


def test_a_teacher_that_contradicts_the_primary_hardly_counts_there() -> None:
    ramp = np.tile(np.arange(32, dtype=np.float32), (8, 1))
    wrong, valid = ramp.copy(), np.ones(ramp.shape, bool)
    wrong[0, 0] = 100
    alone = agreement_weighted_average([Label(values=ramp, valid=valid)]).values
    fused = agreement_weighted_average([Label(values=values, valid=valid) for values in (ramp, wrong)]).values
    assert abs(fused - alone)[0, 0] < 0.01  # the mean of both is off by more than 5
    assert abs(fused - alone).max() < 0.5


def test_flat_and_empty_views_give_zeros_and_never_nan() -> None:
    valid = np.ones((4, 4), bool)
    flat = Label(values=np.full((4, 4), 7, np.float32), valid=valid)
    empty = Label(values=np.full((4, 4), np.nan, np.float32), valid=~valid)
    for views in ([flat, flat], [flat, empty], [empty]):
        assert not agreement_weighted_average(views).values.any()
    sloped = Label(values=np.arange(16, dtype=np.float32).reshape(4, 4), valid=valid)
    assert np.isfinite(agreement_weighted_average([flat, sloped]).values).all()


def test_patches_are_fused_in_their_places_and_refused_in_others() -> None:
    first, second = (PatchLabel(values=x.values, valid=x.valid, box=Box(1, 2, 9, 7)) for x in labels(2))
    (fused,) = fused_patches([[first], [second]], "here")
    assert fused.box == first.box
    assert np.array_equal(fused.values, agreement_weighted_average([first, second]).values)
    moved = replace(second, box=Box(1, 3, 9, 7))
    for others in ([moved], [], [second, second]):
        with pytest.raises(ValueError, match=r"here: patch_box: teacher 1 has .*, the primary \[\(1, 2, 9, 7\)\]"):
            fused_patches([[first], others], "here")
