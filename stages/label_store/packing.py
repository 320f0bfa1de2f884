"""From a view's codes to the bytes of its chunk, and from chunks to a shard file: what Zarr itself would write, made where and
when there is time for it. Zarr packs a shard when its last view has come, and the device would wait meanwhile.

A chunk holds in its first h * w places, of a view of h x w codes, each row as its differences from the row above, modulo 2**16;
the rest is 0. PCodec takes the differences along rows itself: what is left of a smooth map is its noise (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import UInt16, UInt64
from numcodecs.pcodec import PCodec
from pcodec import standalone  # pyright: ignore[reportAttributeAccessIssue]  # its package has no annotations

from stages.label_store.format import QuantisedLabel

PCODEC: dict[str, Any] = {
    "level": 5,
    "mode_spec": "classic",
    "delta_spec": "try_consecutive",
    "delta_encoding_order": 1,
    "equal_pages_up_to": 1 << 14,
}
"""How it packs: chosen by measurement (docs/benchmarks.md). In pages, of which those after the view's end cost nothing."""


@dataclass(frozen=True, kw_only=True)
class PackedLabel:
    """A label as the bytes of its chunk, and all of it that is kept beside them."""

    chunk: bytes
    extent: tuple[int, int]
    scale: np.float32
    offset: np.float32
    pixels: int
    mean: float
    min: float
    max: float
    error: float


def pack(label: QuantisedLabel, side: int) -> PackedLabel:
    """The chunk of a view in an array of views of up to `side` x `side` codes. Safe in any thread."""
    return PackedLabel(
        chunk=pack_codes(label.codes, side),
        extent=(label.codes.shape[0], label.codes.shape[1]),
        scale=label.scale,
        offset=label.offset,
        pixels=label.pixels,
        mean=label.mean if label.pixels else np.nan,
        min=label.min,
        max=label.max,
        error=label.error,
    )


def pack_codes(codes: UInt16[np.ndarray, "h w"], side: int) -> bytes:
    """The chunk of a view in an array of views of up to `side` x `side` codes."""
    chunk = np.zeros(side * side, np.uint16)
    rows = chunk[: codes.size].reshape(codes.shape)
    rows[:1] = codes[:1]
    np.subtract(codes[1:], codes[:-1], out=rows[1:])
    return _with_checksum(bytes(PCodec(**PCODEC).encode(chunk)))


def unpacked(chunk: UInt16[np.ndarray, "_"], height: int, width: int) -> UInt16[np.ndarray, "height width"]:
    """The codes of a view, of the values that PCodec has unpacked."""
    rows = chunk[: height * width].reshape(height, width)
    codes = rows.copy()
    for above, row in pairwise(codes):  # at 560 x 560 in two thirds of cumsum's time
        row += above
    return codes


def unpack_codes(chunk: bytes, side: int) -> UInt16[np.ndarray, "_"]:
    """The side * side values of a chunk that `pack_codes` made. Raises ValueError or RuntimeError for other bytes."""
    content = checked(chunk)
    values = np.empty(side * side, np.uint16)
    done = standalone.simple_decompress_into(content, values)
    if done.n_processed != values.size or not done.finished:
        raise ValueError(f"found other than {values.size} values")
    return values


def checked(chunk: bytes) -> bytes:
    """A chunk without its checksum. Raises ValueError where that is another's."""
    if chunk != _with_checksum(chunk[:-4]):
        raise ValueError("the stored checksum is another")
    return chunk[:-4]


def shard_places(index: bytes) -> UInt64[np.ndarray, "_ 2"]:
    """Start and length of each chunk, 2**64 - 1 where there is none, by a shard's last bytes. Raises ValueError for others."""
    if index != _with_checksum(index[:-4]):
        raise ValueError("the stored checksum of the shard's index is another")
    return np.frombuffer(index[:-4], "<u8").reshape(-1, 2)


def shard_file(chunks: Sequence[bytes], places: int) -> list[bytes]:
    """The pieces of a shard with room for so many chunks: these, and its index at the end (Zarr's sharding_indexed codec)."""
    sizes = np.array([len(chunk) for chunk in chunks], "<u8")
    index = np.full((places, 2), np.iinfo(np.uint64).max, "<u8")
    index[: len(chunks), 0], index[: len(chunks), 1] = np.cumsum(sizes) - sizes, sizes
    return [*chunks, _with_checksum(index.tobytes())]


def _with_checksum(content: bytes) -> bytes:
    return content + google_crc32c.value(content).to_bytes(4, "little")
