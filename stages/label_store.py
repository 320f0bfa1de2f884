"""The label store: one part's arrays in one Zarr group, as docs/format.md describes it.

Labels go in as float32 maps with a validity mask and come back within half a quantisation step of each view's own range;
invalid pixels come back invalid. A lost file or chunk, and a flipped bit, raises when it is read, and never becomes a depth
or a pixel without one. Nothing in a part is executed, followed out of it, or believed about its size. Whoever writes a part
gets the size of each file from the writing itself: nothing is learned by looking into the folder.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, Float32, UInt8, UInt16
from PIL import Image
from zarr.codecs import Crc32cCodec
from zarr.codecs.numcodecs import PCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from manifests import PartManifest, PartStatistics
from manifests.part_files import differing_digests, differing_sizes, refuse_problems
from stages.views import Box, SourceBox

# PCodec is registered by numcodecs and readable wherever numcodecs is; docs/format.md names it.
warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr", category=UserWarning)

_MAX_CODE = 65535
_JPEG_CHUNK_BYTES = 1 << 16
_SHARD_BYTES = 1 << 26
"""Codes of a shard before compression: about what writing needs beside the labels; a few files hold a part."""
_READ_BYTES = 1 << 26
"""The most that one read may bring, so that a part that says otherwise of itself cannot fill the memory."""
_EVERY_CHUNK = "every_chunk_written"
"""Attribute of a group in which no chunk is left out for being all 0, as they were before there was this attribute."""
_REPAIR = "run `python -m manifests repair` on the run, then label again"
_ABSENT = 2**64 - 1  # in the index of a shard


@dataclass(frozen=True, kw_only=True)
class Label:
    """A depth map in its teacher's own space: values float32 [h, w] and where they hold, bool [h, w]."""

    values: Float32[np.ndarray, "h w"]
    valid: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class PatchLabel(Label):
    """A patch's label, area-averaged to its box on the context grid."""

    box: Box


@dataclass(frozen=True, kw_only=True)
class ImageLabels:
    """What one teacher says of one context of an image."""

    context: Label
    patches: tuple[PatchLabel, ...]


@dataclass(frozen=True, kw_only=True)
class ContextPicture:
    """One context of an image as it is stored: JPEG bytes of height x width pixels, and where it came from."""

    jpeg: bytes
    extent: tuple[int, int]
    source_size: tuple[int, int]
    source: SourceBox


# --- codes ----------------------------------------------------------------------------------------------------------


def encode_label(label: Label) -> tuple[UInt16[np.ndarray, "h w"], np.float32, np.float32]:
    """Codes with value = offset + scale * (code - 1), the view's range on 1 to 65535; 0 where invalid.

    Raises ValueError for a non-finite value in a valid pixel.
    """
    if not label.valid.any():
        return np.zeros(label.values.shape, np.uint16), np.float32(0), np.float32(0)
    used = label.values[label.valid]
    if not np.isfinite(used).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(used))} valid pixels are not finite; mark them invalid or reject it")
    offset, top = np.float32(used.min()), np.float32(used.max())
    scale = np.float32((np.float64(top) - np.float64(offset)) / (_MAX_CODE - 1))
    if scale == 0:
        return label.valid.astype(np.uint16), np.float32(0), offset
    steps = np.rint((np.where(label.valid, label.values, offset).astype(np.float64) - offset) / np.float64(scale))
    codes = np.where(label.valid, np.clip(steps, 0, _MAX_CODE - 1) + 1, 0).astype(np.uint16)
    return codes, scale, offset


def decode_label(codes: UInt16[np.ndarray, "h w"], scale: np.float32, offset: np.float32) -> Label:
    """The inverse of `encode_label`; invalid pixels have the value 0."""
    valid = codes > 0
    values = np.float64(offset) + np.float64(scale) * (codes.astype(np.float64) - 1)
    return Label(values=np.where(valid, values, 0).astype(np.float32), valid=valid)


# --- writing --------------------------------------------------------------------------------------------------------


