"""Where one image of a run is, and how it stands in each column: found in the tables of the sources, looked up in one part.

The tables are read once, and of each column the manifest of the image's part and small tables of its arrays. No folder is
listed: in a run of 100,000 parts it reads no more of them than in one of ten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from manifests.chunks import FaultError, chunks, read_layout, read_metadata
from manifests.errors import RefusedError
from manifests.listing import ListedStatus
from manifests.location import Location
from manifests.place import place_of
from manifests.run import IMAGES, Run, column_dir, load_failure, load_part, load_run, manifest_path, part_names, table_path
from manifests.schema import Catalogue, FileRecord, PartManifest, Reason

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_PATTERN = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class FoundColumn:
    """How an image stands in a column; status, kind and message as in ListedImage.

    For each context of a labelled image: `sizes_px`, its height and width, 0 and 0 where it has no label; `patches`, how many
    (empty for `images`). `files`: of the arrays that hold it, by their path in the column's folder. `unread`: why that cannot
    be told.
    """

    column: str
    status: ListedStatus
    kind: str | None = None
    message: str | None = None
    licence: str | None = None
    sizes_px: tuple[tuple[int, int], ...] = ()
    patches: tuple[int, ...] = ()
    files: tuple[FileRecord, ...] = ()
    unread: str | None = None


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """An image of a run: row `row` in the table of its source, image `image` of the part `part`.

    location, source_kind, member, offset, size_bytes: where its file was when it was catalogued. content_sha256 and
    photograph_px (height and width, upright) are known once it is in the column `images`. names: that it was found by.
    """

    names: tuple[str, ...]
    source: str
    key: str
    location: str
    source_kind: str
    member: str
    offset: int
    size_bytes: int
    row: int
    part: str
    image: int
    content_sha256: str | None
    photograph_px: tuple[int, int] | None
    columns: tuple[FoundColumn, ...] = field(default_factory=tuple)


def find_images(run_dir: Location, names: Sequence[str]) -> Iterator[FoundImage]:
    """The images of any of these names, in the run's order.

    names: a key, the path of a file in its source or the end of it, or a pattern as a shell has them (`*`, `?`, `[a-z]`).
    Raises as `load_run` does, and RefusedError for a table that is damaged or cannot be read.
    """
    run = load_run(run_dir)

    @lru_cache(2 * len(run.columns) + 1)  # images of one part follow each other
    def part_of(column: str, part: str) -> _Part:
        return _Part(run_dir, run, column, part)

    for source in run.sources:
        parts = part_names(source.source, source.images, run.part_size)
        for row in _matching(run_dir, source, names):
            number, image = divmod(row.row, run.part_size)
            columns = [part_of(column.name, parts[number]) for column in run.columns]
            pictures = next((column for column in columns if column.column == IMAGES), None)
            yield FoundImage(
                **row._asdict(),
                source=source.source,
                location=source.location,
                source_kind=source.source_kind,
                part=parts[number],
                image=image,
                content_sha256=pictures and pictures.content_sha256(image),
                photograph_px=pictures and pictures.photograph_px(image),
                columns=tuple(column.found(image) for column in columns),
            )


class _Row(NamedTuple):
    """Of a source's table, with the names that it was found by."""

    names: tuple[str, ...]
    row: int
    key: str
    member: str
    offset: int
    size_bytes: int


def _matching(run_dir: Location, source: Catalogue, names: Sequence[str]) -> Iterator[_Row]:
    """The rows of a source's table that have any of these names, once its digest is right."""
    import pyarrow as pa  # here, so that a summary does not wait for it
    import pyarrow.parquet

    place, start = table_path(Path(), source).as_posix(), 0
    try:
        with place_of(run_dir).open(place) as stream:
            if (found := hashlib.file_digest(stream, "sha256").hexdigest()) != source.table_sha256:
                raise _bad_table(run_dir / place, f"found sha256 {found}, expected {source.table_sha256}")
            stream.seek(0)
            with pyarrow.parquet.ParquetFile(stream) as table:
                for batch in table.iter_batches(columns=list(_Row._fields[2:])):
                    for i in _candidates(batch, names):
                        own = [batch[name][i].as_py() for name in _Row._fields[2:]]
                        if found_by := tuple(name for name in names if _is_of(name, own[0], own[1])):
                            yield _Row(found_by, start + i, *own)
                    start += len(batch)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _bad_table(run_dir / place, str(error)) from error


def _bad_table(path: object, found: str) -> RefusedError:
    return RefusedError(f"{path}: {found}. Restore the table from a copy: its keys say which label is which photograph's")


def _candidates(batch: pa.RecordBatch, names: Sequence[str]) -> Iterable[int]:
    """The rows of a batch that may have one of the names, as Arrow finds them: few more than have."""
    import pyarrow as pa
    import pyarrow.compute

    arrow: Any = pyarrow.compute
    keys, members, plain = batch["key"], batch["member"], pa.array(names)
    found = arrow.or_(arrow.is_in(keys, plain), arrow.is_in(members, plain))
    for name in names:
        if not _is_pattern(name):
            found = arrow.or_(found, arrow.ends_with(members, f"/{name}"))
            continue
        before, bracket, _ = name.partition("[")
        like = re.sub(r"[\\%_?]", "_", before).replace("*", "%") + "%" * bool(bracket)  # _ is any character
        for column, pattern in ((keys, like), (members, like), (members, f"%/{like}")):
            found = arrow.or_(found, arrow.match_like(column, pattern))
    return arrow.indices_nonzero(found).to_pylist()


def _is_pattern(name: str) -> bool:
    return not _PATTERN.isdisjoint(name)


