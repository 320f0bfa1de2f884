"""What the demo's report says beside that of any run and student: exact depth, of scenes that no network has seen.

Every sentence and heading that judges is made from the numbers that stand below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from pipeline.evaluate.command import protocol
from pipeline.label.config import LabelConfig
from pipeline.report.examples import Example, ShownMap, label_of, make_example
from pipeline.report.page import ExampleGroup, Measure, ReportContent, Scenes, Score, ScoreTable, shown, write_report
from pipeline.report.run_report import Options, run_report
from pipeline.report.training import AFTER, BEFORE
from pipeline.train.config import TrainConfig
from stages.evaluation.boundaries import boundary_score
from stages.evaluation.metrics import aligned_depth, depth_errors, mean_metrics
from stages.evaluation.rendered import MAX_DEPTH_M, MIN_DEPTH_M, SCENE_SIDE_PX, SceneResult, resize_bilinear, scored_pixels
from stages.label_store import Label
from stages.labelling.teacher import TeacherSpec
from stages.labelling.units import label_views
from stages.models import DepthModel, load_model
from stages.scenes import render_scene
from stages.sources.photographs import resize_region
from stages.stitching import stitch_patches
from stages.views import SourceBox, plan_views

PRIMARY, ASSISTANT = "primary teacher", "assistant teacher"
_TEACHERS = {"primary": PRIMARY, "assistant": ASSISTANT}
_NOTES = {
    PRIMARY: "Depth Anything architecture",
    ASSISTANT: "one-step diffusion, GenPercept's form",
    BEFORE: "where the training starts",
    AFTER: "trained on the teachers' labels alone",
}
_MEASURES = (Measure(name="AbsRel", direction="lower"), Measure(name="δ1", direction="higher"))
_TRUTH, _CAPTION = "exact depth", "Rendered scene"
_FROM_THE_RUN = 3
_PHOTOGRAPH = "sample_data/grace_hopper.jpg"
_WHOSE = (
    "It is the official portrait of Commodore Grace M. Hopper, U.S. Navy, 1984, in the public domain as a work of the United "
    "States government; Matplotlib brings it as grace_hopper.jpg"
)


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """All that the demo did: its configurations, the checkpoints by name, and their results on the held-out scenes."""

    label: LabelConfig
    train: TrainConfig
    models: Mapping[str, Path]
    results: Mapping[str, Sequence[SceneResult]]
    seeds: range
    examples: int


@dataclass(frozen=True, kw_only=True)
class MapScore:
    """Of one map against exact depth; None where it cannot be scored (dead), or the truth has no edge."""

    abs_rel: float | None
    edge_f1: float | None


def write_demo_report(path: Path, run: DemoRun, timings_s: Mapping[str, float]) -> None:
    """Write the report of a finished demo."""
    content = run_report(
        Path(str(run.label.run)), str(run.train.output), Options(examples=_FROM_THE_RUN, device="cpu", caption=_CAPTION)
    )
    write_report(path, _with_exact_depth(content, run, timings_s))


def _with_exact_depth(content: ReportContent, run: DemoRun, timings_s: Mapping[str, float]) -> ReportContent:
    table = _score_table(run)
    networks = _Networks.of(run)
    seen = [networks.look(seed) for seed in run.seeds[: run.examples]]
    scenes = Scenes(before=_abs_rels(run, BEFORE), after=_abs_rels(run, AFTER))
    return replace(
        content,
        title="Two teachers and a student, on rendered scenes",
        summary=[
            f"Two small networks, the primary and the assistant teacher, labelled {content.facts['photographs']} rendered "
            "scenes, whole and in close-ups. A smaller one, the student, learned from those labels alone. "
            f"{student_sentence(table, scenes)}",
            close_ups_sentence([scores for _, scores in seen]),
        ],
        scores=table,
        facts={name.replace("photographs", "rendered scenes"): value for name, value in content.facts.items()},
        groups=[
            ExampleGroup(
                heading="Held-out scenes, beside their exact depth",
                note=(
                    "Rendered scenes that no network has seen. Every map is aligned in scale and shift to the exact disparity "
                    "and has its colours. The number is the map's AbsRel; a scene's lowest is bold. A click enlarges: two "
                    "pictures under a slider, values, a point cloud."
                ),
                examples=[example for example, _ in seen],
                difference="Where each map is wrong: red is nearer, blue farther than the exact depth. The full colour is a "
                "quarter of its range in disparity.",
            ),
            networks.photograph_group(),
            *content.groups,
        ],
        scenes=scenes,
        timings_s=timings_s,
    )


def _score_table(run: DemoRun) -> ScoreTable:
    means = {name: mean_metrics([result.metrics for result in scenes]) for name, scenes in run.results.items()}
    return ScoreTable(
        heading=f"Accuracy on {len(run.seeds)} held-out scenes",
        note=f"{protocol(run.seeds, 'disparity_affine_invariant')}. Rendered scenes, whose depth is exact.",
        measures=_MEASURES,
        rows=[Score(name=n, values=[m.abs_rel, m.delta1], note=_NOTES[n]) for n, m in means.items()],
        before=BEFORE,
        after=AFTER,
    )


def _abs_rels(run: DemoRun, name: str) -> list[float]:
    return [result.metrics.abs_rel for result in run.results[name]]


def student_sentence(table: ScoreTable, scenes: Scenes) -> str:
    rows, told = {row.name: row.values for row in table.rows}, []
    for i, measure in enumerate(table.measures):
        before, after = rows[BEFORE][i], rows[AFTER][i]
        became = {"better": "became better", "worse": "became worse", "": "stayed as good"}[measure.verdict(before, after)]
        told.append(f"by {measure.name} it {became} ({shown(before)} → {shown(after)})")
    where = f"On {len(scenes.before)} other scenes, which none of the networks has seen"
    return f"{where}, {' and '.join(told)}. {scenes.sentence}"


def close_ups_sentence(scores: Sequence[Mapping[str, MapScore]]) -> str:
    """Whether close-ups are nearer to the exact depth than the whole view, teacher by teacher, on these scenes."""
    told = []
    for teacher in (PRIMARY, ASSISTANT):
        by = {}
        for name, lower in (("abs_rel", True), ("edge_f1", False)):
            pairs = [(getattr(s[f"{teacher}, close-ups"], name), getattr(s[f"{teacher}, whole"], name)) for s in scores]
            known = [(close, whole) for close, whole in pairs if close is not None and whole is not None]
            by[name] = f"{sum((close < whole) == lower and close != whole for close, whole in known)} of {len(known)}"
        told.append(f"the {teacher} in {by['abs_rel']} by AbsRel and in {by['edge_f1']} by edge F1")
    return (
        "Close-ups, stitched and aligned to the whole view, are nearer to the exact depth than that view, on the scenes below: "
        f"{'; '.join(told)}. The student is taught by both, the primary and the assistant teacher at 7 to 3."
    )


# --- what every network sees ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Networks:
    run: DemoRun
    teachers: Mapping[str, DepthModel]
    students: Mapping[str, DepthModel]

    @classmethod
    def of(cls, run: DemoRun) -> _Networks:
        teachers = {_TEACHERS[name]: load_model(spec) for name, spec in run.label.teachers.items()}
        space = run.label.teachers["primary"].depth_space
        students = {}
        for name in (BEFORE, AFTER):
            spec = TeacherSpec(name=name, loader="transformers", checkpoint=str(run.models[name]), depth_space=space)
            students[name] = load_model(spec)
        return cls(run=run, teachers=teachers, students=students)

    def maps(self, image: Image.Image, key: str) -> dict[str, Label]:
        """Every network's map of a picture, as the pipeline would show it to them, at the picture's size."""
        plan = self.run.label.plan
        views, *_ = plan_views(plan, seed=self.run.label.seed, key=key, height_px=image.height, width_px=image.width)
        context = resize_region(image, SourceBox(0, 0, image.height, image.width), *views.extent)
        maps: dict[str, np.ndarray] = {}
        for name, teacher in self.teachers.items():
            labels = label_views(teacher, image, context, views, plan.patch_px)
            maps[f"{name}, whole"] = labels.context.values
            maps[f"{name}, close-ups"] = stitch_patches(labels).values
        maps |= {name: student.predict(context[None])[0] for name, student in self.students.items()}
        return {name: label_of(resize_bilinear(values, (image.height, image.width))) for name, values in maps.items()}

    def look(self, seed: int) -> tuple[Example, Mapping[str, MapScore]]:
        """A scene, and what each map scores on it."""
        scene = render_scene(seed, height_px=SCENE_SIDE_PX, width_px=SCENE_SIDE_PX)
        maps = self.maps(Image.fromarray(scene.rgb), str(seed))
        scores = {name: map_score(label.values, scene.depth_m) for name, label in maps.items()}
        lowest = min((score.abs_rel for score in scores.values() if score.abs_rel is not None), default=None)
        tiles = [ShownMap(name=_TRUTH, space="depth_metric", label=label_of(scene.depth_m))]
        for name, label in maps.items():
            value = scores[name].abs_rel
            text, best = "no score" if value is None else f"{value:.3f}", value is not None and value == lowest
            tiles.append(ShownMap(name=name, space="disparity_affine_invariant", label=label, score=text, best=best))
        return make_example(f"Scene {seed}", scene.rgb, tiles, caption=_CAPTION, compared=(BEFORE, AFTER)), scores

    def photograph_group(self) -> ExampleGroup:
        """A real photograph, of which nobody knows the depth."""
        with Image.open(Path(mpl.get_data_path(), _PHOTOGRAPH)) as image:
            rgb = image.convert("RGB")
        maps = self.maps(rgb, _PHOTOGRAPH)
        tiles = [ShownMap(name=name, space="disparity_affine_invariant", label=label) for name, label in maps.items()]
        return ExampleGroup(
            heading="A real photograph",
            note=(
                "No exact depth is known here, so there is no number, and none of these networks has learned from photographs. "
                f"{_WHOSE}."
            ),
            examples=[make_example("grace_hopper.jpg", np.asarray(rgb), tiles, compared=(BEFORE, AFTER))],
            difference="How far from the first map: red is nearer, blue farther.",
        )


def map_score(values: Float[np.ndarray, "h w"], depth_m: Float[np.ndarray, "h w"]) -> MapScore:
    """AbsRel and edge F1 of an affine-invariant disparity map, aligned; of nothing for one that cannot be scored."""
    valid: Bool[np.ndarray, "h w"] = scored_pixels(depth_m) & np.isfinite(values)
    if not (valid & (values > 0)).any():
        return MapScore(abs_rel=None, edge_f1=None)
    space = "disparity_affine_invariant"
    aligned = aligned_depth(values, depth_m, valid, space=space, min_depth_m=MIN_DEPTH_M, max_depth_m=MAX_DEPTH_M)
    depth = np.ones(depth_m.shape)
    depth[valid] = aligned
    edges = boundary_score(depth, depth_m, valid)
    return MapScore(abs_rel=depth_errors(aligned, depth_m[valid]).abs_rel, edge_f1=edges.f1 if edges else None)
