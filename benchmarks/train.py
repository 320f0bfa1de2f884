"""`python -m benchmarks.train`: what reading labels costs a training, and what caching them saves, as ratios of one run.

Prints a Markdown table for docs/benchmarks.md. Both sides of a ratio run in turns, several times; medians are reported.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from benchmarks.timing import seconds, with_range
from benchmarks.worker import write_photographs
from pipeline.label.command import label
from pipeline.label.config import PRESETS as LABEL_PRESETS
from pipeline.label.config import LabelConfig, default_workers, demo_teacher
from pipeline.train.config import PRESETS, TrainConfig
from pipeline.train.labels import open_dataset
from pipeline.train.ranks import Process
from pipeline.train.setup import make_batches, make_learner, make_plan
from stages.demo_networks import build_depth_anything, save_depth_anything
from stages.distillation.batch import Batch, PackedBatch, Sample
from stages.distillation.joined import JoinedLabels
from stages.distillation.step import Learner, gradient_step
from stages.labelling.teacher import TeacherSpec
from stages.labelling.units import label_views
from stages.models import DepthModel, load_model
from stages.models.find import resolve_device
from stages.scenes import render_scene
from stages.sources.photographs import resize_region
from stages.views import ImageViews, SourceBox, ViewPlan, plan_views

_VIT_S = {"hidden": 384, "layers": 12, "heads": 6, "patch_px": 14, "fusion": 64}
"""Depth Anything v2 Small: 24.8 million parameters."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A student on a labelled run, and how many steps a turn takes."""

    name: str
    config: TrainConfig
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side of a ratio gets")
    parser.add_argument("--vit-s-steps", type=int, default=6, help="steps in a turn of the ViT-S student")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=24, help="photographs of the run at 560 px")
    arguments = parser.parse_args()
    torch.set_num_threads(1 if torch.get_num_threads() < 3 else torch.get_num_threads())
    device = resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        cases = [_demo_case(place), _vit_s_case(place, arguments.images, arguments.vit_s_steps)]
        rows = [row for case in cases for row in _cache_rows(case, arguments.rounds, device)]
        rows += _teacher_rows(cases[0], arguments.rounds, device)
        rows += _reading_rows(place, arguments.images)
    print("| what | figure |\n|---|---|")
    print("\n".join(f"| {what} | {figure} |" for what, figure in rows))


def _demo_case(place: Path) -> Case:
    run = _labelled(place / "small", 48, side_px=352, plan_changes={})
    config = replace(TrainConfig(run=(run,), output=place / "demo"), **PRESETS["demo"])
    config = replace(config, steps=10_000, loader_workers=2)
    return Case(name="demo student, 192 px, batch 8", config=config, steps=20)


def _vit_s_case(place: Path, images: int, steps: int) -> Case:
    run = _labelled(place / "large", images, side_px=720, plan_changes={"context_px": 560})
    torch.manual_seed(0)
    save_depth_anything(build_depth_anything(**_VIT_S, image_px=560), place / "vit-s", torch.float32, 560)
    config = TrainConfig(run=(run,), output=place / "vit-s-out", student=str(place / "vit-s"), batch_size=2, loader_workers=2)
    return Case(name="ViT-S student, 560 px, batch 2", config=config, steps=steps)


def _labelled(place: Path, images: int, *, side_px: int, plan_changes: dict[str, int]) -> Path:
    """A run of rendered scenes, labelled by the demo's teachers."""
    (place / "photographs").mkdir(parents=True)
    for seed in range(images):
        picture = Image.fromarray(render_scene(seed, height_px=352, width_px=352).rgb).resize((side_px, side_px))
        picture.save(place / "photographs" / f"{seed}.png")
    preset = LABEL_PRESETS["demo"]
    config = LabelConfig(
        run=place / "run",
        sources=(str(place / "photographs"),),
        workers=default_workers(),
        **(preset | {"plan": replace(preset["plan"], **plan_changes)}),
    )
    report = label(config)
    assert report.committed == report.parts_total, report
    return place / "run"


# --- the cache against memory ---------------------------------------------------------------------------------------


def _cache_rows(case: Case, rounds: int, device: str) -> list[tuple[str, str]]:
    process = Process(device=device)
    dataset = open_dataset(case.config)
    learner = make_learner(case.config, dataset, process)
    plan = make_plan(case.config, dataset, process, 0)
    in_memory = [_read(dataset, plan.requests(step)).to(device) for step in range(case.steps)]
    loader = make_batches(case.config, plan, dataset, device)
    for _ in range(2):
        _step(learner, next(loader).to(device))  # warm-up: the loader's processes start, buffers grow
    ratios, from_memory_s = [], []
    for _ in range(rounds):
        # Nothing may be read ahead while the other side is timed: both sides would pay for it, and one gain.
        from_memory_s.append(seconds(lambda: [_step(learner, batch) for batch in in_memory]) / case.steps)
        for _ in range(2 * case.config.loader_workers):
            next(loader)  # what was read ahead during the other side's turn
        from_cache_s = seconds(lambda: [_step(learner, next(loader).to(device)) for _ in range(case.steps)]) / case.steps
        ratios.append(from_cache_s / from_memory_s[-1])
    reading_s = statistics.median(seconds(partial(_read, dataset, plan.requests(step))) for step in range(9))
    step_s = statistics.median(from_memory_s)
    return [
        (f"{case.name}: step fed from the cache by 2 loader processes / from memory ({step_s:.2f} s)", with_range(ratios)),
        (f"{case.name}: reading a batch on one core / a step", f"{reading_s / step_s:.3f}"),
    ]