def _is_of(name: str, key: str, member: str) -> bool:
    """Whether an image has this name, or one that is of this pattern."""
    own = (key, member, member.rpartition("/")[2])
    return name in own or member.endswith(f"/{name}") or (_is_pattern(name) and any(fnmatchcase(it, name) for it in own))


class _Part:
    """A part of a column, which need not be committed; reads its manifest, and tables of its arrays when they are asked for."""

    def __init__(self, run_dir: Location, run: Run, column: str, part: str) -> None:
        self.run_dir, self.column, self.part = run_dir, column, part
        self.contexts = int(run.plan.get("contexts_per_image", 1))
        self.manifest: PartManifest | None = None
        self._status: ListedStatus = "pending"
        self._read: dict[str, np.ndarray] = {}
        self._problem: Reason | None = None
        try:
            self.manifest = load_part(run_dir, column, part)
        except FileNotFoundError:
            self._read_failure()
        except (OSError, ValueError) as error:
            where = manifest_path(run_dir, column, part)
            self._status, self._problem = "unreadable", Reason(kind="unreadable_record", message=f"{where}: {error}")

    def _read_failure(self) -> None:
        try:
            self._problem = load_failure(self.run_dir, self.column, self.part).problem
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._problem = Reason(kind="unreadable_record", message=str(error))
        self._status = "failed"

    def content_sha256(self, image: int) -> str | None:
        """Of the image's file; None where it is not known."""
        images = () if self.manifest is None else self.manifest.images
        return images[image].content_sha256 if image < len(images) else None

    def photograph_px(self, image: int) -> tuple[int, int] | None:
        """Height and width; None where the image is not labelled or the table cannot be read."""
        if not self._is_labelled(image):
            return None
        try:
            height, width = self._table("source_size", "int32", self._rows, 2)[image * self.contexts]
        except (OSError, FaultError):
            return None
        return int(height), int(width)

    def found(self, image: int) -> FoundColumn:
        """How an image of the part stands in the column."""
        if self.manifest is None or image >= len(self.manifest.images):
            problem = self._problem
            found = FoundColumn(column=self.column, status=self._status if self.manifest is None else "unreadable")
        else:
            outcome = self.manifest.images[image]
            problem = outcome.problem
            found = FoundColumn(column=self.column, status=outcome.status, licence=self.manifest.licence)
        if problem:
            found = replace(found, kind=problem.kind, message=problem.message)
        if not self._is_labelled(image):
            return found
        try:
            return self._with_arrays(found, range(image * self.contexts, (image + 1) * self.contexts))
        except (OSError, FaultError) as error:
            reason = error.fault.message if isinstance(error, FaultError) else str(error)
            return replace(found, unread=f"{reason}; `python -m manifests verify` says what is wrong")

    def _is_labelled(self, image: int) -> bool:
        images = () if self.manifest is None else self.manifest.images
        return image < len(images) and images[image].status == "labelled"

    def _with_arrays(self, found: FoundColumn, rows: range) -> FoundColumn:
        extents = self._table("context_extent", "int32", self._rows, 2)
        sizes = tuple((int(extents[row][0]), int(extents[row][1])) for row in rows)
        if self.column == IMAGES:
            starts = self._table("jpeg_start", "int64", self._rows + 1)
            files = self._files("jpeg", "uint8", int(starts[rows[0]]), int(starts[rows[-1] + 1]))
            return replace(found, sizes_px=sizes, files=files)
        starts = self._table("patch_start", "int64", self._rows + 1)
        files = self._files("context", "uint16", rows[0], rows[-1] + 1)
        files += self._files("patch", "uint16", int(starts[rows[0]]), int(starts[rows[-1] + 1]))
        patches = tuple(int(starts[row + 1] - starts[row]) for row in rows)
        return replace(found, sizes_px=sizes, patches=patches, files=files)

    @property
    def _rows(self) -> int:
        return 0 if self.manifest is None else len(self.manifest.images) * self.contexts

    @property
    def _folder(self) -> str:
        return (column_dir(Path(), self.column) / (self.manifest.zarr if self.manifest else "")).as_posix()

    def _table(self, name: str, dtype: str, *shape: int) -> np.ndarray:
        """An array of one chunk. Raises FaultError, also where it is not stored, and OSError."""
        if name not in self._read:
            place, versions = place_of(self.run_dir), self.manifest.versions if self.manifest else {}
            layout = read_layout(place, self._folder, name, dtype, shape)
            values = next((values for _, values in chunks(place, self._folder, layout, versions)), None)
            if values is None:
                raise FaultError(name, "wrong_array", f"{self._folder}/{name} is lost")
            self._read[name] = values
        return self._read[name]

    def _files(self, name: str, dtype: str, first: int, end: int) -> tuple[FileRecord, ...]:
        """The files that hold these rows of an array, as the manifest lists them."""
        place, dimensions = place_of(self.run_dir), {"jpeg": 1}.get(name, 2)
        if len(shape := read_metadata(place, self._folder, name).get("shape") or ()) == 3:
            dimensions = len(shape)  # of a view, as in version 1
        layout = read_layout(place, self._folder, name, dtype, [None] * dimensions, packed=name != "jpeg")
        shards = range(first // layout.shard_rows, -(-end // layout.shard_rows)) if end > first else ()
        names = [f"{self.manifest.zarr}/{layout.files()[shard]}" for shard in shards] if self.manifest else []
        return tuple(self._listed[path] for path in names if path in self._listed)

    @cached_property
    def _listed(self) -> dict[str, FileRecord]:
        return {} if self.manifest is None else {file.path: file for file in self.manifest.files}
