"""Names everything in a run that is not as it was written.

Quick, it reads every record and table and looks for every file of the arrays: any lost, cut, added or misplaced file of a
committed part, any changed record, is named. Deep, it also reads every byte that the records vouch for and decodes every
chunk: any changed bit is named. Links are named wherever they are, and never followed. Damage never makes it stop early, and it
changes nothing. What is not there yet (parts without a manifest, attempts that no manifest names) is not damage.

What this machine cannot read, here and now, is named too, as `unreadable`: that is no proof of damage.
"""

from __future__ import annotations

import errno
import hashlib
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from manifests.agreement import AGREEMENT
from manifests.contents import faults
from manifests.errors import RefusedError
from manifests.facts import INDEX
from manifests.location import Location
from manifests.place import Entry, LinkError, TooLargeError, WrongKindError, place_of
from manifests.run import (
    COLUMN_RECORD,
    IMAGES,
    UNREADABLE,
    ColumnListing,
    PartId,
    Run,
    catalogue_path,
    column_dir,
    failure_path,
    fingerprint_differences,
    foreign_columns,
    list_column,
    load_failure,
    load_part,
    manifest_path,
    part_fingerprint,
    parts,
    read_run,
    table_path,
)
from manifests.schema import Catalogue, ColumnRecord, FileRecord, InvalidRecordError, PartManifest
from manifests.workers import in_order

if TYPE_CHECKING:
    import pyarrow as pa


class Damage(NamedTuple):
    """One thing found wrong. `where` is a path relative to the run, `kind` is for machines: those of ValidationProblem, and
    missing_file, missing_zarr, unlisted_file, not_a_file, link, wrong_size, wrong_sha256, undecodable, wrong_array,
    wrong_table, unreadable, wrong_fingerprint, wrong_depth_space, wrong_images, other_input, unknown_part, unknown_column.
    `column` and `part` name the part that is damaged by it.
    """

    where: str
    kind: str
    message: str
    column: str | None = None
    part: str | None = None


def verify(run_dir: Location, *, deep: bool = True, workers: int = 1) -> list[Damage]:
    """All damage of the run, in the same order for any number of worker processes (with 1, this process does the work); empty
    when it is sound. Raises NotARunError where there is no run.json, WorkerDiedError."""
    return [damage for found in examine(run_dir, deep=deep, workers=workers) for damage in found]


def examine(run_dir: Location, *, deep: bool = True, workers: int = 1) -> Iterator[list[Damage]]:
    """The same bit by bit: the run's own records, then a list for each source, each column, each record in it."""
    try:
        run, unread = read_run(run_dir)
    except LinkError:
        yield [Damage("run.json", "link", _LINK)]
        return
    except UNREADABLE as error:
        yield _described(Path("run.json"), error)
        return
    yield _check_places(run_dir, run, unread)
    keys: dict[str, pa.ChunkedArray | None] = {}
    for source in run.sources:
        damage, keys[source.source] = check_table(run_dir, source)
        yield damage
    yield from in_order(_checks(run_dir, run, unread, keys, deep), workers)


def _checks(
    run_dir: Location, run: Run, unread: Container[Path], keys: Mapping[str, pa.ChunkedArray | None], deep: bool
) -> Iterator[Callable[[], list[Damage]]]:
    """A check for each column, and for each record of a part in it; made one by one, since each has the keys of its images."""
    known = {part.name: part for part in parts(run)}
    for column in run.columns:
        listing, damage = _listed(run_dir, column)
        place = column_dir(Path(), column.name)
        unknown = sorted((listing.manifests | listing.failures) - known.keys())
        damage += [_unknown_part(place, name) for name in unknown if catalogue_path(Path(), _source_of(name)) not in unread]
        yield partial(list, damage + _check_links(run_dir, column, listing))
        for name in sorted(listing.failures & known.keys()):
            yield partial(_check_failure, run_dir, column, known[name])
        zarrs = sorted(listing.zarrs)
        for name in sorted(listing.manifests & known.keys()):
            part, of_source = known[name], keys[known[name].source]
            own = [] if of_source is None else of_source.slice(part.number * run.part_size, part.images).to_pylist()
            yield partial(_check_part, run_dir, run.plan, column, part, _of_part(zarrs, name), own, deep)


