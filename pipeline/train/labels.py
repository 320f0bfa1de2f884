"""Which labels a training reads, said at its start: all that its run has then, and from then on those it began with.

A run that is not labelled to its end is refused, unless that was allowed; and so is an output that was begun with the labels of
another run.
"""

from __future__ import annotations

import sys

import manifests
from pipeline.train.config import TrainConfig
from pipeline.train.state import LOCK, OutputMismatchError, locked_parts
from stages.distillation.dataset import LabelDataset


def open_dataset(config: TrainConfig) -> LabelDataset:
    """The labels that a training reads: of one that has begun, those it began with, though more may have been made since.

    Raises ValueError for columns that do not belong together, OutputMismatchError for an output begun with another run.
    """
    locked = locked_parts(config.output)
    if locked is not None:
        _refuse_other_run(config, locked)
    return LabelDataset(
        config.run,
        config.columns,
        read_patches=config.local_global_weight > 0,
        conversion=config.convert_depth,
        only_parts=locked,
    )


def announce_labels(config: TrainConfig, dataset: LabelDataset, *, say: bool = True) -> None:
    """Say how many of the run's images are in use, and why the others are not.

    Raises ValueError where a training would begin before labelling has ended, unless that is allowed.
    """
    if dataset.coverage.unfinished and not config.allow_partial and locked_parts(config.output) is None:
        raise ValueError(
            f"{config.run}: is not labelled to its end: {dataset.coverage}. Finish it with the command that made it; or begin "
            "with what is there, by --allow-partial: a training keeps the labels that it began with"
        )
    if say:
        print(f"{config.run}: {dataset.coverage}", file=sys.stderr)


def _refuse_other_run(config: TrainConfig, locked: frozenset[str]) -> None:
    known = {part.name for part in manifests.parts(manifests.load_run(config.run))}
    if not locked & known:
        raise OutputMismatchError(
            f"{config.output}: belongs to a training on the labels of another run: {LOCK} names {_few(locked)}, and "
            f"{config.run} has {_few(known)}. Go on with the run that it began with, or choose another output"
        )


def _few(names: frozenset[str] | set[str]) -> str:
    first = min(names, default="no part")
    return f"{first} and {len(names) - 1} more" if len(names) > 1 else first
