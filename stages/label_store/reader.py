"""Reading a committed part's arrays, and refusing what is damaged."""

from __future__ import annotations

import math
import os
from functools import cached_property
from io import BufferedReader
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, UInt8, UInt16, UInt64
from zarr.abc.codec import Codec
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ShardingCodecIndexLocation
from zarr.codecs.numcodecs import PCodec

from manifests import PartManifest
from manifests.part_files import differing_digests, differing_sizes, refuse_problems
from manifests.place import Place
from stages.label_store.format import EVERY_CHUNK, CodedLabel, CodedPatch, decode_picture
from stages.label_store.packing import checked, shard_places, unpack_codes, unpacked
from stages.label_store.zarr_files import PartFiles
from stages.views import Box, SourceBox

_READ_BYTES = 1 << 26
"""The most that one read may bring, so that a part that says otherwise of itself cannot fill the memory."""
REPAIR = "run `python -m manifests repair` on the run, then label again"
_ABSENT = 2**64 - 1  # in the index of a shard


class _PartReader:
    """Opens the group when it is first read, so that a reader can be sent to another process.

    folder: the group's name in the run. manifest: of the committed part, against which the files are held then: names and sizes
    of all, digests of the small ones. Without it, as for an attempt that is not committed, only what the arrays say of
    themselves is known. Reading raises ValueError for damage, and OSError where the files cannot be read.
    """

    def __init__(self, place: Place, folder: str, manifest: PartManifest | None = None) -> None:
        self.place, self.folder, self.manifest = place, folder, manifest

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "folder": self.folder, "manifest": self.manifest}

    @cached_property
    def _group(self) -> zarr.Group:
        if self.manifest is not None:
            refuse_problems(self.place, self.manifest.column, differing_sizes(self.place, self.manifest))
            refuse_problems(self.place, self.manifest.column, differing_digests(self.place, self.manifest))
        try:
            # Version 2 has codecs that execute what they read.
            return zarr.open_group(PartFiles(self._open), mode="r", zarr_format=3)
        except FileNotFoundError as error:
            raise ValueError(f"{self.where}: found no group of Zarr version 3, expected the arrays of a part") from error

    def _open(self, name: str) -> BufferedReader:
        return self.place.open(f"{self.folder}/{name}")

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys of the part's images; none without a manifest."""
        return () if self.manifest is None else tuple(image.key for image in self.manifest.images)

    @property
    def where(self) -> str:
        """The group, for messages."""
        return self.place.shown(self.folder)

    @cached_property
    def _has_every_chunk(self) -> bool:
        return bool(self._group.attrs.get(EVERY_CHUNK, False))

    @cached_property
    def _listed(self) -> frozenset[str] | None:
        return None if self.manifest is None else frozenset(file.path for file in self.manifest.files)

    def _array(self, name: str) -> zarr.Array:
        array = self._group.get(name)
        if not isinstance(array, zarr.Array) or array.shards is None or min(array.chunks) < 1:
            raise ValueError(f"{self.where}/{name}: found no array in shards, expected one")
        row = math.prod(array.shape[1:])  # a view is asked for whole, also where its chunks are smaller
        self._refuse_size(name, max(math.prod(array.chunks), row) * array.dtype.itemsize)
        return array

    def _table(self, name: str) -> np.ndarray:
        array = self._array(name)
        self._refuse_size(name, array.nbytes)
        if array.shape[0] > array.chunks[0]:
            raise ValueError(f"{self.where}/{name}: found {array.chunks[0]} rows in a chunk, expected all {array.shape[0]}")
        self._refuse_lost(name, array, 0, array.shape[0])
        return np.asarray(array[...])

    def _refuse_size(self, name: str, size_bytes: int) -> None:
        if size_bytes > _READ_BYTES:
            found = f"found {size_bytes} bytes to be read at once"
            raise ValueError(f"{self.where}/{name}: {found}, expected {_READ_BYTES} at most")

    def _refuse_lost(self, name: str, array: zarr.Array, start: int, end: int) -> None:
        """Raises ValueError unless every chunk of the rows is there; Zarr would read it as 0."""
        assert array.shards is not None
        chunk_rows, shard_rows = array.chunks[0], array.shards[0]
        in_shard = shard_rows // chunk_rows
        for shard in range(start // shard_rows, -(-end // shard_rows)):
            file = "/".join([name, "c", str(shard), *["0"] * (array.ndim - 1)])
            if not self._is_promised(file):
                continue
            stored, first = self._stored_chunks(file, in_shard), shard * in_shard
            for chunk in range(max(start // chunk_rows, first), min(-(-end // chunk_rows), first + in_shard)):
                if chunk - first >= len(stored) or not stored[chunk - first]:
                    raise ValueError(f"{self.where}/{name}: row {chunk * chunk_rows} has lost its chunk; {REPAIR}")

    def _is_promised(self, shard: str) -> bool:
        """Whether a shard must be there: always, but in a part of old, whose writer left out what is all 0."""
        name = f"{self.folder}/{shard}"
        if self._listed is None:
            return self._has_every_chunk or self.place.exists(name)
        if f"{self.folder.rpartition('/')[2]}/{shard}" in self._listed:
            return True
        if self._has_every_chunk or self.place.exists(name):
            found = f"{self.where}/{shard}: its array needs this file"
            raise ValueError(f"{found}, and the part's manifest does not list it; {REPAIR}")
        return False

    def _stored_chunks(self, shard: str, chunks: int) -> Bool[np.ndarray, "_"]:
        """Which chunks of a shard are there, none where its index is not. The index is 16 bytes for each chunk at the shard's
        end, before the 4 of its checksum, which Zarr looks at whenever it reads a chunk."""
        try:
            with self._open(shard) as file:
                size_bytes = file.seek(0, os.SEEK_END)
                file.seek(max(size_bytes - 16 * chunks - 4, 0))
                index = file.read(16 * chunks)
        except FileNotFoundError:
            index = b""
        places = np.frombuffer(index if len(index) == 16 * chunks else b"", "<u8").reshape(-1, 2)
        return places[:, 1] != np.uint64(_ABSENT)

    def _chunk(self, name: str, array: zarr.Array, number: int) -> bytes | None:
        """The bytes of a chunk of a plain array, with their checksum; None where it is not there, which is for Zarr and others
        to say something of."""
        assert array.shards is not None
        in_shard = array.shards[0] // array.chunks[0]
        shard = "/".join([name, "c", str(number // in_shard), *["0"] * (array.ndim - 1)])
        try:
            with self._open(shard) as file:
                if shard not in self._places:
                    file.seek(max(file.seek(0, os.SEEK_END) - 16 * in_shard - 4, 0))
                    self._places[shard] = shard_places(file.read())
                places, place = self._places[shard], number % in_shard
                start, size = (int(number) for number in places[place]) if place < len(places) else (_ABSENT, _ABSENT)
                if start == size == _ABSENT:
                    return None
                self._refuse_size(name, size)
                file.seek(min(start, _ABSENT >> 1))
                return file.read(size)
        except FileNotFoundError:
            return None

    @cached_property
    def _places(self) -> dict[str, UInt64[np.ndarray, "_ 2"]]:
        """Where the chunks of each shard lie, as far as it is known."""
        return {}


def _is_plain(array: zarr.Array, serializer: type[Codec], dtype: type[np.generic]) -> bool:
    """Whether an array's chunks are what this serializer makes, with a checksum, and each shard's index is at its end."""
    match array.metadata.codecs:  # type: ignore[union-attr]  # of version 3, as all that is opened
        case (ShardingCodec() as sharding,):
            inner, index = ([type(codec) for codec in codecs] for codecs in (sharding.codecs, sharding.index_codecs))
            at_end = sharding.index_location == ShardingCodecIndexLocation.end
            return array.dtype == dtype and at_end and inner == [serializer, Crc32cCodec] and index == [BytesCodec, Crc32cCodec]
        case _:
            return False


class LabelReader(_PartReader):
    """Reads one committed part of a teacher's column; row = image * contexts_per_image + context."""

    @cached_property
    def _small(self) -> dict[str, np.ndarray]:
        names = ("context_extent", "context_scale", "context_offset", "patch_start", "patch_box", "patch_scale", "patch_offset")
        return {name: self._table(name) for name in names}

    @cached_property
    def _codes(self) -> dict[str, zarr.Array]:
        return {name: self._array(name) for name in ("context", "patch")}

    def __len__(self) -> int:
        return len(self._small["context_extent"])

    def context(self, row: int) -> CodedLabel | None:
        """The context's label at its extent, or None for a rejected image."""
        height, width = (int(side) for side in self._small["context_extent"][row])
        return self._view("context", row, height, width) if height else None

    def patches(self, row: int) -> list[CodedPatch]:
        """The labels of a context's patches; empty for a rejected image."""
        start, end = (int(patch) for patch in self._small["patch_start"][row : row + 2])
        boxes = {patch: Box(*map(int, self._small["patch_box"][patch])) for patch in range(start, end)}
        views = ((self._view("patch", patch, box.height, box.width), box) for patch, box in boxes.items())
        return [CodedPatch(codes=view.codes, scale=view.scale, offset=view.offset, box=box) for view, box in views]

    def _stored(self, name: str, row: int) -> UInt16[np.ndarray, "*s"]:
        """What the chunk of a view holds: read here where it lies as `pack_codes` and `shard_file` lay it out, else by Zarr,
        which hands each read from thread to thread and takes three times as long."""
        array = self._codes[name]
        if self._is_plain[name] and (chunk := self._chunk(name, array, row)):
            return unpack_codes(chunk, math.isqrt(array.shape[1]))
        return np.asarray(array[row])

    @cached_property
    def _is_plain(self) -> dict[str, bool]:
        """Whether a view is a chunk, and packed."""
        return {
            name: _is_plain(array, PCodec, np.uint16)
            and array.ndim == 2
            and array.chunks == (1, array.shape[1]) == (1, math.isqrt(array.shape[1]) ** 2)
            for name, array in self._codes.items()
        }

    def _view(self, name: str, row: int, height: int, width: int) -> CodedLabel:
        try:
            stored = self._stored(name, row)
        except (ValueError, RuntimeError) as error:  # a checksum, or what the decoder makes of other bytes
            raise ValueError(f"{self.where}/{name}: row {row} is damaged ({error}); {REPAIR}") from error
        codes = stored[:height, :width] if stored.ndim == 2 else unpacked(stored, height, width)  # as in version 1, and now
        scale, offset = self._small[f"{name}_scale"][row], self._small[f"{name}_offset"][row]
        if not codes.any():  # a view without any value, which is rare, or one that was lost
            if scale or offset:  # a view that was written without any value has both 0
                raise ValueError(f"{self.where}/{name}: row {row} has lost its chunk; {REPAIR}")
            if self._has_every_chunk:
                self._refuse_lost(name, self._codes[name], row, row + 1)
        return CodedLabel(codes=codes, scale=scale, offset=offset)


class PictureReader(_PartReader):
    """Reads one committed part of the column `images`; row = image * contexts_per_image + context."""

    @cached_property
    def _starts(self) -> np.ndarray:
        return self._table("jpeg_start")

    @cached_property
    def _extents(self) -> np.ndarray:
        return self._table("context_extent")

    @cached_property
    def _jpeg(self) -> zarr.Array:
        return self._array("jpeg")

    def __len__(self) -> int:
        return len(self._starts) - 1

    @cached_property
    def _sizes(self) -> np.ndarray:
        return self._table("source_size")

    def source_size(self, row: int) -> tuple[int, int]:
        """Height and width of the upright photograph; 0, 0 for a rejected image."""
        height, width = self._sizes[row]
        return int(height), int(width)

    @cached_property
    def _boxes(self) -> np.ndarray:
        return self._table("context_box")

    def source_box(self, row: int) -> SourceBox:
        """Where the context is in the upright photograph, in its pixels; 0, 0, 0, 0 for a rejected image."""
        return SourceBox(*map(float, self._boxes[row]))

    def jpeg(self, row: int) -> bytes | None:
        """The context's JPEG file as it is stored, or None for a rejected image; `picture` says whether it is one."""
        start, end = (int(byte) for byte in self._starts[row : row + 2])
        if end <= start:
            return None
        self._refuse_size("jpeg", end - start)
        self._refuse_lost("jpeg", self._jpeg, start, end)
        try:
            return self._bytes(start, end)
        except (ValueError, RuntimeError) as error:
            raise self._damaged(row, error) from error

    def picture(self, row: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """The context's decoded pixels, or None for a rejected image."""
        if (jpeg := self.jpeg(row)) is None:
            return None
        height, width = (int(side) for side in self._extents[row])
        self._refuse_size("jpeg", 3 * height * width)
        try:
            return decode_picture(jpeg, (height, width))
        except (ValueError, RuntimeError) as error:
            raise self._damaged(row, error) from error

    def _damaged(self, row: int, error: Exception) -> ValueError:
        return ValueError(f"{self.where}/jpeg: row {row} is damaged ({error}); {REPAIR}")

    def _bytes(self, start: int, end: int) -> bytes:
        """Of the files: read where they lie, as views are, else by Zarr."""
        side = self._jpeg.chunks[0]
        chunks = range(start // side, -(-end // side))
        found = [self._chunk("jpeg", self._jpeg, number) if self._is_plain else None for number in chunks]
        if not all(found):
            return np.asarray(self._jpeg[start:end]).tobytes()
        whole = b"".join(checked(chunk) for chunk in found if chunk)
        return whole[start - chunks.start * side : end - chunks.start * side]

    @cached_property
    def _is_plain(self) -> bool:
        return _is_plain(self._jpeg, BytesCodec, np.uint8) and self._jpeg.ndim == 1