def count_checks(run_dir: Location) -> int:
    """How many lists `examine` will yield if nothing writes meanwhile. Raises NotARunError where there is no run.json."""
    try:
        run, _ = read_run(run_dir)
    except UNREADABLE:
        return 1
    count, known = 1 + len(run.sources), {part.name for part in parts(run)}
    for column in run.columns:
        listing, _ = _listed(run_dir, column)
        count += 1 + len(listing.manifests & known) + len(listing.failures & known)
    return count


_ADVICE = {
    errno.EACCES: "may this user read it?",
    errno.EPERM: "may this user read it?",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "this machine has too many files open",
    errno.ENOMEM: "free some memory",
    errno.ESTALE: "mount its file system again",
    errno.EIO: "the disk, or the way to it, fails: try again, and from another machine; where that does not help, it is for "
    "you to restore the file, or to remove its part by hand",
}


def _described(place: Path, error: Exception) -> list[Damage]:
    """What could not be read, and why: problem by problem for a record, and apart from damage where this machine cannot."""
    if isinstance(error, InvalidRecordError):
        return [
            Damage(str(place), problem.kind, f"{problem.path}: {problem.message}" if problem.path else problem.message)
            for problem in error.problems
        ]
    if not isinstance(error, OSError):
        return [Damage(str(place), "unreadable", f"cannot be read here: {str(error) or type(error).__name__}")]
    if isinstance(error, LinkError):
        return []  # named where its folder is listed
    for kind, types in _PROVEN.items():
        if isinstance(error, types):
            return [Damage(str(place), kind, error.strerror or str(error))]
    advice = _ADVICE.get(error.errno or 0, "try again, and from another machine")
    return [Damage(str(place), "unreadable", f"cannot be read here and now: {error.strerror or error}; {advice}")]


_PROVEN = {
    "missing_file": FileNotFoundError,
    "not_a_file": (WrongKindError, IsADirectoryError, NotADirectoryError),
    "too_large": TooLargeError,
}
_LINK = "found a link, which is not followed: put in its place what it points to, or remove it"


def _check_places(run_dir: Location, run: Run, unread: Mapping[Path, Exception]) -> list[Damage]:
    """Records of the run that cannot be read, links among its files and folders, and columns without a record."""
    damage = [item for place, error in unread.items() for item in _described(place, error)]
    with suppress(OSError):  # nobody needs it
        damage += [
            Damage(f"{AGREEMENT}/{e.name}", "link", _LINK) for e in place_of(run_dir).tree(AGREEMENT) if e.kind == "link"
        ]
    for folder in ("", "catalog", "columns", INDEX):
        with suppress(OSError):  # it is among the unread, or nobody needs it
            entries = place_of(run_dir).entries(folder)
            damage += [Damage(str(Path(folder, entry.name)), "link", _LINK) for entry in entries if entry.kind == "link"]
    damage += [
        Damage(str(place), "link", _LINK)
        for place, error in unread.items()
        if isinstance(error, LinkError) and _is_of_column(place)
    ]
    found = foreign_columns(run_dir, run, unread)
    return damage + [Damage(f"columns/{name}", "unknown_column", message) for name, message in found.items()]


def _is_of_column(place: Path) -> bool:
    """Whether this is a column's record; a source may have the name `column`."""
    return place.name == COLUMN_RECORD and place.parts[0] == "columns"


def _source_of(part: str) -> str:
    return part.rpartition(".")[0]


def _unknown_part(column: Path, name: str) -> Damage:
    message = (
        f"no catalogue has such a part: restore catalog/{_source_of(name)}.json if it is lost, or give the command that made "
        "the run again; remove the part's files only if they came from elsewhere"
    )
    return Damage(str(column / name), "unknown_part", message)


def _listed(run_dir: Location, column: ColumnRecord) -> tuple[ColumnListing, list[Damage]]:
    """What a column has; nothing where that cannot be told."""
    try:
        return list_column(run_dir, column.name), []
    except OSError as error:
        return ColumnListing(), _described(column_dir(Path(), column.name), error)


