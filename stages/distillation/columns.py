"""Which committed parts can be trained on together, and what exactly was in them.

Takes the records of a run and gives, for each part that every column has, which rows every teacher has labelled. Refused,
naming the field: columns that were made from other views or other files, depth spaces that do not fit, and parts of other
settings; and, naming the file, parts of which something is lost or cut, as far as that is looked for. A part's digest covers
what decides its content; not when, where and by which attempt it came.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from manifests import (
    ColumnRecord,
    PartId,
    Run,
    fingerprint_differences,
    load_part,
    manifest_path,
    part_fingerprint,
    parts,
    place_of,
)
from manifests.errors import RefusedError
from manifests.facts import PartFacts, column_facts
from manifests.location import Location
from manifests.part_files import differing_files, refuse_problems
from manifests.run import ColumnListing
from stages.depth_space import DEPTH_CONVERSIONS, DepthConversion, DepthSpace, can_convert, is_disparity
from stages.distillation.parts import TrainPart, TrainParts

IMAGES = "images"
_SHOWN = 3  # parts named in a message
_THREADS = 8  # a network disk wants several requests at once
_LOOKED_INTO = 64
"""Parts of which each file is looked for when a run is opened: some 2 ms a folder, which 100,000 parts cannot wait for."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The parts that all columns have committed, their `names` in the same order. `rejected`: how many images of each part, by
    name, are left out, by the first column that rejected them and the kind of problem."""

    parts: TrainParts
    names: Sequence[str]
    rejected: Mapping[str, Mapping[tuple[str, str], int]]


def matching_columns(
    run: Run, run_dir: Location, teachers: tuple[str, ...], conversion: DepthConversion
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
    run: Run,
    run_dir: Location,
    columns: Sequence[ColumnRecord],
    listings: Sequence[ColumnListing],
    *,
    only: Collection[str] | None = None,
) -> Opened:
    """The parts that all columns have committed, in the order of the run, or `only` those of these names.

    columns: `images` first; listings: what lies in their folders, with states. Raises ValueError for a part that does not
    belong or whose folder is lost; and, of up to _LOOKED_INTO parts from all over the run, for one of which a file is lost,
    cut or a link. Those of the others are looked for when a part is first read.
    """
    committed = set.intersection(*(listing.manifests for listing in listings))
    chosen = [part for part in parts(run) if part.name in (committed if only is None else committed & set(only))]
    known = [column_facts(run_dir, column.name, listing) for column, listing in zip(columns, listings, strict=True)]
    opening = _Opening(run_dir=run_dir, columns=tuple(columns), contexts=int(run.plan.get("contexts_per_image", 1)))
    found = [[facts.of(part.name) for facts in known] for part in chosen]
    opened = [opening.trainable(part, facts) for part, facts in zip(chosen, found, strict=True)]
    zarrs = [listing.zarrs for listing in listings]
    lost = (of_part for of_part in found if any(facts.zarr not in there for facts, there in zip(of_part, zarrs, strict=True)))
    spread = found[:: -(-len(found) // _LOOKED_INTO) or 1]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(opening.look_for_files, [*itertools.islice(lost, 1), *spread]))
    return Opened(
        parts=TrainParts([part for part, _ in opened]),
        names=[part.name for part in chosen],
        rejected={part.name: rejected for part, rejected in opened if rejected},
    )


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


@dataclass(frozen=True, kw_only=True)
class _Opening:
    run_dir: Location
    columns: tuple[ColumnRecord, ...]
    contexts: int
    agreed: set[tuple[int, str, str]] = field(default_factory=set)
    """Fingerprints that are those of the run; the parts of a column share a few of them."""

    def trainable(self, part: PartId, facts: Sequence[PartFacts]) -> tuple[TrainPart, Mapping[tuple[str, str], int]]:
        """The part, from what its manifests say, and how many of its images are rejected."""
        rejected: dict[int, tuple[str, str]] = {}
        for column, of_column in zip(self.columns, facts, strict=True):
            self._refuse_foreign(column, part, of_column)
            for image, kind in of_column.rejected or ():
                rejected.setdefault(image, (column.name, kind))
        if len({of_column.inputs for of_column in facts}) > 1:
            self._refuse_other_input(part, rejected.keys())
        sound = np.ones(part.images, bool)
        sound[list(rejected)] = False
        rows = np.flatnonzero(np.repeat(sound, self.contexts))
        if all(of_column.rows is not None for of_column in facts[1:]):
            rows = rows[np.isin(rows, [row for of_column in facts[1:] for row in of_column.drawn or ()])]
        places, digests = np.arange(part.images * self.contexts), tuple(of_column.digest for of_column in facts)
        return TrainPart(name=part.name, places=places, rows=rows, digests=digests), Counter(rejected.values())

    def look_for_files(self, found: Sequence[PartFacts]) -> None:
        place = place_of(self.run_dir)
        for column, facts in zip(self.columns, found, strict=True):
            refuse_problems(place, column.name, differing_files(place, column.name, facts.zarr, facts.files))

    def _refuse_foreign(self, column: ColumnRecord, part: PartId, facts: PartFacts) -> None:
        kind = (id(facts.fingerprint), column.name, part.rows_sha256)
        expected = part_fingerprint(column, part.rows_sha256)
        differences = [] if kind in self.agreed else fingerprint_differences(facts.fingerprint, expected)
        if not differences:
            self.agreed.add(kind)
        if facts.depth_space != column.depth_space:
            differences.append(f"depth_space: found {facts.depth_space}, expected {column.depth_space}")
        if facts.images != part.images:
            differences.append(f"images: found {facts.images}, expected {part.images}")
        if differences:
            where = manifest_path(self.run_dir, column.name, part.name)
            raise RefusedError(f"{where}: not made with this run's settings: " + "; ".join(differences))

    def _refuse_other_input(self, part: PartId, rejected: Collection[int]) -> None:
        images = {column.name: load_part(self.run_dir, column.name, part.name).images for column in self.columns}
        for number, outcomes in enumerate(zip(*images.values(), strict=True)):
            if number in rejected or len({outcome.content_sha256 for outcome in outcomes}) == 1:
                continue
            found = ", ".join(f"{name} {outcome.content_sha256}" for name, outcome in zip(images, outcomes, strict=True))
            raise RefusedError(
                f"{self.run_dir}: part {part.name}, image {outcomes[0].key!r}: its columns were made from different files "
                f"(sha256: {found}); run `python -m manifests repair {self.run_dir}`, then label again"
            )


def _refuse_mixed_spaces(run_dir: Location, columns: Sequence[ColumnRecord], conversion: DepthConversion) -> None:
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
