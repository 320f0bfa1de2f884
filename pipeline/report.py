"""The demo's report: one HTML file with everything in it.

No script, no address of another file: it can be mailed, and opened in ten years. Light and dark, desk and phone. Text from
outside (keys, names, configuration) is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.colors import to_hex

from pipeline.report_figures import curve_svg, picture_uri, scatter_svg, share_svg
from stages.coloring import COLOR_MAP, colorize_disparity, robust_range
from stages.evaluation.metrics import align_scale_shift, depth_metrics
from stages.evaluation.scenes import MAX_DEPTH_M, MIN_DEPTH_M, resize_bilinear

PHOTOGRAPH, TRUTH = "Photograph", "True disparity"


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


def write_report(path: Path, content: ReportContent) -> None:
    """Write the report as one HTML file. Raises ValueError where `before` or `after` names no row of the table."""
    css = files("pipeline").joinpath("report.css").read_text(encoding="utf-8")
    colors = ", ".join(to_hex(colormaps[COLOR_MAP](position)) for position in np.linspace(0, 1, 11))
    sections = (_header, _scores, _examples, _losses, _per_scene, _timings, _provenance)
    body = "\n".join(section(content) for section in sections)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(content.title)}</title>
<style>
:root {{ --depth-colors: linear-gradient(90deg, {colors}); }}
{css}</style>
</head>
<body>
<div class="stripe"></div>
<main>
{body}
</main>
</body>
</html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _row(content: ReportContent, name: str) -> ModelScore:
    for score in content.scores:
        if score.name == name:
            return score
    raise ValueError(f"no row {name!r} in the report's table (rows: {', '.join(score.name for score in content.scores)})")


def _header(content: ReportContent) -> str:
    before, after = _row(content, content.before), _row(content, content.after)
    tiles = [
        f'<div class="fact card"><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in content.facts.items()
    ]
    first, *rest = content.summary
    paragraphs = f'<p class="lead">{escape(first)}</p>' + "".join(f"<p>{escape(text)}</p>" for text in rest)
    return (
        f'<header>\n<p class="eyebrow">Depth distillation report</p>\n<h1>{escape(content.title)}</h1>\n{paragraphs}\n'
        f'<dl class="facts main">{_main_fact("AbsRel of the student, lower is better", before.abs_rel, after.abs_rel, True)}'
        f"{_main_fact('δ1 of the student, higher is better', before.delta1, after.delta1, False)}</dl>"
        f'<dl class="facts">{"".join(tiles)}</dl>\n</header>'
    )


def _main_fact(name: str, before: float, after: float, lower_is_better: bool) -> str:
    return (
        f'<div class="fact card"><dt>{escape(name)}</dt><dd><span class="was">{before:.3f} →</span> {after:.3f}'
        f" {_change(before, after, lower_is_better)}</dd></div>"
    )


def _change(before: float, after: float, lower_is_better: bool) -> str:
    """The change and its share of the value before, green where it is for the better."""
    kind = "" if after == before else " better" if (after < before) == lower_is_better else " worse"
    share = f" ({(after - before) / before:+.1%})" if before else ""
    text = f"{after - before:+.3f}{share}".replace("-", "−")
    return f'<span class="change{kind}">{text}</span>'


def _scores(content: ReportContent) -> str:
    before, after = _row(content, content.before), _row(content, content.after)
    least, most = min(s.abs_rel for s in content.scores), max(s.delta1 for s in content.scores)
    widest = max(s.abs_rel for s in content.scores) or 1.0
    rows = []
    for score in content.scores:
        kind = {content.before: "before", content.after: "after"}.get(score.name, "")
        note = f"<small>{escape(score.note)}</small>" if score.note else ""
        rows.append(
            f'<tr class="{kind}"><th scope="row">{escape(score.name)}{note}</th>'
            f"<td>{_number(score.abs_rel, score.abs_rel == least)}{_bar(score.abs_rel / widest)}</td>"
            f"<td>{_number(score.delta1, score.delta1 == most)}{_bar(score.delta1)}</td></tr>"
        )
    return _section(
        "Accuracy on held-out scenes",
        f"{content.protocol}.",
        '<div class="scores card"><table><thead><tr><th>Model</th><th>AbsRel ↓</th><th>δ1 ↑</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tfoot><tr><th>Change by distillation</th>"
        f"<td>{_change(before.abs_rel, after.abs_rel, True)}</td>"
        f"<td>{_change(before.delta1, after.delta1, False)}</td></tr></tfoot></table></div>",
    )


def _number(value: float, best: bool) -> str:
    return f'<span class="best">{value:.4f}</span>' if best else f"<span>{value:.4f}</span>"


def _bar(share: float) -> str:
    return f'<span class="bar"><i style="--share: {100 * share:.1f}%"></i></span>'


def _section(heading: str, note: str, body: str) -> str:
    return f'<section>\n<h2>{escape(heading)}</h2>\n<p class="note">{escape(note)}</p>\n{body}\n</section>'


def _examples(content: ReportContent) -> str:
    if not content.examples:
        return ""
    legend = '<div class="legend"><span>far <i class="ramp"></i> near</span><span><i class="none"></i> no value</span></div>'
    return _section(
        "What it looks like",
        "Within a row every map is aligned in scale and shift to the first map after the photograph and drawn with the"
        " colours of that map's 2 to 98 % range, so equal colours mean equal disparity. The number is the map's AbsRel"
        " where the true depth is known; the row's lowest is bold.",
        legend + "\n".join(_example(example) for example in content.examples),
    )


def _example(example: Example) -> str:
    shape = example.rgb.shape[:2]
    maps = {caption: resize_bilinear(values, shape) for caption, values in example.maps.items()}
    scores = {} if example.depth_m is None else {c: _abs_rel(v, example.depth_m) for c, v in example.maps.items()}
    lowest = min((score for score in scores.values() if score is not None), default=None)
    if example.depth_m is not None:
        with np.errstate(divide="ignore"):
            truth = np.where(np.isfinite(example.depth_m), 1 / example.depth_m, np.nan)
        maps = {TRUTH: resize_bilinear(truth, shape), **maps}
    reference = next(iter(maps.values()), np.zeros(shape))
    low, high = robust_range(reference)
    tiles = [_tile(PHOTOGRAPH, example.rgb)]
    for caption, values in maps.items():
        picture = colorize_disparity(_aligned(values, reference), low=low, high=high)
        tiles.append(_tile(caption, picture, _score(scores[caption], lowest) if caption in scores else ""))
    return f'<div class="example card"><h3>{escape(example.key)}</h3><div class="pictures">{"".join(tiles)}</div></div>'


def _aligned(values: Float[np.ndarray, "h w"], reference: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    shared = np.isfinite(values) & np.isfinite(reference)
    if not shared.any():
        return values
    fit = align_scale_shift(values, reference, shared)
    return fit.scale * values + fit.shift


def _abs_rel(values: Float[np.ndarray, "h w"], depth_m: Float[np.ndarray, "h2 w2"]) -> float | None:
    """AbsRel of an affine-invariant disparity map; None for one that cannot be scored (dead, or nothing in common)."""
    disparity = resize_bilinear(values, depth_m.shape)
    valid: Bool[np.ndarray, "h2 w2"] = (depth_m > MIN_DEPTH_M) & (depth_m < MAX_DEPTH_M) & np.isfinite(disparity)
    if not (valid & (disparity > 0)).any():
        return None
    metrics = depth_metrics(
        disparity, depth_m, valid, space="disparity_affine_invariant", min_depth_m=MIN_DEPTH_M, max_depth_m=MAX_DEPTH_M
    )
    return metrics.abs_rel


def _score(abs_rel: float | None, lowest: float | None) -> str:
    if abs_rel is None:
        return '<span class="score">no score</span>'
    return f'<span class="score{" best" if abs_rel == lowest else ""}">{abs_rel:.3f}</span>'


def _tile(caption: str, picture: UInt8[np.ndarray, "h w 3"], score: str = "") -> str:
    height, width = picture.shape[:2]
    return (
        f'<figure><img src="{picture_uri(picture)}" alt="{escape(caption)}" width="{width}" height="{height}">'
        f"<figcaption><span>{escape(caption)}</span>{score}</figcaption></figure>"
    )


def _losses(content: ReportContent) -> str:
    if not content.losses:
        return ""
    drawings = ((curve.name, curve_svg(curve.name, curve.steps, curve.values)) for curve in content.losses)
    note = "The value at every step, lightly, and its moving average."
    return _section("The student's losses", note, _plots(drawings))


def _per_scene(content: ReportContent) -> str:
    before, after = content.abs_rel_before, content.abs_rel_after
    if not before:
        return ""
    improved = sum(new < old for old, new in zip(before, after, strict=True))
    drawings = (("Each scene, before and after", scatter_svg(before, after)), ("All scenes, sorted", share_svg(before, after)))
    note = f"The student got better on {improved} of {len(before)} scenes."
    return _section("Scene by scene", note, _plots(drawings))


def _plots(drawings: Iterable[tuple[str, str]]) -> str:
    figures = (f'<figure class="card"><h3>{escape(name)}</h3>{drawing}</figure>' for name, drawing in drawings)
    return f'<div class="plots">{"".join(figures)}</div>'


def _timings(content: ReportContent) -> str:
    longest, total = max(content.timings_s.values(), default=0) or 1.0, sum(content.timings_s.values())
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_bar(seconds / longest)}</td><td>{_duration(seconds)}</td></tr>"
        for name, seconds in content.timings_s.items()
    )
    rows += f'<tr class="total"><td>Total</td><td></td><td>{_duration(total)}</td></tr>'
    return _section("Where the time went", "Wall time of each step.", f'<div class="timings card"><table>{rows}</table></div>')


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s"


def _provenance(content: ReportContent) -> str:
    tables = []
    for heading, entries in content.provenance.items():
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in entries.items())
        opened = "" if tables else " open"
        summary = f"<summary>{escape(heading)}</summary>"
        tables.append(f'<details class="card"{opened}>{summary}<table>{rows}</table></details>')
    return _section("Provenance", "What is needed to make this report again.", "".join(tables))