def _of_part(zarrs: Sequence[str], part: str) -> Sequence[str]:
    """Of these names in order, the attempts at a part."""
    first = bisect_left(zarrs, f"{part}.")
    return zarrs[first : bisect_left(zarrs, f"{part}/", lo=first)]  # the character after the dot


def _check_links(run_dir: Location, column: ColumnRecord, listing: ColumnListing) -> list[Damage]:
    """Links in a column's folder, and in attempts at parts that are not committed; the others are told with their part."""
    folder = column_dir(Path(), column.name)
    try:
        entries = place_of(run_dir).entries(folder.as_posix())
    except OSError:
        return []  # said where the column was listed
    damage = [Damage(str(folder / entry.name), "link", _LINK) for entry in entries if entry.kind == "link"]
    zarrs = sorted(listing.zarrs)
    uncommitted = listing.zarrs.difference(*(_of_part(zarrs, part) for part in listing.manifests))
    for zarr in sorted(uncommitted):
        damage += _links_in(run_dir, folder / zarr)
    return damage


def _links_in(run_dir: Location, zarr: Path) -> list[Damage]:
    """Links in an attempt that no manifest names; that it cannot be read is no damage."""
    try:
        entries = place_of(run_dir).tree(zarr.as_posix())
    except OSError:
        return []
    return [Damage(str(zarr / entry.name), "link", _LINK) for entry in entries if entry.kind == "link"]


def check_table(run_dir: Location, source: Catalogue) -> tuple[list[Damage], pa.ChunkedArray | None]:
    """Damage of a source's table, and the keys of its images; None where the table is not to be trusted."""
    place = table_path(Path(), source)
    damage = _check_digest(run_dir, place, source.table_sha256)
    if damage:
        return damage, None
    keys, damage = _read_keys(run_dir, place, source.images)
    return damage, keys


def keys_of(run_dir: Location, source: Catalogue) -> pa.ChunkedArray:
    """The keys of a source's images, in order. Raises RefusedError for a table that is damaged or cannot be read."""
    damage, keys = check_table(run_dir, source)
    if keys is None or damage:
        found = "; ".join(f"{run_dir / item.where}: {item.message}" for item in damage)
        raise RefusedError(f"{found}. Restore the table from a copy: its keys say which label is which photograph's")
    return keys


def _read_keys(run_dir: Location, place: Path, images: int) -> tuple[pa.ChunkedArray | None, list[Damage]]:
    """The keys of a table that has as many rows as the source has images; they are read only then."""
    try:
        import pyarrow as pa  # here, so that a summary does not wait for it
        import pyarrow.parquet
    except ImportError as error:
        return None, _described(place, error)
    try:
        with (
            place_of(run_dir).open(place.as_posix()) as stream,
            pyarrow.parquet.ParquetFile(stream, read_dictionary=["key"]) as table,
        ):
            if (rows := table.metadata.num_rows) != images:
                message = f"found {rows} rows, expected the {images} images of the catalogue"
                return None, [Damage(str(place), "wrong_images", message)]
            return table.read(columns=["key"])["key"], []
    except (KeyError, pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        return None, [Damage(str(place), "wrong_table", f"expected a parquet table with a column 'key': {error}")]
    except (OSError, MemoryError) as error:
        return None, _described(place, error)


def _check_digest(run_dir: Location, place: Path, expected: str) -> list[Damage]:
    try:
        with place_of(run_dir).open(place.as_posix()) as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, MemoryError) as error:
        return _described(place, error)
    message = f"found sha256 {found}, expected {expected}"
    return [Damage(str(place), "wrong_sha256", message)] if found != expected else []


def _check_failure(run_dir: Location, column: ColumnRecord, part: PartId) -> list[Damage]:
    place = failure_path(Path(), column.name, part.name)
    damage = []
    try:
        failure = load_failure(run_dir, column.name, part.name)
        if failure.images != part.images:
            message = f"found {failure.images} images, expected the {part.images} of this part"
            damage = [Damage(str(place), "wrong_images", message)]
    except UNREADABLE as error:
        damage = _described(place, error)
    return [item._replace(column=column.name, part=part.name) for item in damage]


