"""Colours: each change is what its name says, and no change is no change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.distillation.augmentation import color_jitter
from stages.distillation.order import UNCHANGED, Color

GREY = np.array([0.299, 0.587, 0.114])


def pictures(low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, (3, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def changed(images: Tensor, color: Color) -> Tensor:
    return color_jitter(images, torch.tensor([color] * len(images), dtype=torch.float32))


def grey(images: Tensor) -> np.ndarray:
    return np.tensordot(images.double().numpy(), GREY, (1, 0))


def test_unchanged_colours_leave_every_pixel_as_it_is() -> None:
    levels = torch.arange(0, 256, 3, dtype=torch.uint8)
    every = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, len(levels), -1)  # 86^3 colours
    assert changed(every, UNCHANGED).equal(every)
    beside_another = color_jitter(every.expand(2, -1, -1, -1), torch.tensor([UNCHANGED, (0.5, 0.5, 0.5, 0.25)]))
    assert beside_another[0].equal(every[0])
    assert not beside_another[1].equal(every[0])


def test_brightness_is_a_factor() -> None:
    images = pictures()
    assert changed(images, (0.5, 1, 1, 0)).sub(images.float() / 2).abs().max() <= 0.51
    assert changed(images, (2, 1, 1, 0)).sub((images.float() * 2).clamp(max=255)).abs().max() <= 0.01


def test_contrast_stretches_around_the_pictures_own_grey_mean() -> None:
    images = pictures(60, 180)
    mean = grey(images).mean((1, 2))[:, None, None, None]
    wanted = mean + 1.5 * (images.double().numpy() - mean)
    assert np.abs(changed(images, (1, 1.5, 1, 0)).numpy() - wanted).max() <= 0.51
    flat = changed(images, (1, 0, 1, 0)).numpy()
    assert (flat == flat[:, :1, :1, :1]).all()


def test_saturation_stretches_around_each_pixels_own_grey() -> None:
    images = pictures(60, 180)
    own = grey(images)[:, None]
    assert np.abs(changed(images, (1, 1, 1.2, 0)).numpy() - (own + 1.2 * (images.double().numpy() - own))).max() <= 0.51
    assert np.abs(changed(images, (1, 1, 0, 0)).numpy() - own).max() <= 0.51


@pytest.mark.parametrize("turns", [0.25, 0.5, -0.1])
def test_hue_turns_colours_keeps_their_grey_and_comes_back(turns: float) -> None:
    images = pictures(110, 146)  # muted, so that no turn leaves the range
    turned = changed(images, (1, 1, 1, turns))
    assert np.abs(grey(turned) - grey(images)).max() < 0.6
    assert turned.sub(images.float()).abs().max() > 10
    assert changed(turned, (1, 1, 1, -turns)).sub(images.float()).abs().max() <= 2
    greys = images[:, :1].expand(-1, 3, -1, -1)
    assert changed(greys, (1, 1, 1, turns)).equal(greys)


def test_each_picture_of_a_batch_is_coloured_by_itself_whatever_its_padding() -> None:
    images = pictures()
    color = torch.tensor([(0.7, 1.4, 0.6, 0.1), UNCHANGED, (1.3, 0.6, 1.4, -0.2)])
    together = color_jitter(images, color)
    assert together[1].equal(images[1])
    for i in range(3):
        assert together[i].equal(color_jitter(images[i : i + 1], color[i : i + 1])[0])
    padded = torch.nn.functional.pad(images, (0, 8, 0, 12))
    assert color_jitter(padded, color, torch.tensor([[20, 24]] * 3))[:, :, :20, :24].equal(together)
