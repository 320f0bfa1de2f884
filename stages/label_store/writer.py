"""Writing one part's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.codecs.numcodecs import PCodec

from manifests import PartStatistics
from manifests.place import NewFolder
from stages.label_store.format import EVERY_CHUNK, LABEL_BITS, ContextPicture, ImageLabels, QuantisedLabel, quantise
from stages.label_store.packing import PCODEC, PackedLabel, pack, pack_codes, shard_file
from stages.label_store.zarr_files import NewPartFiles
from stages.views import Box

_JPEG_CHUNK_BYTES = 1 << 16
_SHARD_BYTES = 1 << 26
"""Codes of a shard before they are packed: a few files hold a part."""


def write_labels(
    folder: NewFolder,
    labels: Sequence[ImageLabels | None],
    *,
    context_px: int,
    depth_space: str,
    contexts_per_image: int = 1,
    label_bits: int = LABEL_BITS,
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
        label_bits=label_bits,
    ) as writer:
        for item in labels:
            writer.append(item)


LabelT = TypeVar("LabelT")


@dataclass(frozen=True, kw_only=True)
class Row(Generic[LabelT]):
    """One row of a teacher's column: a context's label, and those of its patches with their places."""

    context: LabelT
    patches: tuple[tuple[Box, LabelT], ...] = ()


class LabelWriter:
    """Takes the rows of one part of a teacher's column as they come, in order; as a context manager it ends the part.

    A shard is written when it is full: memory (the packed bytes of a shard) does not grow with the part. boxes: of all patches
    that may come; fewer come where an image is rejected late. The bytes on disk depend on arguments and rows alone.
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
        label_bits: int = LABEL_BITS,
    ) -> None:
        side = max((max(box.height, box.width) for box in boxes), default=1)
        attributes = {"format_version": 2, "depth_space": depth_space, "label_bits": label_bits}
        self._group, self._bits = _create_group(folder, contexts_per_image, attributes), label_bits
        self._contexts = _ViewWriter(folder, self._group, "context", rows, context_px)
        self._patches = _ViewWriter(folder, self._group, "patch", len(boxes), side)
        self._extents: list[tuple[int, ...]] = []
        self._counts: list[int] = []
        self._boxes: list[Box] = []

    def pack(self, label: QuantisedLabel, box: Box | None) -> PackedLabel:
        """A context's label, or that of the patch at `box`, for `append_packed`. Safe in any thread."""
        return pack(label, (self._contexts if box is None else self._patches).side)

    def append(self, labels: ImageLabels | None) -> None:
        """Write the next row; None where its image is rejected. Raises as `quantise` does."""
        if labels is None:
            return self.append_packed(None)
        patches = tuple((patch.box, self.pack(quantise(patch, self._bits), patch.box)) for patch in labels.patches)
        return self.append_packed(Row(context=self.pack(quantise(labels.context, self._bits), None), patches=patches))

    def append_packed(self, row: Row[PackedLabel] | None) -> None:
        """Write the next row; None where its image is rejected."""
        patches = () if row is None else row.patches
        self._contexts.append(None if row is None else row.context)
        for _, patch in patches:
            self._patches.append(patch)
        self._extents.append((0, 0) if row is None else row.context.extent)
        self._counts.append(len(patches))
        self._boxes += [box for box, _ in patches]

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
    """One array of views of up to `side` x `side` codes, one view a chunk, with their scales and offsets; at most one shard's
    chunks are in memory. rows: as many as may come."""

    def __init__(self, folder: NewFolder, group: zarr.Group, name: str, rows: int, side: int) -> None:
        self._folder, self._group, self._name, self.side = folder, group, name, side
        self._shard_rows = min(max(_SHARD_BYTES // (2 * side * side), 1), max(rows, 1))
        self._shard: list[bytes] = []
        self._nothing = pack_codes(np.zeros((0, 0), np.uint16), side)
        self._scales: list[np.float32] = []
        self._offsets: list[np.float32] = []
        self.given, self.pixels, self.sum, self.error = 0, 0, 0.0, 0.0
        self.min, self.max = np.inf, -np.inf

    def append(self, label: PackedLabel | None) -> None:
        self._shard.append(self._nothing if label is None else label.chunk)
        self._scales.append(np.float32(0) if label is None else label.scale)
        self._offsets.append(np.float32(0) if label is None else label.offset)
        if label is not None:
            self._count(label)
        if len(self._shard) == self._shard_rows:
            self._write_shard()

    def _count(self, label: PackedLabel) -> None:
        self.given += 1
        if label.pixels:
            self.pixels += label.pixels
            self.sum += label.mean * label.pixels
            self.min, self.max = min(self.min, label.min), max(self.max, label.max)
            self.error = max(self.error, label.error)

    def _write_shard(self) -> None:
        number = (len(self._scales) - 1) // self._shard_rows
        self._folder.write(f"{self._name}/c/{number}/0", b"".join(shard_file(self._shard, self._shard_rows)))
        self._shard.clear()

    def close(self) -> None:
        if self._shard:
            self._write_shard()
        shape = (len(self._scales), self.side * self.side)
        _create_array(
            self._group, self._name, shape, np.uint16, chunk_rows=1, shard_rows=self._shard_rows, serializer=PCodec(**PCODEC)
        )
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
