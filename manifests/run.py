"""Reading a run: its records put together, its parts, and what has been committed of them.

Everything here reads, through `manifests.place`; nothing is cached, so that what is returned is what is on disk at that moment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from manifests.checker import Scalar
from manifests.errors import RefusedError
from manifests.location import Location, LocationT, below
from manifests.place import Place, place_of
from manifests.schema import (
    MAX_PARTS,
    MAX_RECORD_BYTES,
    Catalogue,
    ColumnRecord,
    FailureRecord,
    InvalidRecordError,
    PartManifest,
    ValidationProblem,
    parse_catalogue,
    parse_column,
    parse_failure,
    parse_part,
    parse_run,
)

MANIFEST_SUFFIX, FAILURE_SUFFIX, ZARR_SUFFIX, TABLE_SUFFIX = ".json", ".failure.json", ".zarr", ".parquet"
RUN_RECORD, COLUMN_RECORD = "run.json", "column.json"
IMAGES = "images"
_THREADS = 8  # a network disk wants several requests at once
UNREADABLE = (InvalidRecordError, OSError, MemoryError, ImportError)
"""What reading may raise for want of a package, of memory, of descriptors, or for what is in a file."""


class NotARunError(RefusedError):
    """A folder that holds no run.json."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's records say together, when they were read: run.json, the catalogue of each source, by name, and the record
    of each column, `images` first and then by name."""

    seed: int
    part_size: int
    plan: Mapping[str, Any]
    configuration: Mapping[str, Any]
    sources: tuple[Catalogue, ...]
    columns: tuple[ColumnRecord, ...]


@dataclass(frozen=True, kw_only=True)
class PartId:
    """A part of the run: the images `number * part_size` onwards of one source. `rows_sha256` is the source's."""

    source: str
    number: int
    name: str
    images: int
    rows_sha256: str


def column_dir(run_dir: LocationT, column: str) -> LocationT:
    """The folder of a column's manifests and arrays."""
    return below(run_dir, "columns", column)


def manifest_path(run_dir: LocationT, column: str, part: str) -> LocationT:
    """Where the part's commit record is, once it is committed."""
    return below(column_dir(run_dir, column), f"{part}{MANIFEST_SUFFIX}")


def failure_path(run_dir: LocationT, column: str, part: str) -> LocationT:
    """Where it says why the part failed, if it did."""
    return below(column_dir(run_dir, column), f"{part}{FAILURE_SUFFIX}")


def catalogue_path(run_dir: LocationT, source: str) -> LocationT:
    """The catalogue of a source."""
    return below(run_dir, "catalog", f"{source}.json")


def table_path(run_dir: LocationT, catalogue: Catalogue) -> LocationT:
    """The table of the images of a source. It is named by its content: a command that died between the table and the catalogue
    that names it is in nobody's way."""
    return below(run_dir, "catalog", f"{catalogue.source}.{catalogue.table_sha256[:16]}{TABLE_SUFFIX}")


def column_record_path(run_dir: LocationT, column: str) -> LocationT:
    """The record of a column."""
    return below(column_dir(run_dir, column), COLUMN_RECORD)


def is_record(place: str) -> bool:
    """Whether a path in a run is that of a record from which the rest of it is read: of the run, a source or a column."""
    return place == RUN_RECORD or place.startswith("catalog/") or place.endswith(f"/{COLUMN_RECORD}")


def load_run(run_dir: Location) -> Run:
    """The run's records put together. Raises NotARunError where there is no run.json; OSError or InvalidRecordError where that,
    or the record of any source or column, cannot be read or trusted."""
    run, unread = read_run(run_dir)
    for error in unread.values():
        raise error
    return run


def read_run(run_dir: Location) -> tuple[Run, dict[Path, Exception]]:
    """The run as far as its records can be trusted, and why the others cannot be read, by their path in the run.

    Raises as `load_run`, but for the records of sources and columns.
    """
    try:
        raw = _read(run_dir, Path(RUN_RECORD))
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{run_dir}: not a run: found no run.json in it, expected a folder made by `python -m pipeline.label`"
        raise NotARunError(message) from error
    record = parse_run(raw, str(run_dir / RUN_RECORD))
    unread: dict[Path, Exception] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        sources = _loaded(
            pool, partial(load_catalogue, run_dir), partial(catalogue_path, Path()), _source_names(run_dir, unread), unread
        )
        columns = _loaded(
            pool, partial(load_column, run_dir), partial(column_record_path, Path()), _column_names(run_dir, unread), unread
        )
    run = Run(
        seed=record.seed,
        part_size=record.part_size,
        plan=record.plan,
        configuration=record.configuration,
        sources=tuple(_within_limit(run_dir, sources, record.part_size, unread)),
        columns=tuple(sorted(columns, key=lambda column: (column.name != IMAGES, column.name))),
    )
    return run, unread


