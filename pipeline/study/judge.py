"""From records to verdicts: gates first, then claims, each by the metric that was fixed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from pipeline.study.design import BASELINE, EXACT, HIGHER_IS_BETTER, METRIC_NAMES, Claim, Metric
from pipeline.study.records import Record
from stages.evaluation.bootstrap import Interval, paired_bootstrap

Verdict = Literal["better", "worse", "no difference found", "not testable here", "not run yet"]
LEAST_SEEDS = 2
_HEADROOM: tuple[Metric, ...] = ("abs_rel", "delta1", "edge_f1")


@dataclass(frozen=True, kw_only=True)
class PremiseGate:
    """A teacher's close-ups against slices of its whole views, over photographs.

    Holds where neither metric is worse in the mean, and one is better beyond its interval.
    """

    teacher: str
    patches_per_side: int
    slice_abs_rel: float
    close_up_abs_rel: float
    abs_rel: Interval
    slice_edge_f1: float
    close_up_edge_f1: float
    edge_f1: Interval

    @property
    def holds(self) -> bool:
        worse = self.abs_rel.mean > 0 or self.edge_f1.mean < 0
        return not worse and (self.abs_rel.high < 0 or self.edge_f1.low > 0)


@dataclass(frozen=True, kw_only=True)
class HeadroomGate:
    """A student on exact depth against the baseline on its labels, all else alike: is there anything to gain in this metric?"""

    metric: Metric
    baseline: float
    exact: float
    gain: Interval
    """Of exact depth over the baseline, better being positive."""

    @property
    def holds(self) -> bool:
        return self.gain.low > 0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What became of a claim. gain: of the contrast, better being positive. left_out: seeds whose training ended by itself."""

    claim: Claim
    verdict: Verdict
    gain: Interval | None = None
    reasons: tuple[str, ...] = ()
    arms: Mapping[str, float] | None = None
    left_out: tuple[str, ...] = ()

    @property
    def as_expected(self) -> bool | None:
        """None where nothing is expected, or known; a gain that is not found is neither there nor refuted."""
        if self.claim.expects == "open" or self.gain is None:
            return None
        if self.claim.expects == "better" and self.verdict == "no difference found":
            return None
        return (self.verdict == "better") == (self.claim.expects == "better")


def premise_gate(teacher: str, patches_per_side: int, record: Record) -> PremiseGate | None:
    """None where no photograph had a patch to compare."""
    if not record.scenes:
        return None
    scores = {metric: record.column(metric) for metric in record.scores}

    def change(metric: str) -> Interval:
        return paired_bootstrap(scores[f"close_up_{metric}"][None], scores[f"slice_{metric}"][None])

    means = {metric: float(np.nanmean(values)) for metric, values in scores.items()}
    return PremiseGate(
        teacher=teacher, patches_per_side=patches_per_side, abs_rel=change("abs_rel"), edge_f1=change("edge_f1"), **means
    )


def headroom_gates(records: Mapping[str, Mapping[int, Record]]) -> list[HeadroomGate]:
    """For each metric; none before both arms have two seeds. records: by arm and seed."""
    found = []
    for metric in _HEADROOM:
        seeds, _ = _common_seeds(records, (BASELINE, EXACT))
        if len(seeds) < LEAST_SEEDS:
            return []
        baseline, exact = (_matrix(records[arm], seeds, metric) for arm in (BASELINE, EXACT))
        sign = 1 if HIGHER_IS_BETTER[metric] else -1
        gain = paired_bootstrap(sign * exact, sign * baseline)
        means = {"baseline": float(np.nanmean(baseline)), "exact": float(np.nanmean(exact))}
        found.append(HeadroomGate(metric=metric, gain=gain, **means))
    return found


def reasons_against(claim: Claim, premises: Sequence[PremiseGate], headroom: Sequence[HeadroomGate]) -> list[str]:
    """Which gates the claim fails, in words with their numbers. A gate that is not measured yet is no reason.

    premises: for the number of patches per side with which students learn.
    """
    found = [
        f"premise of {gate.teacher}: AbsRel {gate.slice_abs_rel:.3f} of slices, {gate.close_up_abs_rel:.3f} of close-ups,"
        f" edge F1 {gate.slice_edge_f1:.3f} and {gate.close_up_edge_f1:.3f}"
        for gate in premises
        if gate.teacher in claim.premise and not gate.holds
    ]
    found += [
        f"headroom: {METRIC_NAMES[gate.metric]} {gate.baseline:.4f} of the baseline, {gate.exact:.4f} on exact depth,"
        f" gain {interval(gate.gain)}"
        for gate in headroom
        if claim.headroom and gate.metric == claim.metric and not gate.holds
    ]
    return found


def judge(claim: Claim, reasons: Sequence[str], records: Mapping[str, Mapping[int, Record]]) -> Judgement:
    """The verdict. reasons: those against it, of the gates; records: by arm and seed, of finished work."""
    if reasons:
        return Judgement(claim=claim, verdict="not testable here", reasons=tuple(reasons))
    seeds, left_out = _common_seeds(records, tuple(claim.contrast))
    if len(seeds) < LEAST_SEEDS:
        return Judgement(claim=claim, verdict="not run yet", left_out=tuple(left_out))
    scores = {arm: _matrix(records[arm], seeds, claim.metric) for arm in claim.contrast}
    sign = 1 if HIGHER_IS_BETTER[claim.metric] else -1
    terms = [sign * weight * scores[arm] for arm, weight in claim.contrast.items()]
    total = np.sum(terms, axis=0)
    gain = paired_bootstrap(total, np.zeros_like(total))
    verdict = "no difference found" if not gain.excludes_zero else "better" if gain.mean > 0 else "worse"
    means = {arm: float(np.nanmean(values)) for arm, values in scores.items()}
    return Judgement(claim=claim, verdict=verdict, gain=gain, arms=means, left_out=tuple(left_out))


def interval(of: Interval) -> str:
    """In the report's words."""
    return f"{of.mean:+.4f} [{of.low:+.4f}, {of.high:+.4f}]".replace("-", "−")


def _common_seeds(records: Mapping[str, Mapping[int, Record]], arms: Sequence[str]) -> tuple[list[int], list[str]]:
    """Seeds with scores in every arm, and those that are left out, each with the reason."""
    finished = [records.get(arm, {}) for arm in arms]
    seeds = set.intersection(*(set(of_arm) for of_arm in finished))
    failed = {
        seed: f"seed {seed}: {arm}: {failure}"
        for arm, of_arm in zip(arms, finished, strict=True)
        for seed in seeds
        if (failure := of_arm[seed].failure)
    }
    return sorted(seeds - failed.keys()), [failed[seed] for seed in sorted(failed)]


def _matrix(of_arm: Mapping[int, Record], seeds: Sequence[int], metric: Metric) -> Float[np.ndarray, "seeds scenes"]:
    return np.stack([of_arm[seed].column(metric) for seed in seeds])
