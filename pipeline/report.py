"""The demo's report: one HTML file with everything in it.

No script, no address of another file: it can be mailed, and opened in ten years. Light and dark, desk and phone. Text from
outside (keys, names, configuration) is escaped. What the page looks like is in `report.html.j2` and `report.css`; this module
prepares what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.progress import duration
from pipeline.report_figures import curve_svg, depth_colors, example_tiles, scatter_svg, share_svg

# Everything is escaped; a name that the template asks for and was not given is an error.
_TEMPLATES = Environment(
    loader=PackageLoader("pipeline", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True, kw_only=True)
class ModelScore:
    """A row of the table: means over the held-out scenes."""

    name: str
    abs_rel: float
    delta1: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One photograph and what is said of its depth.

    rgb: uint8 [h, w, 3]. depth_m: exact depth, inf where there is none (sky), of any size; None where nobody knows it.
    maps: by caption, affine-invariant disparity of any size, NaN where there is no value; shown in this order. Where the
    true depth is not known the first is what the others are aligned to: let it be the better teacher's.
    """

    key: str
    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float[np.ndarray, "h2 w2"] | None
    maps: Mapping[str, Float[np.ndarray, "_ _"]]


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """One loss: its value at each of `steps`."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything the report says.

    summary: paragraphs of plain text. facts: short values by their captions ("192 photographs"). scores: the table;
    `before` and `after` name the student's two rows. protocol: how the scores were made, in one sentence. abs_rel_before
    and abs_rel_after: per scene, in the same order. timings_s: seconds of each step. provenance: tables by heading.
    """

    title: str
    summary: Sequence[str]
    facts: Mapping[str, str]
    scores: Sequence[ModelScore]
    before: str
    after: str
    protocol: str
    examples: Sequence[Example]
    losses: Sequence[LossCurve]
    abs_rel_before: Sequence[float]
    abs_rel_after: Sequence[float]
    timings_s: Mapping[str, float]
    provenance: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A number of the table. bar: how long the bar below it is. best: whether no model has a better one."""

    text: str
    bar: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class _Measure:
    """A column of the table, with a cell for each model, and what became of the student's number."""

    name: str
    arrow: str
    direction: Literal["lower", "higher"]
    cells: Sequence[_Cell]
    before: str
    after: str
    change: str
    verdict: Literal["better", "worse", ""]


def write_report(path: Path, content: ReportContent) -> None:
    """Write the report as one HTML file. Raises ValueError where `before` or `after` names no row of the table."""
    page = _TEMPLATES.get_template("report.html.j2").render(content=content, **_prepared(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _prepared(content: ReportContent) -> dict[str, object]:
    """What the template shows beside the content itself, by the names that it has there."""
    measures = (
        _measure(content, "AbsRel", "lower", [score.abs_rel for score in content.scores]),
        _measure(content, "δ1", "higher", [score.delta1 for score in content.scores]),
    )
    longest = max(content.timings_s.values(), default=0) or 1.0
    return {
        "depth_colors": depth_colors(),
        "measures": measures,
        "rows": list(zip(content.scores, zip(*(measure.cells for measure in measures), strict=True), strict=True)),
        "examples": [(e.key, example_tiles(e.rgb, e.depth_m, e.maps)) for e in content.examples],
        "losses": [(curve.name, curve_svg(curve.name, curve.steps, curve.values)) for curve in content.losses],
        **_scene_by_scene(content.abs_rel_before, content.abs_rel_after),
        "timings": [(name, f"{s / longest:.1%}", duration(s)) for name, s in content.timings_s.items()],
        "total": duration(sum(content.timings_s.values())),
    }


def _measure(content: ReportContent, name: str, direction: Literal["lower", "higher"], values: Sequence[float]) -> _Measure:
    lower_is_better = direction == "lower"
    before, after = values[_row(content, content.before)], values[_row(content, content.after)]
    best, full = (min(values), max(values) or 1.0) if lower_is_better else (max(values), 1.0)
    share = f" ({(after - before) / before:+.1%})" if before else ""
    return _Measure(
        name=name,
        arrow="↓" if lower_is_better else "↑",
        direction=direction,
        cells=[_Cell(text=f"{value:.4f}", bar=f"{value / full:.1%}", best=value == best) for value in values],
        before=f"{before:.3f}",
        after=f"{after:.3f}",
        change=f"{after - before:+.3f}{share}".replace("-", "−"),
        verdict="" if after == before else "better" if (after < before) == lower_is_better else "worse",
    )


def _row(content: ReportContent, name: str) -> int:
    names = [score.name for score in content.scores]
    if name not in names:
        raise ValueError(f"no row {name!r} in the report's table (rows: {', '.join(names)})")
    return names.index(name)


def _scene_by_scene(before: Sequence[float], after: Sequence[float]) -> dict[str, object]:
    """The drawings by heading and the sentence above them; no drawings where there are no scenes."""
    improved = sum(new < old for old, new in zip(before, after, strict=True))
    drawings = {"Each scene, before and after": scatter_svg, "All scenes, sorted": share_svg} if before else {}
    return {
        "scenes": [(heading, draw(before, after)) for heading, draw in drawings.items()],
        "improvement": f"The student got better on {improved} of {len(before)} scenes.",
    }
