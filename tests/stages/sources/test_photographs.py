"""Pictures: every ordinary file is decoded upright to the pixels it shows, everything else is refused by kind."""

from __future__ import annotations

import base64
import io
import itertools
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image, features

from stages.sources.photographs import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    PictureRejectedError,
    RejectionKind,
    decode_upright,
    resize_region,
    stated_pixels,
)
from stages.views import SourceBox
from tests.conftest import picture_bytes

_EXIF_ORIENTATION = 0x0112
_TURN = Image.Transpose
_STORED_AS = {  # the EXIF standard: how the stored rows and columns lie in the picture
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_90,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_270,
}


def _scene() -> Image.Image:
    ramp = np.zeros((40, 60, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(60) * 4, np.arange(40)[:, None] * 6
    return Image.fromarray(ramp)


def _pixels(content: bytes) -> np.ndarray:
    decoded = decode_upright(content)
    assert decoded.mode == "RGB"
    return np.asarray(decoded).astype(int)


def _flat(mode: str, color: object, suffix: str, **options: object) -> bytes:
    return picture_bytes(Image.new(mode, (16, 16), color), suffix, **options)  # type: ignore[arg-type]


def _png(bits: int, color_type: int, row: bytes, *, width: int = 1, height: int = 1) -> bytes:
    """A PNG file by hand, for what Pillow reads but does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    body = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _tiff(
    *strips: bytes, bits: Sequence[int] = (8,), photometric: int = 1, order: str = "<", width: int = 1, **fields: Sequence[int]
) -> bytes:
    """A TIFF file by hand of one row of pixels, in as many planes as there are strips."""
    tags = {256: [width], 257: [1], 258: bits, 259: [1], 262: [photometric], 277: [len(bits)], 278: [1]}
    tags |= {_TIFF_TAGS[name]: values for name, values in fields.items()}
    tags |= {273: [0] * len(strips), 279: [len(strip) for strip in strips]}
    after = 8 + 2 + 12 * len(tags) + 4
    sizes = {tag: 2 * len(values) if 2 * len(values) > 4 else 0 for tag, values in tags.items()}
    tags[273] = list(itertools.accumulate([after + sum(sizes.values()), *map(len, strips[:-1])]))
    entries, values_apart = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            packed, values_apart = struct.pack(f"{order}I", after + len(values_apart)), values_apart + packed
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + values_apart + b"".join(strips)


_TIFF_TAGS = {"compression": 259, "fill_order": 266, "planes": 284, "extra": 338, "sample_format": 339, "subsampling": 530}


def _packed(levels: Sequence[int], bits: int) -> bytes:
    """Samples one after the other, the last byte filled up with zeros, as TIFF has them below 16 bits."""
    digits = "".join(f"{level:0{bits}b}" for level in levels)
    return bytes(int(digits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(digits), 8))


def _words(order: str, *levels: int) -> bytes:
    return struct.pack(f"{order}{len(levels)}H", *levels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("webp", {"lossless": True}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
        ("jpg", {"quality": 100}),
        pytest.param(
            "avif", {"quality": 100}, marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
        ),
    ],
)
def test_every_exif_orientation_gives_the_same_upright_picture(suffix: str, options: dict[str, object], orientation: int):
    stored = _scene().transpose(_STORED_AS[orientation]) if orientation > 1 else _scene()
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = orientation
    upright = _pixels(picture_bytes(stored, suffix, exif=exif, **options))
    assert upright.shape == (40, 60, 3)
    assert np.abs(upright - np.asarray(_scene())).max() <= (12 if suffix in ("jpg", "avif") else 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "exif", [b"", b"rubbish", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\x7f", b"II*\0\x08\0\0\0\x01\0\x12\x01"]
)
def test_broken_exif_is_no_reason_to_reject(suffix: str, exif: bytes):
    assert _pixels(picture_bytes(_scene(), suffix, exif=b"Exif\0\0" + exif)).shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_leaves_the_picture_as_it_is(orientation: int):
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = orientation
    assert (_pixels(picture_bytes(_scene(), exif=exif)) == np.asarray(_scene())).all()


def _palette_png(**options: object) -> bytes:
    """A picture whose pixels all point at entry 3, which is (3, 30, 60)."""
    image = Image.new("P", (16, 16), 3)
    image.putpalette([value for entry in range(8) for value in (entry, 10 * entry, 20 * entry)])
    return picture_bytes(image, "png", **options)


_COLORS = {
    "grey": (_flat("L", 200, "png"), (200, 200, 200)),
    "1 bit": (_flat("1", 1, "png"), (255, 255, 255)),
    "1 bit as a fax": (_flat("1", 0, "tif", compression="group4"), (0, 0, 0)),
    "opaque grey": (_flat("LA", (100, 255), "png"), (100, 100, 100)),
    "a fifth of 100 on white": (_flat("LA", (100, 51), "png"), (224, 224, 224)),
    "transparent": (_flat("RGBA", (200, 0, 0, 0), "png"), (255, 255, 255)),
    "two fifths on white": (_flat("RGBA", (200, 0, 100, 102), "webp", lossless=True), (233, 153, 193)),
    "palette": (_palette_png(), (3, 30, 60)),
    "palette, transparent entry": (_palette_png(transparency=3), (255, 255, 255)),
    "palette, alpha for each entry": (_palette_png(transparency=bytes([0, 0, 0, 51])), (205, 210, 216)),
    "transparent colour": (_flat("RGB", (1, 2, 3), "png", transparency=(1, 2, 3)), (255, 255, 255)),
    "CMYK": (_flat("CMYK", (255, 0, 0, 0), "tif"), (0, 255, 255)),
    "CMYK, compressed": (_flat("CMYK", (0, 0, 255, 51), "tif", compression="tiff_lzw"), (204, 204, 0)),
    "bmp": (_flat("RGB", (9, 8, 7), "bmp"), (9, 8, 7)),
    "tif": (_flat("RGB", (9, 8, 7), "tif", compression="tiff_deflate"), (9, 8, 7)),
    "16-bit grey": (_png(16, 0, b"\xab\xcd"), (0xAB, 0xAB, 0xAB)),
    "16-bit RGB": (_png(16, 2, b"\xab\xcd\x12\x34\xff\xff"), (0xAB, 0x12, 0xFF)),
    "16-bit grey with alpha": (_png(16, 4, b"\xab\xcd\xff\xff"), (0xAB, 0xAB, 0xAB)),
    "16-bit RGB with alpha": (_png(16, 6, b"\xab\xcd\x12\x34\x56\x78\0\0"), (255, 255, 255)),
    "gif": (_flat("P", 7, "gif", palette=bytes(range(60))), (21, 22, 23)),
    "pgm": (b"P5 2 1 255\n\x30\x30", (0x30, 0x30, 0x30)),
    "16-bit pgm": (b"P5 1 1 65535\n\xab\xcd", (0xAB, 0xAB, 0xAB)),
    "ppm": (b"P6 1 1 255\n\1\2\3", (1, 2, 3)),
    "pbm": (b"P4 1 1\n\x80", (0, 0, 0)),
    "16-bit tif": (picture_bytes(Image.fromarray(np.full((4, 4), 0xABCD, "<u2")), "tif"), (0xAB, 0xAB, 0xAB)),
    "16-bit tif, big-endian": (picture_bytes(Image.fromarray(np.full((4, 4), 0xABCD, ">u2")), "tif"), (0xAB, 0xAB, 0xAB)),
}


for _order in "<>":
    _COLORS |= {
        f"{_order} 16-bit RGB tif": (
            _tiff(_words(_order, 0xABCD, 0x1234, 0xFFFF), bits=[16] * 3, photometric=2, order=_order),
            (0xAB, 0x12, 0xFF),
        ),
        f"{_order} 16-bit RGB tif, half transparent": (
            _tiff(_words(_order, 0x8000, 0, 0xFFFF, 0x3333), bits=[16] * 4, photometric=2, order=_order, extra=[2]),
            (230, 204, 255),
        ),
        f"{_order} 16-bit CMYK tif": (
            _tiff(_words(_order, 0, 0, 0xFFFF, 0x3333), bits=[16] * 4, photometric=5, order=_order),
            (204, 204, 0),
        ),
        f"{_order} RGB tif in planes": (
            _tiff(b"\1", b"\2", b"\3", bits=[8] * 3, photometric=2, order=_order, planes=[2]),
            (1, 2, 3),
        ),
        f"{_order} grey tif, alpha multiplied in": (_tiff(b"\x40\x80", bits=[8] * 2, order=_order, extra=[1]), (191, 191, 191)),
        f"{_order} YCbCr tif": (
            _tiff(b"\x64\x80\x80", bits=[8] * 3, photometric=6, order=_order, subsampling=[1, 1]),
            (100, 100, 100),
        ),
    }


@pytest.mark.parametrize("kind", _COLORS)
def test_every_kind_of_pixels_gives_the_colours_it_shows(kind: str):
    content, color = _COLORS[kind]
    assert (_pixels(content) == color).all()


def test_a_cmyk_jpeg_is_read_as_adobe_writes_it_inverted():
    content = _flat("CMYK", (255, 0, 0, 51), "jpg", quality=100)
    assert b"Adobe" in content
    assert np.abs(_pixels(content) - (0, 204, 204)).max() <= 1


def test_a_ycbcr_jpeg_shows_its_colours():
    assert np.abs(_pixels(_flat("RGB", (200, 30, 90), "jpg", quality=100)) - (200, 30, 90)).max() <= 2


def test_sixteen_bit_grey_keeps_its_gradation():
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    assert (_pixels(picture_bytes(Image.fromarray(levels)))[..., 0] == levels >> 8).all()


_GREYS = [0, 1 / 3, 2 / 3, 1]


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("white", [0, 1], ids=["white is 0", "black is 0"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_a_grey_tiff_of_any_bits_shows_its_greys_or_is_rejected_by_name(bits: int, order: str, white: int, deflated: bool):
    levels = [round(grey * (2**bits - 1)) for grey in _GREYS]
    content = _words(order, *levels) if bits == 16 else _packed(levels, bits)
    compression: dict[str, Any] = {"compression": [8]} if deflated else {}
    content = zlib.compress(content) if deflated else content
    tiff = _tiff(content, bits=[bits], photometric=white, order=order, width=4, **compression)
    unread = (bits == 12 and (order, white) != ("<", 1)) or (bits, order, white) == (16, ">", 0)
    if unread:  # Pillow does not know them
        with pytest.raises(PictureRejectedError, match=rf"BitsPerSample \({bits},\).*save it with 8 bits") as rejected:
            decode_upright(tiff)
        assert rejected.value.kind == "not_a_photograph"
        return
    shown = [level >> (bits - 8) if bits > 8 else round(level * 255 / (2**bits - 1)) for level in levels]
    shown = shown if white else [255 - level for level in shown]
    assert _pixels(tiff)[0].tolist() == [[level] * 3 for level in shown]


def test_twelve_bits_in_rows_that_end_within_a_byte_are_read():
    tiff = _tiff(_packed([0x123, 0xFFF, 0x800], 12), bits=[12], width=3)
    assert _pixels(tiff)[0, :, 0].tolist() == [0x12, 0xFF, 0x80]


@pytest.mark.parametrize(
    "content", [b"P2 1 1 255\n128\n", b"P3 1 1 255\n1 2 3\n", b"P1 1 1\n1\n", b"P6 1 1 65535\n" + bytes(6)]
)
def test_a_pnm_that_would_take_minutes_for_a_photograph_is_rejected_by_name(content: bytes):
    with pytest.raises(PictureRejectedError, match="a PNM whose pixels are text, or") as rejected:
        decode_upright(content)
    assert rejected.value.kind == "not_a_photograph"


_NO_PHOTOGRAPHS = {
    "signed, 8 bits": {"bits": [8], "sample_format": [2]},
    "signed, 16 bits": {"bits": [16], "sample_format": [2]},
    "signed RGB": {"bits": [8] * 3, "photometric": 2, "sample_format": [2] * 3},
    "32 bits": {"bits": [32]},
    "half precision": {"bits": [16], "sample_format": [3]},
    "single precision": {"bits": [32], "sample_format": [3]},
    "double precision": {"bits": [64], "sample_format": [3]},
    "RGB of 12 bits": {"bits": [12] * 3, "photometric": 2},
    "RGB of 32 bits": {"bits": [32] * 3, "photometric": 2},
    "RGB in single precision": {"bits": [32] * 3, "photometric": 2, "sample_format": [3] * 3},
    "16-bit grey with alpha": {"bits": [16] * 2, "extra": [2]},
    "YCbCr with half as many colours": {"bits": [8] * 3, "photometric": 6},
    "a camera's colour filter array": {"bits": [8], "photometric": 32803},
    "a mask": {"bits": [8], "photometric": 4},
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", _NO_PHOTOGRAPHS)
def test_a_tiff_of_other_pixels_is_rejected_with_what_its_header_says(kind: str, order: str):
    fields: dict[str, Any] = _NO_PHOTOGRAPHS[kind]
    with pytest.raises(PictureRejectedError, match=r"BitsPerSample|no agreed range") as rejected:
        decode_upright(_tiff(bytes(64), order=order, **fields))
    assert rejected.value.kind == "not_a_photograph"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("bits", "photometric", "extra"),
    [(16, 2, []), (16, 2, [2]), (16, 5, []), (8, 2, [1]), (8, 1, [2]), (8, 8, [])],
    ids=["16-bit RGB", "16-bit RGB with alpha", "16-bit CMYK", "alpha multiplied in", "grey with alpha", "LAB"],
)
def test_planes_that_pillow_mixes_up_are_rejected(bits: int, photometric: int, extra: list[int], order: str):
    samples = {1: 1, 2: 3, 5: 4, 8: 3}[photometric] + len(extra)
    fields: dict[str, Any] = {"extra": extra} if extra else {}
    tiff = _tiff(*[b"\x80\x40"] * samples, bits=[bits] * samples, photometric=photometric, order=order, planes=[2], **fields)
    with pytest.raises(PictureRejectedError, match="PlanarConfiguration 2") as rejected:
        decode_upright(tiff)
    assert rejected.value.kind == "not_a_photograph"


@pytest.mark.parametrize(
    "content",
    [_flat("I", 5, "tif"), _flat("F", 5, "tif"), _tiff(bytes(4), bits=[32]), b"Pf 1 1 -1.0\n" + bytes(4)],
    ids=["signed tif", "float tif", "32-bit tif", "pfm"],
)
def test_pixels_without_an_agreed_range_are_no_photograph(content: bytes):
    with pytest.raises(PictureRejectedError, match=r"SampleFormat|no agreed range") as rejected:
        decode_upright(content)
    assert rejected.value.kind == "not_a_photograph"


@pytest.mark.parametrize("suffix", ["webp", "png", "gif", "tif", "mpo"])
def test_of_several_frames_the_first_is_taken(suffix: str):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "lime")]
    lossless = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "mpo" else {}
    content = picture_bytes(frames[0], suffix, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert np.abs(_pixels(content) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (20_000, 500), (500, 20_000)])
def test_any_proportions_are_decoded(size: tuple[int, int]):
    assert decode_upright(picture_bytes(Image.new("L", size), "png")).size == size


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


_SAVED: dict[str, Callable[[], bytes]] = {
    "jpg": lambda: picture_bytes(_noise(), "jpg"),
    "progressive jpg": lambda: picture_bytes(_noise(), "jpg", progressive=True),
    "png": lambda: picture_bytes(_noise(), "png"),
    "webp": lambda: picture_bytes(_noise(), "webp"),
    "lossless webp": lambda: picture_bytes(_noise(), "webp", lossless=True),
    "bmp": lambda: picture_bytes(_noise(), "bmp"),
    "tif": lambda: picture_bytes(_noise(), "tif"),
    "lzw tif": lambda: picture_bytes(_noise(), "tif", compression="tiff_lzw"),
    "gif": lambda: picture_bytes(_noise(), "gif"),
    "ppm": lambda: picture_bytes(_noise(), "ppm"),
    "16-bit pgm": lambda: b"P5 64 64 65535\n" + bytes(2 * 64 * 64),
}
if features.check("avif"):
    _SAVED["avif"] = lambda: picture_bytes(_noise(), "avif")


@pytest.mark.parametrize("saved", _SAVED)
def test_a_files_header_says_how_many_pixels_it_has(saved: str, tmp_path: Path):
    (tmp_path / "picture").write_bytes(content := _SAVED[saved]())
    (tmp_path / "cut").write_bytes(content[:9])
    assert stated_pixels(tmp_path / "picture") == 64 * 64
    assert [stated_pixels(tmp_path / name) for name in ("cut", "missing")] == [0, 0]


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95, 0.99])
@pytest.mark.parametrize("saved", _SAVED)
def test_a_truncated_file_is_never_half_a_picture(saved: str, share: float):
    content = _SAVED[saved]()
    if saved == "gif":
        content = content[: content.rindex(b"\0;")]  # what follows the pixels
    with pytest.raises(PictureRejectedError) as rejected:
        decode_upright(content[: int(len(content) * share)])
    assert rejected.value.kind in ("empty_file", "not_an_image", "damaged")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("saved", ["jpg", "progressive jpg", "png"])
def test_a_file_whose_rest_was_never_written_is_damaged(saved: str, share: float):
    content = _SAVED[saved]()
    kept = content[: int(len(content) * share)]
    with pytest.raises(PictureRejectedError) as rejected:
        decode_upright(kept + bytes(len(content) - len(kept)))
    assert rejected.value.kind == "damaged"


def test_what_cameras_append_to_a_jpeg_does_no_harm():
    content = picture_bytes(_scene(), "jpg")
    assert (_pixels(content + b"\xff\xda a film" + bytes(900)) == _pixels(content)).all()


@pytest.mark.parametrize("saved", _SAVED)
def test_damage_of_any_byte_ends_in_a_picture_or_a_rejection(saved: str):
    content, generator = _SAVED[saved](), random.Random(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(content)
        damaged[generator.randrange(min(400, len(content)))] ^= 1 << generator.randrange(8)
        try:
            outcomes.add(decode_upright(bytes(damaged)).mode)
        except PictureRejectedError as rejected:
            outcomes.add(rejected.kind)
    assert outcomes <= {"RGB", *get_args(RejectionKind)}
    assert len(outcomes) > 1


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty_file"),
        (b"<!DOCTYPE html><html></html>", "not_an_image"),
        (b"\x00" * 500, "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not_an_image"),
    ],
    ids=["no bytes", "html", "zeros", "a program for Ghostscript"],
)
def test_what_is_no_picture_is_rejected_by_kind(content: bytes, kind: str):
    with pytest.raises(PictureRejectedError) as rejected:
        decode_upright(content)
    assert rejected.value.kind == kind


@pytest.mark.parametrize("size", [(30_000, 30_000), (MAX_PIXELS // 1000 + 1, 1000), (1 << 31 - 1, 1 << 20)])
def test_a_decompression_bomb_is_refused_by_its_header(size: tuple[int, int]):
    with pytest.raises(PictureRejectedError, match="pixels") as rejected:
        decode_upright(_png(8, 2, b"no pixels at all", width=size[0], height=size[1]))
    assert rejected.value.kind == "too_large"


_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERA"
    "AAEAAQAAAAABoQABAAAAAAAAAQcAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAA"
    "AHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAA"
    "MAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAQ9tZGF0AAABAygBrwY4Wve238OH///S"
    "PPof0J+idFb8aVjaq+Kid9+TdH/97GEwpEa3WFf89sTzrLK6ANbyuwRXNUF0rWPs0iFzd2f8+8/ihkdB4OolqQRaG/e6CCbYF3npaI8gMz8b/ZE3//GH"
    "7/+ddQLihd/+7ff/zyeOMf1ohf/hb12qUM17foziyI+XWd++Mt+PGl5wcXGX5JtesF/nYbx3Wlj/tmvkUMOHLNABEs9wCvP/Zhj9Om7xyc4l94hP2QYA"
    "DXd0RJOcdlT/pswHK7JHS0NusL8W4Nu/DFMQsvUhD5OSjKMB818IYxiA3iSuJl1vs+vsEadgL3/kq2x6F88M1XEv4/kzZVQ="
)
"""64 x 48 px: above red and green, below blue and light grey."""


@pytest.mark.skipif(".heic" not in IMAGE_SUFFIXES, reason="needs the extra `heif`")
def test_heif_is_read_where_the_extra_is_installed():
    pixels = _pixels(_HEIC)
    corners = pixels[[3, 3, -3, -3], [3, -3, 3, -3]]
    assert pixels.shape == (48, 64, 3)
    assert np.abs(corners - [(200, 40, 40), (40, 200, 40), (40, 40, 200), (220, 220, 220)]).max() <= 6
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(PictureRejectedError):
            decode_upright(_HEIC[: int(share * len(_HEIC))])


@pytest.mark.skipif(".heic" in IMAGE_SUFFIXES, reason="needs a machine without the extra `heif`")
@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heif_is_rejected_with_what_to_install_where_it_is_not_read(brand: bytes):
    with pytest.raises(PictureRejectedError, match="extra `heif`") as rejected:
        decode_upright(_HEIC.replace(b"ftypheic", b"ftyp" + brand))
    assert rejected.value.kind == "not_an_image"


def test_the_format_page_names_every_kind_of_rejection():
    page = (Path(__file__).parents[3] / "docs" / "format.md").read_text()
    assert set(get_args(RejectionKind)) <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_a_region_with_fractional_edges_is_cut_in_place():
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).convert("RGB")
    cut = resize_region(ramp, SourceBox(10.0, 50.5, 40.0, 80.0), 40, 80)
    wanted = 50.5 + np.arange(80)  # pixel j covers 50.5 + j to 51.5 + j, whose mean on the ramp is 50.5 + j
    assert np.abs(cut[20, 4:-4, 0].astype(float) - wanted[4:-4]).max() <= 0.5
