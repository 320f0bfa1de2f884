"""What the report of a run and its student says. The demo's report is this one, and what only the demo knows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import manifests
from manifests.checker import printable
from pipeline.demo_notice import ONLY_SCENES, is_of_the_demo
from pipeline.predict.files import find_photographs
from pipeline.report.examples import Example, ShownMap, label_of, make_example
from pipeline.report.page import ExampleGroup, ReportContent
from pipeline.report.seen import Sample, change_sentence, example_group, look, one_by_one, score_table
from pipeline.report.tables import agreement_table, cost_table, licence_table, provenance, rejected_table, size
from pipeline.report.training import AFTER, BEFORE, Training, read_training
from stages.label_store import open_run
from stages.models import DepthModel
from stages.sources.photographs import PictureRejectedError, decode_upright

_SHOWN_PX = 560  # the long side of photographs that are not in the run
_TROUBLE_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """images: photographs of the run to compare on. examples: how many of them are shown. caption: what one of them is."""

    images: int = 24
    examples: int = 6
    seed: int = 0
    device: str = "auto"
    caption: str = "Photograph"


def run_report(run_dir: Path, student: str | None, options: Options, *, photos: Sequence[Path] = ()) -> ReportContent:
    """All of it, from what the run and the student's folder hold.

    Raises as `load_run` does, RefusedError for a student that is not there, ModelError for one that cannot be loaded, and
    PredictError where there is none of `photos`.
    """
    run, summary = manifests.load_run(run_dir), manifests.summarize(run_dir)
    training = read_training(student, options.device) if student else None
    sample = _look(run_dir, summary, training, options)
    reference = sample.photographs[0].opinions[0].teacher if sample.photographs else None
    scores = score_table(sample, reference) if reference else None
    sentences = [_labelled_sentence(run, summary), *_trained_sentences(training)]
    if scores and scores.before and reference:
        sentences.append(change_sentence(scores, reference))
    groups = [example_group(sample, options.examples)]
    if photos and training and training.models:
        groups.append(_photo_group(photos, training.models, options.examples))
    name = printable(run_dir.resolve().name)
    return ReportContent(
        title=f"The run {name} and its student {printable(training.name)}" if training else f"The labels of the run {name}",
        summary=sentences,
        notices=[*_notices(run, summary, training), *_trouble(sample)],
        facts=_facts(summary, training),
        scores=scores,
        groups=groups,
        losses=training.curves() if training else [],
        scenes=one_by_one(sample),
        tables=[
            rejected_table(run_dir, summary),
            agreement_table(summary),
            cost_table(run_dir, summary, training, sample.seconds),
            licence_table(run, summary, training),
        ],
        commands=_commands(run_dir, student, run, summary, training),
        provenance=provenance(run, training),
    )


def _look(run_dir: Path, summary: manifests.RunSummary, training: Training | None, options: Options) -> Sample:
    opened = open_run(run_dir)
    if not any(column.labelled for column in summary.columns if column.depth_space):
        return Sample(photographs=[], words="no photograph of the run", trouble=[], seconds=None)
    students, reference = (training.models, training.reference) if training else ({}, None)
    return look(
        opened,
        run_dir,
        students,
        images=options.images,
        seed=options.seed,
        reference=reference,
        caption=options.caption,
    )


def _labelled_sentence(run: manifests.Run, summary: manifests.RunSummary) -> str:
    teachers = [column for column in summary.columns if column.depth_space]
    if not teachers:
        return f"{summary.images_total} photographs are catalogued, and no teacher has labelled any yet."
    labelled = "; ".join(f"{column.name} {column.labelled}" for column in teachers)
    who = "teacher has" if len(teachers) == 1 else "teachers have"
    return f"Of {summary.images_total} photographs the {who} labelled: {labelled}."


def _trained_sentences(training: Training | None) -> list[str]:
    if not training or not training.settings or not training.finished:
        return []
    told = {name: training.settings.get(name) for name in ("steps", "batch_size")}
    columns = " and ".join(map(str, training.settings.get("columns") or ()))
    return [
        f"The student learned from the labels of {columns} alone, in {told['steps']} steps of {told['batch_size']} pictures."
    ]


def _notices(run: manifests.Run, summary: manifests.RunSummary, training: Training | None) -> list[str]:
    found = [f"The labelling is not finished and sound: {'; '.join(missing)}."] if (missing := summary.complaints()) else []
    if training is None:
        found.append("No student was named: this is of the labels alone.")
    else:
        found += training.notices
    if any(is_of_the_demo(column.fingerprint.get("weights_sha256")) for column in run.columns):
        found.append(ONLY_SCENES)
    return [printable(notice) for notice in found]


def _trouble(sample: Sample) -> list[str]:
    shown = [f"Not shown: {printable(text)}" for text in sample.trouble[:_TROUBLE_SHOWN]]
    more = len(sample.trouble) - _TROUBLE_SHOWN
    return shown + [f"Not shown: {more} more."] * (more > 0)


def _facts(summary: manifests.RunSummary, training: Training | None) -> Mapping[str, str]:
    teachers = [column for column in summary.columns if column.depth_space]
    rejected = max((sum(column.rejected.values()) for column in summary.columns), default=0)
    bits = [f"{column.bits_per_pixel:.1f}" for column in teachers if column.bits_per_pixel]
    facts = {
        "photographs": str(summary.images_total),
        "rejected": str(rejected),
        "labelled views": str(sum(column.views for column in teachers)),
        "labels on disk": size(sum(column.bytes for column in teachers)),
    }
    facts |= {"bits for each label pixel": bits[0]} if len(set(bits)) == 1 else {}
    return facts | ({"steps of training": str(len(training.steps))} if training and training.steps else {})


def _commands(
    run_dir: Path, student: str | None, run: manifests.Run, summary: manifests.RunSummary, training: Training | None
) -> list[tuple[str, str]]:
    """Lines to try, for what the run and the student are now."""
    here, preset = shlex.quote(str(run_dir)), " --preset demo" * (run.configuration.get("preset") == "demo")
    found = []
    if any(column.failed + column.pending for column in summary.columns):
        found.append((f"python -m pipeline.label --run {here}{preset}", "Label what is missing"))
    if not any(pair.up_to_date for pair in summary.agreement) and sum(bool(c.depth_space) for c in summary.columns) > 1:
        found.append((f"python -m pipeline.agreement {here}", "Compare the teachers on the whole run"))
    found.append((f"python -m pipeline.browse {here} -o gallery", "Look through the labels"))
    if training is None:
        found.append((f"python -m pipeline.train --run {here} --output students/mine{preset}", "Train a student from them"))
    elif training.models and student:
        model = shlex.quote(student)
        found += [
            (f"python -m pipeline.predict --model {model} photos/ --output maps", "Depth maps of photographs"),
            (f"python -m pipeline.evaluate --model {model} --scenes 32", "Score it on rendered scenes with exact depth"),
            (f"python -m pipeline.export_student {model} -o upload --onnx", "Hand it on, as ONNX too"),
        ]
    return found


# --- photographs that are not in the run ----------------------------------------------------------------------------


def _photo_group(photos: Sequence[Path], models: Mapping[str, DepthModel], count: int) -> ExampleGroup:
    found, _ = find_photographs(photos, Path())
    examples, refused = [], 0
    for photograph in found[:count]:
        try:
            image = decode_upright(photograph.read())
        except (OSError, PictureRejectedError):
            refused += 1
            continue
        examples.append(photo_example(photograph.name, image, models))
    more = f" {len(found)} were given, the first {count} are shown." * (len(found) > count)
    broken = f" {refused} of them do not open." * bool(refused)
    return ExampleGroup(
        heading="Other photographs",
        note=f"No teacher has labelled these: there is no number.{more}{broken} In a row all maps have the colours of one.",
        examples=examples,
        difference=f"How far from the {BEFORE if BEFORE in models else 'first map'}: red is nearer, blue farther.",
    )


def photo_example(key: str, image: Image.Image, models: Mapping[str, DepthModel]) -> Example:
    """A photograph as these models see it."""
    image.thumbnail((_SHOWN_PX, _SHOWN_PX), Image.Resampling.BOX, reducing_gap=2)
    rgb = np.asarray(image)
    maps = []
    for name, model in models.items():
        space = model.spec.depth_space
        assert space is not None  # which a model that could be loaded has
        maps.append(ShownMap(name=name, space=space, label=label_of(model.predict(rgb[None])[0])))
    return make_example(printable(key), rgb, maps, compared=(BEFORE, AFTER))
