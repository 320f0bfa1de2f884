"""What a study says, as a page, as Markdown and as JSON: the gates, the claims, the map, and what it all rests on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import manifests
from manifests.checker import printable
from pipeline.report.figures import MapPoint, map_svg
from pipeline.study.design import METRIC_NAMES, Metric
from pipeline.study.judge import HeadroomGate, Judgement, PremiseGate, interval
from pipeline.study.progress import Findings
from pipeline.study.scales import SCALES, ScaleName
from pipeline.viewer.assets import TEMPLATES, page_style

_MAPPED: tuple[Metric, ...] = ("abs_rel", "edge_f1")
_HOW = (
    "Every claim has one metric, fixed beforehand. Intervals are of 95 %, from drawing seeds and scenes again together, paired;"
    " a gain is positive where the arm is better. The learning rate was chosen on the baseline, with scenes and a seed of its"
    " own. Intervals are not corrected for the number of claims: of twenty without any effect, one is expected to show one."
)


def write_reports(folder: Path, scale: ScaleName, findings: Sequence[Findings]) -> Path:
    """Write report.html, report.md and report.json into a folder, each whole; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = [_content(found) for found in findings]
    about = _about(scale, findings)
    page = TEMPLATES.get_template("study/report.html.j2").render(
        about=about, how=_HOW, families=contents, style=page_style(), tables=_tables, kind=_kind
    )
    manifests.write_replacing(folder / "report.html", page.encode())
    manifests.write_replacing(folder / "report.md", _markdown(about, contents).encode())
    numbers = {"about": about, "families": [_numbers(found) for found in findings]}
    manifests.write_replacing(folder / "report.json", (json.dumps(numbers, indent=1) + "\n").encode())
    return folder / "report.html"


def _about(scale: ScaleName, findings: Sequence[Findings]) -> dict[str, str]:
    of = SCALES[scale]
    counted = [record for found in findings for record in found.counted]
    return {
        "scale": scale,
        "photographs": f"{of.images}",
        "steps": f"{of.steps}, {of.train.get('batch_size', 8)} a batch",
        "seeds": " ".join(map(str, of.seeds)),
        "test scenes": f"{of.test_scenes}",
        "records": f"{len(counted)}, {sum(found.left for found in findings)} to come",
        "CPU hours": f"{sum(record.cpu_s for record in counted) / 3600:.2f}",
    }


def _content(found: Findings) -> dict[str, Any]:
    """A design as tables of text: what both the page and the Markdown show."""
    family, judgements = found.design.family, found.judgements()
    rates = ", ".join(f"{rate:g}: {abs_rel:.4f}" for rate, abs_rel in sorted(found.rates.items()))
    size = f"photographs of {family.photo_px} px, seen at {family.context_px} px, {family.patches_per_side} close-ups per side"
    return {
        "name": family.name,
        "about": f"{family.about}; {size}",
        "rate": f"Learning rate {found.rate:g} (AbsRel on the tuning scenes: {rates})"
        if found.rate
        else "No learning rate yet",
        "premises": [_premise_row(gate) for gate in found.premises],
        "headroom": [_headroom_row(gate) for gate in found.headroom],
        "claims": [_claim_row(judgement) for judgement in judgements],
        "maps": [(METRIC_NAMES[metric], svg) for metric in _MAPPED if (svg := _map(found, judgements, metric))],
        "differing": list(found.differing),
    }


_EXPECTED = {"better": "a gain", "not better": "no gain", "open": "open"}
_PREMISE = ("teacher", "per side", "AbsRel, slice", "close-up", "change", "edge F1, slice", "close-up", "change", "holds")
_HEADROOM = ("metric", "baseline", "on exact depth", "gain", "holds")
_CLAIMS = ("claim", "metric", "arms", "gain", "verdict", "expected")


def _premise_row(gate: PremiseGate) -> tuple[str, ...]:
    return (
        gate.teacher,
        str(gate.patches_per_side),
        f"{gate.slice_abs_rel:.3f}",
        f"{gate.close_up_abs_rel:.3f}",
        interval(gate.abs_rel),
        f"{gate.slice_edge_f1:.3f}",
        f"{gate.close_up_edge_f1:.3f}",
        interval(gate.edge_f1),
        "yes" if gate.holds else "no",
    )


