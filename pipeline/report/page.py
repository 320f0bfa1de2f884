"""The report: one HTML file with everything in it, of a run and its student, or of the demo.

It asks no network for anything: it can be mailed, and opened in ten years. Light and dark, desk and phone. Text from outside
(keys, names, configuration) is escaped, and no script runs but the page's own, by its digest. What the page looks like is in
`report.html.j2`, `report.css` and the files of `pipeline.viewer`; this module prepares what it shows.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import manifests
from pipeline.progress import duration
from pipeline.report.examples import PHOTOGRAPH, Example, Tile
from pipeline.report.figures import curve_svg, scatter_svg, share_svg
from pipeline.viewer.assets import TEMPLATES, packaged, page_style, viewer_script
from pipeline.viewer.files import data_uri, jpeg_file

GENERATOR = "pipeline.report"
"""What a page says that it was made by."""
Verdict = Literal["better", "worse", ""]


def shown(value: float) -> str:
    """A score, to as many digits wherever it stands."""
    return f"{value:.4f}"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column of the table of scores."""

    name: str
    direction: Literal["lower", "higher"]

    def verdict(self, before: float, after: float) -> Verdict:
        """What became of a number as it is shown: one that looks the same is neither better nor worse."""
        before, after = float(shown(before)), float(shown(after))
        return "" if before == after else "better" if (after < before) == (self.direction == "lower") else "worse"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A row of the table: a number for each measure."""

    name: str
    values: Sequence[float]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of models. note: how they were made. before, after: the names of the student's two rows, where there are two."""

    heading: str
    note: str
    measures: Sequence[Measure]
    rows: Sequence[Score]
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExampleGroup:
    """Pictures that are told of together. difference: what the second row of each shows, in words."""

    heading: str
    note: str
    examples: Sequence[Example]
    difference: str = ""


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """One loss: its value at each of `steps`."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """A number of each scene before and after, in the same order; lower is better. Empty for none."""

    measure: str = "AbsRel"
    before: Sequence[float] = ()
    after: Sequence[float] = ()

    @property
    def sentence(self) -> str:
        """How many got better, and how many worse."""
        pairs = list(zip(self.before, self.after, strict=True))
        better, worse = sum(new < old for old, new in pairs), sum(new > old for old, new in pairs)
        return f"By {self.measure} the student got better on {better} of {len(pairs)}, and worse on {worse}."


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """Rows of text."""

    heading: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything the report says; what is empty is left out.

    summary: paragraphs of plain text. notices: what is missing or must be known, a sentence each. facts: short values by their
    captions ("192 photographs"). commands: lines to try next, each with what it is for. timings_s: seconds of each step.
    provenance: tables by heading.
    """

    title: str
    summary: Sequence[str]
    notices: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    scores: ScoreTable | None = None
    groups: Sequence[ExampleGroup] = ()
    losses: Sequence[LossCurve] = ()
    scenes: Scenes = field(default_factory=Scenes)
    tables: Sequence[TextTable] = ()
    commands: Sequence[tuple[str, str]] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A number of the table. bar: how long the bar below it is. best: whether no model has a better one."""

    text: str
    bar: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A column of the table, with a cell for each row, and what became of the student's number."""

    name: str
    arrow: str
    direction: str
    cells: Sequence[_Cell]
    before: str = ""
    after: str = ""
    change: str = ""
    verdict: Verdict = ""


def write_report(path: Path, content: ReportContent) -> None:
    """Write the report as one HTML file, whole. Raises ValueError where `before` or `after` names no row of the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    manifests.write_replacing(path, report_page(content).encode())


def report_page(content: ReportContent) -> str:
    """The page as HTML. Raises ValueError as `write_report` does."""
    script = '"use strict";\n' + viewer_script().removeprefix('"use strict";\n') + packaged("report/report.js")
    groups = [
        (group, [(f"{g}.{i}", example) for i, example in enumerate(group.examples)])
        for g, group in enumerate(content.groups)
        if group.examples
    ]
    columns = _columns(content.scores) if content.scores else []
    longest = max(content.timings_s.values(), default=0) or 1.0
    return TEMPLATES.get_template("report/report.html.j2").render(
        content=content,
        generator=GENERATOR,
        style=page_style() + packaged("viewer/viewer.css") + packaged("report/report.css"),
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        columns=columns,
        rows=list(zip(content.scores.rows, zip(*(c.cells for c in columns), strict=True), strict=True))
        if content.scores
        else [],
        uri=_uri,
        groups=groups,
        documents={name: _document(example) for _, examples in groups for name, example in examples},
        losses=[(curve.name, curve_svg(curve.name, curve.steps, curve.values)) for curve in content.losses],
        scenes=_drawings(content.scenes),
        timings=[(name, f"{s / longest:.1%}", duration(s)) for name, s in content.timings_s.items()],
        total=duration(sum(content.timings_s.values())),
    )


def _uri(tile: Tile) -> str:
    return data_uri(jpeg_file(tile.rgb))


def _document(example: Example) -> dict[str, Any]:
    """An example as the page's script reads it."""
    pictures = [(tile.id, tile.caption) for tile in example.tiles]
    pictures += [(tile.id, f"{tile.id} ({tile.score})") for tile in example.differences]
    return {
        "key": example.key,
        "pictures": [{"id": name, "text": text} for name, text in pictures],
        "left": PHOTOGRAPH,
        "right": example.tiles[-1].id,
        "compared": example.compared,
        "maps": example.maps,
        "told": list(example.told.items()),
    }


def _columns(table: ScoreTable) -> list[_Column]:
    rows = {row.name: row for row in table.rows}
    for name in filter(None, (table.before, table.after)):
        if name not in rows:
            raise ValueError(f"no row {name!r} in the report's table (rows: {', '.join(rows)})")
    return [
        _column(
            measure,
            [row.values[i] for row in table.rows],
            (rows[table.before].values[i], rows[table.after].values[i]) if table.before and table.after else None,
        )
        for i, measure in enumerate(table.measures)
    ]


def _column(measure: Measure, values: Sequence[float], change: tuple[float, float] | None) -> _Column:
    lower = measure.direction == "lower"
    best, full = (min(values), max(values) or 1.0) if lower else (max(values), 1.0)
    cells = [_Cell(text=shown(v), bar=f"{max(v, 0) / full:.1%}", best=v == best and len(values) > 1) for v in values]
    arrow = "↓" if lower else "↑"
    if change is None:
        return _Column(name=measure.name, arrow=arrow, direction=measure.direction, cells=cells)
    before, after = change
    share = f" ({(after - before) / before:+.1%})" if before > 0 else ""
    return _Column(
        name=measure.name,
        arrow=arrow,
        direction=measure.direction,
        cells=cells,
        before=shown(before),
        after=shown(after),
        change=f"{after - before:+.4f}{share}".replace("-", "−"),
        verdict=measure.verdict(before, after),
    )


def _drawings(scenes: Scenes) -> list[tuple[str, str]]:
    if not scenes.before:
        return []
    return [
        ("Each one, before and after", scatter_svg(scenes.before, scenes.after)),
        ("All, sorted", share_svg(scenes.before, scenes.after)),
    ]
