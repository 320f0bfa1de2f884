"""A student as its folder tells of it: how far its training came, its losses, and itself before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.errors import DistillError, RefusedError
from pipeline.report.page import LossCurve
from pipeline.train.config import DEMO_STUDENT
from pipeline.train.log import METRICS, read_metrics
from pipeline.train.state import recorded_settings
from stages.distillation.student import WEIGHTS
from stages.models import DepthModel
from stages.models.find import find_model

BEFORE, AFTER = "student before", "student after"
_CURVES = {
    "total": "Total",
    "shared_context": "Shared context",
    "local_global": "Local to global",
    "feature": "Feature",
    "gradient": "Gradient",
    "anchor": "Anchor",
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is known of a student. settings, steps: as the training recorded them; empty where it did not. models: those of
    `BEFORE` and `AFTER` that there are. notices: why there are no others, and what else must be known."""

    name: str
    folder: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    finished: bool = False
    models: Mapping[str, DepthModel] = field(default_factory=dict)
    notices: Sequence[str] = ()

    @property
    def reference(self) -> str | None:
        """The first teacher that it learned from."""
        return next(iter(self.settings.get("columns") or ()), None)

    @property
    def seconds(self) -> float | None:
        """What its steps took, those that were taken twice counted once; None where the log does not say."""
        batch, rates = self.settings.get("batch_size"), [step.get("images_per_s") for step in self.steps]
        known = [rate for rate in rates if isinstance(rate, int | float) and rate > 0]
        return sum(batch / rate for rate in known) if isinstance(batch, int) and known else None

    @property
    def weights_bytes(self) -> int | None:
        """The size of the finished student's weights; None where there are none."""
        path = self.folder / WEIGHTS if self.folder else None
        return path.stat().st_size if path and path.exists() else None

    def curves(self) -> list[LossCurve]:
        """The losses that were not 0 throughout."""
        found = []
        for key, name in _CURVES.items():
            told = [(step["step"], float(step[key])) for step in self.steps if _is_number(step.get(key))]
            if any(value for _, value in told):
                found.append(LossCurve(name=name, steps=[at for at, _ in told], values=[value for _, value in told]))
        return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_training(student: str, device: str) -> Training:
    """A student by its folder or hub id. Raises RefusedError for a folder that is not there, and ModelError as `find_model`."""
    folder = Path(student)
    if not folder.is_dir():
        if student.startswith((".", "/")) or student.count("/") != 1:
            raise RefusedError(f"{student}: found no such folder, expected that of a student; train one, or leave it out")
        return _other_model(student, None, device)
    settings, steps = recorded_settings(folder), read_metrics(folder)
    if not settings and not steps:
        return _other_model(student, folder, device)
    finished = (folder / WEIGHTS).exists()
    models, notices = {}, []
    if finished:
        models, notices = _before_and_after(folder, settings, device)
    else:
        done = max((step["step"] for step in steps), default=-1) + 1
        of = f" of {settings['steps']}" if "steps" in settings else ""
        notices = [
            f"The training in {student} has not ended: it is at step {done}{of}, and there is no student to look at yet. "
            "The command that began it goes on from there."
        ]
    return Training(
        name=folder.resolve().name,
        folder=folder,
        settings=settings,
        steps=steps,
        finished=finished,
        models=models,
        notices=notices,
    )


def _other_model(student: str, folder: Path | None, device: str) -> Training:
    """A model that is no training of ours, or whose folder does not say so."""
    notice = f"{student} has neither {METRICS} nor settings of a training: there are no curves, and no student before."
    model = find_model(student, device=device).load(device)
    name = folder.resolve().name if folder else student
    return Training(name=name, folder=folder, models={AFTER: model}, finished=True, notices=[notice])


def _before_and_after(folder: Path, settings: Mapping[str, Any], device: str) -> tuple[dict[str, DepthModel], list[str]]:
    after = find_model(str(folder), device=device).load(device)
    start = str(settings.get("student", ""))
    if settings.get("from_scratch") or settings.get("fresh_head"):
        what = "all its weights were" if settings.get("from_scratch") else "its head was"
        return {AFTER: after}, [f"There is no student before: {what} random at the start."]
    checkpoint = str(DEMO_STUDENT) if start == "demo" else start
    try:
        found = find_model(checkpoint, revision=settings.get("student_revision"), device=device)
        return {BEFORE: found.load(device), AFTER: after}, []
    except (DistillError, OSError) as error:
        return {AFTER: after}, [f"The student before cannot be shown: {' '.join(str(error).split())}"]
