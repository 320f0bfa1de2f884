"""`python -m pipeline.demo`: the whole pipeline in a few minutes on a CPU, without a network or a download.

Renders scenes into WebDataset tars, labels them with both of the demo's teachers on a local Ray, trains the student from the
labels alone, scores all four networks on held-out scenes with exact depth, and writes a report to look at. Every step keeps
what is done: a second run only does what is missing.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import manifests
from pipeline.demo.config import DemoConfig, read_command
from pipeline.demo.plan import LABEL, RENDER, REPORT, SCORE, TRAIN, expected_steps, seconds_of_a_scene
from pipeline.demo.report import ASSISTANT, PRIMARY, DemoRun, write_demo_report
from pipeline.evaluate.command import evaluate_models, format_table, protocol
from pipeline.exits import say
from pipeline.label.command import label
from pipeline.label.config import DEMO_CHECKPOINTS, LabelConfig, default_workers
from pipeline.label.config import PRESETS as LABEL_PRESETS
from pipeline.label.sources import RunMismatchError
from pipeline.report.training import AFTER, BEFORE
from pipeline.tally import Tally
from pipeline.train.command import TrainConfig, TrainingInterruptedError, train
from pipeline.train.config import PRESETS as TRAIN_PRESETS
from pipeline.train.state import OutputMismatchError
from pipeline.whole import Whole
from stages.evaluation.metrics import DepthMetrics, mean_metrics
from stages.evaluation.rendered import HELD_OUT_SEED, SCENE_SIDE_PX, SceneResult
from stages.label_store import encode_picture
from stages.models import checkpoint_sha256
from stages.scenes import render_scene

FIRST_PHOTO_SEED = 500_000
"""The photographs of the demo: scenes that neither the demo's teachers nor the evaluation ever use."""
_SCENES_PER_TAR = 48


class _Timings(dict[str, float]):
    """Seconds by step, each counted while its block runs; says at its beginning how much of all steps is left."""

    def __init__(self, whole: Whole, steps: int) -> None:
        super().__init__()
        self._whole, self._steps = whole, steps

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        with self._whole.step(name):
            print(f"\nStep {len(self) + 1} of {self._steps}: {name.lower()} ({self._whole.note(0)})", flush=True)
            started = time.perf_counter()
            yield
            self[name] = time.perf_counter() - started


_PROGRAM = "pipeline.demo"


def main(argv: Sequence[str] | None = None) -> int:
    return run(read_command(argv))


def run(config: DemoConfig) -> int:
    """Runs what is missing of the demo, and says how it ended; returns the exit status."""
    try:
        return _demo(config)
    except (RunMismatchError, OutputMismatchError) as error:
        return say(_PROGRAM, error, f"{config.output} was made with other settings; choose another --output")
    except (KeyboardInterrupt, TrainingInterruptedError) as error:
        return say(_PROGRAM, error, "The same command resumes from here.")
    except Exception as error:
        return say(_PROGRAM, error)


def _demo(config: DemoConfig) -> int:
    plan = expected_steps(config, seconds_of_a_scene())
    print(plan.describe(), flush=True)
    timings = _Timings(Whole("demo", plan.seconds), len(plan.seconds))
    with timings.step(RENDER):
        sources = render_tars(config.output / "photos", config.scenes)
    label_config = LabelConfig(
        run=config.output / "run",
        sources=tuple(map(str, sources)),
        preset="demo",
        seed=config.seed,
        workers=config.workers,
        **LABEL_PRESETS["demo"],
    )
    with timings.step(LABEL):
        report = label(label_config)
    if report.interrupted:
        raise KeyboardInterrupt
    if report.failures or report.columns_given_up:
        reasons = [f"{failure.problem.kind}: {failure.problem.message}" for failure in report.failures]
        reasons += report.columns_given_up.values()
        print(f"not everything could be labelled, the first reason: {reasons[0]}", file=sys.stderr)
        return 1
    torch.set_num_threads(default_workers())
    train_config = TrainConfig(
        run=(label_config.run,),
        output=config.output / "student",
        preset="demo",
        seed=config.seed,
        **{**TRAIN_PRESETS["demo"], "steps": config.steps},
    )
    with timings.step(TRAIN):
        train(train_config)
    models = {
        PRIMARY: DEMO_CHECKPOINTS / "primary",
        ASSISTANT: DEMO_CHECKPOINTS / "assistant",
        BEFORE: DEMO_CHECKPOINTS / "student",
        AFTER: train_config.output,
    }
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + config.held_out)
    with timings.step(SCORE):
        results = _scores(config.output / "scores.json", models, seeds)
    with timings.step(REPORT):
        run = DemoRun(
            label=label_config, train=train_config, models=models, results=results, seeds=seeds, examples=config.examples
        )
        path = config.output / "report.html"
        write_demo_report(path, run, timings)
    means = {name: mean_metrics([result.metrics for result in scenes]) for name, scenes in results.items()}
    print(f"\n{format_table(means, len(seeds))}\n{protocol(seeds, 'disparity_affine_invariant')}\n\nThe report: {path}")
    return 0


def render_tars(folder: Path, scenes: int, *, first: int = FIRST_PHOTO_SEED, side_px: int = SCENE_SIDE_PX) -> list[Path]:
    """Scenes as JPEG files in WebDataset tars, `_SCENES_PER_TAR` each; tars that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, scenes, _SCENES_PER_TAR)
    wanted = [range(first + s, first + min(s + _SCENES_PER_TAR, scenes)) for s in starts]
    paths = [folder / f"scenes-{seeds.start}-{len(seeds)}.tar" for seeds in wanted]
    missing = [(path, seeds) for path, seeds in zip(paths, wanted, strict=True) if not path.exists()]
    total = sum(len(seeds) for _, seeds in missing)
    if not missing:
        return paths
    with ProcessPoolExecutor(default_workers()) as pool, Tally("render", total, "scenes") as tally:
        for path, seeds in missing:
            aside = path.with_suffix(".part")
            with tarfile.open(aside, "w") as tar:
                for seed, jpeg in zip(seeds, pool.map(partial(_scene_jpeg, side_px=side_px), seeds, chunksize=4), strict=True):
                    member = tarfile.TarInfo(f"{seed}.jpg")
                    member.size = len(jpeg)
                    tar.addfile(member, io.BytesIO(jpeg))
                    tally.done()
            aside.replace(path)
    return paths


def _scene_jpeg(seed: int, side_px: int) -> bytes:
    return encode_picture(render_scene(seed, height_px=side_px, width_px=side_px).rgb)


def _scores(path: Path, models: Mapping[str, Path], seeds: range) -> dict[str, list[SceneResult]]:
    """Every model's results; those of the last demo where checkpoints and scenes are still the same."""
    what = {
        "checkpoints": {name: checkpoint_sha256(folder) for name, folder in models.items()},
        "protocol": protocol(seeds, "disparity_affine_invariant"),
    }
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["what"] == what:
            return {
                name: [SceneResult(seed=r["seed"], metrics=DepthMetrics(**r["metrics"])) for r in kept["results"][name]]
                for name in models
            }
    results = evaluate_models(models, seeds, device="cpu")
    content = {"what": what, "results": {name: [asdict(result) for result in scenes] for name, scenes in results.items()}}
    manifests.write_replacing(path, (json.dumps(content, indent=1) + "\n").encode())
    return results
