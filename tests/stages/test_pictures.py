"""Pictures: every ordinary file is decoded upright, everything else is refused by kind."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stages.labelling.pictures import PictureRejectedError, decode_upright, resize_region
from stages.views import SourceBox
from tests.conftest import picture_bytes


def _scene() -> Image.Image:
    ramp = np.zeros((40, 60, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(60) * 4, np.arange(40)[:, None] * 6
    return Image.fromarray(ramp)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_upright_picture(orientation: int):
    turn = Image.Transpose
    stored_as = {  # the EXIF standard: how the stored rows and columns lie in the picture
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = _scene().transpose(stored_as[orientation]) if orientation > 1 else _scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_upright(picture_bytes(stored, "png", exif=exif))
    assert (np.asarray(upright) == np.asarray(_scene())).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "YCbCr"])
def test_every_ordinary_mode_becomes_rgb_that_looks_alike(mode: str):
    image = _scene().convert("RGBA").convert("LA") if mode == "LA" else _scene().convert(mode)
    decoded = decode_upright(picture_bytes(image, "jpg" if mode in ("CMYK", "YCbCr") else "png"))
    wanted = np.asarray(_scene().convert("L" if mode in ("L", "LA", "1") else "RGB").convert("RGB")).astype(float)
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded).mean((0, 1)) - wanted.mean((0, 1))).max() < 8


def test_sixteen_bit_grey_keeps_its_gradation():
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    decoded = np.asarray(decode_upright(picture_bytes(Image.fromarray(levels))))
    assert np.abs(decoded[..., 0].astype(int) - (levels >> 8)).max() <= 1


def test_transparency_is_laid_on_white():
    decoded = decode_upright(picture_bytes(Image.new("RGBA", (9, 9), (200, 0, 0, 0))))
    assert decoded.getpixel((4, 4)) == (255, 255, 255)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    decoded = decode_upright(picture_bytes(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True))
    assert decoded.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_truncated_file_is_rejected_whatever_its_format(suffix: str, share: float):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    content = picture_bytes(noise, suffix)
    with pytest.raises(PictureRejectedError):
        decode_upright(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "empty_file"), (b"<!DOCTYPE html><html></html>", "not_an_image"), (b"\x00" * 500, "not_an_image")],
)
def test_what_is_no_picture_is_rejected_by_kind(content: bytes, kind: str):
    with pytest.raises(PictureRejectedError) as rejected:
        decode_upright(content)
    assert rejected.value.kind == kind


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = picture_bytes(Image.new("1", (30_000, 30_000)))
    with pytest.raises(PictureRejectedError, match="pixels") as rejected:
        decode_upright(bomb)
    assert rejected.value.kind == "too_large"


def test_a_region_with_fractional_edges_is_cut_in_place():
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).convert("RGB")
    cut = resize_region(ramp, SourceBox(10.0, 50.5, 40.0, 80.0), 40, 80)
    wanted = 50.5 + np.arange(80)  # pixel j covers 50.5 + j to 51.5 + j, whose mean on the ramp is 50.5 + j
    assert np.abs(cut[20, 4:-4, 0].astype(float) - wanted[4:-4]).max() <= 0.5
