"""What the study asks, declared: teachers, arms, gates and claims. Nothing here runs anything.

An arm is one way to label and train; a claim compares arms by one metric that was fixed before anything was run, and says on
which gates it rests. What a claim expects is what the paper says, or, of teachers with known errors, what follows from how they
were made; a claim without an expectation is a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.label.config import LabelConfig, demo_teacher
from pipeline.study.teachers import KnownTeacher
from stages.labelling.teacher import TeacherSpec
from stages.scenes.errors import Errors
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

_GLOBAL: dict[str, Any] = {"normalization_shared": "global", "normalization_local": "global", "local_global_weight": 0.0}
_SHARED_ONLY: dict[str, Any] = {"local_global_weight": 0.0}
_LOCAL_ONLY: dict[str, Any] = {"shared_weight": 0.0, "gradient_weight": 0.0, "local_global_weight": 1.0}


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

    def plan(self, kind: PlanKind, patches_per_side: int | None = None) -> ViewPlan:
        """How photographs are cut: as a whole, or as a random square of each."""
        return ViewPlan(
            context=kind,
            context_px=self.context_px,
            patch_px=self.context_px,
            min_square_px=self.min_square_px,
            patches_per_side=patches_per_side or self.patches_per_side,
        )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to label and train. train: settings of `pipeline.train` that differ from the study's own."""

    name: str
    plan: PlanKind = "whole"
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


# --- teachers with known errors -------------------------------------------------------------------------------------

_WHOLE = Errors(blur=0.02, bias=0.15, noise=0.1, scale=0.1, shift=0.1)
"""Of whole views: a blur of 2 % of the side, and a layout that is off by a sixth of the scene's spread."""
_OWN = {"scale": 0.4, "shift": 0.4}
_DETAIL = {"sharp": 0.008, "alike": 0.035, "soft": 0.09}
_GEOMETRY = {"right": 0.0, "alike": 0.17, "wrong": 0.4}
"""Of close-ups: better than, as good as and worse than the same place in the whole view. A close-up has 0.57 of the field
of view, so that a blur of 0.035 of its side is the whole view's 0.02."""
_STEPS = (1, 0, -1)


def _known(blur: float, bias: float) -> KnownTeacher:
    return KnownTeacher(whole=_WHOLE, close_up=Errors(blur=blur, bias=bias, noise=bias / 2, **_OWN))


def _cell(detail: str, geometry: str) -> str:
    return f"map-{detail}-{geometry}"


_CELLS = tuple(_cell(detail, geometry) for detail in _DETAIL for geometry in _GEOMETRY)


KNOWN_TEACHERS: dict[str, KnownTeacher] = {
    "exact": KnownTeacher(),
    "primary": _known(_DETAIL["sharp"], 0.05),
    "assistant": KnownTeacher(
        whole=Errors(blur=0.008, bias=0.32, noise=0.15, scale=0.1, shift=0.1),
        close_up=Errors(blur=0.008, bias=0.06, noise=0.03, **_OWN),
        seed=1,
    ),
    **{f"only-{name}": KnownTeacher(whole=errors, close_up=errors) for name, errors in {
        "blur": Errors(blur=0.05), "bias": Errors(bias=0.25), "noise": Errors(noise=0.3)}.items()},
    **{_cell(d, g): _known(blur, bias) for d, blur in _DETAIL.items() for g, bias in _GEOMETRY.items()},
}  # fmt: skip


def _made(detail: str, geometry: str) -> Literal["better", "worse", "mixed"]:
    """Better, or worse, in one of both and no worse, or better, in the other."""
    steps = [dict(zip(of, _STEPS, strict=True))[name] for of, name in ((_DETAIL, detail), (_GEOMETRY, geometry))]
    if sum(steps) > 0 and min(steps) >= 0:
        return "better"
    return "worse" if sum(steps) < 0 and max(steps) <= 0 else "mixed"


def _made_of_edges(detail: str, geometry: str) -> Literal["better", "worse", "mixed"]:
    """The same of edges alone, which follow detail where geometry does not pull the other way."""
    if detail == "sharp" and geometry != "wrong":
        return "better"
    return "worse" if detail == "soft" and geometry != "right" else "mixed"