def write_labels(
    folder: Path, labels: Sequence[ImageLabels | None], *, context_px: int, depth_space: str, contexts_per_image: int = 1
) -> Mapping[str, int]:
    """Write one part of a teacher's column: a row for each context of each image, image by image; None where rejected.

    Returns the size in bytes of each file, by its path in the folder. Raises FileExistsError where there is the folder,
    ValueError where the rows are not whole images, and for a non-finite value in a valid pixel.
    """
    _refuse_torn_images(folder, labels, contexts_per_image)
    with LabelWriter(
        folder,
        rows=len(labels),
        boxes=[patch.box for item in labels if item is not None for patch in item.patches],
        context_px=context_px,
        depth_space=depth_space,
        contexts_per_image=contexts_per_image,
    ) as writer:
        for item in labels:
            writer.append(item)
    return writer.files()


class LabelWriter:
    """Takes the rows of one part of a teacher's column as they come, in order; as a context manager it ends the part.

    A shard is written when it is full: memory (a shard, and its compressed bytes) does not grow with the part. boxes: of all
    patches that may come; fewer come where an image is rejected late. The bytes on disk depend on arguments and rows alone.
    Raises FileExistsError where there is the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rows: int,
        boxes: Sequence[Box],
        context_px: int,
        depth_space: str,
        contexts_per_image: int = 1,
    ) -> None:
        side = max((max(box.height, box.width) for box in boxes), default=1)
        self._store = _NewFolder(folder)
        self._group = _create_group(self._store, contexts_per_image, {"depth_space": depth_space})
        self._contexts = _ViewWriter(self._group, "context", rows, context_px)
        self._patches = _ViewWriter(self._group, "patch", len(boxes), side)
        self._extents: list[tuple[int, ...]] = []
        self._counts: list[int] = []
        self._boxes: list[Box] = []

    def append(self, labels: ImageLabels | None) -> None:
        """Write the next row; None where its image is rejected."""
        patches = () if labels is None else labels.patches
        self._contexts.append(None if labels is None else labels.context)
        for patch in patches:
            self._patches.append(patch)
        self._extents.append((0, 0) if labels is None else labels.context.values.shape)
        self._counts.append(len(patches))
        self._boxes += [patch.box for patch in patches]

    def files(self) -> Mapping[str, int]:
        """The size in bytes of each file that was written so far, by its path in the folder."""
        return dict(self._store.sizes)

    def statistics(self) -> PartStatistics:
        """Over all valid pixels so far, with the largest error that quantisation made, measured."""
        views = [writer for writer in (self._contexts, self._patches) if writer.pixels]
        pixels = sum(writer.pixels for writer in views)
        return PartStatistics(
            views=self._contexts.given + self._patches.given,
            pixels=pixels,
            label_bytes=2 * pixels,
            min=min((writer.min for writer in views), default=None),
            max=max((writer.max for writer in views), default=None),
            mean=sum(writer.sum for writer in views) / pixels if pixels else None,
            max_quantisation_error=max((writer.error for writer in views), default=None),
        )

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._contexts.close()
            self._patches.close()
            _write_array(self._group, "context_extent", np.array(self._extents, np.int32).reshape(-1, 2))
            _write_array(self._group, "patch_box", np.array(self._boxes, np.int32).reshape(-1, 4))
            _write_array(self._group, "patch_start", np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64))


class _ViewWriter:
    """One array of views, one view a chunk, with their scales and offsets; at most one shard's codes are in memory."""

    def __init__(self, group: zarr.Group, name: str, rows: int, side: int) -> None:
        self._group, self._name, self._side = group, name, side
        self._shard_rows = min(max(_SHARD_BYTES // (2 * side * side), 1), max(rows, 1))
        shape, codec = (rows, side, side), PCodec(level=8)
        self._array = _create_array(group, name, shape, np.uint16, chunk_rows=1, shard_rows=self._shard_rows, serializer=codec)
        self._shard = np.zeros((self._shard_rows, side, side), np.uint16)
        self._scales: list[np.float32] = []
        self._offsets: list[np.float32] = []
        self.given, self.pixels, self.sum, self.error = 0, 0, 0.0, 0.0
        self.min, self.max = np.inf, -np.inf

    def append(self, label: Label | None) -> None:
        place, scale, offset = len(self._scales) % self._shard_rows, np.float32(0), np.float32(0)
        self._shard[place] = 0
        if label is not None:
            codes, scale, offset = encode_label(label)
            self._shard[place, : codes.shape[0], : codes.shape[1]] = codes
            self._count(label, decode_label(codes, scale, offset))
        self._scales.append(scale)
        self._offsets.append(offset)
        if place + 1 == self._shard_rows:
            self._write_shard()

    def _count(self, label: Label, stored: Label) -> None:
        self.given += 1
        values = label.values[label.valid]
        if values.size:
            self.pixels += values.size
            self.sum += float(values.sum(dtype=np.float64))
            self.min, self.max = min(self.min, float(values.min())), max(self.max, float(values.max()))
            self.error = max(self.error, float(np.abs(stored.values[label.valid] - values).max()))

    def _write_shard(self) -> None:
        end = len(self._scales)
        start = (end - 1) // self._shard_rows * self._shard_rows
        self._array[start:end] = self._shard[: end - start]

    def close(self) -> None:
        rows = len(self._scales)
        if rows % self._shard_rows:
            self._write_shard()
        if rows < self._array.shape[0]:  # patches of images that were rejected after the array had been made
            self._array.resize((rows, self._side, self._side))
        _write_array(self._group, f"{self._name}_scale", np.array(self._scales, np.float32))
        _write_array(self._group, f"{self._name}_offset", np.array(self._offsets, np.float32))


def write_pictures(
    folder: Path, pictures: Sequence[ContextPicture | None], *, contexts_per_image: int = 1
) -> Mapping[str, int]:
    """Write one part of the column `images`; rows, refusals and what is returned as in `write_labels`."""
    _refuse_torn_images(folder, pictures, contexts_per_image)
    store = _NewFolder(folder)
    group = _create_group(store, contexts_per_image, {})
    files = [b"" if item is None else item.jpeg for item in pictures]
    starts = np.concatenate([[0], np.cumsum([len(file) for file in files])]).astype(np.int64)
    _write_array(group, "jpeg", np.frombuffer(b"".join(files), np.uint8), chunk=_JPEG_CHUNK_BYTES)
    _write_array(group, "jpeg_start", starts)
    extents = [(0, 0) if item is None else item.extent for item in pictures]
    sizes = [(0, 0) if item is None else item.source_size for item in pictures]
    boxes = [(0.0, 0.0, 0.0, 0.0) if item is None else item.source for item in pictures]
    _write_array(group, "context_extent", np.array(extents, np.int32).reshape(-1, 2))
    _write_array(group, "source_size", np.array(sizes, np.int32).reshape(-1, 2))
    _write_array(group, "context_box", np.array(boxes, np.float64).reshape(-1, 4))
    return store.sizes


def _refuse_torn_images(folder: Path, rows: Sequence[object | None], contexts_per_image: int) -> None:
    for start in range(0, len(rows), contexts_per_image):
        contexts = rows[start : start + contexts_per_image]
        if len(contexts) != contexts_per_image or 0 < sum(row is None for row in contexts) < len(contexts):
            found = ", ".join("rejected" if row is None else "given" for row in contexts)
            raise ValueError(
                f"{folder}: image {start // contexts_per_image} has the rows {found}; expected {contexts_per_image}, "
                "all given or all rejected (None)"
            )


class _NewFolder(LocalStore):
    """A folder that is yet to be made, for one group; remembers the size in bytes of every file that is written, by its key.

    A file that comes to be in another way is in nobody's list, and its part cannot be committed.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.sizes: dict[str, int] = {}

    async def set(self, key: str, value: Buffer) -> None:
        await super().set(key, value)
        self.sizes[key] = len(value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await super().set_if_not_exists(key, value)
        self.sizes.setdefault(key, len(value))

    def set_sync(self, key: str, value: Buffer) -> None:
        super().set_sync(key, value)
        self.sizes[key] = len(value)

    async def delete(self, key: str) -> None:
        await super().delete(key)
        self._forget(key)

    async def delete_dir(self, prefix: str) -> None:
        await super().delete_dir(prefix)
        self._forget(prefix)

    def delete_sync(self, key: str) -> None:
        super().delete_sync(key)
        self._forget(key)

    def _forget(self, key: str) -> None:
        gone = key.rstrip("/")
        for name in [name for name in self.sizes if name == gone or name.startswith(f"{gone}/") or not gone]:
            del self.sizes[name]


def _create_group(store: _NewFolder, contexts_per_image: int, attributes: dict[str, Any]) -> zarr.Group:
    store.root.mkdir(parents=True)
    attributes = {"format_version": 1, "contexts_per_image": contexts_per_image, _EVERY_CHUNK: True, **attributes}
    return zarr.create_group(store, zarr_format=3, attributes=attributes)


def encode_picture(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A JPEG file at quality 95 without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def decode_picture(jpeg: bytes, extent: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels that teachers and student see, `extent` of them in height and width.

    Raises ValueError for what is no JPEG file of that size: the decoders of other formats start programs, and a file that says
    it is larger fills the memory.
    """
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            if image.size != extent[::-1]:
                raise ValueError(f"found a picture of {image.size[::-1]}, expected {extent} in height and width")
            return np.asarray(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:  # Pillow's words for bytes that are no such picture
        raise ValueError(f"cannot be decoded as JPEG: {error}") from error


def _write_array(group: zarr.Group, name: str, values: np.ndarray, *, chunk: int | None = None) -> None:
    """One array in one file: `chunk` rows a chunk, all of them by default."""
    rows = max(len(values), 1)
    chunk_rows = min(chunk or rows, rows)
    shard_rows = -(-rows // chunk_rows) * chunk_rows
    array = _create_array(group, name, values.shape, values.dtype, chunk_rows=chunk_rows, shard_rows=shard_rows)
    if len(values):
        array[...] = values


def _create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    chunk_rows: int,
    shard_rows: int,
    serializer: Any = "auto",
) -> zarr.Array:
    """Checksummed, and 0 where nothing is written; what is written is there even if it is all 0, so that absence is damage."""
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(chunk_rows, *shape[1:]),
        shards=(shard_rows, *shape[1:]),
        serializer=serializer,
        compressors=[Crc32cCodec()],  # type: ignore[list-item]  # a checksum is a bytes codec like any other
        fill_value=0,
        config={"write_empty_chunks": True},
    )


# --- reading --------------------------------------------------------------------------------------------------------


class _PartReader:
    """Opens the group when it is first read, so that a reader can be sent to another process.

    manifest: of the committed part, against which the files are held then: names and sizes of all, digests of the small ones.
    Without it, as for an attempt that is not committed, only what the arrays say of themselves is known. Reading raises
    ValueError for damage, and OSError where the files cannot be read.
    """

    def __init__(self, folder: Path, manifest: PartManifest | None = None) -> None:
        self.folder, self.manifest = folder, manifest

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    @cached_property
    def _group(self) -> zarr.Group:
        if self.manifest is not None:
            refuse_problems(self.folder.parent, differing_sizes(self.folder.parent, self.manifest))
            refuse_problems(self.folder.parent, differing_digests(self.folder.parent, self.manifest))
        try:
            return zarr.open_group(self.folder, mode="r", zarr_format=3)  # version 2 has codecs that execute what they read
        except FileNotFoundError as error:
            raise ValueError(f"{self.folder}: found no group of Zarr version 3, expected the arrays of a part") from error

    @cached_property
    def _has_every_chunk(self) -> bool:
        return bool(self._group.attrs.get(_EVERY_CHUNK, False))

    @cached_property
    def _listed(self) -> frozenset[str] | None:
        return None if self.manifest is None else frozenset(file.path for file in self.manifest.files)

    def _array(self, name: str) -> zarr.Array:
        array = self._group.get(name)
        if not isinstance(array, zarr.Array) or array.shards is None or min(array.chunks) < 1:
            raise ValueError(f"{self.folder}/{name}: found no array in shards, expected one")
        row = math.prod(array.shape[1:])  # a view is asked for whole, also where its chunks are smaller
        self._refuse_size(name, max(math.prod(array.chunks), row) * array.dtype.itemsize)
        return array

    def _table(self, name: str) -> np.ndarray:
        array = self._array(name)
        self._refuse_size(name, array.nbytes)
        if array.shape[0] > array.chunks[0]:
            raise ValueError(f"{self.folder}/{name}: found {array.chunks[0]} rows in a chunk, expected all {array.shape[0]}")
        self._refuse_lost(name, array, 0, array.shape[0])
        return np.asarray(array[...])

    def _refuse_size(self, name: str, size_bytes: int) -> None:
        if size_bytes > _READ_BYTES:
            found = f"found {size_bytes} bytes to be read at once"
            raise ValueError(f"{self.folder}/{name}: {found}, expected {_READ_BYTES} at most")

    def _refuse_lost(self, name: str, array: zarr.Array, start: int, end: int) -> None:
        """Raises ValueError unless every chunk of the rows is there; Zarr would read it as 0."""
        assert array.shards is not None
        chunk_rows, shard_rows = array.chunks[0], array.shards[0]
        in_shard = shard_rows // chunk_rows
        for shard in range(start // shard_rows, -(-end // shard_rows)):
            path = Path(self.folder, name, "c", str(shard), *["0"] * (array.ndim - 1))
            if not self._is_promised(path):
                continue
            stored, first = _stored_chunks(path, in_shard), shard * in_shard
            for chunk in range(max(start // chunk_rows, first), min(-(-end // chunk_rows), first + in_shard)):
                if chunk - first >= len(stored) or not stored[chunk - first]:
                    raise ValueError(f"{self.folder}/{name}: row {chunk * chunk_rows} has lost its chunk; {_REPAIR}")

    def _is_promised(self, shard: Path) -> bool:
        """Whether a shard must be there: always, but in a part of old, whose writer left out what is all 0."""
        if self._listed is None:
            return self._has_every_chunk or os.path.lexists(shard)
        if shard.relative_to(self.folder.parent).as_posix() in self._listed:
            return True
        if self._has_every_chunk or os.path.lexists(shard):
            raise ValueError(f"{shard}: its array needs this file, and the part's manifest does not list it; {_REPAIR}")
        return False


def _stored_chunks(shard: Path, chunks: int) -> Bool[np.ndarray, "_"]:
    """Which chunks of a shard are there, none where its index is not. The index is 16 bytes for each chunk at the shard's end,
    before the 4 of its checksum, which Zarr looks at whenever it reads a chunk."""
    try:
        with shard.open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(size_bytes - 16 * chunks - 4, 0))
            index = file.read(16 * chunks)
    except FileNotFoundError:
        index = b""
    places = np.frombuffer(index if len(index) == 16 * chunks else b"", "<u8").reshape(-1, 2)
    return places[:, 1] != np.uint64(_ABSENT)


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

    def context(self, row: int) -> Label | None:
        """The context's label at its extent, or None for a rejected image."""
        height, width = (int(side) for side in self._small["context_extent"][row])
        return self._view("context", row, height, width) if height else None

    def patches(self, row: int) -> list[PatchLabel]:
        """The labels of a context's patches; empty for a rejected image."""
        start, end = (int(patch) for patch in self._small["patch_start"][row : row + 2])
        boxes = {patch: Box(*map(int, self._small["patch_box"][patch])) for patch in range(start, end)}
        views = {patch: self._view("patch", patch, box.height, box.width) for patch, box in boxes.items()}
        return [PatchLabel(values=view.values, valid=view.valid, box=boxes[patch]) for patch, view in views.items()]

    def _view(self, name: str, row: int, height: int, width: int) -> Label:
        array = self._codes[name]
        try:
            codes = np.asarray(array[row])[:height, :width]
        except (ValueError, RuntimeError) as error:  # a checksum, or what the decoder makes of other bytes
            raise ValueError(f"{self.folder}/{name}: row {row} is damaged ({error}); {_REPAIR}") from error
        scale, offset = self._small[f"{name}_scale"][row], self._small[f"{name}_offset"][row]
        if not codes.any():  # a view without any value, which is rare, or one that was lost
            if scale or offset:  # a view that was written without any value has both 0
                raise ValueError(f"{self.folder}/{name}: row {row} has lost its chunk; {_REPAIR}")
            if self._has_every_chunk:
                self._refuse_lost(name, array, row, row + 1)
        return decode_label(codes, scale, offset)


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

    def picture(self, row: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """The context's decoded pixels, or None for a rejected image."""
        start, end = (int(byte) for byte in self._starts[row : row + 2])
        if end <= start:
            return None
        height, width = (int(side) for side in self._extents[row])
        self._refuse_size("jpeg", max(end - start, 3 * height * width))
        self._refuse_lost("jpeg", self._jpeg, start, end)
        try:
            return decode_picture(np.asarray(self._jpeg[start:end]).tobytes(), (height, width))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{self.folder}/jpeg: row {row} is damaged ({error}); {_REPAIR}") from error