def load_catalogue(run_dir: Location, source: str) -> Catalogue:
    """The catalogue of a source. Raises OSError, or InvalidRecordError, also where it is another source's."""
    path = catalogue_path(run_dir, source)
    catalogue = parse_catalogue(_read(run_dir, catalogue_path(Path(), source)), str(path))
    _refuse_misplaced(path, [("source", catalogue.source, source)])
    return catalogue


def load_column(run_dir: Location, column: str) -> ColumnRecord:
    """The record of a column. Raises OSError, or InvalidRecordError, also where it is another column's."""
    path = column_record_path(run_dir, column)
    record = parse_column(_read(run_dir, column_record_path(Path(), column)), str(path))
    _refuse_misplaced(path, [("name", record.name, column)])
    return record


def load_part(run_dir: Location, column: str, part: str) -> PartManifest:
    """The manifest of a committed part. Raises OSError, or InvalidRecordError, also where it is another part's."""
    return load_part_at(place_of(run_dir), column, part)


def load_part_at(place: Place, column: str, part: str) -> PartManifest:
    """The same, where the run's files are there already."""
    name = manifest_path(Path(), column, part).as_posix()
    manifest = parse_part(place.read(name, limit_bytes=MAX_RECORD_BYTES), place.shown(name))
    _refuse_misplaced(place.shown(name), [("column", manifest.column, column), ("part", manifest.part, part)])
    return manifest


def load_failure(run_dir: Location, column: str, part: str) -> FailureRecord:
    """Why a part failed. Raises OSError, or InvalidRecordError, also where it is another part's."""
    path = failure_path(run_dir, column, part)
    failure = parse_failure(_read(run_dir, failure_path(Path(), column, part)), str(path))
    _refuse_misplaced(path, [("column", failure.column, column), ("part", failure.part, part)])
    return failure


def _read(run_dir: Location, name: Path) -> bytes:
    return place_of(run_dir).read(name.as_posix(), limit_bytes=MAX_RECORD_BYTES)


def _refuse_misplaced(path: object, names: Iterable[tuple[str, str, str]]) -> None:
    problems = [
        ValidationProblem(field, "wrong_place", f"found {found!r}, expected {expected!r} from the file's place")
        for field, found, expected in names
        if found != expected
    ]
    if problems:
        raise InvalidRecordError(str(path), problems)


RecordT = TypeVar("RecordT")


def _loaded(
    pool: ThreadPoolExecutor,
    load: Callable[[str], RecordT],
    place: Callable[[str], Path],
    names: Iterable[str],
    unread: dict[Path, Exception],
) -> list[RecordT]:
    """The records of these names, in their order, that can be read."""
    found = []
    for name, loading in [(name, pool.submit(load, name)) for name in names]:
        try:
            found.append(loading.result())
        except UNREADABLE as error:
            unread[place(name)] = error
    return found


def _source_names(run_dir: Location, unread: dict[Path, Exception]) -> list[str]:
    names = (name for name, _ in _entries(run_dir, "catalog", unread))
    return sorted(name.removesuffix(MANIFEST_SUFFIX) for name in names if name.endswith(MANIFEST_SUFFIX))


def _column_names(run_dir: Location, unread: dict[Path, Exception]) -> list[str]:
    """Folders in which there is a column's record, whatever may be in it. Links are unread: they are not followed."""
    names = []
    for name, kind in _entries(run_dir, "columns", unread):
        try:
            if kind in ("folder", "link") and place_of(run_dir).exists(f"columns/{name}/{COLUMN_RECORD}"):
                names.append(name)
        except OSError as error:
            unread[Path("columns", name)] = error
    return names


def _entries(run_dir: Location, folder: str, unread: dict[Path, Exception]) -> list[tuple[str, str]]:
    """Name and kind of what is in a folder and is not hidden."""
    try:
        return [(e.name, e.kind) for e in place_of(run_dir).entries(folder) if not e.name.startswith(".")]
    except OSError as error:
        unread[Path(folder)] = error
        return []


def foreign_columns(run_dir: Location, run: Run, unread: Iterable[Path]) -> dict[str, str]:
    """What lies in columns/ and is no column that the run has, by name, and what to do about it.

    unread: paths of records that cannot be read, which are told by themselves, as links are; so are folders that cannot be
    listed. Empty folders are what a stopped command has left.
    """
    known = {column.name for column in run.columns}
    known |= {path.parts[1] for path in unread if path.parts[0] == "columns" and len(path.parts) > 1}
    found = {}
    ignored: dict[Path, Exception] = {}
    for name, kind in _entries(run_dir, "columns", ignored):
        if kind == "folder" and name not in known and _entries(run_dir, f"columns/{name}", ignored):
            found[name] = (
                "there is no column.json in it, so nothing tells what its labels are: restore that, or remove the folder"
            )
        elif kind in ("file", "other"):
            found[name] = "found no folder, expected that of a column: restore it, or remove what is there"
    return found