def _read(dataset: JoinedLabels, requests: list) -> PackedBatch:
    return dataset.collate([dataset[request] for request in requests])


def _step(learner: Learner, batch: Batch) -> None:
    gradient_step(learner, [batch], max_gradient_norm=1.0, bf16=False)
    learner.update()


# --- the cache against teachers in the step -------------------------------------------------------------------------


def _teacher_rows(case: Case, rounds: int, device: str) -> list[tuple[str, str]]:
    process = Process(device=device)
    dataset = open_dataset(case.config)
    learner = make_learner(case.config, dataset, process)
    loader = make_batches(case.config, make_plan(case.config, dataset, process, 0), dataset, device)
    teachers = [load_model(demo_teacher(name), device=device) for name in _DEMO_TEACHERS]
    online = _online_batches(dataset, teachers, case.config.batch_size)
    _step(learner, next(loader).to(device))
    ratios: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        cached_s = seconds(lambda: [_step(learner, next(loader).to(device)) for _ in range(case.steps)]) / case.steps
        for number in ratios:
            online_s = seconds(partial(_online_step, learner, online, number, device))
            ratios[number].append(online_s / cached_s)
    return [
        (f"{case.name}: images/s from the cache / with both teachers in the step", with_range(ratios[2])),
        ("the same, with only the teacher in the step that was drawn", with_range(ratios[1])),
    ]


def _online_step(learner: Learner, online: Iterator[PackedBatch], number: int, device: str) -> None:
    *_, batch = (next(online) for _ in range(number))
    _step(learner, batch.to(device))


_DEMO_TEACHERS = ("primary", "assistant")


def _online_batches(dataset: JoinedLabels, teachers: list[DepthModel], batch_size: int) -> Iterator[PackedBatch]:
    """Batches labelled on the spot, by the teachers in turns, with the views of the demo's plan."""
    plan = LABEL_PRESETS["demo"]["plan"]
    photographs = [Image.fromarray(render_scene(seed, height_px=352, width_px=352).rgb) for seed in range(batch_size)]
    views, *_ = plan_views(plan, seed=0, key="now", height_px=352, width_px=352)
    for teacher in itertools.cycle(teachers):
        yield dataset.collate([_labelled_now(teacher, photograph, views, plan.patch_px) for photograph in photographs])


def _labelled_now(teacher: DepthModel, image: Image.Image, views: ImageViews, patch_px: int) -> Sample:
    context = resize_region(image, SourceBox(0, 0, image.height, image.width), *views.extent)
    labels = label_views(teacher, image, context, views, patch_px)
    return Sample(image=context, context=labels.context, patches=labels.patches, key="now", teacher=teacher.spec.name)


# --- reading alone, for a device that is fast ------------------------------------------------------------------------


def _reading_rows(place: Path, images: int) -> list[tuple[str, str]]:
    """Batches of 8 of the paper's squares: their size, what a core pays for them, and how long a step of 15 ms waits."""
    teacher = TeacherSpec(name="quick", loader="benchmarks.quick_teacher:load", checkpoint="none")
    labels = LabelConfig(
        run=place / "paper",
        sources=(str(write_photographs(place / "photographs.tar", images, width=1600, height=1200)),),
        plan=ViewPlan(),
        teachers={"quick": teacher},
        workers=0,
    )
    report = label(labels)
    assert report.committed == report.parts_total, report
    config = TrainConfig(run=(labels.run,), output=place / "none", columns=("quick",), batch_size=8, steps=10_000)
    config = replace(config, loader_workers=2)
    dataset = open_dataset(config)
    plan = make_plan(config, dataset, Process(device="cpu"), 0)
    batches, read_ms = [], []
    for step in range(6):
        started = time.process_time()
        batches.append(_read(dataset, plan.requests(step)))
        read_ms.append(1000 * (time.process_time() - started) / config.batch_size)
    loader = make_batches(config, plan, dataset, "cpu")
    for _ in range(8):
        next(loader)  # the loader's processes start
    waited_s, started = 0.0, time.perf_counter()
    for _ in range(_SIMULATED_STEPS):
        time.sleep(_STEP_S)
        asked = time.perf_counter()
        next(loader)
        waited_s += time.perf_counter() - asked
    share = waited_s / (time.perf_counter() - started)
    real = sum(patch.valid.size for step in range(6) for r in plan.requests(step) for patch in dataset[r].patches)
    padded = sum(group.maps.numel() for batch in batches for group in batch.patches)
    return [
        ("paper's squares, 560 px, batch 8: MB that travel to the device", with_range([b.size_bytes / 1e6 for b in batches])),
        ("the same: pixels of patches as they are compared / as they are", f"{padded / real:.3f}"),
        ("the same: CPU ms of reading a sample", with_range(read_ms[1:])),
        ("the same: share of waiting where a step takes 15 ms, 2 loader processes", f"{share:.3f}"),
    ]


_STEP_S = 0.015
_SIMULATED_STEPS = 100


if __name__ == "__main__":
    main()
