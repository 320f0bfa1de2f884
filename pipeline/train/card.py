"""What a finished training says of itself: the model card's content, gathered from the runs' records and the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import manifests
from manifests.licences import most_restrictive
from pipeline.config import resolved
from pipeline.train.config import MAY_CHANGE, TrainConfig
from pipeline.train.log import mean_of_last
from stages.depth_space import DepthSpace
from stages.distillation.joined import JoinedLabels
from stages.distillation.losses import LossTerms
from stages.distillation.model_card import CardContent, CardTeacher, model_card
from stages.distillation.student import pinned_folder
from stages.models.checkpoints import is_hub_id
from stages.models.known import known_of
from stages.models.stated import read_licence

_SAID_ELSEWHERE = (
    *("student", "student_revision", "fresh_head", "from_scratch", "columns"),
    *("feature_encoder", "feature_revision"),
)


def student_space(dataset: JoinedLabels) -> DepthSpace:
    """What the student's numbers mean: normalised losses leave scale and shift free, whatever the labels' were."""
    return "depth_affine_invariant" if dataset.depth_space.startswith("depth") else "disparity_affine_invariant"


def write_card(config: TrainConfig, dataset: JoinedLabels, *, runs_in_library: bool) -> str:
    """The README.md of the student that this training made. runs_in_library: whether transformers alone can run it."""
    runs = [manifests.load_run(run) for run in config.run]
    summaries = [manifests.summarize(run) for run in config.run]
    sources = [source for run in runs for source in run.sources]
    images = sum(run.coverage.used for run in dataset.runs)
    known, demo = known_of(config.student), config.student == "demo"
    encoder = config.feature_encoder if config.feature_weight else None
    known_encoder = known_of(encoder or "")
    return model_card(
        CardContent(
            name=config.output.resolve().name,
            student="the demo's student" if demo else shown_checkpoint(config.student),
            student_revision=config.student_revision or (known.revision if known else None),
            student_licence=licence_of(config.student_checkpoint, config.student_revision),
            start=config.start,
            depth_space=student_space(dataset),
            runs_in_library=runs_in_library,
            feature_encoder=shown_checkpoint(encoder) if encoder else None,
            feature_revision=config.feature_revision or (known_encoder.revision if known_encoder else None),
            feature_licence=licence_of(encoder, config.feature_revision) if encoder else None,
            teachers=[_teacher(column, summaries) for column in dataset.columns[1:]],
            sources=[source.source for source in sources],
            images=images,
            unused=sum(source.images for source in sources) - images,
            contexts=len(dataset),
            training={k: v for k, v in resolved(config).items() if k not in (*MAY_CHANGE, *_SAID_ELSEWHERE)},
            metrics=mean_of_last(config.output, [field.name for field in fields(LossTerms)]),
        )
    )


def licence_of(checkpoint: str, revision: str | None) -> str | None:
    """That of a checkpoint's weights, as it is known here or as its own files say; None where they are silent or gone."""
    if known := known_of(checkpoint):
        return known.licence
    try:
        said = read_licence(pinned_folder(checkpoint, revision))
    except OSError:
        return None
    return said.value if said else None


def _teacher(column: manifests.ColumnRecord, summaries: Sequence[manifests.RunSummary]) -> CardTeacher:
    spec = column.configuration
    licences = {
        licence for run in summaries for found in run.columns if found.name == column.name for licence in found.licences
    }
    return CardTeacher(
        name=column.name,
        checkpoint=shown_checkpoint(spec["checkpoint"]) if "checkpoint" in spec else "not recorded",
        revision=spec.get("revision"),
        licence=" and ".join(most_restrictive(licences)) or None,
        depth_space=column.depth_space or "disparity_affine_invariant",
    )


def shown_checkpoint(checkpoint: str) -> str:
    """A hub id as it is, and of a folder its last name: a path of the machine that trained it tells nobody anything."""
    return checkpoint if is_hub_id(checkpoint) else f"a folder named {Path(checkpoint).name}"
