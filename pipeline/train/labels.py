"""Which labels a training reads, said at its start: all that its runs have then, and from then on those it began with.

A run that is not labelled to its end is refused, unless that was allowed; and so is an output that was begun with the labels of
other runs.
"""

from __future__ import annotations

import sys

import manifests
from manifests.errors import RefusedError
from manifests.location import Location
from pipeline.train.config import TrainConfig
from pipeline.train.state import LOCK, OutputMismatchError, locked_parts
from stages.distillation.dataset import LabelDataset
from stages.distillation.draw import draw_differences, is_of_a_draw
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
    dataset = JoinedLabels(
        [
            LabelDataset(
                run,
                config.columns,
                read_patches=config.local_global_weight > 0,
                conversion=config.convert_depth,
                only_parts=locked[i] if locked else None,
                patch_agreement=config.patch_agreement,
                mask_disagreement=config.mask_disagreement,
                cache=config.part_cache,
            )
            for i, run in enumerate(config.run)
        ],
        images=config.images,
    )
    for run, labels in zip(config.run, dataset.runs, strict=True):
        _refuse_other_draw(config, run, labels)
    return dataset


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
            _say_preset(config, run)
            if labels.coverage.newer:
                print(f"{run}: a new --output takes in those labelled since this training began", file=sys.stderr)


def _say_preset(config: TrainConfig, run: Location) -> None:
    """Labels of the demo's preset are of views of 192 px, which most published networks do not take."""
    labelled_with = manifests.load_run(run).configuration.get("preset")
    if labelled_with == "demo" and not config.preset.startswith("demo"):
        found = f"{run}: was labelled with --preset demo, and this training has --preset {config.preset}"
        print(f"{found}; for the demo's small student on a CPU, give --preset demo here too", file=sys.stderr)


def _refuse_other_run(config: TrainConfig, run: Location, locked: frozenset[str]) -> None:
    known = {part.name for part in manifests.parts(manifests.load_run(run))}
    if not locked & known:
        raise OutputMismatchError(
            f"{config.output}: belongs to a training on the labels of another run: {LOCK} names {_few(locked)}, and "
            f"{run} has {_few(known)}. Give the run that it began with, or choose another output"
        )


def _refuse_other_draw(config: TrainConfig, run: Location, labels: LabelDataset) -> None:
    """A column that was labelled for one training has nothing of what others draw."""
    for column in labels.columns[1:]:
        if not is_of_a_draw(column.fingerprint):
            continue
        differences = draw_differences(column.fingerprint, config.draw, labels.coverage.catalogued)
        if len(config.run) > 1:
            differences.append(f"run: found {len(config.run)} of them, expected this one alone")
        if labels.coverage.unfinished or labels.coverage.newer:
            differences.append(f"it is to be labelled to its end: {labels.coverage}")
        if differences:
            lines = "".join(f"\n  - {difference}" for difference in differences)
            raise RefusedError(
                f"{run}: column {column.name!r} has the labels that one training draws (label --for-training), and this is "
                f"another one:{lines}\nTrain as it was labelled for, with fewer steps at most; or label for this training, in "
                "another run or under another name"
            )


def _few(names: frozenset[str] | set[str]) -> str:
    first = min(names, default="no part")
    return f"{first} and {len(names) - 1} more" if len(names) > 1 else first
