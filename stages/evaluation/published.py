"""Figures that others published or measured on the benchmarks, to stand beside ours; never taken as ours.

AbsRel and delta1 per benchmark, as Distill Any Depth (arXiv 2502.19204 v2) prints them in tables 1 to 5, and as third parties
measured the public checkpoints; CAVEAT says what keeps them from being compared with ours to the digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Table = Literal[1, 2, 3, 4, 5]
_ORDER = ("nyuv2", "kitti", "diode", "scannet", "eth3d")
_TABLE_5 = "table 5"
_DISPARITY = "third party, KITTI as in dav2"
_DEPTH = "third party, marigold-depth"


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One model's figures: benchmark to (AbsRel, delta1); delta1 is None where it was not given."""

    model: str
    source: str
    figures: Mapping[str, tuple[float, float | None]]


def published_rows(benchmarks: tuple[str, ...], table: Table | None = None) -> tuple[PublishedRow, ...]:
    """The rows with a figure for one of these benchmarks: of one of the paper's tables, or of table 5 and third parties."""
    rows = PUBLISHED if table is None else tuple(row for row in (*ABLATIONS, *PUBLISHED) if row.source == f"table {table}")
    return tuple(row for row in rows if any(name in row.figures for name in benchmarks))


def _table_5(model: str, *figures: tuple[float, float]) -> PublishedRow:
    return PublishedRow(model=model, source=_TABLE_5, figures=dict(zip(_ORDER, figures, strict=True)))


def _measured(model: str, nyuv2: float, kitti: float, source: str = _DISPARITY) -> PublishedRow:
    return PublishedRow(model=model, source=source, figures={"nyuv2": (nyuv2, None), "kitti": (kitti, None)})


PUBLISHED: tuple[PublishedRow, ...] = (
    _table_5("Depth Anything v2", (0.045, 0.979), (0.074, 0.946), (0.262, 0.754), (0.042, 0.978), (0.131, 0.865)),
    _table_5("GenPercept", (0.058, 0.969), (0.080, 0.934), (0.226, 0.741), (0.063, 0.960), (0.096, 0.959)),
    _table_5("Marigold", (0.055, 0.961), (0.099, 0.916), (0.308, 0.773), (0.064, 0.951), (0.065, 0.960)),
    _table_5("Distill Any Depth (MiDaS v3.1)", (0.046, 0.985), (0.063, 0.972), (0.142, 0.788), (0.049, 0.980), (0.057, 0.976)),
    _table_5("Distill Any Depth (DAv2-L)", (0.043, 0.981), (0.070, 0.949), (0.233, 0.753), (0.043, 0.980), (0.054, 0.981)),
    _measured("Depth Anything v2 Small", 0.0510, 0.0770),
    _measured("Depth Anything v2 Base", 0.0456, 0.0756),
    _measured("Depth Anything v2 Large", 0.0428, 0.0710),
    _measured("Marigold v1-1", 0.0577, 0.1090, _DEPTH),
)


def _ablation(table: Table, model: str, eth3d: float, diode: float) -> PublishedRow:
    return PublishedRow(model=model, source=f"table {table}", figures={"eth3d": (eth3d, None), "diode": (diode, None)})


ABLATIONS: tuple[PublishedRow, ...] = (
    _ablation(1, "shared context, global", 0.064, 0.259),
    _ablation(1, "shared context, none", 0.057, 0.239),
    _ablation(1, "shared context, local", 0.070, 0.245),
    _ablation(1, "shared context, hybrid", 0.057, 0.238),
    _ablation(1, "local-global, global", 0.065, 0.239),
    _ablation(1, "local-global, none", 0.273, 0.300),
    _ablation(1, "local-global, local", 0.076, 0.244),
    _ablation(1, "local-global, hybrid", 0.064, 0.238),
    _ablation(2, "neither", 0.075, 0.270),
    _ablation(2, "L_lg", 0.064, 0.238),
    _ablation(2, "L_sc", 0.058, 0.237),
    _ablation(2, "both", 0.056, 0.232),
    _ablation(3, "DA-L to DA-S, base", 0.110, 0.290),
    _ablation(3, "DA-L to DA-S", 0.098, 0.262),
    _ablation(3, "DA-L to MiDaS-L, base", 0.147, 0.313),
    _ablation(3, "DA-L to MiDaS-L", 0.126, 0.295),
    _ablation(3, "MiDaS-L to MiDaS-S, base", 0.150, 0.303),
    _ablation(3, "MiDaS-L to MiDaS-S", 0.120, 0.272),
    _ablation(4, "Depth Anything v2 alone", 0.131, 0.262),
    _ablation(4, "GenPercept alone", 0.096, 0.226),
    _ablation(4, "average", 0.228, 0.371),
    _ablation(4, "select", 0.054, 0.258),
)
"""AbsRel in tables 1 to 4, whose cells docs/training.md gives as commands."""

CAVEAT = (
    "published: as printed, under lists, crops and alignments of their own, of all images, whatever protocol is above;"
    " Depth Anything v2's DIODE (.066 in its own paper) and ETH3D (.131, also in table 5) do not reproduce under Marigold's"
    " lists: third parties measure about .21 and .09"
)
"""To be said wherever a published figure stands beside ours."""

FIGURE_2: tuple[tuple[str, float, float], ...] = (
    ("diode", 0.140, 0.083),
    ("others", 0.072, 0.062),
    ("others", 0.038, 0.031),
    ("others", 0.037, 0.032),
    ("others", 0.039, 0.031),
)
"""Figure 2: AbsRel on the central half, fitted on the whole picture and on that half."""