def _check_part(
    run_dir: Location,
    plan: Mapping[str, Any],
    column: ColumnRecord,
    part: PartId,
    zarrs: Sequence[str],
    keys: Sequence[str],
    deep: bool,
) -> list[Damage]:
    """Damage of a manifest and of the files it lists. `zarrs`: all attempts at the part; `keys`: of its images, none where
    they are not known."""
    place = manifest_path(Path(), column.name, part.name)
    damage: list[Damage] = []
    try:
        manifest = load_part(run_dir, column.name, part.name)
        damage += _check_manifest(place, manifest, column, part, keys) + _check_input(run_dir, place, manifest)
        place = column_dir(Path(), column.name) / manifest.zarr
        damage += _check_files(run_dir, place, manifest, deep)
        if deep and not damage:  # where something is not as it was written, there is nothing to learn from decoding
            found = faults(place_of(run_dir), place.as_posix(), manifest, plan)
            damage = [Damage(str(place / array), kind, message) for array, kind, message in found]
        for zarr in zarrs:
            damage += _links_in(run_dir, place.parent / zarr) if zarr != manifest.zarr else []
    except UNREADABLE as error:
        damage += _described(place, error)
    return [item._replace(column=column.name, part=part.name) for item in damage]


def _check_manifest(
    place: Path, manifest: PartManifest, column: ColumnRecord, part: PartId, keys: Sequence[str]
) -> list[Damage]:
    damage = [
        Damage(str(place), "wrong_fingerprint", f"{difference}, from column.json and the catalogue")
        for difference in fingerprint_differences(manifest.fingerprint, part_fingerprint(column, part.rows_sha256))
    ]
    if manifest.depth_space != column.depth_space:
        message = f"found {manifest.depth_space!r}, expected {column.depth_space!r} from column.json"
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


def _check_input(run_dir: Location, place: Path, manifest: PartManifest) -> list[Damage]:
    """Whether a teacher's part was made from the files that the part's pictures were made from, where both are known."""
    if manifest.column == IMAGES or not any(own.content_sha256 for own in manifest.images):
        return []
    try:
        pictures = load_part(run_dir, IMAGES, manifest.part).images
    except (InvalidRecordError, OSError):
        return []  # damage, an absence or a failure to read that is named where that part is checked
    return [
        Damage(str(place), "other_input", f"{own.key!r}: made from a file of sha256 {own.content_sha256}, its picture is not")
        for own, picture in zip(manifest.images, pictures, strict=False)
        if own.key == picture.key and None not in (own.content_sha256, picture.content_sha256)
        if own.content_sha256 != picture.content_sha256
    ]


def _check_files(run_dir: Location, place: Path, manifest: PartManifest, deep: bool) -> list[Damage]:
    """Damage of a part's files: each is looked for, and with `deep` read. Raises OSError where they cannot be listed."""
    folder = place.as_posix()
    found = {f"{folder}/{entry.name}": entry for entry in place_of(run_dir).tree(folder)}
    if not found:
        return [Damage(str(place), "missing_zarr", f"no such folder, though {manifest.part} is committed")]
    listed = {f"{place.parent.as_posix()}/{file.path}": file for file in manifest.files}
    damage = []
    for name in sorted(found.keys() - listed.keys()):
        if found[name].kind == "link":
            damage.append(Damage(name, "link", _LINK))
        elif found[name].kind != "folder":
            message = f"the manifest of {manifest.part} does not list this file: remove it"
            damage.append(Damage(name, "unlisted_file", message))
    links = {Path(name) for name, entry in found.items() if entry.kind == "link"}
    for name, file in listed.items():
        if links and not links.isdisjoint(Path(name).parents):
            continue  # behind a link, which is named already
        damage += _check_file(name, found.get(name), file) or (_check_digest(run_dir, Path(name), file.sha256) if deep else [])
    return damage


def _check_file(name: str, found: Entry | None, file: FileRecord) -> list[Damage]:
    if found is None:
        return [Damage(name, "missing_file", "No such file or directory")]
    if found.kind == "link":
        return [Damage(name, "link", _LINK)]
    if found.kind != "file":
        return [Damage(name, "not_a_file", f"found a {found.kind.replace('other', 'pipe or device')}, expected a file")]
    if found.size_bytes != file.size_bytes:
        return [Damage(name, "wrong_size", f"found {found.size_bytes} bytes, expected {file.size_bytes}")]
    return []
