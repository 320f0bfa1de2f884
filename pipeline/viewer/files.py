"""Pictures and maps in the form in which a page shows them."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stages.label_store import Label, quantise


def jpeg_file(rgb: UInt8[np.ndarray, "h w 3"], most_px: int | None = None) -> bytes:
    """The picture as a JPEG file, shrunk to `most_px`, if given; colours are not subsampled, which smears a map's edges."""
    image, buffer = Image.fromarray(rgb), io.BytesIO()
    if most_px:
        image.thumbnail((most_px, most_px), Image.Resampling.BOX)
    image.save(buffer, "JPEG", quality=82 if most_px else 90, subsampling=0)
    return buffer.getvalue()


def data_uri(jpeg: bytes) -> str:
    """The file within the page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def packed_map(label: Label, bits: int) -> Mapping[str, Any]:
    """A map in codes of so many bits, as the label store makes them: value = offset + scale * (code - 1), and 0 is no value.

    Each row is written as its differences from left to right, all low bytes before all high ones, which zlib packs best.
    """
    stored = quantise(label, bits)
    height, width = stored.codes.shape
    steps = np.diff(stored.codes, axis=1, prepend=np.uint16(0)).astype("<u2")
    planes = np.concatenate([(steps & 255).ravel(), (steps >> 8).ravel()]).astype(np.uint8)
    packed = base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()
    return {"height": height, "width": width, "scale": float(stored.scale), "offset": float(stored.offset), "codes": packed}
