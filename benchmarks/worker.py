"""A worker's unit beside the bare teacher, and the photographs that both are shown."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

import manifests
from manifests.location import on_disk
from pipeline.label.config import LabelConfig
from pipeline.label.run import open_run, units_left
from pipeline.label.sources import read_sources
from pipeline.label.worker import WallClock
from stages.labelling.flow import View, views_in_batches
from stages.labelling.unit import Unit
from stages.labelling.units import KnownImages, label_images_part, label_teacher_part
from stages.models import DepthModel
from stages.models.batches import Predictor
from stages.scenes import render_scene

_SCENES = 16


def write_photographs(path: Path, count: int, *, width: int, height: int) -> Path:
    """A tar of JPEGs of a photograph's size; the scenes are rendered small and enlarged, which costs a decoder the same."""
    files = [photograph(seed, width, height) for seed in range(min(count, _SCENES))]
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            content = files[number % _SCENES]
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def photograph(seed: int, width: int, height: int) -> bytes:
    scene = Image.fromarray(render_scene(seed, height_px=height // 4, width_px=width // 4).rgb)
    buffer = io.BytesIO()
    scene.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def ready_unit(config: LabelConfig, teacher: str) -> Unit:
    """The teacher's unit of a new run of one part, whose column `images` is committed."""
    units = units_left(open_run(config, read_sources(config.sources)))
    for unit in units:
        manifests.column_dir(on_disk(unit.run_dir), unit.column).mkdir(parents=True, exist_ok=True)
        if unit.column == "images":
            label_images_part(replace(unit, attempt="a"), WallClock(), threads=2)
    return next(unit for unit in units if unit.column == teacher)


def ready_batches(unit: Unit, batch_size: int) -> list[list[View]]:
    """Every view of the unit, cut and in batches of one shape."""
    known = KnownImages(unit)
    views = (view for index in known.usable for view in known.cut(index))
    return list(views_in_batches(views, batch_size, 4 * batch_size))


def predict_all(teacher: DepthModel, batches: list[list[View]], batch_size: int) -> None:
    """The bare teacher's work on a unit."""
    predictor = Predictor(teacher, batch_size)
    for batch in batches:
        predictor.predict([view.picture for view in batch], [view.seed for view in batch])


def labelling(unit: Unit, teacher: DepthModel, *, batch_size: int, threads: int, device: str = "cpu") -> Callable[[], None]:
    """A call that does the unit as a worker does, as often as it is called. Raises RuntimeError where an image was rejected."""
    attempts = itertools.count()

    def label_once() -> None:
        attempt = replace(unit, attempt=f"threads{threads}-{next(attempts)}")
        result = label_teacher_part(attempt, teacher, WallClock(device), batch_size=batch_size, threads=threads)
        manifests.manifest_path(on_disk(unit.run_dir), unit.column, unit.part).unlink()
        if result.rejected:
            raise RuntimeError(f"{unit.column}: {result.rejected} images were rejected, expected none")

    return label_once