# --- arms and claims ------------------------------------------------------------------------------------------------


def known_design(*, context_px: int, photo_px: int, min_square_px: int) -> Design:
    """Tables 1, 2, 4 and 5, figures 2, 5 and 7, and the map, with teachers whose errors are known.

    One teacher supplies the labels of tables 1 and 2, so that what an assistant changes is asked in table 4 alone.
    """
    family = Family(
        name="known",
        about="exact depth of rendered scenes, spoilt in known ways",
        teachers=KNOWN_TEACHERS,
        context_px=context_px,
        photo_px=photo_px,
        min_square_px=min_square_px,
    )
    parts = (_tables(), _errors(), _map())
    arms = tuple(arm for arms, _ in parts for arm in arms)
    return Design(family=family, arms=arms, claims=tuple(claim for _, claims in parts for claim in claims), mapped=_CELLS)


def demo_design(*, context_px: int = 192, photo_px: int = 384, min_square_px: int = 222) -> Design:
    """Table 2 and figure 5 with the demo's teachers, small networks trained on rendered scenes."""
    family = Family(
        name="demo",
        about="the demo's two small networks",
        teachers={name: demo_teacher(name) for name in ("primary", "assistant")},
        context_px=context_px,
        photo_px=photo_px,
        min_square_px=min_square_px,
    )
    return _table_2(family)


def paper_design() -> Design:
    """The same with the paper's teachers."""
    family = Family(
        name="paper",
        about="Depth Anything v2 Large and GenPercept's disparity checkpoint, on rendered scenes",
        teachers=dict(LabelConfig(run=Path()).teachers),
        context_px=560,
        photo_px=1288,
        min_square_px=644,
    )
    return _table_2(family)


def _table_2(family: Family) -> Design:
    both = ("primary", "assistant")
    family = replace(family, teachers={**family.teachers, "exact": KnownTeacher()})
    arms = (
        Arm(name=BASELINE, columns=both, train=_GLOBAL),
        Arm(name=EXACT, columns=("exact",), train=_GLOBAL),
        Arm(name="local-global", columns=both, train={**_GLOBAL, "local_global_weight": 0.5, "normalization_local": "hybrid"}),
        Arm(name="both", plan="square", columns=both),
    )
    claims = (
        _better("table 2: L_lg", "The local-global loss helps the baseline.", "local-global", BASELINE, both),
        _better("table 2: both", "Both losses on random squares are better than the baseline.", "both", BASELINE, both),
    )
    return Design(family=family, arms=arms, claims=claims)


def _better(
    name: str,
    says: str,
    arm: str,
    than: str,
    premise: tuple[str, ...] = (),
    *,
    metric: Metric = "abs_rel",
    expects: Expectation = "better",
) -> Claim:
    contrast = {arm: 1.0, than: -1.0}
    return Claim(name=name, says=says, metric=metric, contrast=contrast, expects=expects, premise=premise)


