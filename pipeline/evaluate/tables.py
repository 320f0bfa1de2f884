"""Results as people and programs read them: the table of the paper's form, Markdown, JSON, one line per image."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import EvalResult

from manifests.tables import aligned, markdown_table
from stages.evaluation.boundaries import BoundaryScore
from stages.evaluation.metrics import DepthMetrics
from stages.evaluation.published import CAVEAT, PublishedRow, Table, published_rows
from stages.evaluation.scoring import ImageScore, MeanScore, mean_scores

_REFUSED = "refused"
_ABSENT = "-"
_DIGEST_SHOWN = 16
_FLAT_NAMES = (
    *(item.name for item in dataclasses.fields(DepthMetrics)),
    *(f"boundary_{item.name}" for item in dataclasses.fields(BoundaryScore)),
)


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What came of one benchmark, for the models of one protocol and depth space."""

    benchmark: str
    rules: str
    """Every option that moves a number, in a line."""
    protocol: str
    list_sha256: str
    images: int
    """In the list."""
    expected_images: int
    """In the published list; `images` where there is none."""
    scores: Mapping[str, Mapping[str, ImageScore]]
    """By model, then by image. A model that failed is not in it."""
    failures: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()
    """The benchmark's files that could not be read."""
    allow_missing: bool = False
    """Whether there is a mean where some could not."""

    def mean(self, model: str) -> MeanScore | None:
        """Over images; None where the model failed, or where images are missing and that was not allowed."""
        scores = self.scores.get(model)
        if not scores or (self.problems and not self.allow_missing):
            return None
        return mean_scores(list(scores.values()))

    def about(self) -> str:
        """The protocol's line under the table."""
        scored = max((len(scores) for scores in self.scores.values()), default=0)
        count = f"{self.images}" if scored in (0, self.images) else f"{scored} of {self.images}"
        return f"{self.rules}; {count} images, list sha256 {self.list_sha256[:_DIGEST_SHOWN]}"


def format_table(means: Mapping[str, DepthMetrics], num_scenes: int) -> str:
    """One line per model: AbsRel (lower is better) and delta1 (higher is better), aligned in columns."""
    rows = [[name, f"{m.abs_rel:.4f}", f"{m.delta1:.4f}", str(num_scenes)] for name, m in means.items()]
    return "\n".join(aligned([["model", "AbsRel", "delta1", "scenes"], *rows]))


def result_table(models: Sequence[str], results: Sequence[SetResult], table: Table | None = None) -> str:
    """Models down, benchmarks across, AbsRel/delta1, with published figures below ours: those of one of the paper's tables, or
    of table 5 and third parties."""
    return "\n".join(aligned(_rows(models, results, table)))


def markdown(models: Mapping[str, str], results: Sequence[SetResult], table: Table | None = None) -> str:
    """The table, all metrics, the protocols, and the models' own lines, as GitHub's Markdown."""
    head, *rows = _rows(list(models), results, table)
    lines = ["AbsRel/delta1, mean over images.", "", *markdown_table(head, rows), ""]
    details = [
        [name, result.benchmark, *_numbers(flat(mean)), f"{mean.images_with_edges} of {mean.images}"]
        for name in models
        for result in results
        if (mean := result.mean(name))
    ]
    if details:
        lines += [*markdown_table(["model", "benchmark", *_FLAT_NAMES, "images with edges"], details), ""]
    about = [*notes(results, table), *(f"{name}: {about}" for name, about in models.items())]
    return "\n".join([*lines, *(f"- {note}" for note in about), ""])


def notes(results: Sequence[SetResult], table: Table | None = None) -> list[str]:
    """What the table's numbers depend on: ours, and the published ones where there are any."""
    return [*(result.about() for result in results), *([CAVEAT] if _published(results, table) else [])]


