"""What interrupted work leaves in a run, and nothing else: finding it, and removing it.

Litter is: `.zarr` folders that no manifest names, tables that no catalogue names, files aside that never got their name, and
failure records of parts that are committed since. A file that a sound manifest vouches for, a record, and anything that no
command of ours writes, is never touched; nor are the folders of a part whose manifest cannot be read, since there is no telling
which of them it named. Of a link with such a name only the link is litter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

from manifests.agreement import agreement_folders
from manifests.facts import INDEX
from manifests.location import Location
from manifests.lock import hold_run
from manifests.place import place_of
from manifests.run import PartId, Run, column_dir, failure_path, list_column, load_part, load_run, parts, table_path

_TABLE_NAME = re.compile(r"[A-Za-z0-9].*\.[0-9a-f]{16}\.parquet")


def clean(run_dir: Location, *, dry_run: bool = False) -> list[str]:
    """Removes the run's litter and returns its paths, relative to the run; `dry_run` only returns them. In a bucket, whose
    other users nobody can know of, only what nothing has been written to for a day.

    Raises RunInUseError while a driver is known to be at work (not with `dry_run`), NotARunError, InvalidRecordError for a
    record of the run, a source or a column, OSError where it may not remove something.
    """
    load_run(run_dir)  # holding it would make its folder
    with nullcontext() if dry_run else hold_run(run_dir, exclusive=True):
        run, place = load_run(run_dir), place_of(run_dir)  # anew: a source may have been added since
        catalogued = {part.name: part for part in parts(run)}
        columns = [column_dir(Path(), column.name).as_posix() for column in run.columns]
        folders = ("", "catalog", INDEX, *agreement_folders(run_dir), *columns)
        litter = [name for folder in folders for name in _files_aside(run_dir, folder)]
        litter += _unnamed_tables(run_dir, run)
        litter += [name for column in run.columns for name in column_litter(run_dir, column.name, catalogued)]
        litter = [name for name in litter if place.is_abandoned(name)]
        for name in () if dry_run else litter:
            place.remove(name)
    return litter


def column_litter(run_dir: Location, column: str, catalogued: Mapping[str, PartId]) -> Iterator[str]:
    """The folders of a column that no manifest names, and the failure records of its committed parts; relative to the run."""
    listing = list_column(run_dir, column)
    named, unsure = set(), ()
    for part in sorted(listing.manifests):
        try:
            manifest = load_part(run_dir, column, part)
            if len(manifest.images) != catalogued[part].images:
                raise ValueError(f"{part}: not of this run")
            named.add(manifest.zarr)
        except (OSError, KeyError, ValueError):
            unsure += (f"{part}.",)
        else:
            if part in listing.failures:
                yield failure_path(Path(), column, part).as_posix()
    for zarr in sorted(listing.zarrs - named):
        if not zarr.startswith(unsure):
            yield (column_dir(Path(), column) / zarr).as_posix()


def _unnamed_tables(run_dir: Location, run: Run) -> list[str]:
    """Tables that no catalogue names: their command died before it wrote that, or another one was first."""
    named = {table_path(Path(), source).name for source in run.sources}
    entries = [entry for entry in place_of(run_dir).entries("catalog") if entry.kind in ("file", "link")]
    return [f"catalog/{entry.name}" for entry in entries if _TABLE_NAME.fullmatch(entry.name) and entry.name not in named]


def _files_aside(run_dir: Location, folder: str) -> Iterator[str]:
    for name in place_of(run_dir).leftovers(folder):
        yield f"{folder}/{name}".lstrip("/")
