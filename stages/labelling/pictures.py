"""From the bytes of an image file to upright RGB pixels, or to the reason why not.

Every ordinary kind of file is accepted: EXIF-turned, grey, 16-bit, palette, alpha (laid on white), CMYK, animated (its first
frame). What cannot be decoded completely is refused: a photograph that ends in grey is not a photograph.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.views import SourceBox

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 256_000_000


class PictureRejectedError(ValueError):
    """The file cannot become a picture: `kind` for machines, the message for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def decode_upright(content: bytes) -> Image.Image:
    """The picture in mode RGB, turned as its EXIF orientation says.

    Raises PictureRejectedError with the kind `empty_file`, `not_an_image`, `too_large` or `damaged`.
    """
    if not content:
        raise PictureRejectedError("empty_file", "the file has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # harmless oddities of metadata
            with Image.open(io.BytesIO(content)) as image:
                _refuse_bomb(image)
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        start = content[:12]
        raise PictureRejectedError("not_an_image", f"no image format known to Pillow begins with {start!r}") from error
    except Image.DecompressionBombError as error:
        raise PictureRejectedError("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, IndexError, TypeError) as error:
        if isinstance(error, PictureRejectedError):
            raise
        # Pillow's decoders raise all of these for bytes that stop making sense.
        raise PictureRejectedError("damaged", f"{type(error).__name__}: {error}") from error


def _refuse_bomb(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise PictureRejectedError(
            "too_large", f"{image.width} x {image.height} px is more than {MAX_PIXELS:,} pixels; shrink it beforehand"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey when it converts, which turns most of the picture white.
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(levels >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PictureRejectedError("not_a_photograph", "floating-point pixels have no agreed range; save it as 8 or 16 bit")
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, (255, 255, 255, 255)), layered).convert("RGB")
    return image.convert("RGB")


def resize_region(image: Image.Image, region: SourceBox, height_px: int, width_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """A region of the picture, whose edges may lie between pixels, at a new size; antialiased when it shrinks."""
    top, left, height, width = region
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    return np.asarray(image.resize((width_px, height_px), Image.Resampling.BICUBIC, box=(left, top, right, bottom)))
