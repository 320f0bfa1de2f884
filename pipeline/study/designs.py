"""The designs of the study: its teachers, arms and claims, as the paper has them and as users ask.

What a claim expects is what the paper says, or, of teachers with known errors, what follows from how they were made.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pipeline.label.config import LabelConfig, demo_teacher
from pipeline.study.design import BASELINE, EXACT, SQUARE, Arm, Claim, Design, Expectation, Family, Metric
from pipeline.study.teachers import KnownTeacher
from stages.scenes.errors import Errors

_GLOBAL: dict[str, Any] = {"normalization_shared": "global", "normalization_local": "global", "local_global_weight": 0.0}
_SHARED_ONLY: dict[str, Any] = {"local_global_weight": 0.0}
_LOCAL_ONLY: dict[str, Any] = {"shared_weight": 0.0, "gradient_weight": 0.0, "local_global_weight": 1.0}

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


_BITS = (8, 16)
"""Of a code, beside the default, which is 12."""

KNOWN_TEACHERS: dict[str, KnownTeacher] = {
    "exact": KnownTeacher(),
    "primary": _known(_DETAIL["sharp"], 0.05),
    "assistant": KnownTeacher(
        whole=Errors(blur=0.008, bias=0.32, noise=0.15, scale=0.1, shift=0.1),
        close_up=Errors(blur=0.008, bias=0.06, noise=0.03, **_OWN),
        seed=1,
    ),
    **{f"primary-{bits}-bits": _known(_DETAIL["sharp"], 0.05) for bits in _BITS},
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
        label_bits={f"primary-{bits}-bits": bits for bits in _BITS},
    )
    parts = (_tables(), _errors(), _map(), _ablations())
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
        Arm(name="both", cut=SQUARE, columns=both),
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
        *(Arm(name=f"sc-{n}", cut=SQUARE, train={**_SHARED_ONLY, "normalization_shared": n}) for n in norms),
        *(Arm(name=f"lg-{n}", cut=SQUARE, train={**_LOCAL_ONLY, "normalization_local": n}) for n in norms),
        Arm(name="baseline-lg", train={**_GLOBAL, "local_global_weight": 0.5, "normalization_local": "hybrid"}),
        Arm(name="both", cut=SQUARE),
        Arm(name="assistant", cut=SQUARE, columns=("assistant",)),
        Arm(name="average", cut=SQUARE, columns=both, train={"strategy": "average"}),
        Arm(name="select", cut=SQUARE, columns=both),
        Arm(name="baseline-fresh", train={**_GLOBAL, "fresh_head": True}),
        Arm(name="both-fresh", cut=SQUARE, train={"fresh_head": True}),
        Arm(name="baseline-few", train=_GLOBAL, image_share=1 / 8),
        Arm(name="both-few", cut=SQUARE, image_share=1 / 8),
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
            Arm(name=f"{error}-square", cut=SQUARE, columns=teacher, train=_GLOBAL),
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


def _ablations() -> tuple[list[Arm], list[Claim]]:
    """What people ask who set the options: each beside the method as it is, in both metrics, with no expectation."""
    both = ("primary", "assistant")
    asked = {
        "both": (
            Arm(name="patches-3", cut=replace(SQUARE, patches_per_side=3)),
            Arm(name="overlap-half", cut=replace(SQUARE, patch_overlap=0.5)),
            Arm(name="contexts-2", cut=replace(SQUARE, contexts_per_image=2)),
            *(Arm(name=f"bits-{bits}", cut=SQUARE, columns=(f"primary-{bits}-bits",)) for bits in _BITS),
            Arm(name="ema", cut=SQUARE, train={"ema_decay": 0.98}),
            Arm(name="trim", cut=SQUARE, train={"trim_fraction": 0.1}),
            Arm(name="patch-filter", cut=SQUARE, train={"patch_agreement": 0.7}),
            Arm(name="scratch", cut=SQUARE, train={"from_scratch": True}),
        ),
        "select": (
            Arm(name="ratio-even", cut=SQUARE, columns=both, train={"ratios": (0.5, 0.5)}),
            Arm(name="ratio-9-to-1", cut=SQUARE, columns=both, train={"ratios": (0.9, 0.1)}),
            Arm(name="mask", cut=SQUARE, columns=both, train={"mask_disagreement": 1.0}),
        ),
    }
    says = {
        "patches-3": "Three close-ups per side instead of two.",
        "overlap-half": "Close-ups that share half of their side instead of a quarter.",
        "contexts-2": "Two squares of each photograph instead of one.",
        "bits-8": "Labels in 8 bits instead of 12.",
        "bits-16": "Labels in 16 bits instead of 12.",
        "ema": "A moving average of the weights (0.98) instead of the last ones.",
        "trim": "A tenth of the pixels left out, those with the largest loss.",
        "patch-filter": "Close-ups left out whose correlation with the whole view is below 0.7.",
        "scratch": "A student with random weights instead of one that has learned depth.",
        "ratio-even": "Teachers at 5 to 5 instead of 7 to 3.",
        "ratio-9-to-1": "Teachers at 9 to 1 instead of 7 to 3.",
        "mask": "Pixels left out in which the teachers differ.",
    }
    metrics: tuple[tuple[str, Metric], ...] = (("", "abs_rel"), (" (edges)", "edge_f1"))
    claims = [
        _better(f"ablation: {arm.name}{suffix}", says[arm.name], arm.name, than, metric=metric, expects="open")
        for than, arms in asked.items()
        for arm in arms
        for suffix, metric in metrics
    ]
    return [arm for arms in asked.values() for arm in arms], claims
