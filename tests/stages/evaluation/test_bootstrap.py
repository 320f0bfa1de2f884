"""Intervals over seeds and scenes together."""

from __future__ import annotations

import numpy as np
import pytest

from stages.evaluation.bootstrap import paired_bootstrap


def test_the_draws_are_those_of_seeds_and_scenes_with_replacement() -> None:
    """Against the same thing done one draw at a time, by indices."""
    rng = np.random.default_rng(1)
    method, baseline = rng.normal(0.2, 1, (6, 40)), rng.normal(0, 1, (6, 40))
    found = paired_bootstrap(method, baseline, draws=4000)
    difference = method - baseline
    means = [difference[np.ix_(rng.integers(6, size=6), rng.integers(40, size=40))].mean() for _ in range(4000)]
    half_width = np.sqrt(6 / 5) * np.diff(np.quantile(means, [0.025, 0.975]))[0] / 2
    assert found.mean == pytest.approx(difference.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.08)


def test_what_is_common_to_both_drops_out() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 5, (1, 30)) + rng.normal(0, 5, (4, 1))
    found = paired_bootstrap(hard + 0.25, hard)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_difference_between_seeds_is_not_hidden_by_many_scenes() -> None:
    rng = np.random.default_rng(3)
    of_seeds = np.array([0.3, -0.25, 0.2, -0.2, 0.1])[:, None] + rng.normal(0, 0.01, (5, 500))
    found = paired_bootstrap(of_seeds, np.zeros_like(of_seeds))
    assert not found.excludes_zero
    alone = paired_bootstrap(of_seeds[:1], np.zeros((1, 500)))
    assert alone.excludes_zero  # the lucky seed by itself, which says nothing of the next


def test_the_interval_covers_the_truth_as_often_as_it_says_or_more() -> None:
    rng, covered = np.random.default_rng(4), 0
    for trial in range(200):
        scores = rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.2, (1, 30)) + rng.normal(0, 0.1, (5, 30))
        found = paired_bootstrap(scores, np.zeros_like(scores), draws=500, seed=trial)
        covered += found.low <= 0 <= found.high
    assert covered >= 176  # 88 %: few seeds draw a percentile interval a little too narrow, and 200 trials scatter by 2 %


def test_scenes_without_the_metric_are_left_out_of_all() -> None:
    method = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]])
    found = paired_bootstrap(method, np.zeros((2, 3)))
    assert (found.mean, found.seeds, found.scenes) == (2.0, 2, 2)
    with pytest.raises(ValueError, match="no scene has this metric"):
        paired_bootstrap(np.full((2, 2), np.nan), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="expected the same seeds and scenes"):
        paired_bootstrap(np.zeros((2, 3)), np.zeros((3, 3)))
