"""What interrupted work leaves in a run, and nothing else: finding it, and removing it.

Litter is: `.zarr` folders that no manifest names, files aside that never got their name, failure records of parts that are
committed since. A file that a sound manifest vouches for, a record, and anything that no command of ours writes, is never
touched; nor are the folders of a part whose manifest is damaged, since there is no telling which of them it named.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

from manifests.commit import ASIDE_NAME
from manifests.lock import hold_run
from manifests.run import PartId, column_dir, failure_path, list_column, load_run, parts
from manifests.summary import read_part


def clean(run_dir: Path, *, dry_run: bool = False) -> list[str]:
    """Removes the run's litter and returns its paths, relative to the run; `dry_run` only returns them.

    Raises RunInUseError while a driver is known to be at work (not with `dry_run`), NotARunError, InvalidRecordError for
    run.json, OSError where it may not remove something.
    """
    run, removed = load_run(run_dir), []
    catalogued = {part.name: part for part in parts(run)}
    with nullcontext() if dry_run else hold_run(run_dir, exclusive=True):
        folders = [Path(run_dir), Path(run_dir, "catalog"), *(column_dir(run_dir, column.name) for column in run.columns)]
        litter = [path for folder in folders for path in _files_aside(folder)]
        litter += [path for column in run.columns for path in column_litter(run_dir, column.name, catalogued)]
        for path in litter:
            if not dry_run:
                remove(path)
            removed.append(path.relative_to(run_dir).as_posix())
    return removed


def column_litter(run_dir: Path, column: str, catalogued: Mapping[str, PartId]) -> Iterator[Path]:
    """The folders of a column that no manifest names, and the failure records of its committed parts."""
    listing = list_column(run_dir, column)
    named, unsure = set(), ()
    for part in sorted(listing.manifests):
        try:
            named.add(read_part(run_dir, column, catalogued[part]).zarr)
        except (OSError, KeyError, ValueError):
            unsure += (f"{part}.",)
        else:
            if part in listing.failures:
                yield failure_path(run_dir, column, part)
    for zarr in sorted(listing.zarrs - named):
        if not zarr.startswith(unsure):
            yield column_dir(run_dir, column) / zarr


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it; what is gone already is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files_aside(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (folder / name for name in sorted(os.listdir(folder)) if ASIDE_NAME.fullmatch(name))
