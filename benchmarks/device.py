"""`python -m benchmarks.device`: how busy labelling keeps a device, and what its host pays for each view.

The device is simulated: a teacher that sleeps for so many milliseconds per view, as the thread of a GPU's driver does, and says
a map with the noise of a network. Everything else is the real thing, at the paper's plan: photographs of 2250 x 1500 in a tar,
two parts at a time through a worker, committed parts. Prints Markdown tables for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from scipy import ndimage

import manifests
from benchmarks.timing import with_range
from benchmarks.worker import write_photographs
from manifests.location import on_disk
from pipeline.label.config import LabelConfig, demo_teacher
from pipeline.label.queue import Task
from pipeline.label.run import open_run, units_left
from pipeline.label.sources import read_sources
from pipeline.label.worker import LabelWorker
from stages.label_store import quantise
from stages.label_store.format import Label
from stages.label_store.packing import pack_codes
from stages.labelling.teacher import TeacherSpec
from stages.labelling.unit import Unit
from stages.labelling.units import KnownImages
from stages.models import DepthModel
from stages.sources.catalogue import read_images
from stages.sources.photographs import decode_upright, resize_region
from stages.views import ViewPlan, onto_grid

_WIDTH, _HEIGHT = 2250, 1500
_BATCH = 8
_Runs = Mapping[int, Mapping[float, list[tuple[float, float]]]]
"""By threads, and then by ms per view: efficiency and CPU ms per view of each turn."""


class SleepingTeacher:
    """Sleeps for each view, without holding the interpreter, and says the same few noisy maps again and again."""

    def __init__(self, spec: TeacherSpec, ms_per_view: float) -> None:
        self.spec, self.ms_per_view, self.views = spec, ms_per_view, 0
        self._maps = noisy_maps(_BATCH, ViewPlan().patch_px)

    def predict(self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None) -> Float32[np.ndarray, "b h w"]:
        """See `DepthModel.predict`; in one go, as a batch on a device."""
        time.sleep(self.ms_per_view * len(images) / 1000)
        self.views += len(images)
        return self._maps[: len(images)]


def noisy_maps(count: int, side_px: int) -> Float32[np.ndarray, "count side side"]:
    """Smooth slopes and edges under noise of a 4,000th of their range: in codes of 16 bits, some 10 per pixel."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(count, side_px, side_px)), (0, side_px / 12, side_px / 12))
    steps = ndimage.gaussian_filter(rng.normal(size=smooth.shape), (0, side_px / 30, side_px / 30)) > 0
    smooth = smooth / np.ptp(smooth) + 0.2 * steps
    noise = rng.normal(scale=np.ptp(smooth) / 4000, size=smooth.shape)
    return (smooth + ndimage.gaussian_filter(noise, (0, 0.5, 0.5)) * 2).astype(np.float32)


