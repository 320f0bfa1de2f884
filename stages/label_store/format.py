"""What is stored: labels as codes of 16 bits, pictures as JPEG, and what both are in memory."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16
from PIL import Image

from stages.views import Box, SourceBox

EVERY_CHUNK = "every_chunk_written"
"""Attribute of a group in which no chunk is left out for being all 0, as they were before there was this attribute."""
_MAX_CODE = 65535


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