def _tables() -> tuple[list[Arm], list[Claim]]:
    norms = ("global", "none", "local", "hybrid")
    primary, both = ("primary",), ("primary", "assistant")
    arms = [
        Arm(name=BASELINE, train=_GLOBAL),
        Arm(name=EXACT, columns=("exact",), train=_GLOBAL),
        *(Arm(name=f"sc-{n}", plan="square", train={**_SHARED_ONLY, "normalization_shared": n}) for n in norms),
        *(Arm(name=f"lg-{n}", plan="square", train={**_LOCAL_ONLY, "normalization_local": n}) for n in norms),
        Arm(name="baseline-lg", train={**_GLOBAL, "local_global_weight": 0.5, "normalization_local": "hybrid"}),
        Arm(name="both", plan="square"),
        Arm(name="assistant", plan="square", columns=("assistant",)),
        Arm(name="average", plan="square", columns=both, train={"strategy": "average"}),
        Arm(name="select", plan="square", columns=both),
        Arm(name="baseline-fresh", train={**_GLOBAL, "fresh_head": True}),
        Arm(name="both-fresh", plan="square", train={"fresh_head": True}),
        Arm(name="baseline-few", train=_GLOBAL, image_share=1 / 8),
        Arm(name="both-few", plan="square", image_share=1 / 8),
    ]
    gain = {"both": 1.0, BASELINE: -1.0}
    claims = [
        _better("table 1: hybrid, L_sc", "Of L_sc alone, hybrid normalisation beats global.", "sc-hybrid", "sc-global"),
        _better("table 1: local, L_sc", "Of L_sc alone, hybrid beats local.", "sc-hybrid", "sc-local"),
        _better("table 1: hybrid, L_lg", "Of L_lg alone, hybrid beats global.", "lg-hybrid", "lg-global", primary),
        _better("table 1: none, L_lg", "Of L_lg alone, raw values collapse.", "lg-hybrid", "lg-none", primary),
        _better("table 2: L_lg", "L_lg helps the baseline.", "baseline-lg", BASELINE, primary),
        _better("table 2: L_sc", "L_sc on random squares helps the baseline.", "sc-hybrid", BASELINE),
        _better("table 2: both", "Both together beat the baseline.", "both", BASELINE, primary),
        _better("table 2: edges", "Both together have better edges.", "both", BASELINE, primary, metric="edge_f1"),
        _better("table 4: select", "Selecting 7 to 3 beats the primary alone.", "select", "both", both),
        _better("table 4: assistant", "Selecting beats the assistant alone.", "select", "assistant", both),
        _better("table 4: average", "Selecting beats averaging.", "select", "average", both),
        Claim(
            name="table 5: fresh head",
            says="The gain is larger with a fresh head than with a trained one.",
            metric="abs_rel",
            contrast={"both-fresh": 1.0, "baseline-fresh": -1.0, "both": -1.0, BASELINE: 1.0},
            premise=primary,
        ),
        Claim(
            name="figure 7: more images",
            says="The gain grows with the number of images, from an eighth to all.",
            metric="abs_rel",
            contrast={**gain, "both-few": -1.0, "baseline-few": 1.0},
            premise=primary,
        ),
        Claim(
            name="figure 2: local fit",
            says="On the central half, a fit there is better than one on the whole picture.",
            metric="central_gain",
            contrast={BASELINE: 1.0},
            headroom=False,
        ),
    ]
    return arms, claims


def _errors() -> tuple[list[Arm], list[Claim]]:
    """Under which errors of whole views do hybrid normalisation and random squares help?"""
    arms, claims = [], []
    for error in ("blur", "bias", "noise"):
        teacher = (f"only-{error}",)
        arms += [
            Arm(name=f"{error}-global", columns=teacher, train=_GLOBAL),
            Arm(name=f"{error}-hybrid", columns=teacher, train=_SHARED_ONLY),
            Arm(name=f"{error}-square", plan="square", columns=teacher, train=_GLOBAL),
        ]
        for name, says in (("hybrid", "Hybrid normalisation beats global"), ("square", "Random squares beat whole pictures")):
            says = f"{says} where the labels' error is {error}."
            claims.append(_better(f"errors: {name}, {error}", says, f"{error}-{name}", f"{error}-global", expects="open"))
    return arms, claims


def _map() -> tuple[list[Arm], list[Claim]]:
    """Under which errors of close-ups does L_lg help? The whole views, and all else, are the same."""
    arms, claims = [Arm(name="map-control", columns=("map-alike-alike",), train=_SHARED_ONLY)], []
    expected: dict[str, Expectation] = {"better": "better", "worse": "not better", "mixed": "open"}
    for detail in _DETAIL:
        for geometry in _GEOMETRY:
            name = _cell(detail, geometry)
            arms.append(Arm(name=name, columns=(name,)))
            says = f"L_lg helps where close-ups are {detail} in detail and {geometry} in geometry."
            called, expects = f"map: {detail}, {geometry}", expected[_made(detail, geometry)]
            claims.append(_better(called, says, name, "map-control", expects=expects))
            expects = expected[_made_of_edges(detail, geometry)]
            claims.append(_better(f"{called} (edges)", says, name, "map-control", expects=expects, metric="edge_f1"))
    return arms, claims
