"""From the bytes of an image file to upright RGB pixels, or to the reason why not; and which suffixes say what of a file.

Every ordinary kind of file is accepted, whatever its suffix says: EXIF-turned, grey, 1-bit, 12-bit, 16-bit, palette, alpha
(laid on white), CMYK, animated (its first frame). Colour profiles are not applied. Pixels whose meaning is not certain are
refused, and so is what cannot be decoded completely: a photograph that ends in grey is not a photograph. Only damage within
the data of a JPEG, a lossy WebP, an AVIF or a HEIF, which carry no checksums, may go unseen.
"""

from __future__ import annotations

import importlib
import io
import struct
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, TiffTags, UnidentifiedImageError

from manifests.errors import DistillError, RefusedError
from stages.views import Resampler, SourceBox

_HEIF_PACKAGE = next((name for name in ("pillow_heif", "pi_heif") if find_spec(name)), None)
_HAS_AVIF = find_spec("PIL._avif") is not None
_AVIF_SUFFIXES = frozenset({".avif", ".avifs"})
_HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
_JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"})
_PNM_SUFFIXES = frozenset({".pbm", ".pgm", ".ppm", ".pnm"})
_ALWAYS_READ = _JPEG_SUFFIXES | _PNM_SUFFIXES | {".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
IMAGE_SUFFIXES = _ALWAYS_READ | (_AVIF_SUFFIXES if _HAS_AVIF else set()) | (_HEIF_SUFFIXES if _HEIF_PACKAGE else set())
"""Of files that are taken for photographs, in lower case; AVIF where Pillow has it, HEIF where the extra is installed."""

_RESIZER = "cykooz_resizer"
_NO_RESIZER = "pip install cykooz-resizer; its wheels are for x86-64, elsewhere it needs a Rust compiler"
_NO_HEIF = "install this package's extra `heif` (pip install pi-heif), or convert to JPEG"
_NO_AVIF = "install a Pillow that has AVIF, 11.3 or newer, or convert to PNG"
_RAW = "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_OTHER = "dds dib emf eps exr hdr hdp ico j2c j2k jp2 jpc jpf jpx jxl jxr pcx psb psd sgi svg svgz tga wdp wmf xcf"
UNREAD_SUFFIXES = {
    **dict.fromkeys(_HEIF_SUFFIXES - IMAGE_SUFFIXES, _NO_HEIF),
    **dict.fromkeys(_AVIF_SUFFIXES - IMAGE_SUFFIXES, _NO_AVIF),
    **{f".{name}": "a camera's raw data: develop it to JPEG or TIFF" for name in _RAW.split()},
    **{f".{name}": "convert to JPEG or PNG, if it is a photograph" for name in _OTHER.split()},
}
"""Of files that look like images and are not read here, in lower case, and what to do about each."""

MAX_PIXELS = 178_956_970
"""Pillow's own limit, above which it refuses to open a file."""
RejectionKind = Literal["damaged", "empty_file", "not_a_photograph", "not_an_image", "too_large"]
"""Why a file cannot become a picture; docs/format.md says what each means."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(("AVIF",) if _HAS_AVIF else ()))
"""All that Pillow may open: of its others, some would run a program (EPS)."""
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_NONSENSE = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, RuntimeError, struct.error)
"""What Pillow raises for bytes that stop making sense."""
_BRANDS_END = 256
"""Bytes of a file among which AVIF and HEIF say what they are."""
_SAVE_IT = "save it with 8 bits per sample, or 16 without a sign, pixel by pixel"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From the stored pixels to the upright picture, by EXIF orientation. Not `ImageOps.exif_transpose`: it writes the whole EXIF
anew, which fails for a damaged one, and turns a TIFF into an image without the tags that say what its pixels mean."""


class PictureRejectedError(DistillError, ValueError):
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
            with Image.open(io.BytesIO(content), formats=_formats(content)) as image:
                _refuse_bomb(image)
                _refuse_endless_jpeg(image, content)
                _refuse_pixels_that_pillow_misreads(image)
                _refuse_slow_pnm(image)
                image.load()
                rgb, turn = _to_rgb(image), _turn(image)
                return rgb if turn is None else rgb.transpose(turn)
    except PictureRejectedError:
        raise
    except UnidentifiedImageError as error:
        if pixels := _pixels_of_tiff(content):
            raise PictureRejectedError("not_a_photograph", f"a TIFF with {pixels} is not read; {_SAVE_IT}") from error
        message = f"begins with {content[:12]!r}, unlike any of {', '.join(_FORMATS)}, or is cut or damaged in its header"
        raise PictureRejectedError("not_an_image", message) from error
    except Image.DecompressionBombError as error:
        raise PictureRejectedError("too_large", str(error)) from error
    except _NONSENSE as error:
        raise PictureRejectedError("damaged", f"{type(error).__name__}: {error}") from error


def stated_pixels(path: Path) -> int:
    """The pixels that a file's header states; 0 where it cannot be read, and `decode_upright` says why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file, Image.open(file, formats=_formats(file.read(_BRANDS_END))) as image:
                return image.width * image.height
    except (PictureRejectedError, UnidentifiedImageError, Image.DecompressionBombError, *_NONSENSE):
        return 0


def _formats(content: bytes) -> tuple[str, ...]:
    """Those to try. Raises PictureRejectedError for one that this machine could read if a package were there."""
    brands = {content[i : i + 4] for i in (8, *range(16, min(int.from_bytes(content[:4]), _BRANDS_END), 4))}
    if content[4:8] != b"ftyp" or not brands & (_AVIF_BRANDS | _HEIF_BRANDS):
        return _FORMATS
    if brands & _AVIF_BRANDS:
        if not _HAS_AVIF:
            raise PictureRejectedError("not_an_image", f"AVIF, which is not read here; {_NO_AVIF}")
        return ("AVIF",)
    if _HEIF_PACKAGE is None:
        raise PictureRejectedError("not_an_image", f"HEIF, which is not read here; {_NO_HEIF}")
    _register_heif(_HEIF_PACKAGE)
    return ("HEIF",)


@cache
def _register_heif(package: str) -> None:
    importlib.import_module(package).register_heif_opener()


def _refuse_bomb(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise PictureRejectedError(
            "too_large", f"{image.width} x {image.height} px is more than {MAX_PIXELS:,} pixels; shrink it beforehand"
        )


def _refuse_endless_jpeg(image: ImageFile.ImageFile, content: bytes) -> None:
    """A JPEG whose rest was never written, and reads as zeros, would be decoded without a word: as half a picture."""
    if image.format in ("JPEG", "MPO") and image.fp is not None and content.find(b"\xff\xd9", image.fp.tell()) < 0:
        raise PictureRejectedError("damaged", "the JPEG's data have no end-of-image marker; the file is cut or half empty")


def _refuse_pixels_that_pillow_misreads(image: ImageFile.ImageFile) -> None:
    """Some TIFFs: signed samples, all but the plainest planes, chroma at half the size without compression."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    signed = any(value != 1 for value in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()))
    plainly_planar = (
        max(bits) == 8 and image.mode in ("RGB", "RGBA", "CMYK") and 1 not in tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    )
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and len(bits) > 1 and not plainly_planar
    unpacked = tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
    subsampled = unpacked and image.mode == "YCbCr" and tags.get(TiffImagePlugin.YCBCRSUBSAMPLING, (2, 2)) != (1, 1)
    if signed or planes or subsampled:
        raise PictureRejectedError("not_a_photograph", f"a TIFF with {_described(tags)} is not read; {_SAVE_IT}")


def _refuse_slow_pnm(image: ImageFile.ImageFile) -> None:
    """Pillow decodes these in Python, sample by sample: ten seconds for a megapixel."""
    if image.format == "PPM" and image.tile[0][0] != "raw":
        message = "a PNM whose pixels are text, or whose levels are not 256 (grey: or 65536), is not read"
        raise PictureRejectedError("not_a_photograph", f"{message}; save it with 256 levels, in binary")


def _pixels_of_tiff(content: bytes) -> str | None:
    """What a TIFF that Pillow does not open says of its pixels; None where its header is not whole, or it is no TIFF."""
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            tags = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if 43 in content[2:4] else 8])
            file = io.BytesIO(content)
            file.seek(tags.next)
            tags.load(file)
            whole = all(tag in tags for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH)) and any(
                tag in tags for tag in (TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.TILEBYTECOUNTS)
            )
            return _described(tags) if whole else None
    except _NONSENSE:
        return None


