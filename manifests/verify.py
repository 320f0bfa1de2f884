"""Names everything in a run that is not as it was written.

Quick, it reads every record and table and looks for every file of the arrays: any lost, cut, added or misplaced file of a
committed part, any changed record, is named. Deep, it also reads every byte that the records vouch for and decodes every
chunk: any changed bit is named. Damage never makes it stop early, and it changes nothing. What is not there yet (parts without
a manifest, attempts that no manifest names) is not damage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from manifests.chunks import undecodable
from manifests.commit import sha256_file
from manifests.run import (
    PartId,
    catalogue_path,
    column_dir,
    failure_path,
    fingerprint_differences,
    list_column,
    load_catalogue,
    load_failure,
    load_part,
    load_run,
    manifest_path,
    parts,
    table_path,
)
from manifests.schema import ColumnRecord, FileRecord, InvalidRecordError, PartManifest, RunRecord, SourceRecord

_THREADS = 8  # reading and hashing release the interpreter's lock; a network disk wants several requests at once


class Damage(NamedTuple):
    """One thing found wrong. `where` is a path relative to the run, `kind` is for machines: those of ValidationProblem, and
    missing_file, missing_zarr, unlisted_file, wrong_size, wrong_sha256, undecodable, unreadable, wrong_fingerprint,
    wrong_depth_space, wrong_images, other_input, unknown_part, unknown_column. `column` and `part` name the part that is
    damaged by it.
    """

    where: str
    kind: str
    message: str
    column: str | None = None
    part: str | None = None


def verify(run_dir: Path, *, deep: bool = True) -> list[Damage]:
    """All damage of the run; empty when it is sound. Raises NotARunError where there is no run.json."""
    return [damage for found in examine(run_dir, deep=deep) for damage in found]


def examine(run_dir: Path, *, deep: bool = True) -> Iterator[list[Damage]]:
    """The same bit by bit: run.json, then a list for each source, each column, each record in it."""
    run_dir = Path(run_dir)
    try:
        run = load_run(run_dir)
    except (InvalidRecordError, OSError) as error:
        yield _described(Path("run.json"), error)
        return
    yield _unknown_columns(run_dir, run)
    keys: dict[str, list[str]] = {}
    for source in run.sources:
        damage, keys[source.name] = _check_source(run_dir, source)
        yield damage
    known = {part.name: part for part in parts(run)}
    for column in run.columns:
        listing = list_column(run_dir, column.name)
        unknown = sorted((listing.manifests | listing.failures) - known.keys())
        place = column_dir(Path(), column.name)
        yield [Damage(str(place / name), "unknown_part", "the run has no such part: remove its files") for name in unknown]
        checks = [partial(_check_failure, run_dir, column, known[name]) for name in sorted(listing.failures & known.keys())]
        for name in sorted(listing.manifests & known.keys()):
            part = known[name]
            expected_keys = keys[part.source][part.number * run.part_size :][: part.images]
            checks.append(partial(_check_part, run_dir, column, part, expected_keys, deep))
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(lambda check: check(), checks)


def count_checks(run_dir: Path) -> int:
    """How many lists `examine` will yield if nothing writes meanwhile. Raises NotARunError where there is no run.json."""
    try:
        run = load_run(run_dir)
    except (InvalidRecordError, OSError):
        return 1
    count, known = 1 + len(run.sources), {part.name for part in parts(run)}
    for column in run.columns:
        listing = list_column(run_dir, column.name)
        count += 1 + len(listing.manifests & known) + len(listing.failures & known)
    return count


def _described(place: Path, error: InvalidRecordError | OSError) -> list[Damage]:
    """A record that could not be read, problem by problem."""
    if isinstance(error, InvalidRecordError):
        return [
            Damage(str(place), problem.kind, f"{problem.path}: {problem.message}" if problem.path else problem.message)
            for problem in error.problems
        ]
    kind = "missing_file" if isinstance(error, FileNotFoundError) else "unreadable"
    return [Damage(str(place), kind, error.strerror or str(error))]


def _unknown_columns(run_dir: Path, run: RunRecord) -> list[Damage]:
    known = {column.name for column in run.columns}
    folder = run_dir / "columns"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    message = f"run.json does not name this column, only {', '.join(sorted(known))}"
    return [Damage(f"columns/{name}", "unknown_column", message) for name in names if name not in known]


def _check_source(run_dir: Path, source: SourceRecord) -> tuple[list[Damage], list[str]]:
    """Damage of a source's catalogue and table, and the keys of its images; no keys where the table is not to be trusted."""
    place, table_place = catalogue_path(Path(), source.name), table_path(Path(), source.name)
    try:
        catalogue = load_catalogue(run_dir, source.name)
    except (InvalidRecordError, OSError) as error:
        return _described(place, error), []
    damage = _check_digest(run_dir, place, source.catalogue_sha256)
    if catalogue.images != source.images:
        message = f"found {catalogue.images} images, expected the {source.images} of run.json"
        damage.append(Damage(str(place), "wrong_images", message))
    table_damage = _check_digest(run_dir, table_place, catalogue.table_sha256)
    keys: list[str] = []
    if not table_damage:
        keys, table_damage = _read_keys(run_dir, table_place)
        if not table_damage and len(keys) != source.images:
            message = f"found {len(keys)} rows, expected the {source.images} images of run.json"
            table_damage.append(Damage(str(table_place), "wrong_images", message))
    return damage + table_damage, [] if damage or table_damage else keys


