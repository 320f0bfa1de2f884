"""The demo's report says what its numbers say, whichever way they turn out."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.demo.report import ASSISTANT, PRIMARY, MapScore, close_ups_sentence, map_score, student_sentence
from pipeline.report.page import Measure, Scenes, Score, ScoreTable
from stages.scenes import render_scene


def _scores(close: tuple[float | None, float | None], whole: tuple[float | None, float | None]) -> dict[str, MapScore]:
    return {
        f"{teacher}, {kind}": MapScore(abs_rel=abs_rel, edge_f1=edge_f1)
        for teacher in (PRIMARY, ASSISTANT)
        for kind, (abs_rel, edge_f1) in (("close-ups", close), ("whole", whole))
    }


def test_close_ups_are_counted_by_both_measures_and_maps_without_a_score_are_left_out():
    scenes = [
        _scores(close=(0.1, 0.5), whole=(0.2, 0.4)),
        _scores(close=(0.3, 0.5), whole=(0.2, 0.4)),
        _scores(close=(0.2, 0.3), whole=(0.2, 0.4)),
        _scores(close=(None, None), whole=(0.2, 0.4)),
    ]
    sentence = close_ups_sentence(scenes)
    for teacher in (PRIMARY, ASSISTANT):
        assert f"the {teacher} in 1 of 3 by AbsRel and in 2 of 3 by edge F1" in sentence


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ((0.2, 0.8), "by AbsRel it became better (0.3000 → 0.2000) and by δ1 it became better (0.7000 → 0.8000)"),
        ((0.2, 0.6), "by AbsRel it became better (0.3000 → 0.2000) and by δ1 it became worse (0.7000 → 0.6000)"),
        ((0.3, 0.7), "by AbsRel it stayed as good (0.3000 → 0.3000) and by δ1 it stayed as good (0.7000 → 0.7000)"),
    ],
)
def test_the_student_is_judged_by_each_measure(after: tuple[float, float], words: str):
    measures = [Measure(name="AbsRel", direction="lower"), Measure(name="δ1", direction="higher")]
    rows = [Score(name="student before", values=[0.3, 0.7]), Score(name="student after", values=after)]
    table = ScoreTable(heading="", note="", measures=measures, rows=rows)
    sentence = student_sentence(table, Scenes(before=[0.3, 0.3], after=[0.2, 0.4]))
    assert words in sentence
    assert sentence.endswith("By AbsRel the student got better on 1 of 2, and worse on 1.")


def test_a_map_is_scored_against_exact_depth_and_a_dead_one_has_no_score():
    depth_m = render_scene(1_000_000, height_px=48, width_px=48).depth_m
    exact = np.where(np.isfinite(depth_m), 3 / depth_m + 1, 0).astype(np.float32)
    score = map_score(exact, depth_m)
    assert (score.abs_rel, score.edge_f1) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=0.01))
    assert map_score(np.zeros_like(exact), depth_m) == MapScore(abs_rel=None, edge_f1=None)
