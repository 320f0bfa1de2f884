"""What a report says of a run in tables: what was rejected, how far the teachers agree, what it cost, what binds it."""

from __future__ import annotations

import itertools
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

import manifests
from manifests.checker import printable
from manifests.licences import UNKNOWN, licence_class, most_restrictive
from manifests.listing import list_images
from manifests.run import IMAGES
from pipeline.progress import duration
from pipeline.report.page import TextTable
from pipeline.report.training import Training
from pipeline.train.card import licence_of, shown_checkpoint
from pipeline.train.config import DEMO_STUDENT
from stages.distillation.model_card import CONSEQUENCES

_REJECTED_SHOWN, _PARTS_TIMED = 12, 64
_PACKAGES = ("torch", "transformers", "diffusers", "ray", "zarr", "numcodecs", "numpy", "pillow")
_TRAINED_BY = ("seed", "steps", "batch_size", "columns", "ratios", "normalization_shared", "normalization_local")
_WEIGHTS_OF_LOSSES = ("shared", "local_global", "feature", "gradient", "anchor")


def rejected_table(run_dir: Path, summary: manifests.RunSummary) -> TextTable:
    """The first rejected images, with the reason. Raises as `list_images` does."""
    kinds: dict[str, int] = {}
    for column in summary.columns:
        for kind, count in column.rejected.items():
            kinds[kind] = max(kinds.get(kind, 0), count)
    if not kinds:
        return TextTable(heading="What was rejected", note="Nothing.", head=(), rows=())
    rows: dict[tuple[str, str], tuple[str, ...]] = {}
    for image in itertools.islice(list_images(run_dir, statuses=["rejected"]), 4 * _REJECTED_SHOWN):
        why = f"{image.kind}: {image.message or ''}"
        row = (image.source, image.key, image.column, why)
        rows.setdefault((image.source, image.key), tuple(map(printable, row)))
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return TextTable(
        heading="What was rejected",
        note=f"By kind, in the column that rejected the most: {said}. Here are the first; python -m manifests list has all.",
        head=("source", "key", "column", "why"),
        rows=list(rows.values())[:_REJECTED_SHOWN],
    )


def agreement_table(summary: manifests.RunSummary) -> TextTable:
    """Of the teachers over the whole run, where `pipeline.agreement` has compared them."""
    heading, pairs = "Agreement of the teachers", [pair for pair in summary.agreement if pair.up_to_date and pair.quantiles]
    if not pairs:
        teachers = [column.name for column in summary.columns if column.depth_space]
        note = "Not compared on the whole run yet: python -m pipeline.agreement does that."
        return TextTable(heading=heading, note=note if len(teachers) > 1 else "There is one teacher.", head=(), rows=())
    names = {"abs_rel": "AbsRel", "correlation": "correlation", "edge_f1": "edge F1"}
    rows = [
        (f"{pair.first}, {pair.second}", names[measure], *(f"{values[i]:.3f}" for i in (1, 3, 5)), str(pair.images))
        for pair in pairs
        for measure, values in pair.quantiles.items()
    ]
    worst = "; ".join(
        f"{pair.first} and {pair.second}: {', '.join(f'{image.key} ({image.abs_rel:.3f})' for image in pair.farthest_apart)}"
        for pair in pairs
    )
    return TextTable(
        heading=heading,
        note=f"Over the whole run, after alignment. Farthest apart by AbsRel: {printable(worst)}.",
        head=("teachers", "measure", "1 % of images below", "median", "99 % below", "images"),
        rows=rows,
    )


def size(count: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} bytes"


