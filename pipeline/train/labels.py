"""Which labels a training reads, said at its start: all that its runs have then, and from then on those it began with.

A run that is not labelled to its end is refused, unless that was allowed; and so is an output that was begun with the labels of
other runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import manifests
from manifests.errors import RefusedError
from pipeline.train.config import TrainConfig
from pipeline.train.state import LOCK, OutputMismatchError, locked_parts
from stages.distillation.dataset import LabelDataset
from stages.distillation.joined import JoinedLabels


def open_dataset(config: TrainConfig) -> JoinedLabels:
    """The labels that a training reads: of one that has begun, those it began with, though more may have been made since.

    Raises ValueError for columns or runs that do not belong together, OutputMismatchError for an output begun with other runs.
    """
    locked = locked_parts(config.output)
    if locked is not None and len(locked) != len(config.run):
        raise OutputMismatchError(
            f"{config.output}: belongs to a training on {len(locked)} runs, found {len(config.run)}; give the same runs in the "
            "same order, or choose another output"
        )
    for run, parts in zip(config.run, locked or (), strict=False):
        _refuse_other_run(config, run, parts)
    return JoinedLabels(
        [
            LabelDataset(
                run,
                config.columns,
                read_patches=config.local_global_weight > 0,
                conversion=config.convert_depth,
                only_parts=locked[i] if locked else None,
                patch_agreement=config.patch_agreement,
                mask_disagreement=config.mask_disagreement,
            )
            for i, run in enumerate(config.run)
        ],
        images=config.images,
    )


def announce_labels(config: TrainConfig, dataset: JoinedLabels, *, say: bool = True) -> None:
    """Say how many of each run's images are in use, and why the others are not.

    Raises ValueError where a training would begin before labelling has ended, unless that is allowed.
    """
    for run, labels in zip(config.run, dataset.runs, strict=True):
        if labels.coverage.unfinished and not config.allow_partial and locked_parts(config.output) is None:
            raise RefusedError(
                f"{run}: is not labelled to its end: {labels.coverage}. Finish it with the command that made it; or begin "
                "with what is there, by --allow-partial: a training keeps the labels that it began with"
            )
        if say:
            print(f"{run}: {labels.coverage}", file=sys.stderr)
            if labels.coverage.newer:
                print(f"{run}: a new --output takes in those labelled since this training began", file=sys.stderr)


def _refuse_other_run(config: TrainConfig, run: Path, locked: frozenset[str]) -> None:
    known = {part.name for part in manifests.parts(manifests.load_run(run))}
    if not locked & known:
        raise OutputMismatchError(
            f"{config.output}: belongs to a training on the labels of another run: {LOCK} names {_few(locked)}, and "
            f"{run} has {_few(known)}. Give the run that it began with, or choose another output"
        )


def _few(names: frozenset[str] | set[str]) -> str:
    first = min(names, default="no part")
    return f"{first} and {len(names) - 1} more" if len(names) > 1 else first
