"""From the bytes of an image file to upright RGB pixels, or to the reason why not.

Every ordinary kind of file is accepted, whatever its suffix says: EXIF-turned, grey, 1-bit, 16-bit, palette, alpha (laid on
white), CMYK, animated (its first frame). Colour profiles are not applied. What cannot be decoded completely is refused: a
photograph that ends in grey is not a photograph. Only damage within the data of a JPEG or a lossy WebP, which carry no
checksums, may go unseen.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from stages.views import SourceBox

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 178_956_970
"""Pillow's own limit, above which it refuses to open a file."""
RejectionKind = Literal["damaged", "empty_file", "not_a_photograph", "not_an_image", "too_large"]
"""Why a file cannot become a picture; docs/format.md says what each means."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # of Pillow's others, some would run a program (EPS)
_NONSENSE = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, struct.error)
"""What Pillow raises for bytes that stop making sense."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From the stored pixels to the upright picture, by EXIF orientation."""


class PictureRejectedError(ValueError):
    """The file cannot become a picture: `kind` for machines, the message for people."""

    def __init__(self, kind: RejectionKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def decode_upright(content: bytes) -> Image.Image:
    """The picture in mode RGB, turned as its EXIF orientation says; unreadable EXIF says nothing.

    Raises PictureRejectedError with one of RejectionKind.
    """
    if not content:
        raise PictureRejectedError("empty_file", "the file has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # harmless oddities of metadata
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _refuse_bomb(image)
                _refuse_endless_jpeg(image, content)
                image.load()
                return _to_rgb(_upright(image))
    except PictureRejectedError:
        raise
    except UnidentifiedImageError as error:
        message = f"begins with {content[:12]!r}, unlike any of {', '.join(_FORMATS)}, or is cut or damaged in its header"
        raise PictureRejectedError("not_an_image", message) from error
    except Image.DecompressionBombError as error:
        raise PictureRejectedError("too_large", str(error)) from error
    except _NONSENSE as error:
        raise PictureRejectedError("damaged", f"{type(error).__name__}: {error}") from error


def _refuse_bomb(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise PictureRejectedError(
            "too_large", f"{image.width} x {image.height} px is more than {MAX_PIXELS:,} pixels; shrink it beforehand"
        )


def _refuse_endless_jpeg(image: ImageFile.ImageFile, content: bytes) -> None:
    """A JPEG whose rest was never written, and reads as zeros, would be decoded without a word: as half a picture."""
    if image.format in ("JPEG", "MPO") and image.fp is not None and content.find(b"\xff\xd9", image.fp.tell()) < 0:
        raise PictureRejectedError("damaged", "the JPEG's data have no end-of-image marker; the file is cut or half empty")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _NONSENSE:
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey when it converts, which turns most of the picture white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        message = f"pixels of Pillow's mode {image.mode} have no agreed range; save it with 8 bit, or 16 without a sign"
        raise PictureRejectedError("not_a_photograph", message)
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, (255, 255, 255, 255)), layered).convert("RGB")
    return image.convert("RGB")


def resize_region(image: Image.Image, region: SourceBox, height_px: int, width_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """A region of the picture, whose edges may lie between pixels, at a new size; antialiased when it shrinks."""
    top, left, height, width = region
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    return np.asarray(image.resize((width_px, height_px), Image.Resampling.BICUBIC, box=(left, top, right, bottom)))
