"""Reading a run: its record, its parts, and what has been committed of them.

Everything here reads, through `manifests.place`; nothing is cached, so that what is returned is what is on disk at that moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.place import place_of
from manifests.schema import (
    MAX_RECORD_BYTES,
    Catalogue,
    FailureRecord,
    InvalidRecordError,
    PartManifest,
    RunRecord,
    ValidationProblem,
    parse_catalogue,
    parse_failure,
    parse_part,
    parse_run,
)

MANIFEST_SUFFIX, FAILURE_SUFFIX, ZARR_SUFFIX = ".json", ".failure.json", ".zarr"


class NotARunError(ValueError):
    """A folder that holds no run.json."""


@dataclass(frozen=True, kw_only=True)
class PartId:
    """A part of the run: the images `number * part_size` onwards of one source."""

    source: str
    number: int
    name: str
    images: int


def column_dir(run_dir: Path, column: str) -> Path:
    """The folder of a column's manifests and arrays."""
    return Path(run_dir, "columns", column)


def manifest_path(run_dir: Path, column: str, part: str) -> Path:
    """Where the part's commit record is, once it is committed."""
    return column_dir(run_dir, column) / f"{part}{MANIFEST_SUFFIX}"


def failure_path(run_dir: Path, column: str, part: str) -> Path:
    """Where it says why the part failed, if it did."""
    return column_dir(run_dir, column) / f"{part}{FAILURE_SUFFIX}"


def catalogue_path(run_dir: Path, source: str) -> Path:
    """The catalogue of a source."""
    return Path(run_dir, "catalog", f"{source}.json")


def table_path(run_dir: Path, source: str) -> Path:
    """The table of the images of a source."""
    return Path(run_dir, "catalog", f"{source}.parquet")


def load_run(run_dir: Path) -> RunRecord:
    """The run's record. Raises NotARunError where there is none, OSError, InvalidRecordError where it cannot be trusted."""
    try:
        raw = _read(run_dir, Path("run.json"))
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{run_dir}: not a run: found no run.json in it, expected a folder made by `python -m pipeline.label`"
        raise NotARunError(message) from error
    return parse_run(raw, str(Path(run_dir, "run.json")))


def load_catalogue(run_dir: Path, source: str) -> Catalogue:
    """The catalogue of a source. Raises OSError, or InvalidRecordError, also where it is another source's."""
    path = catalogue_path(run_dir, source)
    catalogue = parse_catalogue(_read(run_dir, catalogue_path(Path(), source)), str(path))
    _refuse_misplaced(path, [("source", catalogue.source, source)])
    return catalogue


def load_part(run_dir: Path, column: str, part: str) -> PartManifest:
    """The manifest of a committed part. Raises OSError, or InvalidRecordError, also where it is another part's."""
    path = manifest_path(run_dir, column, part)
    manifest = parse_part(_read(run_dir, manifest_path(Path(), column, part)), str(path))
    _refuse_misplaced(path, [("column", manifest.column, column), ("part", manifest.part, part)])
    return manifest


def load_failure(run_dir: Path, column: str, part: str) -> FailureRecord:
    """Why a part failed. Raises OSError, or InvalidRecordError, also where it is another part's."""
    path = failure_path(run_dir, column, part)
    failure = parse_failure(_read(run_dir, failure_path(Path(), column, part)), str(path))
    _refuse_misplaced(path, [("column", failure.column, column), ("part", failure.part, part)])
    return failure


def _read(run_dir: Path, name: Path) -> bytes:
    return place_of(run_dir).read(name.as_posix(), limit_bytes=MAX_RECORD_BYTES)


def _refuse_misplaced(path: Path, names: Iterable[tuple[str, str, str]]) -> None:
    problems = [
        ValidationProblem(field, "wrong_place", f"found {found!r}, expected {expected!r} from the file's place")
        for field, found, expected in names
        if found != expected
    ]
    if problems:
        raise InvalidRecordError(str(path), problems)


def part_names(source_name: str, images: int, part_size: int) -> list[str]:
    """The names of a source's parts, in order: as many as it takes to hold its images."""
    return [f"{source_name}.{number:05d}" for number in range(-(-images // part_size))]


def parts(run: RunRecord) -> list[PartId]:
    """Every part of the run, in the order of its sources. All but the last of a source hold `part_size` images."""
    size = run.part_size
    return [
        PartId(source=source.name, number=number, name=name, images=min(size, source.images - number * size))
        for source in run.sources
        for number, name in enumerate(part_names(source.name, source.images, size))
    ]


def committed_parts(run_dir: Path, column: str) -> set[str]:
    """The names of a column's parts that have a manifest, sound or not; reads one folder and no file."""
    return list_column(run_dir, column).manifests


@dataclass(frozen=True, kw_only=True)
class ColumnListing:
    """The names in a column's folder: parts with a manifest, parts with a failure record, .zarr folders."""

    manifests: set[str] = field(default_factory=set)
    failures: set[str] = field(default_factory=set)
    zarrs: set[str] = field(default_factory=set)


def list_column(run_dir: Path, column: str) -> ColumnListing:
    """What lies in a column's folder; all empty where there is no such folder yet. Files still being written are left out.

    Raises OSError where the folder cannot be listed, a LinkError where it is a link.
    """
    entries = place_of(run_dir).entries(column_dir(Path(), column).as_posix())
    names = [entry.name for entry in entries if not entry.name.startswith(".")]
    failures = {name for name in names if name.endswith(FAILURE_SUFFIX)}
    return ColumnListing(
        manifests={name.removesuffix(MANIFEST_SUFFIX) for name in names if name.endswith(MANIFEST_SUFFIX)}
        - {name.removesuffix(MANIFEST_SUFFIX) for name in failures},
        failures={name.removesuffix(FAILURE_SUFFIX) for name in failures},
        zarrs={name for name in names if name.endswith(ZARR_SUFFIX)},
    )


def fingerprint_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Each field in which two fingerprints differ, with both values; empty when they are the same."""

    def shown(fingerprint: Mapping[str, Any], field: str) -> str:
        return json.dumps(fingerprint[field], default=repr) if field in fingerprint else "nothing"

    return [
        f"{field}: found {shown(found, field)}, expected {shown(expected, field)}"
        for field in sorted(found.keys() | expected.keys())
        if shown(found, field) != shown(expected, field)
    ]
