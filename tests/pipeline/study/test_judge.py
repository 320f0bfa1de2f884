"""Verdicts, from records made up so that it is known what they must say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.study.design import BASELINE, EXACT, Claim
from pipeline.study.judge import PremiseGate, headroom_gates, judge, reasons_against
from pipeline.study.records import Record, Records
from stages.evaluation.bootstrap import Interval

_SCENES = tuple(map(str, range(30)))


def _arm(name: str, abs_rel: float, seeds: int = 5, failed: tuple[int, ...] = ()) -> dict[int, Record]:
    """Trainings of an arm: seeds differ by .02, scenes by .1, and what is paired is common to all arms."""
    hard = np.random.default_rng(0).normal(0, 0.1, len(_SCENES))
    found = {}
    for seed in range(seeds):
        own = np.random.default_rng([seed, *name.encode()]).normal(0, 0.004, len(_SCENES))
        scores = {"abs_rel": abs_rel + hard + 0.02 * seed + own, "delta1": 0.5 + hard, "edge_f1": 0.1 + own}
        found[seed] = Record(
            name=f"known.{name}.{seed}",
            what={"arm": name},
            scenes=() if seed in failed else _SCENES,
            scores={} if seed in failed else {metric: tuple(values) for metric, values in scores.items()},
            cpu_s=1.0,
            failure="the head is dead" if seed in failed else None,
        )
    return found


_CLAIM = Claim(name="c", says="", metric="abs_rel", contrast={"a": 1, "b": -1}, premise=("primary",))


@pytest.mark.parametrize(
    ("a", "verdict", "as_expected"),
    [(0.28, "better", True), (0.32, "worse", False), (0.3001, "no difference found", None)],
)
def test_a_claim_is_judged_by_its_interval(a: float, verdict: str, as_expected: bool | None) -> None:
    found = judge(_CLAIM, [], {"a": _arm("a", a), "b": _arm("b", 0.30)})
    assert (found.verdict, found.as_expected) == (verdict, as_expected)
    assert found.gain is not None
    assert found.gain.mean == pytest.approx(0.30 - a, abs=0.003)  # of an error, a gain is less of it


def test_a_difference_of_gains_is_a_claim_too() -> None:
    claim = Claim(name="c", says="", metric="abs_rel", contrast={"a": 1, "b": -1, "c": -1, "d": 1})
    arms = {"a": _arm("a", 0.25), "b": _arm("b", 0.3), "c": _arm("c", 0.29), "d": _arm("d", 0.3)}
    assert judge(claim, [], arms).verdict == "better"  # .05 against .01


def test_a_training_that_ended_by_itself_leaves_its_seed_out_and_says_so() -> None:
    found = judge(_CLAIM, [], {"a": _arm("a", 0.2, failed=(1,)), "b": _arm("b", 0.3)})
    assert found.gain is not None
    assert found.gain.seeds == 4
    assert found.left_out == ("seed 1: a: the head is dead",)
    assert judge(_CLAIM, [], {"a": _arm("a", 0.2, seeds=1), "b": _arm("b", 0.3)}).verdict == "not run yet"


def test_where_exact_depth_is_no_better_than_the_labels_nothing_is_compared() -> None:
    gates = headroom_gates({BASELINE: _arm(BASELINE, 0.3), EXACT: _arm(EXACT, 0.3)})
    assert [gate.holds for gate in gates] == [False, False, False]
    (reason,) = reasons_against(_CLAIM, [], gates)
    assert reason.startswith("headroom: AbsRel 0.3")
    assert judge(_CLAIM, [reason], {"a": _arm("a", 0.1), "b": _arm("b", 0.3)}).verdict == "not testable here"
    gates = headroom_gates({BASELINE: _arm(BASELINE, 0.3), EXACT: _arm(EXACT, 0.25)})
    assert {gate.metric: gate.holds for gate in gates} == {"abs_rel": True, "delta1": False, "edge_f1": False}
    assert reasons_against(_CLAIM, [], gates) == []


def test_where_close_ups_are_worse_the_claims_that_rest_on_them_are_not_judged() -> None:
    worse = Interval(mean=0.03, low=0.02, high=0.04, seeds=1, scenes=9)
    gate = PremiseGate(
        teacher="primary",
        patches_per_side=2,
        slice_abs_rel=0.12,
        close_up_abs_rel=0.15,
        abs_rel=worse,
        slice_edge_f1=0.3,
        close_up_edge_f1=0.33,
        edge_f1=worse,
    )
    (reason,) = reasons_against(_CLAIM, [gate], [])
    assert reason == "premise of primary: AbsRel 0.120 of slices, 0.150 of close-ups, edge F1 0.300 and 0.330"
    assert reasons_against(Claim(name="c", says="", metric="abs_rel", contrast={"a": 1}), [gate], []) == []


def test_records_are_kept_to_five_digits_and_count_for_the_same_work_alone(tmp_path: Path) -> None:
    record = Record(
        name="r", what={"steps": 3, "columns": ("a",)}, scenes=("1", "2"), scores={"f": (0.1234567, float("nan"))}, cpu_s=2
    )
    Records(tmp_path).put(record)
    records = Records(tmp_path)
    kept = records.get("r", record.what)
    assert kept is not None
    np.testing.assert_equal(kept.column("f"), [0.12346, np.nan])
    assert records.get("r", {**record.what, "steps": 4}) is None
    assert records.differing("r", {**record.what, "steps": 4}) == ["steps"]
    (tmp_path / "r.json").write_text('{"format": 1, "name": "r", "scores": {}}')
    with pytest.raises(ValueError, match=r"r\.json: no record of a study"):
        Records(tmp_path)