class SleepingWorker(LabelWorker):
    """A worker whose teacher sleeps."""

    def __init__(self, teacher: SleepingTeacher, threads: int) -> None:
        super().__init__(_BATCH, threads, "cpu")
        self.sleeping = teacher

    def _load(self, spec: TeacherSpec, unit: Unit) -> DepthModel:
        return self.sleeping


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer photographs and turns")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--threads", type=int, nargs="+", help="threads of the worker, each a column of the table")
    parser.add_argument("--ms", type=float, nargs="+", help="what a view takes on the simulated device")
    parser.add_argument("--images", type=int, help="photographs, in parts of a third of them")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    threads = arguments.threads or ([2] if arguments.quick else [1, 2, 4])
    delays_ms: list[float] = arguments.ms or ([12, 20, 40] if arguments.quick else [2, 4, 8, 12, 20, 40])
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images or (48 if arguments.quick else 96)
        bench = _Bench(Path(folder), images=images, part_size=-(-images // 3))
        stages = bench.stages()
        runs = {n: {ms: bench.turns(ms, n, rounds=1 if arguments.quick else 3) for ms in delays_ms} for n in threads}
    print(_stage_table(stages))
    print(_efficiency_table(runs))
    if arguments.json:
        arguments.json.write_text(json.dumps(_figures(runs, stages, min(threads, key=lambda n: abs(n - 2))), indent=1))


class _Bench:
    """One run with a committed column `images`, whose teacher's parts are labelled again and again."""

    def __init__(self, folder: Path, *, images: int, part_size: int) -> None:
        tar = write_photographs(folder / "photographs.tar", images, width=_WIDTH, height=_HEIGHT)
        teachers = {"primary": demo_teacher("primary")}
        config = LabelConfig(run=folder / "run", sources=(str(tar),), teachers=teachers, plan=ViewPlan(), part_size=part_size)
        self._run = open_run(config, read_sources(config.sources))
        for column in self._run.columns:
            manifests.column_dir(on_disk(self._run.run_dir), column.name).mkdir(parents=True, exist_ok=True)
        units = units_left(self._run)
        self._teacher_units = [unit for unit in units if unit.column == "primary"]
        self._spec = next(spec for spec in self._run.teachers if spec.name == "primary")
        worker = LabelWorker(_BATCH, len(os.sched_getaffinity(0)), "cpu")
        image_units = [unit for unit in units if unit.column == "images"]
        cpu_s = _cpu_seconds(lambda: [worker.do(task_of(unit, None, "0")) for unit in image_units])
        self.images_ms = 1000 * cpu_s / images
        self._turn = 0

    def turns(self, ms: float, threads: int, *, rounds: int) -> list[tuple[float, float]]:
        """Efficiency and CPU milliseconds per view of each turn."""
        return [self._label(ms, threads) for _ in range(rounds)]

    def _label(self, ms: float, threads: int) -> tuple[float, float]:
        teacher = SleepingTeacher(self._spec, ms)
        worker = SleepingWorker(teacher, threads)
        self._turn += 1
        tasks = [task_of(unit, self._spec, f"{self._turn}x{i}") for i, unit in enumerate(self._teacher_units)]
        started = time.perf_counter()

        def label_all() -> None:
            with ThreadPoolExecutor(2) as both:  # as many as an actor does side by side
                list(both.map(worker.do, tasks))

        cpu_s = _cpu_seconds(label_all)
        wall_s = time.perf_counter() - started
        place = manifests.place_of(self._run.run_dir)
        for task in tasks:
            manifests.manifest_path(on_disk(self._run.run_dir), "primary", task.unit.part).unlink()
            place.remove(task.unit.arrays)
        return ms * teacher.views / 1000 / wall_s, 1000 * cpu_s / teacher.views

    def stages(self) -> dict[str, float]:
        """CPU milliseconds per view of each step alone, on one thread, over one part."""
        unit = self._teacher_units[0]
        known, plan = KnownImages(unit), unit.plan
        views = [views for of_image in known.views for views in of_image]
        count = sum(1 + len(of_context.patches) for of_context in views)
        contents = list(read_images(unit.source, unit.rows))
        images = [decode_upright(content) for content in contents]
        maps = noisy_maps(1, plan.patch_px)[0]
        boxes = [box for of_context in views for box in of_context.patches]
        side = max(max(box.height, box.width) for box in boxes)
        labels = [Label(values=maps, valid=np.ones(maps.shape, bool))] * len(views)
        small = [onto_grid(maps, box.height, box.width) for box in boxes]
        labels += [Label(values=values, valid=np.ones(values.shape, bool)) for values in small]
        codes = [quantise(label).codes for label in labels]
        sides = [plan.context_px] * len(views) + [side] * len(boxes)
        cuts = [(image, v.source_box(box)) for image, v in zip(images, views, strict=True) for box in v.patches]
        steps: dict[str, Callable[[], Any]] = {
            "read": lambda: list(read_images(unit.source, unit.rows)),
            "decode": lambda: [decode_upright(content) for content in contents],
            "cut patches": lambda: [
                resize_region(image, box, plan.patch_px, plan.patch_px, resampler=unit.resampler) for image, box in cuts
            ],
            "read contexts": lambda: [known._context(row) for row in range(len(views))],
            "resample": lambda: [onto_grid(maps, box.height, box.width) for box in boxes],
            "quantise": lambda: [quantise(label) for label in labels],
            "pack": lambda: [pack_codes(view, side) for view, side in zip(codes, sides, strict=True)],
        }
        return {name: 1000 * min(_cpu_seconds(step) for _ in range(3)) / count for name, step in steps.items()}


def task_of(unit: Unit, teacher: TeacherSpec | None, attempt: str) -> Task:
    """An attempt of a unit."""
    return Task(unit=replace(unit, attempt=attempt), teacher=teacher)


def _cpu_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _stage_table(stages: dict[str, float]) -> str:
    rows = [f"| {name} | {ms:.2f} |" for name, ms in stages.items()]
    return "\n".join(
        ["| CPU per view, alone on one thread | ms |", "|---|---|", *rows, f"| all | {sum(stages.values()):.2f} |\n"]
    )


def _efficiency_table(runs: _Runs) -> str:
    head = "| device, ms per view | " + " | ".join(f"{n} threads: busy | CPU ms per view" for n in runs) + " |"
    rows = [head, "|---" * (1 + 2 * len(runs)) + "|"]
    for ms in next(iter(runs.values())):
        cells = []
        for of_threads in runs.values():
            efficiency, cpu = zip(*of_threads[ms], strict=True)
            cells.append(f"{with_range(efficiency)} | {statistics.median(cpu):.1f}")
        rows.append(f"| {ms:g} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _figures(runs: _Runs, stages: dict[str, float], threads: int) -> dict[str, Any]:
    of_threads = runs[threads]
    return {
        "efficiency": {f"{ms:g}": statistics.median(e for e, _ in turns) for ms, turns in of_threads.items()},
        "cpu_ms_per_view": statistics.median(cpu for turns in of_threads.values() for _, cpu in turns),
        "stages_ms": stages,
        "threads": threads,
    }


if __name__ == "__main__":
    main()
