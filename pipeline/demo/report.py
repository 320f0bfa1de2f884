"""What the demo's report says: examples with every network's view of them, curves, scores and where it all came from."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

import manifests
from pipeline.evaluate.command import protocol
from pipeline.label.config import LabelConfig
from pipeline.report import Example, LossCurve, ModelScore, ReportContent, write_report
from pipeline.train.config import TrainConfig
from pipeline.train.log import METRICS
from stages.evaluation.metrics import mean_metrics
from stages.evaluation.rendered import SCENE_SIDE_PX, SceneResult
from stages.labelling.teacher import TeacherSpec
from stages.labelling.units import label_views
from stages.models import DepthModel, load_model
from stages.scenes import render_scene
from stages.sources.photographs import resize_region
from stages.stitching import stitch_patches
from stages.views import SourceBox, plan_views

_CURVES = {
    "total": "Total",
    "shared_context": "Shared context",
    "local_global": "Local to global",
    "feature": "Feature",
    "gradient": "Gradient",
}
_NOTES = {
    "teacher": "Depth Anything architecture",
    "assistant": "one-step diffusion, GenPercept's form",
    "student before": "where the training starts",
    "student after": "trained on the teachers' labels alone",
}


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """All that the demo did: its configurations, the checkpoints by name, and their results on the held-out scenes."""

    label: LabelConfig
    train: TrainConfig
    models: Mapping[str, Path]
    results: Mapping[str, Sequence[SceneResult]]
    seeds: range
    examples: int


def write_demo_report(path: Path, run: DemoRun, timings_s: Mapping[str, float]) -> None:
    """Write the report of a finished demo."""
    means = {name: mean_metrics([result.metrics for result in scenes]) for name, scenes in run.results.items()}
    before, after = means["student before"], means["student after"]
    summary = manifests.summarize(run.label.run)
    photographs = summary.columns[0].images_total
    content = ReportContent(
        title="Two teachers, one student",
        summary=(
            f"Two depth teachers labelled {photographs} rendered photographs, each as a whole and in overlapping close-ups."
            f" A smaller student learned from those labels alone, and went from AbsRel {before.abs_rel:.3f} to"
            f" {after.abs_rel:.3f} on {len(run.seeds)} scenes that none of the networks has seen.",
            "Close-ups show what the whole picture cannot: the stitched local labels below are the teachers' patches, aligned"
            " to their global label. The student is taught by both, with hybrid normalisation, teacher and assistant 7 to 3.",
        ),
        facts={
            "photographs": str(photographs),
            "labelled views": str(sum(column.views for column in summary.columns[1:])),
            "training steps": str(run.train.steps),
            "bits per label pixel": f"{summary.columns[1].bits_per_pixel:.1f}",
        },
        scores=[ModelScore(name=n, abs_rel=m.abs_rel, delta1=m.delta1, note=_NOTES[n]) for n, m in means.items()],
        before="student before",
        after="student after",
        protocol=protocol(run.seeds, "disparity_affine_invariant"),
        examples=_examples(run),
        losses=_loss_curves(run.train.output / METRICS),
        abs_rel_before=[result.metrics.abs_rel for result in run.results["student before"]],
        abs_rel_after=[result.metrics.abs_rel for result in run.results["student after"]],
        timings_s=timings_s,
        provenance=_provenance(run),
    )
    write_report(path, content)


def _examples(run: DemoRun) -> list[Example]:
    """The first held-out scenes, each seen by every network as the pipeline would show it."""
    teachers = {name: load_model(spec) for name, spec in run.label.teachers.items()}
    students = {name: load_model(_student_spec(run, name)) for name in ("student before", "student after")}
    return [_example(run, seed, teachers, students) for seed in run.seeds[: run.examples]]


def _student_spec(run: DemoRun, name: str) -> TeacherSpec:
    space = run.label.teachers["primary"].depth_space
    return TeacherSpec(name=name, loader="transformers", checkpoint=str(run.models[name]), depth_space=space)


def _example(run: DemoRun, seed: int, teachers: Mapping[str, DepthModel], students: Mapping[str, DepthModel]) -> Example:
    scene = render_scene(seed, height_px=SCENE_SIDE_PX, width_px=SCENE_SIDE_PX)
    image = Image.fromarray(scene.rgb)
    plan = run.label.plan
    views, *_ = plan_views(plan, seed=run.label.seed, key=str(seed), height_px=image.height, width_px=image.width)
    context = resize_region(image, SourceBox(0, 0, image.height, image.width), *views.extent)
    maps: dict[str, np.ndarray] = {}
    for name, teacher in teachers.items():
        labels = label_views(teacher, image, context, views, plan.patch_px)
        maps[f"{name}, whole"] = labels.context.values
        maps[f"{name}, close-ups"] = stitch_patches(labels).values
    maps |= {name: student.predict(context[None])[0] for name, student in students.items()}
    return Example(key=f"Scene {seed}", rgb=scene.rgb, depth_m=scene.depth_m, maps=maps)


def _loss_curves(metrics: Path) -> list[LossCurve]:
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [record["step"] for record in records]
    return [LossCurve(name=name, steps=steps, values=[r[key] for r in records]) for key, name in _CURVES.items()]


def _provenance(run: DemoRun) -> Mapping[str, Mapping[str, object]]:
    packages = ("torch", "transformers", "diffusers", "ray", "zarr", "numcodecs", "numpy", "pillow")
    record = manifests.load_run(run.label.run)
    return {
        "Labels": {f"plan: {name}": value for name, value in record.plan.items()}
        | {"seed": record.seed, "photographs": ", ".join(source.source for source in record.sources)},
        "Training": {
            name: getattr(run.train, name)
            for name in ("seed", "steps", "batch_size", "columns", "ratios", "normalization_shared", "normalization_local")
        }
        | {
            f"weight of L_{name}": getattr(run.train, f"{name}_weight")
            for name in ("shared", "local_global", "feature", "gradient")
        },
        "Checkpoints (sha256)": {
            column.name: column.fingerprint["weights_sha256"]
            for column in record.columns
            if "weights_sha256" in column.fingerprint
        },
        "Versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }
