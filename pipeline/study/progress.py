"""The order of a study: premises, the learning rate, headroom, and then the arms of those claims that no gate forbids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.study.design import BASELINE, EXACT, Arm, Claim, Design
from pipeline.study.drive import do_all
from pipeline.study.judge import HeadroomGate, Judgement, PremiseGate, headroom_gates, judge, premise_gate, reasons_against
from pipeline.study.labels import Workshop
from pipeline.study.records import Record, Records
from pipeline.study.scales import TUNING_SEED
from pipeline.study.work import Premise, Training


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known of one design, from records alone.

    rates: AbsRel of the baseline on the tuning scenes by learning rate, of those tried; rate: the best, once all are.
    reasons: against each claim, by its name. finished: records by arm and seed. counted: all records that were used.
    left: pieces of work that are still to do, by the gates as they stand. differing: records that do not count, each with the
    settings in which it is of other work.
    """

    design: Design
    claims: Sequence[Claim]
    premises: Sequence[PremiseGate]
    rates: Mapping[float, float]
    rate: float | None
    headroom: Sequence[HeadroomGate]
    reasons: Mapping[str, Sequence[str]]
    finished: Mapping[str, Mapping[int, Record]]
    counted: Sequence[Record]
    left: int
    differing: Sequence[str]

    @property
    def open_claims(self) -> list[Claim]:
        """Those that no gate forbids, so far."""
        return [claim for claim in self.claims if not self.reasons[claim.name]]

    @property
    def arms_wanted(self) -> list[str]:
        """The arms of open claims, after those of the gate; none where there is no such claim."""
        arms = [arm for claim in self.open_claims for arm in claim.contrast]
        return list(dict.fromkeys([BASELINE, EXACT, *arms])) if arms else []

    def judgements(self) -> list[Judgement]:
        """Every claim's."""
        return [judge(claim, self.reasons[claim.name], self.finished) for claim in self.claims]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One design on its way. deadline: of `time.monotonic`."""

    workshop: Workshop
    design: Design
    records: Path
    deadline: float
    tell: Callable[[str], None]

    # --- work -------------------------------------------------------------------------------------------------------

    def measure_premises(self) -> None:
        """Label the photographs of the gates, and compare. Raises as `Workshop.label_premise` does."""
        records = Records(self.records)
        wanted = [premise for premise in self.premises if records.get(premise.name, premise.what()) is None]
        for side in sorted({premise.patches_per_side for premise in wanted}):
            of_side = [premise for premise in wanted if premise.patches_per_side == side]
            self.workshop.label_premise(self.design.family, side, [premise.teacher for premise in of_side])
            for premise in of_side:
                records.put(premise.measure())
                self.tell(premise.name)

    def train(self) -> None:
        """Choose the rate, then train for the gate, then for the claims. Raises as `label_students` and `do_all` do."""
        if not self.findings().open_claims:
            return  # every claim's premise has failed: there is nothing to train for
        self._do(self._tunings)
        self._do(self._trainings(self._rate(Records(self.records)), [BASELINE, EXACT]))
        findings = self.findings()
        self._do(self._trainings(findings.rate, findings.arms_wanted))

    def _do(self, trainings: Sequence[Training]) -> None:
        records = Records(self.records)
        missing = [training for training in trainings if records.get(training.name, training.what()) is None]
        for cut in dict.fromkeys(training.arm.cut for training in missing):
            columns = {column for training in missing if training.arm.cut == cut for column in training.arm.columns}
            self.workshop.label_students(self.design.family, cut, sorted(columns))
        do_all(missing, self.records, workers=self.workshop.workers, deadline=self.deadline, tell=self.tell)

    # --- what is to be done -----------------------------------------------------------------------------------------

    @property
    def claims(self) -> list[Claim]:
        """Those that the scale asks."""
        chosen = self.workshop.scale.claims
        return [claim for claim in self.design.claims if not chosen or claim.name in chosen]

    @property
    def mapped(self) -> list[str]:
        """The map's teachers, of these claims."""
        asked = {arm for claim in self.claims for arm in claim.contrast}
        return [teacher for teacher in self.design.mapped if teacher in asked]

    @property
    def premises(self) -> list[Premise]:
        """Of the teachers that claims rest on, for every number of patches; of the map's, for that of the trainings."""
        family, scale = self.design.family, self.workshop.scale
        gated = dict.fromkeys(teacher for claim in self.claims for teacher in claim.premise)
        wanted = [(teacher, side) for side in scale.premise_sides for teacher in gated]
        wanted += [(teacher, family.patches_per_side) for teacher in self.mapped]
        return [
            Premise(workshop=self.workshop, family=family, teacher=teacher, patches_per_side=side)
            for teacher, side in dict.fromkeys(wanted)
        ]

    @property
    def _tunings(self) -> list[Training]:
        baseline = self.design.arm(BASELINE)
        return [self._training(baseline, TUNING_SEED, rate, tuning=True) for rate in self.workshop.scale.rates]

    def _trainings(self, rate: float | None, arms: Sequence[str]) -> list[Training]:
        """Seed by seed, so that what a sitting leaves is of all arms alike; none before there is a rate."""
        if rate is None:
            return []
        return [self._training(self.design.arm(arm), seed, rate) for seed in self.workshop.scale.seeds for arm in arms]

    def _training(self, arm: Arm, seed: int, rate: float, *, tuning: bool = False) -> Training:
        scored_on = "tuning" if tuning else "test"
        return Training(workshop=self.workshop, family=self.design.family, arm=arm, seed=seed, rate=rate, scored_on=scored_on)

    # --- what is known ----------------------------------------------------------------------------------------------

    def findings(self) -> Findings:
        """From the records as they are now."""
        records = Records(self.records)
        premises, rate = self._premise_gates(records), self._rate(records)
        finished: dict[str, dict[int, Record]] = {}
        for training in self._trainings(rate, [arm.name for arm in self.design.arms]):
            if record := records.get(training.name, training.what()):
                finished.setdefault(training.arm.name, {})[training.seed] = record
        headroom = headroom_gates(finished)
        side = self.design.family.patches_per_side
        judged = [gate for gate in premises if gate.patches_per_side == side]
        found = Findings(
            design=self.design,
            claims=self.claims,
            premises=premises,
            rates=self._rates(records),
            rate=rate,
            headroom=headroom,
            reasons={claim.name: reasons_against(claim, judged, headroom) for claim in self.claims},
            finished=finished,
            counted=(),
            left=0,
            differing=(),
        )
        return self._with_account(found, records)

    def _with_account(self, found: Findings, records: Records) -> Findings:
        """What was used of the records, what is missing, and what is there but of other work."""
        arms = found.arms_wanted
        trainings = self._trainings(found.rate, arms)
        work = [*self.premises, *(self._tunings if arms else []), *trainings]
        missing = sum(records.get(piece.name, piece.what()) is None for piece in work)
        if found.rate is None:
            missing += len(arms) * len(self.workshop.scale.seeds)
        differing = [(piece.name, records.differing(piece.name, piece.what())) for piece in work]
        return Findings(
            **{
                **vars(found),
                "counted": [record for piece in work if (record := records.get(piece.name, piece.what()))],
                "left": missing,
                "differing": [f"{name} ({', '.join(settings)})" for name, settings in differing if settings],
            }
        )

    def _premise_gates(self, records: Records) -> list[PremiseGate]:
        found = [(premise, records.get(premise.name, premise.what())) for premise in self.premises]
        gates = [premise_gate(premise.teacher, premise.patches_per_side, record) for premise, record in found if record]
        return [gate for gate in gates if gate is not None]

    def _rates(self, records: Records) -> dict[float, float]:
        found = {training.rate: records.get(training.name, training.what()) for training in self._tunings}
        scores = {rate: record for rate, record in found.items() if record is not None}
        return {rate: float("inf") if r.failure else float(r.column("abs_rel").mean()) for rate, r in scores.items()}

    def _rate(self, records: Records) -> float | None:
        tried = self._rates(records)
        return min(tried, key=lambda rate: tried[rate]) if len(tried) == len(self.workshop.scale.rates) else None
