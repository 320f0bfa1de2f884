"""Pictures, labels and patches lie where the photograph has them, below half a pixel of the context grid.

Photographs whose values encode coordinates go through the real catalogue (a tar and a folder), decoding (turned by EXIF),
views, an identity teacher, the store and the training dataset; at its end, every pixel of every sample is compared with where
it must be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

import manifests
from manifests.location import on_disk
from manifests.run import IMAGES
from pipeline.label.run import open_run, units_left
from pipeline.label.sources import read_sources
from pipeline.label.worker import WallClock
from stages.distillation.batch import Sample
from stages.distillation.dataset import LabelDataset
from stages.distillation.order import SampleRequest
from stages.labelling.units import label_images_part, label_teacher_part
from stages.views import ViewPlan
from tests.conftest import label_config, picture_bytes, teacher_spec, write_tar

TEACHER = "primary"
MOST_ERROR_PX = 0.4
"""Pixels of the context grid. What is left of half a pixel is 8-bit levels, JPEG, and filters that are cut at the border."""
_HALF_PERIOD_PX, _AMPLITUDE = 10, 105


class _Identity:
    """A teacher whose depth is the first channel of the picture that it is shown."""

    def __init__(self, checkpoints: Path) -> None:
        self.spec = teacher_spec(checkpoints, TEACHER, "transformers")

    def predict(self, images: np.ndarray, seeds: object = None) -> np.ndarray:
        return images[..., 0].astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class _Ruler:
    """A zigzag along one axis: linear in the position, between kinks `half_period` pixels of the photograph apart.

    The kinks of phase 1 lie between those of phase 0, so that together the two tell every position.
    """

    axis: int
    phase: int
    half_period: float

    def level(self, position: np.ndarray) -> np.ndarray:
        """The value at a position in the photograph."""
        return 128 + _AMPLITUDE * (2 * np.abs(self._periods(position) % 2 - 1) - 1)

    def near_kink(self, position: np.ndarray) -> np.ndarray:
        """Within a quarter of the way to the next kink, where filters round the zigzag off."""
        way = self._periods(position) % 1
        return np.minimum(way, 1 - way) < 0.25

    def _periods(self, position: np.ndarray) -> np.ndarray:
        return position / self.half_period + 0.25 + self.phase / 2

    def picture(self, height: int, width: int) -> Image.Image:
        line = np.rint(self.level(np.arange((height, width)[self.axis]) + 0.5)).astype(np.uint8)
        levels = np.broadcast_to(np.expand_dims(line, 1 - self.axis), (height, width))
        return Image.fromarray(np.ascontiguousarray(levels)).convert("RGB")


def _ruler(plan: ViewPlan, name: str) -> tuple[_Ruler, tuple[int, int]]:
    """The ruler and the size of the picture of this name: axis-phase-height-width."""
    axis, phase, *size = map(int, name.split("-"))
    context_px = max(size) if plan.context == "whole" else min(size)
    # Filters reach two pixels of the photograph where it is enlarged: a quarter of the half period must be more.
    half_period = max(_HALF_PERIOD_PX * context_px / plan.context_px, 12)
    return _Ruler(axis=axis, phase=phase, half_period=half_period), (size[0], size[1])


def _picture(plan: ViewPlan, name: str) -> Image.Image:
    ruler, size = _ruler(plan, name)
    return ruler.picture(*size)


def _turned(picture: Image.Image, orientation: int) -> bytes:
    """A file whose pixels are stored otherwise and whose EXIF orientation turns them upright again."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}
    undo |= {2: Image.Transpose.FLIP_LEFT_RIGHT, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    undo |= {5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE}
    return picture_bytes(picture.transpose(undo[orientation]) if orientation in undo else picture, "png", exif=exif)


def _label_run(folder: Path, checkpoints: Path, plan: ViewPlan, sizes: Sequence[tuple[int, int]]) -> Path:
    """A run over a tar of the pictures of phase 0, upright, and a folder of those of phase 1, each turned."""
    names = [[f"{axis}-{phase}-{h}-{w}" for h, w in sizes for axis in (0, 1)] for phase in (0, 1)]
    upright, turned = ({name: _picture(plan, name) for name in some} for some in names)
    tar = write_tar(folder / "upright.tar", {f"{name}.png": picture_bytes(picture) for name, picture in upright.items()})
    (folder / "turned").mkdir()
    for index, (name, picture) in enumerate(turned.items()):
        (folder / "turned" / f"{name}.png").write_bytes(_turned(picture, 1 + index % 8))
    config = label_config(folder / "run", (str(tar), str(folder / "turned")), checkpoints, plan=plan, part_size=5)
    run = open_run(config, read_sources(config.sources))
    for unit in units_left(run):
        unit = replace(unit, attempt="a0")
        if unit.column == IMAGES:
            label_images_part(unit, WallClock())
        elif unit.column == TEACHER:
            label_teacher_part(unit, _Identity(checkpoints), WallClock())
    return on_disk(run.run_dir)


def _positions(box: np.ndarray, extent: tuple[int, int], axis: int, length: int) -> np.ndarray:
    """Where along `axis` in the photograph the centre of each pixel of the context lies.

    A photograph tells nothing beyond its outermost pixels' centres: where it is enlarged, they are all there is.
    """
    along = box[axis] + (np.arange(extent[axis]) + 0.5) * box[2 + axis] / extent[axis]
    return np.broadcast_to(np.expand_dims(along.clip(0.5, length - 0.5), 1 - axis), extent)


def _errors_px(sample: Sample, ruler: _Ruler, position: np.ndarray, pixel: float) -> Iterator[tuple[str, np.ndarray]]:
    """For picture, label and each patch: how far, in pixels of the context grid, each pixel lies from its place.

    position: where each pixel of the context belongs, in pixels of the photograph, of which `pixel` make one of the grid.
    """
    levels_per_px = 2 * _AMPLITUDE / ruler.half_period * pixel

    def error(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return (np.abs(values - ruler.level(where)) / levels_per_px)[~ruler.near_kink(where)]

    yield "picture", error(sample.image[..., 0].astype(np.float64), position)
    yield "label", error(sample.context.values, position)
    for patch in sample.patches:
        top, left, height, width = patch.box
        yield "patch", error(patch.values, position[top : top + height, left : left + width])


def _largest_errors_px(dataset: LabelDataset, plan: ViewPlan, shifts_px: Sequence[float]) -> list[dict[str, float]]:
    """The largest error of each kind of view over all samples, against places moved by each of `shifts_px`."""
    largest: list[dict[str, float]] = [{} for _ in shifts_px]
    for index, (key, box) in enumerate(_rows(dataset)):
        ruler, size = _ruler(plan, key.split("#")[0].removesuffix(".png"))
        for flip in (False, True):
            sample = dataset[SampleRequest(index, 0, flip)]
            extent = sample.context.values.shape
            pixel = box[2 + ruler.axis] / extent[ruler.axis]
            position = _positions(box, extent, ruler.axis, size[ruler.axis])[:, :: -1 if flip else 1]
            for found, shift_px in zip(largest, shifts_px, strict=True):
                for kind, errors in _errors_px(sample, ruler, position + shift_px * pixel, pixel):
                    found[kind] = max(found.get(kind, 0.0), float(errors.max(initial=0)))
    return largest


def _rows(dataset: LabelDataset) -> Iterator[tuple[str, np.ndarray]]:
    """Key and context box of each sample, the box as the store tells it."""
    for part, start in zip(dataset.parts, dataset.parts.starts, strict=False):
        arrays = manifests.load_part(dataset.run_dir, IMAGES, part.name).zarr
        boxes = zarr.open_array(manifests.column_dir(dataset.run_dir, IMAGES) / arrays / "context_box", mode="r", zarr_format=3)
        for sample, row in enumerate(part.rows, start=int(start)):
            yield dataset.key_of(sample).partition("/")[2], np.asarray(boxes[int(row)])


_SMALL, _STRIPE = (53, 47), (37, 1109)
_PLANS = {
    "whole": (ViewPlan(context="whole", context_px=96, patch_px=96), ((240, 240), (173, 301), _SMALL, (901, 97))),
    "whole, patches hardly shrink": (ViewPlan(context="whole", context_px=97, patch_px=61), (_SMALL, _STRIPE)),
    "square, three contexts": (
        ViewPlan(context_px=96, patch_px=64, min_square_px=120, contexts_per_image=3),
        ((173, 301), _SMALL, _STRIPE),
    ),
    "square, given number": (
        ViewPlan(context_px=95, patch_px=61, min_square_px=60, patches_per_side=3),
        ((240, 240), (173, 301)),
    ),
    "the paper's": (ViewPlan(), ((1009, 1511),)),
}


@pytest.mark.parametrize("name", _PLANS)
def test_every_pixel_of_every_sample_lies_in_its_place(tmp_path: Path, checkpoints: Path, name: str) -> None:
    plan, sizes = _PLANS[name]
    dataset = LabelDataset(_label_run(tmp_path, checkpoints, plan, sizes), (TEACHER,))
    assert len(dataset) == 4 * len(sizes) * plan.contexts_per_image
    true, before, after = _largest_errors_px(dataset, plan, (0, -0.5, 0.5))
    assert true.keys() == {"picture", "label", "patch"}
    assert max(true.values()) < MOST_ERROR_PX, true
    assert min(*before.values(), *after.values()) > MOST_ERROR_PX  # half a pixel would have been noticed
