"""Writing one part's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.codecs.numcodecs import PCodec

from manifests import PartStatistics
from manifests.place import NewFolder
from stages.label_store.format import EVERY_CHUNK, ContextPicture, ImageLabels, Label, decode_label, encode_label
from stages.label_store.zarr_files import NewPartFiles
from stages.views import Box

_JPEG_CHUNK_BYTES = 1 << 16
_SHARD_BYTES = 1 << 26
"""Codes of a shard before compression: about what writing needs beside the labels; a few files hold a part."""


def write_labels(
    folder: NewFolder, labels: Sequence[ImageLabels | None], *, context_px: int, depth_space: str, contexts_per_image: int = 1
) -> None:
    """Write one part of a teacher's column: a row for each context of each image, image by image; None where rejected.

    Raises ValueError where the rows are not whole images, and for a non-finite value in a valid pixel.
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


class LabelWriter:
    """Takes the rows of one part of a teacher's column as they come, in order; as a context manager it ends the part.

    A shard is written when it is full: memory (a shard, and its compressed bytes) does not grow with the part. boxes: of all
    patches that may come; fewer come where an image is rejected late. The bytes on disk depend on arguments and rows alone.
    """

    def __init__(
        self,
        folder: NewFolder,
        *,
        rows: int,
        boxes: Sequence[Box],
        context_px: int,
        depth_space: str,
        contexts_per_image: int = 1,
    ) -> None:
        side = max((max(box.height, box.width) for box in boxes), default=1)
        self._group = _create_group(folder, contexts_per_image, {"depth_space": depth_space})
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


def write_pictures(folder: NewFolder, pictures: Sequence[ContextPicture | None], *, contexts_per_image: int = 1) -> None:
    """Write one part of the column `images`; rows and refusals as in `write_labels`."""
    _refuse_torn_images(folder, pictures, contexts_per_image)
    group = _create_group(folder, contexts_per_image, {})
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


def _refuse_torn_images(folder: NewFolder, rows: Sequence[object | None], contexts_per_image: int) -> None:
    for start in range(0, len(rows), contexts_per_image):
        contexts = rows[start : start + contexts_per_image]
        if len(contexts) != contexts_per_image or 0 < sum(row is None for row in contexts) < len(contexts):
            found = ", ".join("rejected" if row is None else "given" for row in contexts)
            raise ValueError(
                f"{folder.name}: image {start // contexts_per_image} has the rows {found}; expected {contexts_per_image}, "
                "all given or all rejected (None)"
            )


def _create_group(folder: NewFolder, contexts_per_image: int, attributes: dict[str, Any]) -> zarr.Group:
    attributes = {"format_version": 1, "contexts_per_image": contexts_per_image, EVERY_CHUNK: True, **attributes}
    return zarr.create_group(NewPartFiles(folder), zarr_format=3, attributes=attributes)


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
