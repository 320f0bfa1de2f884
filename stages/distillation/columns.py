"""Which committed parts can be trained on together, and what exactly was in them.

Takes the records of a run and gives, for each part that every column has, which rows every teacher has labelled. Refused,
naming the field: columns that were made from other views or other files, depth spaces that do not fit, and parts of other
settings; and, naming the file, parts of which something is lost or cut. A part's digest covers what decides its content; not
when, where and by which attempt it came.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from manifests import (
    ColumnRecord,
    PartId,
    PartManifest,
    Run,
    committed_parts,
    fingerprint_differences,
    load_part,
    parts,
    place_of,
    refuse_foreign_part,
)
from manifests.errors import RefusedError
from manifests.part_files import differing_sizes, refuse_problems
from stages.depth_space import DEPTH_CONVERSIONS, DepthConversion, DepthSpace, can_convert, is_disparity

IMAGES = "images"
_SHOWN = 3  # parts named in a message
_THREADS = 8  # a network disk wants several requests at once


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainPart:
    """A part that is committed in every column, and which of its rows in the store can be trained on.

    Small, because all parts of a run are held at once, and again in each process that reads: the keys are one string.
    """

    name: str
    places: Sequence[int]
    """The rows that are drawn from: of all its images, or of those that were chosen, labelled or not."""
    rows: tuple[int, ...]
    """Those with labels; where columns have the labels of one training's draw alone, in any of them."""
    joined_keys: str
    digests: tuple[str, ...]
    """One for each column, `images` first."""
    rejected: Mapping[tuple[str, str], int]
    """How many of its images are left out, by the first column that rejected them and the kind of problem."""

    def images_in_use(self, contexts_per_image: int) -> set[int]:
        """The images, by their place in the part, that have rows with labels."""
        return {row // contexts_per_image for row in self.rows}

    @property
    def keys(self) -> list[str]:
        """The image's key of each row, followed by #context where images have several."""
        return self.joined_keys.split("\0")


def matching_columns(
    run: Run, run_dir: Path, teachers: tuple[str, ...], conversion: DepthConversion
) -> tuple[ColumnRecord, ...]:
    """`images` and the teachers' columns, once all that must agree agrees. Raises ValueError."""
    known = {column.name: column for column in run.columns}
    if not 1 <= len(set(teachers)) == len(teachers) or IMAGES in teachers:
        raise RefusedError(f"teachers: found {teachers!r}, expected the names of one or more different teachers' columns")
    if unknown := [name for name in (IMAGES, *teachers) if name not in known]:
        choices = ", ".join(name for name in known if name != IMAGES)
        raise RefusedError(f"{run_dir}: teachers: the run has no column {unknown[0]!r} (it has: {choices})")
    columns = tuple(known[name] for name in (IMAGES, *teachers))
    _refuse_mixed_spaces(run_dir, columns[1:], conversion)
    plans = [{key: value for key, value in c.fingerprint.items() if key == "seed" or key.startswith("plan")} for c in columns]
    for column, plan in zip(columns, plans, strict=True):
        if differences := fingerprint_differences(plan, plans[0]):
            raise RefusedError(f"{run_dir}: the view plans of {column.name!r} and {IMAGES!r} differ: " + "; ".join(differences))
    return columns


def depth_spaces(columns: Sequence[ColumnRecord]) -> list[DepthSpace]:
    """The spaces of the teachers' columns, in their order."""
    return [column.depth_space for column in columns if column.depth_space is not None]


def common_space(spaces: Sequence[DepthSpace], conversion: DepthConversion) -> DepthSpace:
    """The space of all labels once they are converted."""
    if len(set(spaces)) == 1 and (conversion == "refuse" or is_disparity(spaces[0])):
        return spaces[0]
    return "disparity_affine_invariant"


def trainable_parts(
    run: Run, run_dir: Path, columns: Sequence[ColumnRecord], only: Collection[str] | None = None
) -> tuple[TrainPart, ...]:
    """The parts that all columns have committed, in the order of the run, or `only` those of these names.

    Raises ValueError for one that does not belong, or of which a file is lost, cut or a link.
    """
    committed = set.intersection(*(committed_parts(run_dir, column.name) for column in columns))
    committed = committed if only is None else committed & set(only)
    contexts = int(run.plan.get("contexts_per_image", 1))
    make = partial(_trainable_part, run_dir, columns, contexts)
    with ThreadPoolExecutor(_THREADS) as pool:
        return tuple(pool.map(make, [part for part in parts(run) if part.name in committed]))


def part_digest(record: PartManifest) -> str:
    """What decides a part's content; alike for two attempts with the same outcome."""
    files = [(file.path.removeprefix(record.zarr), file.sha256) for file in record.files]
    images = [(image.key, image.status, image.content_sha256) for image in record.images]
    content = [sorted(record.fingerprint.items()), record.depth_space, images, files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def lock_differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """What became of the parts that the lock `expected` names: a line each for changed, missing and new ones, a few of them by
    name. Empty when the locks are the same."""
    kinds = {
        "changed": [name for name in expected if name in found and found[name] != expected[name]],
        "missing": [name for name in expected if name not in found],
        "new": [name for name in found if name not in expected],
    }
    return [
        f"{kind}: {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for kind, names in kinds.items()
        if names
    ]


def _trainable_part(run_dir: Path, columns: Sequence[ColumnRecord], contexts: int, part: PartId) -> TrainPart:
    records = [load_part(run_dir, column.name, part.name) for column in columns]
    for column, record in zip(columns, records, strict=True):
        refuse_foreign_part(run_dir, column, part, record)
        refuse_problems(place_of(run_dir), column.name, differing_sizes(place_of(run_dir), record))
    outcomes_of_images = zip(*(record.images for record in records), strict=True)
    sound = [i for i, outcomes in enumerate(outcomes_of_images) if all(o.status != "rejected" for o in outcomes)]
    for image in sound:
        _refuse_other_input(run_dir, columns, records, image)
    rows = {image * contexts + c: f"#{c}" if contexts > 1 else "" for image in sound for c in range(contexts)}
    if all(record.rows is not None for record in records[1:]):
        drawn = set().union(*(record.rows or () for record in records[1:]))
        rows = {row: context for row, context in rows.items() if row in drawn}
    keys = (records[0].images[row // contexts].key.replace("\0", "") + context for row, context in rows.items())
    rejected: Counter[tuple[str, str]] = Counter()
    for outcomes in zip(*(record.images for record in records), strict=True):
        reasons = ((c.name, o.problem.kind) for c, o in zip(columns, outcomes, strict=True) if o.problem is not None)
        rejected.update([first] if (first := next(reasons, None)) else [])
    return TrainPart(
        name=part.name,
        places=range(part.images * contexts),
        rows=tuple(rows),
        joined_keys="\0".join(keys),
        digests=tuple(part_digest(record) for record in records),
        rejected=dict(rejected),
    )


def _refuse_mixed_spaces(run_dir: Path, columns: Sequence[ColumnRecord], conversion: DepthConversion) -> None:
    spaces = depth_spaces(columns)
    same = conversion == "refuse" and len(set(spaces)) == 1
    if not same and not all(can_convert(space, conversion) for space in spaces):
        found = ", ".join(f"{column.name!r} has {column.depth_space}" for column in columns)
        able = [c for c in DEPTH_CONVERSIONS[1:] if all(can_convert(space, c) for space in spaces)]
        unable = "" if conversion == "refuse" else f", and --convert-depth {conversion} does not make all of them disparities"
        raise RefusedError(
            f"{run_dir}: depth_space: {found}; a student learns one space{unable}. Label with teachers of the same space, or "
            f"train on one of them, or choose --convert-depth {' or '.join(able)}."
        )


def _refuse_other_input(run_dir: Path, columns: Sequence[ColumnRecord], records: Sequence[PartManifest], image: int) -> None:
    digests = [record.images[image].content_sha256 for record in records]
    if len(set(digests)) > 1:
        found = ", ".join(f"{column.name} {digest}" for column, digest in zip(columns, digests, strict=True))
        raise RefusedError(
            f"{run_dir}: part {records[0].part}, image {records[0].images[image].key!r}: its columns were made from different "
            f"files (sha256: {found}); run `python -m manifests repair {run_dir}`, then label again"
        )
