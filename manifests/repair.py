"""Takes the damaged parts out of a run, and only those, so that the next labelling makes them again.

Promises: what is sound stays as it is, byte for byte; killed at any moment, it leaves every part complete or absent. Dropped is
only what is proven damaged. What this machine cannot read, or this version does not understand, may be sound: it is left where
it is and named, as are links, and what labelling cannot make again (run.json, a catalogue, files of no part of this run).
"""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from manifests.litter import column_litter
from manifests.location import Location
from manifests.lock import hold_run
from manifests.place import place_of
from manifests.run import IMAGES, committed_parts, failure_path, load_part, manifest_path, parts, read_run
from manifests.schema import InvalidRecordError
from manifests.verify import Damage, verify

_MISMATCH = {"wrong_fingerprint", "wrong_depth_space"}
_UNPROVEN = {"unreadable", "link"}
_OF_OTHER_VERSIONS = {"wrong_version", "unknown_key"}


@dataclass(frozen=True, kw_only=True)
class DroppedPart:
    """A part that is absent now, and why."""

    column: str
    part: str
    why: str


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """`dropped`: parts to be made again. `removed`: other files, relative to the run, that should not have been there.
    `left`: damage that is still there, since labelling again would not mend it."""

    dropped: tuple[DroppedPart, ...] = ()
    removed: tuple[str, ...] = ()
    left: tuple[Damage, ...] = ()


def repair(run_dir: Location, damage: Iterable[Damage] | None = None, *, dry_run: bool = False) -> RepairReport:
    """Drops what is damaged; `dry_run` only says what would be. `damage` is what `verify` finds, and is asked for its items
    while the run is held; without it, the run is verified in depth.

    Raises RunInUseError while a driver is known to be at work (not with `dry_run`), NotARunError, OSError.
    """
    with suppress(InvalidRecordError, OSError):  # that is damage, and reported below
        read_run(run_dir)
    with nullcontext() if dry_run else hold_run(run_dir, exclusive=True):
        found = list(verify(run_dir) if damage is None else damage)
        if found and place_of(run_dir).late_creates:  # what came over a network once proves nothing: seen twice, it does
            again = set(verify(run_dir))
            found = [item for item in found if item in again]
        report = _plan(run_dir, found)
        if not dry_run:
            _carry_out(run_dir, report)
    return report


def drop_parts(run_dir: Location, why: Mapping[tuple[str, str], str]) -> None:
    """Takes (column, part) out of the run, sound or not, so that the next labelling makes them again. The caller holds it."""
    order = sorted(why, key=lambda key: (key[0] == IMAGES, key))
    _carry_out(run_dir, RepairReport(dropped=tuple(DroppedPart(column=c, part=p, why=why[c, p]) for c, p in order)))


def _plan(run_dir: Location, damage: list[Damage]) -> RepairReport:
    suspect, unproven = _suspect_columns(run_dir, damage), _unproven(damage)
    why: dict[tuple[str, str], str] = {}
    removed, left = [], []
    for item in damage:
        if item.column is None or item.part is None or item.column in suspect or item in unproven:
            left.append(item)
        elif item.kind == "unlisted_file" or item.where == str(failure_path(Path(), item.column, item.part)):
            removed.append(item.where)
        else:
            why.setdefault((item.column, item.part), f"{item.where}: {item.message} [{item.kind}]")
    for part in [part for column, part in why if column == IMAGES]:
        if not _pixels_return(run_dir, part, damage):
            for column in _teachers(run_dir):
                if part in committed_parts(run_dir, column):
                    why.setdefault((column, part), "its images are made again, and may come out with other pixels")
    # A part's images go last: were they gone and the labels made from them still there, nothing would tell any more.
    order = sorted(why, key=lambda key: (key[0] == IMAGES, key))
    dropped = tuple(DroppedPart(column=column, part=part, why=why[column, part]) for column, part in order)
    return RepairReport(dropped=dropped, removed=tuple(removed), left=tuple(left))


def _unproven(damage: list[Damage]) -> set[Damage]:
    """What may be sound: not read here, a link to whatever, or a record that a later version of this package may understand."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for item in damage:
        kinds[item.where].add(item.kind)
    return {item for item in damage if item.kind in _UNPROVEN or kinds[item.where] <= _OF_OTHER_VERSIONS}


def _teachers(run_dir: Location) -> list[str]:
    """Every column's folder but that of the images, also of columns without a record."""
    return [entry.name for entry in place_of(run_dir).entries("columns") if entry.kind == "folder" and entry.name != IMAGES]


def _suspect_columns(run_dir: Location, damage: list[Damage]) -> set[str]:
    """Columns in which not one of several parts agrees with column.json: then it is that record that is out of place."""
    wrong = {(item.column, item.part) for item in damage if item.column and item.kind in _MISMATCH}
    counts = {column: sum(name == column for name, _ in wrong) for column, _ in wrong if column}
    return {column for column, count in counts.items() if 1 < count == len(committed_parts(run_dir, column))}


def _pixels_return(run_dir: Location, part: str, damage: list[Damage]) -> bool:
    """Whether the teachers' labels of a part may outlive its images: when the same pixels will come back.

    The same photograph through the same Pillow gives the same JPEG bytes, and the manifest, where it is to be trusted, says
    which Pillow that was. Raises OSError where it cannot be read any more.
    """
    place = str(manifest_path(Path(), IMAGES, part))
    if any(item.where == place for item in damage):
        return False
    installed = importlib.metadata.version("pillow")
    return load_part(run_dir, IMAGES, part).versions.get("pillow") == installed


def _carry_out(run_dir: Location, report: RepairReport) -> None:
    """Manifests first: without one a part is absent, whatever of its arrays is still there, and `clean` would remove that."""
    place, here = place_of(run_dir), Path()
    catalogued = {part.name: part for part in parts(read_run(run_dir)[0])} if report.dropped else {}
    for name in report.removed:
        place.remove(name)
    for item in report.dropped:
        # Beside a manifest the failure record says nothing; left behind, it would count the part as failed.
        place.remove(failure_path(here, item.column, item.part).as_posix())
        place.remove(manifest_path(here, item.column, item.part).as_posix())
    for column in {item.column for item in report.dropped}:
        own = tuple(f"{item.part}." for item in report.dropped if item.column == column)
        for name in list(column_litter(run_dir, column, catalogued)):
            if name.rpartition("/")[2].startswith(own):
                place.remove(name)
