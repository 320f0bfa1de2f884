"""The fast resampler cuts what Pillow cuts, in place to a fraction of a pixel; and a machine without it says so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from manifests.errors import RefusedError
from stages.scenes import render_scene
from stages.sources import photographs
from stages.sources.photographs import available_resamplers, resize_region
from stages.views import SourceBox

needs_it = pytest.mark.skipif("fast_image_resize" not in available_resamplers(), reason="cykooz-resizer is not installed")
_BOXES = (
    (SourceBox(0, 0, 120, 160), 120, 160),
    (SourceBox(10.25, 20.5, 60.5, 61.75), 61, 61),
    (SourceBox(3, 5, 100, 90), 33, 30),
    (SourceBox(40.5, 40.5, 20, 20), 64, 64),
    (SourceBox(0, 0, 120.0000001, 160.0000001), 57, 76),
)


@needs_it
@pytest.mark.parametrize(("box", "height", "width"), _BOXES)
def test_it_cuts_a_picture_as_pillow_does(box: SourceBox, height: int, width: int):
    image = Image.fromarray(render_scene(3, height_px=120, width_px=160).rgb)
    pillow, fast = (
        resize_region(image, box, height, width, resampler=name).astype(int) for name in ("pillow", "fast_image_resize")
    )
    assert np.abs(pillow - fast).max() <= 2  # both round between their two passes, in another order


@needs_it
@pytest.mark.parametrize(("box", "height", "width"), _BOXES)
def test_it_lies_where_its_box_says(box: SourceBox, height: int, width: int):
    """The picture is a ramp, one level a pixel, so that each pixel says from where it comes."""
    ramp = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, :, None] + 40, (120, 160, 3))
    cut = resize_region(Image.fromarray(ramp.copy()), box, height, width, resampler="fast_image_resize")
    centres = np.clip(box.left + (np.arange(width) + 0.5) * box.width / width - 0.5, 0, 159) + 40
    inside = slice(3, -3)  # where the filter has all that it reaches for
    assert np.abs(cut[0, :, 0].astype(float) - centres)[inside].max() <= 1


@pytest.fixture
def without_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    available_resamplers.cache_clear()
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    yield
    available_resamplers.cache_clear()


@pytest.mark.usefixtures("without_it")
def test_a_machine_without_it_has_pillow_and_says_what_to_install():
    assert available_resamplers() == ("pillow",)
    image = Image.new("RGB", (8, 8))
    with pytest.raises(RefusedError, match="fast_image_resize, which is not installed here: pip install cykooz-resizer"):
        resize_region(image, SourceBox(0, 0, 8, 8), 4, 4, resampler="fast_image_resize")
