"""Reads the arrays of a part's Zarr group, as docs/format.md describes them and in no other form.

It reads the files itself, through `manifests.place`, and knows the format's few codecs: an array of another shape, type or
codec is refused before anything of it is read. So whatever the files hold, nothing of them is executed or followed, and a chunk
takes at most MAX_CHUNK_BYTES of memory, however many values its bytes would unpack to.

NumPy and the codecs are imported when the first chunk is read: this package answers without them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import BufferedReader
from typing import TYPE_CHECKING, Any, NamedTuple

from manifests.checker import shown
from manifests.place import Place

if TYPE_CHECKING:
    import numpy as np

MAX_CHUNK_BYTES = 1 << 27
"""A view of 8,192 x 8,192 codes."""
_MAX_TABLE_BYTES = 1 << 25  # 2 million patches' boxes, which are held whole
_LARGE_CHUNK_BYTES = 1 << 23
_one_large_chunk = threading.Lock()  # parts are read in several threads
_MAX_METADATA_BYTES = 1 << 16
_MAX_INDEX_BYTES = 1 << 26
_JPEG_CHUNK_BYTES = 1 << 16
_ITEM_BYTES = {"uint8": 1, "uint16": 2, "int32": 4, "float32": 4, "int64": 8, "float64": 8}
_NOTHING = 2**64 - 1  # in a shard's index: there is no such chunk
_CRC32C_BYTES = 4
_READERS = ("numcodecs", "pcodec")
_LITTLE, _CRC32C, _PCODEC = ("bytes", {"endian": "little"}), ("crc32c", {}), "numcodecs.pcodec"


class Fault(NamedTuple):
    """Something wrong with an array (or `zarr.json`, for the group). `kind`: wrong_array, undecodable, or unreadable where it
    may be this machine that is at fault."""

    array: str
    kind: str
    message: str


class FaultError(Exception):
    """A fault that leaves nothing more to be read of the part."""

    def __init__(self, array: str, kind: str, message: str) -> None:
        super().__init__(array, kind, message)
        self.fault = Fault(array, kind, message)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An array as it is stored: chunks of `chunk_rows` rows, in files of `shard_rows`; `packed` with PCodec."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunk_rows: int
    shard_rows: int
    packed: bool

    @property
    def chunk_values(self) -> int:
        """Values in a chunk."""
        return self.chunk_rows * math.prod(self.shape[1:])

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk once it is decoded."""
        return self.chunk_values * _ITEM_BYTES[self.dtype]

    def files(self) -> list[str]:
        """The files that may hold it, relative to the group. One is left out where all its values are 0."""
        rest = "/0" * (len(self.shape) - 1)
        return [f"{self.name}/c/{i}{rest}" for i in range(-(-self.shape[0] // self.shard_rows))]


def read_metadata(place: Place, folder: str, array: str) -> dict[str, Any]:
    """The zarr.json of an array, or of the group where `array` is `zarr.json`. Raises OSError, FaultError."""
    name = f"{folder}/zarr.json" if array == "zarr.json" else f"{folder}/{array}/zarr.json"
    try:
        document = json.loads(place.read(name, limit_bytes=_MAX_METADATA_BYTES))
    except FileNotFoundError as error:
        raise FaultError(array, "wrong_array", "there is no zarr.json of it") from error
    except (ValueError, RecursionError) as error:
        raise FaultError(array, "wrong_array", f"zarr.json: expected JSON: {error}") from error
    if not isinstance(document, dict):
        raise FaultError(array, "wrong_array", f"zarr.json: found {shown(document)}, expected an object")
    return document


def expect(found: Mapping[str, Any], expected: Mapping[str, Any], array: str) -> None:
    """Raises FaultError for the first key that has another value."""
    for key, value in expected.items():
        if found.get(key) != value:
            raise FaultError(array, "wrong_array", f"{key}: found {shown(found.get(key))}, expected {shown(value)}")


def read_layout(
    place: Place, folder: str, name: str, dtype: str, shape: Sequence[int | None], *, packed: bool = False
) -> Layout:
    """How an array is stored, once its metadata say that it is of this type, shape (None: any size) and codec.

    Raises OSError, FaultError.
    """
    document = read_metadata(place, folder, name)
    expected = {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": dtype,
        "fill_value": 0,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }
    expect(document, expected, name)
    if document.get("storage_transformers"):
        raise FaultError(name, "wrong_array", "found storage_transformers, expected none")
    found = _sizes(document.get("shape"), len(shape))
    if found is None or any(size not in (None, at) for size, at in zip(shape, found, strict=True)):
        message = f"shape: found {shown(document.get('shape'))}, expected {['any' if at is None else at for at in shape]}"
        raise FaultError(name, "wrong_array", message)
    shard_rows, chunk_rows = _rows_of_chunks(document, name, found, packed)
    layout = Layout(name=name, dtype=dtype, shape=found, chunk_rows=chunk_rows, shard_rows=shard_rows, packed=packed)
    _refuse_other_chunks(layout)
    return layout


def _sizes(value: Any, length: int) -> tuple[int, ...] | None:
    fits = isinstance(value, list) and len(value) == length and all(type(item) is int and item >= 0 for item in value)
    return tuple(value) if fits else None


def _rows_of_chunks(document: Mapping[str, Any], name: str, shape: tuple[int, ...], packed: bool) -> tuple[int, int]:
    """Rows of a shard, and of a chunk in it. Refuses every codec that the format does not have."""
    codecs = _codecs(document.get("codecs"))
    sharding = codecs[0][1] if len(codecs) == 1 and codecs[0][0] == "sharding_indexed" else {}
    inner, index = _codecs(sharding.get("codecs")), _codecs(sharding.get("index_codecs"))
    first = [codec for codec, _ in inner[:1]] == [_PCODEC] if packed else inner[:1] in ([_LITTLE], [("bytes", {})])
    if not (
        first and inner[1:] == [_CRC32C] and index == [_LITTLE, _CRC32C] and sharding.get("index_location", "end") == "end"
    ):
        expected = f"shards of {'PCodec' if packed else 'bytes'} and crc32c"
        raise FaultError(name, "wrong_array", f"codecs: found {shown(document.get('codecs'))}, expected {expected}")
    ((grid_name, grid),) = _codecs([document.get("chunk_grid")])
    sizes = [_sizes(chunks.get("chunk_shape"), len(shape)) for chunks in (grid, sharding)]
    rows = [size[0] for size in sizes if size and size[0] and size[1:] == shape[1:]]
    if grid_name != "regular" or len(rows) != 2:
        found = f"{shown(grid.get('chunk_shape'))} and in them {shown(sharding.get('chunk_shape'))}"
        raise FaultError(name, "wrong_array", f"shards: found {found}, expected whole rows of the shape {list(shape)}")
    return rows[0], rows[1]


def _codecs(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and configurations; without a name where it is nothing of the kind."""
    found = []
    for codec in value if isinstance(value, list) else ():
        name, configuration = (codec.get("name"), codec.get("configuration") or {}) if isinstance(codec, dict) else ("", {})
        found.append((name, configuration) if isinstance(name, str) and isinstance(configuration, dict) else ("", {}))
    return found


def _refuse_other_chunks(layout: Layout) -> None:
    rows = max(layout.shape[0], 1)
    chunk_rows = 1 if layout.packed else min(rows, _JPEG_CHUNK_BYTES) if layout.name == "jpeg" else rows
    one_file = -(-rows // chunk_rows) * chunk_rows
    fits = layout.chunk_rows == chunk_rows and (layout.packed or layout.shard_rows == one_file)
    limit = MAX_CHUNK_BYTES if layout.packed else _MAX_TABLE_BYTES
    if not fits or layout.chunk_bytes > limit or 16 * (layout.shard_rows // chunk_rows) > _MAX_INDEX_BYTES:
        found = f"{layout.chunk_rows} rows ({layout.chunk_bytes} bytes) a chunk and {layout.shard_rows} a file"
        message = f"found {found}, expected {chunk_rows} (at most {limit} bytes) a chunk"
        raise FaultError(layout.name, "wrong_array", message + ("" if layout.packed else f" and {one_file} a file"))


def chunks(place: Place, folder: str, layout: Layout, versions: Mapping[str, str]) -> Iterator[tuple[int, np.ndarray | None]]:
    """The first row and the values [rows, ...] of each chunk in turn; None for one that is not stored, and so is 0.

    `versions` are those of the packages that wrote it. Raises OSError, FaultError.
    """
    per_file = layout.shard_rows // layout.chunk_rows
    for number, name in enumerate(layout.files()):
        first_row = number * layout.shard_rows
        count = min(per_file, -(-(layout.shape[0] - first_row) // layout.chunk_rows))
        try:
            stream = place.open(f"{folder}/{name}")
        except FileNotFoundError:
            yield from ((first_row + i * layout.chunk_rows, None) for i in range(count))
            continue
        with stream:
            for i, (offset, size_bytes) in enumerate(_index(stream, layout, per_file)[:count]):
                row = first_row + i * layout.chunk_rows
                if offset == size_bytes == _NOTHING:
                    yield row, None
                    continue
                with _one_large_chunk if layout.chunk_bytes > _LARGE_CHUNK_BYTES else nullcontext():
                    values = _decode(_stored(stream, layout, row, offset, size_bytes), layout, row, versions)
                    yield row, values[: layout.shape[0] - row]


def _index(stream: BufferedReader, layout: Layout, entries: int) -> list[tuple[int, int]]:
    """Offset and size of each chunk in a shard file."""
    file_bytes, index_bytes = stream.seek(0, 2), 16 * entries + _CRC32C_BYTES
    if file_bytes < index_bytes:
        raise FaultError(layout.name, "undecodable", f"found a file of {file_bytes} bytes, expected an index of {index_bytes}")
    stream.seek(-index_bytes, 2)
    raw = memoryview(_checked(stream.read(index_bytes), layout, "the index of a shard")).cast("Q")
    return list(zip(raw[::2].tolist(), raw[1::2].tolist(), strict=True))


def _stored(stream: BufferedReader, layout: Layout, row: int, offset: int, size_bytes: int) -> bytes:
    limit = 2 * layout.chunk_bytes + 4096  # packing does not make noise much larger
    if size_bytes > limit or offset + size_bytes > stream.seek(0, 2):
        message = f"row {row}: found a chunk of {size_bytes} bytes at {offset}, which does not fit the file or the array"
        raise FaultError(layout.name, "undecodable", message)
    stream.seek(offset)
    return _checked(stream.read(size_bytes), layout, f"row {row}")


def _checked(raw: bytes, layout: Layout, what: str) -> bytes:
    """The bytes before a checksum that is right."""
    content, checksum = raw[:-_CRC32C_BYTES], raw[-_CRC32C_BYTES:]
    if int(_codec("google_crc32c", layout, {}).value(content)).to_bytes(_CRC32C_BYTES, "little") != checksum:
        raise FaultError(layout.name, "undecodable", f"{what}: cannot be decoded: its checksum is wrong")
    return content


def _decode(content: bytes, layout: Layout, row: int, versions: Mapping[str, str]) -> np.ndarray:
    import numpy as np

    shape = (layout.chunk_rows, *layout.shape[1:])
    if not layout.packed:
        if len(content) != layout.chunk_bytes:
            message = f"row {row}: cannot be decoded: found {len(content)} bytes, expected {layout.chunk_bytes}"
            raise FaultError(layout.name, "undecodable", message)
        return np.frombuffer(content, np.dtype(layout.dtype).newbyteorder("<")).reshape(shape)
    standalone, values = _codec("pcodec", layout, versions).standalone, np.zeros(layout.chunk_values, layout.dtype)
    try:
        progress = standalone.simple_decompress_into(content, values)  # never more than there is room for
    except (RuntimeError, TypeError, ValueError) as error:
        raise _not_decoded(layout, f"row {row}: cannot be decoded: {error}", versions) from error
    if not progress.finished or progress.n_processed != len(values):
        message = f"row {row}: cannot be decoded: found {progress.n_processed} values or more, expected {len(values)}"
        raise _not_decoded(layout, message, versions)
    return values.reshape(shape)


def _codec(package: str, layout: Layout, versions: Mapping[str, str]) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise FaultError(layout.name, "unreadable", f"cannot be read here: {error}; {_readers(versions)}") from error


def _not_decoded(layout: Layout, message: str, versions: Mapping[str, str]) -> FaultError:
    """The bytes are those that were written: unless the packages are too, it may be the reader that is at fault."""
    if "numcodecs" in versions and all(versions[name] == _installed(name) for name in _READERS if name in versions):
        return FaultError(layout.name, "undecodable", f"{message}; {_readers(versions)}")
    doubt = "its bytes are as they were written, so the reader may be at fault"
    return FaultError(layout.name, "unreadable", f"{message}; {doubt}: {_readers(versions)}")


def _readers(versions: Mapping[str, str]) -> str:
    wrote = ", ".join(f"{name} {versions.get(name, '(not recorded)')}" for name in _READERS)
    return f"written with {wrote}; read with {', '.join(f'{name} {_installed(name)}' for name in _READERS)}"


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
