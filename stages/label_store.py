"""The label store: one part's arrays in one Zarr group, as docs/format.md describes it.

Labels go in as float32 maps with a validity mask and come back within half a quantisation step of each view's own range;
invalid pixels come back invalid. A lost chunk or a flipped bit raises when it is read, and never becomes a depth.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, Float32, UInt8, UInt16
from PIL import Image
from zarr.codecs import Crc32cCodec
from zarr.codecs.numcodecs import PCodec

from stages.views import Box, SourceBox

# PCodec is registered by numcodecs and readable wherever numcodecs is; docs/format.md names it.
warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr", category=UserWarning)

_MAX_CODE = 65535
_JPEG_CHUNK_BYTES = 1 << 16


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
    """What one teacher says of one image."""

    context: Label
    patches: tuple[PatchLabel, ...]


@dataclass(frozen=True, kw_only=True)
class ContextPicture:
    """The context of one image as it is stored: JPEG bytes of height x width pixels, and where it came from."""

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


def write_labels(folder: Path, labels: Sequence[ImageLabels | None], *, context_px: int, depth_space: str) -> None:
    """Write one part of a teacher's column; None stands for a rejected image. The folder must not exist."""
    given = [item for item in labels if item is not None]
    patches = [patch for item in given for patch in item.patches]
    side = max((max(patch.box.height, patch.box.width) for patch in patches), default=1)
    context = _encode_views([None if item is None else item.context for item in labels], context_px)
    patch = _encode_views(patches, side)
    extents = [(0, 0) if item is None else item.context.values.shape for item in labels]
    counts = [0 if item is None else len(item.patches) for item in labels]
    group = zarr.create_group(folder, zarr_format=3, attributes={"format_version": 1, "depth_space": depth_space})
    for name, (codes, scale, offset) in (("context", context), ("patch", patch)):
        _write_array(group, name, codes, chunk=1, codec=PCodec(level=8))
        _write_array(group, f"{name}_scale", scale)
        _write_array(group, f"{name}_offset", offset)
    _write_array(group, "context_extent", np.array(extents, np.int32).reshape(-1, 2))
    _write_array(group, "patch_box", np.array([patch.box for patch in patches], np.int32).reshape(-1, 4))
    _write_array(group, "patch_start", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def write_pictures(folder: Path, pictures: Sequence[ContextPicture | None]) -> None:
    """Write one part of the column `images`; None stands for a rejected image. The folder must not exist."""
    group = zarr.create_group(folder, zarr_format=3, attributes={"format_version": 1})
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


def encode_picture(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A JPEG file at quality 95 without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def decode_picture(jpeg: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels that teachers and student see."""
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


def _encode_views(labels: Sequence[Label | None], side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    codes = np.zeros((len(labels), side, side), np.uint16)
    scale, offset = np.zeros(len(labels), np.float32), np.zeros(len(labels), np.float32)
    for row, label in enumerate(labels):
        if label is not None:
            height, width = label.values.shape
            codes[row, :height, :width], scale[row], offset[row] = encode_label(label)
    return codes, scale, offset


def _write_array(group: zarr.Group, name: str, values: np.ndarray, *, chunk: int | None = None, codec: Any = "auto") -> None:
    """One array in one file: `chunk` rows a chunk, all chunks in one shard; checksummed."""
    rows = max(len(values), 1)
    chunk_rows = min(chunk or rows, rows)
    tail = values.shape[1:]
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk_rows, *tail),
        shards=(-(-rows // chunk_rows) * chunk_rows, *tail),
        serializer=codec,
        compressors=[Crc32cCodec()],  # type: ignore[list-item]  # a checksum is a bytes codec like any other
        fill_value=0,
    )
    if len(values):
        array[...] = values


# --- reading --------------------------------------------------------------------------------------------------------


class _PartReader:
    """Opens the group when it is first read, so that a reader can be sent to another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    @cached_property
    def _group(self) -> zarr.Group:
        return zarr.open_group(self.folder, mode="r")

    def _array(self, name: str) -> zarr.Array:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise ValueError(f"{self.folder}/{name}: found a group, expected an array")
        return array

    def _table(self, name: str) -> np.ndarray:
        return np.asarray(self._array(name)[...])


class LabelReader(_PartReader):
    """Reads one committed part of a teacher's column."""

    @cached_property
    def _small(self) -> dict[str, np.ndarray]:
        names = ("context_extent", "context_scale", "context_offset", "patch_start", "patch_box", "patch_scale", "patch_offset")
        return {name: self._table(name) for name in names}

    @cached_property
    def _codes(self) -> dict[str, zarr.Array]:
        return {name: self._array(name) for name in ("context", "patch")}

    def __len__(self) -> int:
        return len(self._small["context_extent"])

    def context(self, image: int) -> Label | None:
        """The context's label at its extent, or None for a rejected image."""
        height, width = (int(side) for side in self._small["context_extent"][image])
        return self._view("context", image, height, width) if height else None

    def patches(self, image: int) -> list[PatchLabel]:
        """The patches' labels; empty for a rejected image."""
        start, end = (int(row) for row in self._small["patch_start"][image : image + 2])
        boxes = {row: Box(*map(int, self._small["patch_box"][row])) for row in range(start, end)}
        views = {row: self._view("patch", row, box.height, box.width) for row, box in boxes.items()}
        return [PatchLabel(values=view.values, valid=view.valid, box=boxes[row]) for row, view in views.items()]

    def _view(self, name: str, row: int, height: int, width: int) -> Label:
        codes = np.asarray(self._codes[name][row])[:height, :width]
        scale, offset = self._small[f"{name}_scale"][row], self._small[f"{name}_offset"][row]
        if not codes.any() and (scale or offset):  # a view that was written without any value has both 0
            raise ValueError(f"{self.folder}/{name}: row {row} has lost its chunk; run `python -m manifests verify` on the run")
        return decode_label(codes, scale, offset)


class PictureReader(_PartReader):
    """Reads one committed part of the column `images`."""

    @cached_property
    def _starts(self) -> np.ndarray:
        return self._table("jpeg_start")

    @cached_property
    def _jpeg(self) -> zarr.Array:
        return self._array("jpeg")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def picture(self, image: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """The context's decoded pixels, or None for a rejected image."""
        start, end = (int(byte) for byte in self._starts[image : image + 2])
        return decode_picture(np.asarray(self._jpeg[start:end]).tobytes()) if end > start else None