def cost_table(run_dir: Path, summary: manifests.RunSummary, training: Training | None, predicted_s: float | None) -> TextTable:
    """Time and disk, in all and for each image. predicted_s: of the student for a photograph, measured just now."""
    rows = []
    for column in summary.columns:
        images, what = (
            column.labelled,
            "photographs as the teachers saw them" if column.name == IMAGES else f"labels: {column.name}",
        )
        taken = _seconds_per_image(run_dir, column.name)
        total = "" if taken is None else duration(taken * images)
        each = "" if taken is None else f"{taken:.3g} s"
        of_each = size(column.bytes / images) if images else ""
        rows.append((what, str(images), size(column.bytes), of_each, total, each))
    if training and training.folder and training.steps:
        seconds, disk = training.seconds, "" if training.weights_bytes is None else size(training.weights_bytes)
        seen = len(training.steps) * int(training.settings.get("batch_size", 0))
        each = f"{seconds / seen:.3g} s" if seconds and seen else ""
        rows.append(("training", f"{seen} seen", disk, "", duration(seconds) if seconds else "", each))
    if predicted_s is not None:
        rows.append(("a map by the student, here and now", "", "", "", "", f"{predicted_s:.3g} s"))
    return TextTable(
        heading="What it cost",
        note=(
            f"Of labels: the time of the processes that made them, on their machine, from {_PARTS_TIMED} parts at most; "
            "several processes work at a time."
        ),
        head=("", "images", "disk", "for each", "time", "for each"),
        rows=rows,
    )


def _seconds_per_image(run_dir: Path, column: str) -> float | None:
    names = sorted(manifests.committed_parts(run_dir, column))
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), _PARTS_TIMED)).round().astype(int)]
    seconds, images = 0.0, 0
    for name in chosen:
        try:
            part = manifests.load_part(run_dir, column, name)
        except (OSError, ValueError):
            continue  # verify names it
        seconds, images = seconds + part.volatile.seconds, images + sum(image.status == "labelled" for image in part.images)
    return seconds / images if images and math.isfinite(seconds) and seconds > 0 else None


def licence_table(run: manifests.Run, summary: manifests.RunSummary, training: Training | None) -> TextTable:
    """Of all weights that went into the labels and the student, and what follows."""
    rows, binding, used = [], set[str](), set(training.settings.get("columns") or ()) if training else set[str]()
    licences = {column.name: column.licences for column in summary.columns}
    for column in run.columns:
        if column.name != IMAGES:
            checkpoint = column.configuration.get("checkpoint")
            where = shown_checkpoint(str(checkpoint)) if checkpoint else "not recorded"
            licence = " and ".join(most_restrictive(set(licences.get(column.name, ())))) or UNKNOWN
            binding |= {licence} if not used or column.name in used else set()
            rows.append((f"teacher {column.name}", where, licence, licence_class(licence)))
    if training and (start := training.settings.get("student")) and not training.settings.get("from_scratch"):
        folder = str(DEMO_STUDENT) if start == "demo" else str(start)
        licence = licence_of(folder, training.settings.get("student_revision")) or UNKNOWN
        binding.add(licence)
        name = "the demo's student" if start == "demo" else shown_checkpoint(folder)
        rows.append(("the student's start", name, licence, licence_class(licence)))
    strictest = most_restrictive(binding)
    what = "the student" if training else "a student of these labels"
    bound = (
        f"What binds {what} most: {' and '.join(strictest)}. {CONSEQUENCES[licence_class(strictest[0])]} " if strictest else ""
    )
    return TextTable(
        heading="Licences of the weights",
        note=f"{bound}This is a record, not legal advice; photographs have licences of their own, which are not recorded here.",
        head=("weights", "checkpoint", "licence", "kind"),
        rows=rows,
    )


def provenance(run: manifests.Run, training: Training | None) -> Mapping[str, Mapping[str, object]]:
    """What is needed to make it again."""
    settings = training.settings if training else {}
    found = {
        "Labels": {f"plan: {name}": value for name, value in run.plan.items()}
        | {"seed": run.seed, "sources": ", ".join(printable(source.source) for source in run.sources)},
        "Training": {name: _shown(settings[name]) for name in _TRAINED_BY if name in settings}
        | {f"weight of L_{n}": settings[f"{n}_weight"] for n in _WEIGHTS_OF_LOSSES if f"{n}_weight" in settings},
        "Checkpoints (sha256)": {
            column.name: column.fingerprint["weights_sha256"]
            for column in run.columns
            if "weights_sha256" in column.fingerprint
        },
        "Versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }
    return {heading: entries for heading, entries in found.items() if entries}


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)
