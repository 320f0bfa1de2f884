"""A Parquet file with a column of encoded images as a source, as the hub's data sets are published.

The column is `struct<bytes: binary, path: string>`, as the library `datasets` writes it, or plain binary. Cataloguing reads the
footer and the paths, never the images; reading streams through the row groups that are wanted, a few rows at a time. An image's
member is its column and row, `image[12]`, its offset the row, and its size the mean of its row group as it is stored: what of a
file can be known without reading it all. A row without bytes is an image without bytes.
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import Problem
from manifests.errors import RefusedError
from manifests.location import Location
from stages.sources.photographs import IMAGE_SUFFIXES
from stages.sources.source import CatalogueRow, Found, Source, SourceKind, as_text, is_hidden, is_image, open_binary, problem_of

SUFFIX = ".parquet"
_BATCH_ROWS = 8
_BUFFER_BYTES = 1 << 20
"""Of a column, that are held at a time; without it a row group of a column is read whole."""
_NAMES = {"image", "img", "picture", "photo", *(suffix[1:] for suffix in IMAGE_SUFFIXES)}
"""What plain binary columns of images are called, where there are others."""


class ColumnError(RefusedError):
    """No column of a file, or several, can be the one of its images; the message says what to name."""


class _Group(NamedTuple):
    """A row group: its first row, and what one of its images takes on average as it is stored, in bytes."""

    first_row: int
    mean_bytes: int


def files_of(folder: Path) -> list[Path]:
    """The Parquet files of a folder and below, in order; none where there is a photograph too: it is a folder of those."""
    found: list[Path] = []
    for place, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        if any(map(is_image, files)):
            return []
        paths = (Path(place, name) for name in sorted(files) if not is_hidden(name))
        found += [path for path in paths if _recognises(path)]
    return found


def chosen_column(location: Location, wanted: str | None, e_tag: str | None = None) -> str | None:
    """The column of a file's images; None for a file that cannot be read, whose problem is in its catalogue.

    wanted: as it was named. Raises ColumnError where that is no column of images, and where without it there is not just one.
    """
    try:
        with _opened(location, e_tag) as file:
            return _chosen(file.schema_arrow, wanted)
    except (OSError, pa.ArrowException):
        return None


def _opened(location: Location, e_tag: str | None) -> pq.ParquetFile:
    return pq.ParquetFile(open_binary(location, e_tag), buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _chosen(schema: pa.Schema, wanted: str | None) -> str:
    able = [field.name for field in schema if _bytes_of(field) is not None]
    if wanted is not None:
        if wanted in able:
            return wanted
        raise ColumnError(f"no column {wanted!r} of images; {f'found {_listed(able)}' if able else _none_among(schema)}")
    stated = _stated_types(schema)
    plain = [name for name in able if not pa.types.is_struct(schema.field(name).type)]
    tiers = (
        [name for name in able if stated.get(name) == "Image"],
        [name for name in able if name not in stated and name not in plain],
        [name for name in plain if name.lower() in _NAMES],
        plain,
    )
    candidates = next((tier for tier in tiers if tier), [])
    if not candidates:
        raise ColumnError(_none_among(schema))
    if len(candidates) > 1:
        raise ColumnError(f"the columns {_listed(candidates)} may all be images; name one, as in ?column={candidates[0]}")
    return candidates[0]


def _none_among(schema: pa.Schema) -> str:
    expected = "expected one of type binary, or struct<bytes: binary, path: string>"
    return f"no column of images among {_listed(schema.names)}; {expected}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(as_text(name) for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"


def _bytes_of(field: pa.Field) -> str | None:
    """The path in the file's schema of a column's bytes; None for a column that has none."""
    if _is_binary(field.type):
        return field.name
    if pa.types.is_struct(field.type):
        index = field.type.get_field_index("bytes")
        return f"{field.name}.bytes" if index >= 0 and _is_binary(field.type.field(index).type) else None
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _stated_types(schema: pa.Schema) -> dict[str, str]:
    """What the library `datasets` says of columns in the file's metadata, such as Image or Audio; none where it is silent."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        types = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: kind for name, kind in types.items() if isinstance(kind, str)}


def catalogue(location: Location, column: str | None = None, e_tag: str | None = None) -> Found:
    """What is in a file's column of images; damage is a problem, never raised, and so is a column that cannot be told."""
    try:
        with _opened(location, e_tag) as file, open_binary(location, e_tag) as stream:
            name = _chosen(file.schema_arrow, column)
            return Found(_rows(file, name, PurePosixPath(location.name).stem), stream.seek(0, 2), [])
    except ColumnError as error:
        return Found([], 0, [problem_of("no_image_column", location.name, str(error))])
    except OSError as error:
        if error.errno is not None:
            return Found([], 0, [problem_of("unreadable", location.name, f"cannot be read: {error.strerror}")])
        return Found([], 0, [_damaged(location, error)])
    except pa.ArrowException as error:
        return Found([], 0, [_damaged(location, error)])


def _damaged(location: Location, error: Exception) -> Problem:
    words = " ".join(str(error).split())
    return problem_of("damaged_parquet", location.name, f"cut, damaged, encrypted, or no Parquet file: {words}")