def _headroom_row(gate: HeadroomGate) -> tuple[str, ...]:
    values = (f"{gate.baseline:.4f}", f"{gate.exact:.4f}", interval(gate.gain))
    return (METRIC_NAMES[gate.metric], *values, "yes" if gate.holds else "no")


def _claim_row(judgement: Judgement) -> tuple[str, ...]:
    claim = judgement.claim
    arms = ", ".join(f"{arm} {value:.4f}" for arm, value in (judgement.arms or {}).items())
    notes = [*judgement.reasons, *(f"left out: {printable(text)}" for text in judgement.left_out)]
    verdict = "; ".join([judgement.verdict, *notes])
    known = judgement.gain is not None and claim.expects != "open"
    met = {True: "yes", False: "no", None: "not shown" * known}[judgement.as_expected]
    expected = f"{_EXPECTED[claim.expects]}{': ' * bool(met)}{met}"
    gain = "" if judgement.gain is None else f"{interval(judgement.gain)}, {judgement.gain.seeds} seeds"
    return (f"{claim.name}. {claim.says}", METRIC_NAMES[claim.metric], arms, gain, verdict, expected)


def _map(found: Findings, judgements: Sequence[Judgement], metric: Metric) -> str:
    """The map, of the cells that are known; empty where none is."""
    side = found.design.family.patches_per_side
    premises = {gate.teacher: gate for gate in found.premises if gate.patches_per_side == side}
    gains = {next(iter(j.claim.contrast)): j.gain for j in judgements if j.gain and j.claim.metric == metric}
    points = [
        MapPoint(
            detail=premises[teacher].edge_f1.mean,
            geometry=premises[teacher].abs_rel.mean,
            gain=gain.mean,
            sure=gain.excludes_zero,
        )
        for teacher in found.design.mapped
        if teacher in premises and (gain := gains.get(teacher))
    ]
    return map_svg(points, metric) if points else ""


def _markdown(about: Mapping[str, str], contents: Sequence[Mapping[str, Any]]) -> str:
    lines = ["# What the study found", "", "; ".join(f"{name} {value}" for name, value in about.items()) + ".", "", _HOW]
    for content in contents:
        lines += ["", f"## Teachers: {content['name']}", "", f"{content['about']}. {content['rate']}.", ""]
        for heading, head, rows in _tables(content):
            lines += [f"### {heading}", "", *_table(head, rows), ""] if rows else []
        lines += [f"Not counted, of other work: {printable(text)}." for text in content["differing"]]
    return "\n".join(lines).rstrip() + "\n"


def _tables(content: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]]:
    return [
        ("Premise: are close-ups better than slices?", _PREMISE, content["premises"]),
        ("Headroom: is exact depth better than the labels?", _HEADROOM, content["headroom"]),
        ("Claims", _CLAIMS, content["claims"]),
    ]


def _kind(cell: str) -> str:
    """How a cell is shown, by its own words."""
    if cell.endswith(("]", "seeds")):
        return "interval"
    verdict = cell.split(";")[0]
    if verdict in ("not testable here", "not run yet"):
        return "not"
    return verdict if verdict in ("yes", "no", "better", "worse") else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in cells)]


def _numbers(found: Findings) -> dict[str, Any]:
    """A design for programs."""
    judgements = [
        {
            "claim": asdict(judgement.claim),
            "verdict": judgement.verdict,
            "as_expected": judgement.as_expected,
            "gain": judgement.gain and asdict(judgement.gain),
            "arms": judgement.arms,
            "reasons": judgement.reasons,
            "left_out": judgement.left_out,
        }
        for judgement in found.judgements()
    ]
    return {
        "family": found.design.family.name,
        "rate": found.rate,
        "premises": [asdict(gate) | {"holds": gate.holds} for gate in found.premises],
        "headroom": [asdict(gate) | {"holds": gate.holds} for gate in found.headroom],
        "claims": judgements,
        "left": found.left,
    }
