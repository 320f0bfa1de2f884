"""What is stored: labels as codes of up to 16 bits, pictures as JPEG, and what both are in memory."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16
from PIL import Image

from stages.views import Box, SourceBox

EVERY_CHUNK = "every_chunk_written"
"""Attribute of a group in which no chunk is left out for being all 0, as they were before there was this attribute."""
LABEL_BITS = 12
"""Of a code, where nothing else is said: chosen by measurement (docs/benchmarks.md)."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A depth map in its teacher's own space: values float32 [h, w] and where they hold, bool [h, w]."""

    values: Float32[np.ndarray, "h w"]
    valid: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class CodedLabel:
    """A label as it is stored (see `quantise`), which is decoded when its values are asked for."""

    codes: UInt16[np.ndarray, "h w"]
    scale: np.float32
    offset: np.float32

    @cached_property
    def values(self) -> Float32[np.ndarray, "h w"]:
        """As a `Label` has them."""
        return decode_label(self.codes, self.scale, self.offset).values

    @cached_property
    def valid(self) -> Bool[np.ndarray, "h w"]:
        """As a `Label` has it."""
        return self.codes > 0

    @cached_property
    def decoded(self) -> Label:
        """The label of floats."""
        return Label(values=self.values, valid=self.valid)


@dataclass(frozen=True, kw_only=True)
class PatchLabel(Label):
    """A patch's label, area-averaged to its box on the context grid."""

    box: Box


@dataclass(frozen=True, kw_only=True)
class CodedPatch(CodedLabel):
    """The same as it is stored."""

    box: Box

    @cached_property
    def decoded(self) -> PatchLabel:
        """The label of floats, with its box."""
        return PatchLabel(values=self.values, valid=self.valid, box=self.box)


AnyLabel = Label | CodedLabel
AnyPatch = PatchLabel | CodedPatch
AnyLabelT = TypeVar("AnyLabelT", bound=AnyLabel)


def only_where(label: AnyLabelT, keep: Bool[np.ndarray, "h w"]) -> AnyLabelT:
    """The same label, valid only in pixels that are to be kept."""
    if isinstance(label, CodedLabel):
        return replace(label, codes=np.where(keep, label.codes, np.uint16(0)))
    return replace(label, valid=label.valid & keep)


def left_right(label: AnyLabelT) -> AnyLabelT:
    """The same label with left and right exchanged, but not the place of its box."""
    if isinstance(label, CodedLabel):
        return replace(label, codes=label.codes[:, ::-1])
    return replace(label, values=label.values[:, ::-1], valid=label.valid[:, ::-1])


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


@dataclass(frozen=True, kw_only=True)
class QuantisedLabel:
    """A label as it is stored, and what is told of it in the part's manifest.

    value = offset + scale * (code - 1), and code 0 is invalid. min, max: of the valid values, NaN where there is none.
    code_sum: over all pixels. error: the largest that quantisation made, measured.
    """

    codes: UInt16[np.ndarray, "h w"]
    scale: np.float32
    offset: np.float32
    pixels: int
    code_sum: int
    min: float
    max: float
    error: float

    @property
    def mean(self) -> float:
        """Of the valid values as they are stored."""
        return float(np.float64(self.offset) + np.float64(self.scale) * (self.code_sum / self.pixels - 1))


def top_step(bits: int) -> int:
    """Steps from the least value of a view, which is code 1, to the largest."""
    return (1 << bits) - 2


def quantise(label: Label, bits: int = LABEL_BITS) -> QuantisedLabel:
    """The view's range on the codes 1 to 2**bits - 1, linearly; 0 where invalid.

    Raises ValueError for a non-finite value in a valid pixel.
    """
    values, valid = label.values, label.valid
    whole = bool(valid.all())
    used = values if whole else values[valid]
    if not used.size:
        nothing = np.zeros(values.shape, np.uint16)
        return QuantisedLabel(
            codes=nothing, scale=np.float32(0), offset=np.float32(0), pixels=0, code_sum=0, min=np.nan, max=np.nan, error=0.0
        )
    if not np.isfinite(used).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(used))} valid pixels are not finite; mark them invalid or reject it")
    offset, top = used.min() + np.float32(0), used.max() + np.float32(0)  # not -0, which some find less than 0 and some do not
    scale = np.float32((np.float64(top) - np.float64(offset)) / top_step(bits))
    steps = (values if whole else np.where(valid, values, offset)).astype(np.float64)
    if scale > 0:
        steps -= np.float64(offset)
        steps /= np.float64(scale)
        np.clip(np.rint(steps, out=steps), 0, top_step(bits), out=steps)
    else:  # one value only, or several that differ by less than float32 can say
        steps[...] = 0
    codes = (steps + 1).astype(np.uint16)
    steps *= np.float64(scale)
    steps += np.float64(offset)
    errors = np.abs(steps.astype(np.float32) - values)
    if not whole:
        codes[~valid] = 0
        errors = errors[valid]
    return QuantisedLabel(
        codes=codes,
        scale=scale,
        offset=offset,
        pixels=used.size,
        code_sum=int(codes.sum(dtype=np.int64)),
        min=float(offset),
        max=float(top),
        error=float(errors.max()),
    )


def decode_label(codes: UInt16[np.ndarray, "h w"], scale: np.float32, offset: np.float32) -> Label:
    """The inverse of `quantise`; invalid pixels have the value 0."""
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
