"""The pieces of work of a study, each of which ends in a record: a premise measured, a student trained and scored."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from pipeline.evaluate.cache import PredictionStore
from pipeline.evaluate.command import EvaluationError
from pipeline.evaluate.data import RenderedScenes
from pipeline.evaluate.run import EvaluatedModel, evaluate_set
from pipeline.study.design import Arm, Cut, Family
from pipeline.study.labels import Workshop, teacher_says
from pipeline.study.records import Record
from pipeline.study.scales import FIRST_PREMISE, FIRST_TEST, FIRST_TUNING
from pipeline.train.command import TrainConfig, TrainingStoppedError, train
from stages.depth_space import is_disparity
from stages.evaluation.benchmarks import BenchmarkSample
from stages.evaluation.metrics import DepthMetrics
from stages.evaluation.premise import PremiseScore, premise_score
from stages.evaluation.scoring import ImageScore
from stages.label_store import open_run
from stages.models import checkpoint_sha256
from stages.models.find import find_model
from stages.scenes import scene_depth

PREMISE_SCORES = tuple(field.name for field in fields(PremiseScore) if field.name != "patches")


@dataclass(frozen=True, kw_only=True)
class Premise:
    """Are a teacher's close-ups better than slices of its whole views?"""

    workshop: Workshop
    family: Family
    teacher: str
    patches_per_side: int

    @property
    def name(self) -> str:
        return f"{self.family.name}.premise.{self.teacher}.{self.patches_per_side}"

    def what(self) -> Mapping[str, Any]:
        """All that decides its numbers."""
        return {
            "kind": "premise",
            "teacher": teacher_says(self.family, self.teacher),
            "plan": vars(self.family.plan(Cut(patches_per_side=self.patches_per_side))),
            "photo_px": self.family.photo_px,
            "scenes": [FIRST_PREMISE, self.workshop.scale.premise_images],
        }

    def measure(self) -> Record:
        """Of labels that are there."""
        started = time.process_time()
        run = open_run(self.workshop.premise_run(self.family, self.patches_per_side))
        side, rows = self.family.context_px, {}
        for image, labels in run[self.teacher].items():
            if not is_disparity(labels.depth_space):
                raise EvaluationError(f"{self.teacher}: its numbers are {labels.depth_space}, expected disparity")
            if (score := premise_score(labels.first, scene_depth(int(image.key), height_px=side, width_px=side))) is not None:
                rows[image.key] = score
        scores = {metric: tuple(getattr(row, metric) for row in rows.values()) for metric in PREMISE_SCORES}
        return Record(
            name=self.name,
            what=self.what(),
            scenes=tuple(rows),
            scores=scores,
            cpu_s=round(time.process_time() - started, 1),
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """A student of an arm, trained from one seed, and scored on the scenes on which rates are chosen or claims are judged."""

    workshop: Workshop
    family: Family
    arm: Arm
    seed: int
    rate: float
    scored_on: Literal["test", "tuning"] = "test"

    @property
    def name(self) -> str:
        tuned = f".rate-{self.rate:g}" if self.scored_on == "tuning" else ""
        return f"{self.family.name}.{self.arm.name}{tuned}.{self.seed}"

    @property
    def scenes(self) -> range:
        scale = self.workshop.scale
        first, count = (FIRST_TEST, scale.test_scenes) if self.scored_on == "test" else (FIRST_TUNING, scale.tuning_scenes)
        return range(first, first + count)

    def settings(self) -> dict[str, Any]:
        """Those of `pipeline.train`, less the folders."""
        scale = self.workshop.scale
        rates = {"lr_encoder": self.rate, "lr_decoder": self.rate}
        if scale.train.get("lr_encoder") != scale.train.get("lr_decoder"):  # keep their ratio
            rates["lr_encoder"] = self.rate / 10
        images = None if self.arm.image_share == 1 else max(round(scale.images * self.arm.image_share), 1)
        own = {"steps": scale.steps, "columns": self.arm.columns, "seed": self.seed, "images": images, "device": scale.device}
        return {**scale.train, **rates, **own, **self.arm.train}

    def what(self) -> Mapping[str, Any]:
        """All that decides its numbers."""
        return {
            "kind": "training",
            "teachers": {name: teacher_says(self.family, name) for name in self.arm.columns},
            "plan": vars(self.family.plan(self.arm.cut)),
            "photo_px": self.family.photo_px,
            "images": self.workshop.scale.images,
            "train": {name: _named(value) for name, value in self.settings().items() if name not in _DO_NOT_MATTER},
            "scored_on": [self.scenes.start, len(self.scenes), self.family.context_px, self.family.photo_px, _INPUT],
        }

    def run(self) -> Record:
        """Train on labels that are there, resuming where an earlier call ended, and score; the student is not kept.

        Raises as `train` does, but for a training that stops by itself, which is a record too.
        """
        output = self.workshop.folder / "students" / self.name
        config = TrainConfig(
            run=(self.workshop.students_run(self.family, self.arm.cut),), output=output, preset="demo", **self.settings()
        )
        started, failure, scores = time.process_time(), None, {}
        try:
            train(config)
            scores = self._score(output)
        except TrainingStoppedError as error:
            failure = str(error)
        record = Record(
            name=self.name,
            what=self.what(),
            scenes=tuple(map(str, self.scenes)) if scores else (),
            scores=scores,
            cpu_s=round(time.process_time() - started, 1),
            failure=failure,
        )
        shutil.rmtree(output, ignore_errors=True)
        return record

    def _score(self, checkpoint: Path) -> dict[str, tuple[float, ...]]:
        data = Scenes(self.scenes, "disparity_affine_invariant", self.family.context_px, self.family.photo_px)
        found = find_model(str(checkpoint), name=self.name, depth_space="disparity_affine_invariant")
        model = EvaluatedModel(found.at(_INPUT), device=self.workshop.scale.device)

        def score(prediction: Float32[np.ndarray, "h w"], sample: BenchmarkSample) -> _Scored:
            return data.score(prediction, sample), data.central_half(prediction, sample)

        outcome = evaluate_set(data, [model], score, store=PredictionStore(None), workers=1, progress=False)
        for failure in [*outcome.failures.values(), *outcome.problems]:
            raise EvaluationError(failure)
        return _columns(list(outcome.scores[model.name].values()))


_Scored = tuple[ImageScore, tuple[DepthMetrics, DepthMetrics] | None]
_INPUT = "native"
"""Students are shown test scenes as large as what they were trained on, not at the size that their first weights were made for:
the demo's network at three times the size was better untrained than after any training, whatever the labels."""
_DO_NOT_MATTER = {"device", "checkpoint_every", "keep_checkpoints", "picture_every", "loader_workers"}


def _named(value: Any) -> Any:
    """A checkpoint in a folder by its digest: folders are this machine's."""
    return checkpoint_sha256(Path(value)) if isinstance(value, str) and os.sep in value and Path(value).is_dir() else value


def _columns(scored: Sequence[_Scored]) -> dict[str, tuple[float, ...]]:
    rows = [
        (
            score.metrics.abs_rel,
            score.metrics.delta1,
            score.boundary.f1 if score.boundary else np.nan,
            half[1].abs_rel - half[0].abs_rel if half else np.nan,
        )
        for score, half in scored
    ]
    return dict(zip(("abs_rel", "delta1", "edge_f1", "central_gain"), zip(*rows, strict=True), strict=True))


class Scenes(RenderedScenes):
    """The same scenes are scored by every training: each process renders them once."""

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], BenchmarkSample]:
        return _rendered(self._seeds[index], self._space, self._input_px, self._side_px)


@lru_cache(1024)
def _rendered(seed: int, *how: Any) -> tuple[UInt8[np.ndarray, "h w 3"], BenchmarkSample]:
    return RenderedScenes([seed], *how).read(0)