def as_json(
    configuration: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    results: Sequence[SetResult],
    table: Table | None = None,
) -> dict[str, Any]:
    """Everything but the images: settings of the models, protocols, means, failures, and the published figures."""
    return {
        "configuration": configuration,
        "models": models,
        "results": [
            {
                "about": result.about(),
                **{
                    name: getattr(result, name)
                    for name in ("benchmark", "protocol", "rules", "list_sha256", "images", "expected_images", "failures")
                },
                "problems": list(result.problems),
                "means": {
                    name: {"images": mean.images, "images_with_edges": mean.images_with_edges, **flat(mean)}
                    for name in result.scores
                    if (mean := result.mean(name))
                },
            }
            for result in results
        ],
        "published": [dataclasses.asdict(row) for row in _published(results, table)],
        "published_caveat": CAVEAT,
    }


def eval_results(model: str, results: Sequence[SetResult]) -> list[EvalResult]:
    """The model's means as the metadata of a model card holds them, each with what it depends on."""
    return [
        EvalResult(
            task_type="depth-estimation",
            dataset_type=result.benchmark,
            dataset_name=result.benchmark,
            dataset_config=result.protocol,
            dataset_args={
                "rules": result.rules,
                "list_sha256": result.list_sha256,
                "images_in_list": result.images,
                "images": mean.images,
                "images_with_edges": mean.images_with_edges,
            },
            metric_type=metric,
            metric_value=round(float(value), 6),
        )
        for result in results
        if (mean := result.mean(model))
        for metric, value in flat(mean).items()
        if value is not None
    ]


def per_image_file(results: Iterable[SetResult], suffix: str) -> bytes:
    """One row per model and image: CSV, or Parquet for the suffix `.parquet`."""
    rows = [
        {"model": model, "benchmark": result.benchmark, "protocol": result.protocol, "image": image, **flat(score)}
        for result in results
        for model, scores in result.scores.items()
        for image, score in scores.items()
    ]
    if suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, ["model", "benchmark", "protocol", "image", *_FLAT_NAMES], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def flat(score: ImageScore | MeanScore) -> dict[str, float | None]:
    """Every number of a score by name; the boundaries' are None where the truth has none."""
    edges = dataclasses.astuple(score.boundary) if score.boundary else (None,) * len(dataclasses.fields(BoundaryScore))
    return dict(zip(_FLAT_NAMES, (*dataclasses.astuple(score.metrics), *edges), strict=True))


def _numbers(values: Mapping[str, float | None]) -> list[str]:
    return [_ABSENT if value is None else f"{value:.4f}" for value in values.values()]


def _rows(models: Sequence[str], results: Sequence[SetResult], table: Table | None) -> list[list[str]]:
    benchmarks = list(dict.fromkeys(result.benchmark for result in results))
    rows = [["model", *benchmarks]]
    rows += [[name, *(_cell(name, benchmark, results) for benchmark in benchmarks)] for name in models]
    for row in _published(results, table):
        figures = (row.figures.get(benchmark) for benchmark in benchmarks)
        rows.append([f"{row.model} (published, {row.source})", *(_figures(*f) if f else _ABSENT for f in figures)])
    return rows


def _published(results: Sequence[SetResult], table: Table | None) -> tuple[PublishedRow, ...]:
    return published_rows(tuple(dict.fromkeys(result.benchmark for result in results)), table)


def _cell(model: str, benchmark: str, results: Sequence[SetResult]) -> str:
    """Ours; a model has one depth space and so is in one result of a benchmark."""
    for result in results:
        if result.benchmark == benchmark and (model in result.scores or model in result.failures):
            mean = result.mean(model)
            return f"{mean.metrics.abs_rel:.4f}/{mean.metrics.delta1:.4f}" if mean else _REFUSED
    return _ABSENT


def _figures(abs_rel: float, delta1: float | None) -> str:
    return f"{abs_rel:.4f}" if delta1 is None else f"{abs_rel:.3f}/{delta1:.3f}"