def _rows(file: pq.ParquetFile, column: str, stem: str) -> list[CatalogueRow]:
    """A row per row. Its key is the path that it states, where no two have the same, and else the file's name and the row."""
    groups = _groups(file, column)
    numbers = [f"{as_text(stem)}/{row:06d}" for row in range(file.metadata.num_rows)]
    paths = _paths(file, column)
    stated = Counter(path for path in paths if path)
    distinct = max(stated.values(), default=0) == 1
    keys = [(distinct and path) or number for path, number in zip(paths, numbers, strict=True)]
    starts = [group.first_row for group in groups]
    return [
        CatalogueRow(
            key=key,
            member=f"{as_text(column)}[{row}]",
            offset=row,
            size_bytes=groups[bisect_right(starts, row) - 1].mean_bytes,
        )
        for row, key in enumerate(keys)
    ]


def _paths(file: pq.ParquetFile, column: str) -> list[str | None]:
    """The path that each row states, None where it states none; read without the bytes beside it."""
    kind = file.schema_arrow.field(column).type
    index = kind.get_field_index("path") if pa.types.is_struct(kind) else -1
    if index < 0 or not (pa.types.is_string(kind.field(index).type) or pa.types.is_large_string(kind.field(index).type)):
        return [None] * file.metadata.num_rows
    table = file.read(columns=[f"{column}.path"])
    return [as_text(row["path"]) if row and row["path"] else None for row in table.column(0).to_pylist()]


def _groups(file: pq.ParquetFile, column: str) -> list[_Group]:
    metadata = file.metadata
    path = _bytes_of(file.schema_arrow.field(column))
    leaf = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == path)
    found, first = [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        stored = max(group.column(leaf).total_compressed_size, 0)
        found.append(_Group(first, stored // max(group.num_rows, 1)))
        first += group.num_rows
    return found


class ParquetImages:
    """The images of some rows of a file, read in any order by several threads.

    The file is streamed from the start of a row group on, and what is wanted of it is held until it has been asked for: in
    about the file's order, that is little.
    """

    def __init__(self, source: Source, rows: Sequence[CatalogueRow]) -> None:
        self._source, self._rows = source, rows
        self._wanted = {row.offset for row in rows}
        self._lock = threading.Lock()
        self._file: pq.ParquetFile | None = None
        self._groups: list[_Group] = []
        self._images: Iterator[tuple[int, bytes]] = iter(())
        self._next_row = 0
        self._held: dict[int, bytes] = {}

    def read(self, index: int) -> bytes:
        """The bytes of one image, none for a row without. Raises OSError where they cannot be read, or the file has changed."""
        row = self._rows[index]
        with self._lock:
            try:
                if row.offset not in self._held:
                    self._advance_to(row)
                content = self._held.pop(row.offset)
            except (pa.ArrowException, OSError) as error:
                self._close()
                words = " ".join(str(error).split())
                raise OSError(f"{self._source.location}: {row.member} cannot be read: {words}") from error
            if not self._held and self._next_row > max(self._wanted):
                self._close()
        return content

    def _advance_to(self, row: CatalogueRow) -> None:
        if self._file is None:
            self._file = _opened(self._source.location, self._source.e_tag)
            self._groups = _groups(self._file, self._column(row))
            self._next_row, self._images = self._file.metadata.num_rows, iter(())
        number = bisect_right([group.first_row for group in self._groups], row.offset) - 1
        inside = row.offset < self._file.metadata.num_rows
        if not inside or self._groups[number].mean_bytes != row.size_bytes:
            raise OSError("it is no longer what was catalogued")
        begin = self._groups[number].first_row
        leads_there = any(self._next_row <= wanted < begin for wanted in self._wanted)
        if row.offset < self._next_row or (self._next_row < begin and not leads_there):
            self._start_at(row, number)
        try:
            self._take(row)
        except (pa.ArrowException, OSError):  # perhaps what lies on the way is damaged, and its own row group is not
            if not leads_there:
                raise
            self._start_at(row, number)
            self._take(row)

    def _start_at(self, row: CatalogueRow, number: int) -> None:
        self._next_row = self._groups[number].first_row
        assert self._file is not None
        self._images = _streamed(self._file, self._column(row), number, self._next_row, self._wanted)

    def _take(self, row: CatalogueRow) -> None:
        """Streams on until an image, keeping those on the way that are wanted."""
        for at, content in self._images:
            self._next_row = at + 1
            if at in self._wanted:
                self._held[at] = content
            if at == row.offset:
                return
        raise OSError("its row is missing")

    def _column(self, row: CatalogueRow) -> str:
        assert self._file is not None
        named = row.member.rpartition("[")[0]
        able = [field.name for field in self._file.schema_arrow if _bytes_of(field)]
        if (name := next((name for name in able if as_text(name) == named), None)) is None:
            raise OSError(f"the file has no column {named!r} of images any more")
        return name

    def _close(self) -> None:
        if self._file is not None:
            self._file.close(force=True)
        self._file, self._images, self._held = None, iter(()), {}


def _streamed(file: pq.ParquetFile, column: str, number: int, row: int, wanted: Container[int]) -> Iterator[tuple[int, bytes]]:
    """Row and bytes of each image from a row group, which begins at `row`, on; what is not wanted is not copied."""
    path = _bytes_of(file.schema_arrow.field(column))
    for group in range(number, file.num_row_groups):  # one by one: a batch would reach into the next
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[path], use_threads=False):
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = images.flatten()[0]
            for image in images:
                yield row, (image.as_py() or b"") if row in wanted else b""
                row += 1


def _recognises(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX and path.is_file()


def _read(location: Path, row: CatalogueRow) -> bytes:
    return ParquetImages(Source(name=location.stem, kind="parquet", location=location), [row]).read(0)


PARQUET = SourceKind(
    words="a .parquet file",
    recognises=_recognises,
    catalogue=catalogue,
    read=_read,
    can_grow=False,
    images=ParquetImages,
)