def _read_keys(run_dir: Path, place: Path) -> tuple[list[str], list[Damage]]:
    import pyarrow  # here, so that a summary does not wait for it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(run_dir / place) as table:
            return table.read(columns=["key"])["key"].to_pylist(), []
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        return [], [Damage(str(place), "unreadable", f"expected a parquet table with a column 'key': {error}")]


def _check_digest(run_dir: Path, place: Path, expected: str) -> list[Damage]:
    try:
        found = sha256_file(run_dir / place)
    except OSError as error:
        return _described(place, error)
    message = f"found sha256 {found}, expected {expected}"
    return [Damage(str(place), "wrong_sha256", message)] if found != expected else []


def _check_failure(run_dir: Path, column: ColumnRecord, part: PartId) -> list[Damage]:
    place = failure_path(Path(), column.name, part.name)
    damage = []
    try:
        failure = load_failure(run_dir, column.name, part.name)
        if failure.images != part.images:
            message = f"found {failure.images} images, expected the {part.images} of this part"
            damage = [Damage(str(place), "wrong_images", message)]
    except (InvalidRecordError, OSError) as error:
        damage = _described(place, error)
    return [item._replace(column=column.name, part=part.name) for item in damage]


def _check_part(run_dir: Path, column: ColumnRecord, part: PartId, keys: Sequence[str], deep: bool) -> list[Damage]:
    """Damage of a manifest and of the files it lists. `keys`: of the part's images, or empty where they are not known."""
    place = manifest_path(Path(), column.name, part.name)
    try:
        manifest = load_part(run_dir, column.name, part.name)
    except (InvalidRecordError, OSError) as error:
        damage = _described(place, error)
    else:
        damage = _check_manifest(place, manifest, column, part, keys) + _check_input(run_dir, place, manifest)
        place = column_dir(Path(), column.name) / manifest.zarr
        damage += _check_files(run_dir, place, manifest, deep)
        if deep and not damage:  # where something is not as it was written, there is nothing to learn from decoding
            found = undecodable(run_dir / place, manifest)
            damage = [Damage(str(place / array), "undecodable", message) for array, message in found]
    return [item._replace(column=column.name, part=part.name) for item in damage]


def _check_manifest(
    place: Path, manifest: PartManifest, column: ColumnRecord, part: PartId, keys: Sequence[str]
) -> list[Damage]:
    damage = [
        Damage(str(place), "wrong_fingerprint", f"{difference}, from run.json")
        for difference in fingerprint_differences(manifest.fingerprint, column.fingerprint)
    ]
    if manifest.depth_space != column.depth_space:
        message = f"found {manifest.depth_space!r}, expected {column.depth_space!r} from run.json"
        damage.append(Damage(str(place), "wrong_depth_space", message))
    if len(manifest.images) != part.images:
        message = f"found {len(manifest.images)} images, expected the {part.images} of this part"
        damage.append(Damage(str(place), "wrong_images", message))
    for i, (image, key) in enumerate(zip(manifest.images, keys, strict=False)):
        if image.key != key:
            message = f"images[{i}].key: found {image.key!r}, expected {key!r} from the catalogue"
            damage.append(Damage(str(place), "wrong_images", message))
            break  # a shift by one would repeat this for all that follow
    return damage


def _check_input(run_dir: Path, place: Path, manifest: PartManifest) -> list[Damage]:
    """Whether a teacher's part was made from the files that the part's pictures were made from, where both are known."""
    try:
        pictures = load_part(run_dir, "images", manifest.part).images
    except (InvalidRecordError, OSError):
        return []  # damage, or an absence, of its own
    return [
        Damage(str(place), "other_input", f"{own.key!r}: made from a file of sha256 {own.content_sha256}, its picture is not")
        for own, picture in zip(manifest.images, pictures, strict=False)
        if own.key == picture.key and None not in (own.content_sha256, picture.content_sha256)
        if own.content_sha256 != picture.content_sha256
    ]


def _check_files(run_dir: Path, place: Path, manifest: PartManifest, deep: bool) -> list[Damage]:
    if not (run_dir / place).is_dir():
        return [Damage(str(place), "missing_zarr", f"no such folder, though {manifest.part} is committed")]
    folder = run_dir / place.parent
    found = {Path(top, name).relative_to(folder).as_posix() for top, _, names in os.walk(run_dir / place) for name in names}
    damage = [
        Damage(str(place.parent / path), "unlisted_file", f"the manifest of {manifest.part} does not list this file: remove it")
        for path in sorted(found - {file.path for file in manifest.files})
    ]
    for file in manifest.files:
        damage += _check_file(run_dir, place.parent / file.path, file, deep)
    return damage


def _check_file(run_dir: Path, place: Path, file: FileRecord, deep: bool) -> list[Damage]:
    try:
        size_bytes = (run_dir / place).stat().st_size
    except OSError as error:
        return _described(place, error)
    if size_bytes != file.size_bytes:
        return [Damage(str(place), "wrong_size", f"found {size_bytes} bytes, expected {file.size_bytes}")]
    return _check_digest(run_dir, place, file.sha256) if deep else []