def _within_limit(
    run_dir: Location, sources: Iterable[Catalogue], part_size: int, unread: dict[Path, Exception]
) -> Iterator[Catalogue]:
    """The sources as long as their parts can be listed in memory."""
    count = 0
    for source in sources:
        count += -(-source.images // part_size)
        if count <= MAX_PARTS:
            yield source
        else:
            message = (
                f"with it the run has {count} parts of {part_size} images, expected at most {MAX_PARTS}: choose larger parts"
            )
            problem = ValidationProblem("images", "wrong_value", message)
            unread[catalogue_path(Path(), source.source)] = InvalidRecordError(
                str(catalogue_path(run_dir, source.source)), [problem]
            )


def part_names(source_name: str, images: int, part_size: int) -> list[str]:
    """The names of a source's parts, in order: as many as it takes to hold its images."""
    return [f"{source_name}.{number:05d}" for number in range(-(-images // part_size))]


def parts(run: Run) -> list[PartId]:
    """Every part of the run, in the order of its sources. All but the last of a source hold `part_size` images."""
    size = run.part_size
    return [
        PartId(
            source=source.source,
            number=number,
            name=name,
            images=min(size, source.images - number * size),
            rows_sha256=source.rows_sha256,
        )
        for source in run.sources
        for number, name in enumerate(part_names(source.source, source.images, size))
    ]


def images_of_parts(run: Run) -> dict[str, int]:
    """How many images each part of the run has, by its name, in the order of `parts`: 100,000 of those take a while to make."""
    size, counts = run.part_size, dict[str, int]()
    for source in run.sources:
        names = part_names(source.source, source.images, size)
        counts |= dict.fromkeys(names, size)
        if names:
            counts[names[-1]] = source.images - (len(names) - 1) * size
    return counts


def part_fingerprint(column: ColumnRecord, rows_sha256: str) -> dict[str, Scalar]:
    """What a manifest must say decided its part: all of the column's fingerprint, and the rows of its source."""
    return {**column.fingerprint, "rows_sha256": rows_sha256}


def committed_parts(run_dir: Location, column: str) -> set[str]:
    """The names of a column's parts that have a manifest, sound or not; reads one folder and no file."""
    return list_column(run_dir, column).manifests


@dataclass(frozen=True, kw_only=True)
class ColumnListing:
    """The names in a column's folder: parts with a manifest, parts with a failure record, .zarr folders. `states`: those of
    manifests, by part, where they were asked for and can be told (see `Place.states`)."""

    manifests: set[str] = field(default_factory=set)
    failures: set[str] = field(default_factory=set)
    zarrs: set[str] = field(default_factory=set)
    states: Mapping[str, str] = field(default_factory=dict)


def list_column(run_dir: Location, column: str, *, with_states: bool = False) -> ColumnListing:
    """What lies in a column's folder; all empty where there is no such folder yet. Files still being written are left out.

    Raises OSError where the folder cannot be listed, a LinkError where it is a link.
    """
    place, folder = place_of(run_dir), column_dir(Path(), column).as_posix()
    found = place.states(folder) if with_states else dict.fromkeys(entry.name for entry in place.entries(folder))
    names = [name for name in found if name[0] != "." and name != COLUMN_RECORD]
    zarrs = {name for name in names if name.endswith(ZARR_SUFFIX)}
    failures = {name.removesuffix(FAILURE_SUFFIX) for name in names if name.endswith(FAILURE_SUFFIX)}
    of_parts = [name for name in names if name.endswith(MANIFEST_SUFFIX) and not name.endswith(FAILURE_SUFFIX)]
    manifests = {name.removesuffix(MANIFEST_SUFFIX) for name in of_parts}
    states = {name.removesuffix(MANIFEST_SUFFIX): state for name in of_parts if (state := found[name]) is not None}
    return ColumnListing(manifests=manifests, failures=failures, zarrs=zarrs, states=states)


def fingerprint_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Each field in which two fingerprints differ, with both values; empty when they are the same."""

    def shown(fingerprint: Mapping[str, Any], field: str) -> str:
        return json.dumps(fingerprint[field], default=repr) if field in fingerprint else "nothing"

    return [
        f"{field}: found {shown(found, field)}, expected {shown(expected, field)}"
        for field in sorted(found.keys() | expected.keys())
        if shown(found, field) != shown(expected, field)
    ]


def refuse_foreign_part(run_dir: Location, column: ColumnRecord, part: PartId, manifest: PartManifest) -> None:
    """Raises RefusedError, naming the fields, for a part of other settings or another source than the run's records say."""
    differences = fingerprint_differences(manifest.fingerprint, part_fingerprint(column, part.rows_sha256))
    if manifest.depth_space != column.depth_space:
        differences.append(f"depth_space: found {manifest.depth_space}, expected {column.depth_space}")
    if differences:
        where = manifest_path(run_dir, column.name, part.name)
        raise RefusedError(f"{where}: not made with this run's settings: " + "; ".join(differences))
