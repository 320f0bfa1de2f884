"""What the study asks, declared: teachers, arms, gates and claims. Nothing here runs anything.

An arm is one way to label and train; a claim compares arms by one metric that was fixed before anything was run, and says on
which gates it rests. A claim without an expectation is a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.study.teachers import KnownTeacher
from stages.labelling.teacher import TeacherSpec
from stages.views import ViewPlan

Metric = Literal["abs_rel", "delta1", "edge_f1", "central_gain"]
HIGHER_IS_BETTER: Mapping[Metric, bool] = {"abs_rel": False, "delta1": True, "edge_f1": True, "central_gain": False}
METRIC_NAMES: Mapping[Metric, str] = {
    "abs_rel": "AbsRel",
    "delta1": "δ1",
    "edge_f1": "edge F1",
    "central_gain": "AbsRel of the central half, fitted there less fitted on the whole",
}
PlanKind = Literal["whole", "square"]
Expectation = Literal["better", "not better", "open"]
BASELINE, EXACT = "baseline", "exact"
"""The arms of the gate `headroom`, in every family."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How photographs are cut into views: as a whole, or as random squares. patches_per_side: None for the family's."""

    context: PlanKind = "whole"
    patches_per_side: int | None = None
    patch_overlap: float = ViewPlan.patch_overlap
    contexts_per_image: int = 1

    @property
    def name(self) -> str:
        """For a folder: what is not as usual, besides the context."""
        usual = Cut(context=self.context)
        changed = [f"{key}-{value:g}" for key, value in vars(self).items() if value != getattr(usual, key)]
        return "-".join([self.context, *changed])


WHOLE, SQUARE = Cut(), Cut(context="square")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Teachers, and the views that they label.

    photo_px: side of the square photographs. patches_per_side: of the close-ups that students learn from.
    """

    name: str
    about: str
    teachers: Mapping[str, KnownTeacher | TeacherSpec]
    context_px: int
    photo_px: int
    min_square_px: int
    patches_per_side: int = 2
    label_bits: Mapping[str, int] = field(default_factory=dict)
    """Of a teacher's labels, where they are not the default."""

    def plan(self, cut: Cut) -> ViewPlan:
        """How photographs are cut."""
        return ViewPlan(
            context=cut.context,
            context_px=self.context_px,
            patch_px=self.context_px,
            min_square_px=self.min_square_px,
            patches_per_side=cut.patches_per_side or self.patches_per_side,
            patch_overlap=cut.patch_overlap,
            contexts_per_image=cut.contexts_per_image,
        )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to label and train. train: settings of `pipeline.train` that differ from the study's own."""

    name: str
    cut: Cut = WHOLE
    columns: tuple[str, ...] = ("primary",)
    train: Mapping[str, Any] = field(default_factory=dict)
    image_share: float = 1.0
    """Of the labelled images."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A comparison of arms: the sum of their scores, each times its weight in `contrast`, is 0 where there is no difference."""

    name: str
    says: str
    metric: Metric
    contrast: Mapping[str, float]
    expects: Expectation = "better"
    premise: tuple[str, ...] = ()
    """Teachers whose close-ups must be better than slices of their whole views."""
    headroom: bool = True
    """Whether a student on exact depth must be better than the baseline in this metric."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """All that one family of teachers is asked. mapped: the map's teachers; the arm that learns from one has its name."""

    family: Family
    arms: Sequence[Arm]
    claims: Sequence[Claim]
    mapped: Sequence[str] = ()

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)