def _described(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    shown = (
        TiffImagePlugin.BITSPERSAMPLE,
        TiffImagePlugin.SAMPLEFORMAT,
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION,
        TiffImagePlugin.PLANAR_CONFIGURATION,
        TiffImagePlugin.YCBCRSUBSAMPLING,
        TiffImagePlugin.COMPRESSION,
    )
    return ", ".join(f"{TiffTags.lookup(tag).name} {tags[tag]}" for tag in shown if tag in tags)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _NONSENSE:
        return None


def _to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    if image.mode.startswith("I;16") or (image.format, image.mode) == ("PPM", "I"):
        return Image.fromarray(_upper_bits(image)).convert("RGB")
    if image.mode in ("I", "F"):
        message = f"pixels of Pillow's mode {image.mode} have no agreed range; {_SAVE_IT}"
        raise PictureRejectedError("not_a_photograph", message)
    if "A" in image.getbands() or "transparency" in image.info or image.mode == "La":
        layered = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, (255, 255, 255, 255)), layered).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_bits(image: ImageFile.ImageFile) -> UInt8[np.ndarray, "h w"]:
    """Grey of 12 or 16 bits as its upper 8. Pillow clips when it converts, which turns most of the picture white."""
    levels, bits = np.asarray(image), 16
    inverted = False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits, *_ = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
        inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0  # Pillow inverts only fewer bits
    upper = (levels >> (bits - 8)).astype(np.uint8)
    return 255 - upper if inverted else upper


def resize_region(
    image: Image.Image, region: SourceBox, height_px: int, width_px: int, *, resampler: Resampler = "pillow"
) -> UInt8[np.ndarray, "h w 3"]:
    """A region of the picture, whose edges may lie between pixels, at a new size; antialiased when it shrinks.

    Each resampler makes the same pixels on any machine. Where values overshoot, at edges, they are not the same as the other's.
    Raises RefusedError for one that is not installed here.
    """
    top, left, height, width = region
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    if resampler == "pillow":
        return np.asarray(image.resize((width_px, height_px), Image.Resampling.BICUBIC, box=(left, top, right, bottom)))
    if resampler not in available_resamplers():
        raise RefusedError(f"pictures of this run are cut with {resampler}, which is not installed here: {_NO_RESIZER}")
    resizer = importlib.import_module(_RESIZER)
    cubic = resizer.ResizeAlg.convolution(resizer.FilterType.catmull_rom)  # the cubic that Pillow calls bicubic
    box = resizer.CropBox(left, top, right - left, bottom - top)
    cut = Image.new("RGB", (width_px, height_px))
    resizer.Resizer().resize_pil(image, cut, resizer.ResizeOptions(cubic, crop_box=box, use_alpha=False))
    return np.asarray(cut)


@cache
def available_resamplers() -> tuple[Resampler, ...]:
    """Those of this machine, the fastest first."""
    return ("fast_image_resize", "pillow") if find_spec(_RESIZER) else ("pillow",)
