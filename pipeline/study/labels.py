"""The photographs and the labels that a study learns from, made by `pipeline.label`; what is there is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from manifests.errors import DistillError
from pipeline.demo.command import render_tars
from pipeline.label.command import label
from pipeline.label.config import LabelConfig
from pipeline.study.design import Cut, Family
from pipeline.study.scales import FIRST_PHOTO, FIRST_PREMISE, Scale
from pipeline.study.teachers import LOADER, KnownScenes, KnownTeacher, write_teacher
from stages.labelling.teacher import TeacherSpec
from stages.models import checkpoint_sha256
from stages.views import ViewPlan


class LabellingError(DistillError):
    """Not every photograph could be labelled; the message has the first reason."""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where a study's photographs, runs and students are made, and how many processes may work at a time."""

    folder: Path
    scale: Scale
    workers: int

    def students_run(self, family: Family, cut: Cut) -> Path:
        return self.folder / "runs" / f"{family.name}-{cut.name}"

    def premise_run(self, family: Family, patches_per_side: int) -> Path:
        return self.folder / "runs" / f"{family.name}-premise-{patches_per_side}"

    def label_students(self, family: Family, cut: Cut, columns: Sequence[str]) -> Path:
        """The run that students learn from, with these columns. Raises as `label` does, LabellingError, KeyboardInterrupt."""
        run = self.students_run(family, cut)
        return self._labelled(run, family, family.plan(cut), columns, first=FIRST_PHOTO, count=self.scale.images)

    def label_premise(self, family: Family, patches_per_side: int, columns: Sequence[str]) -> Path:
        """The run, of other photographs, whose close-ups are compared with slices. Raises the same."""
        run, plan = self.premise_run(family, patches_per_side), family.plan(Cut(patches_per_side=patches_per_side))
        return self._labelled(run, family, plan, columns, first=FIRST_PREMISE, count=self.scale.premise_images)

    def _labelled(self, run: Path, family: Family, plan: ViewPlan, columns: Sequence[str], *, first: int, count: int) -> Path:
        photos = self.folder / "photos" / f"{family.photo_px}px"
        tars = render_tars(photos, count, first=first, side_px=family.photo_px)
        scenes = KnownScenes(first=first, count=count, photo_px=family.photo_px, plan=plan)
        teachers = {name: self._spec(run, family, name, scenes) for name in columns}
        report = label(
            LabelConfig(
                run=run,
                sources=tuple(map(str, tars)),
                plan=plan,
                teachers=teachers,
                columns=tuple(columns),
                part_size=self.scale.part_size,
                workers=self.workers,
            )
        )
        if report.interrupted:
            raise KeyboardInterrupt
        reasons = [f"{failure.column}/{failure.part}: {failure.problem.message}" for failure in report.failures]
        if reasons := [*reasons, *report.columns_given_up.values()]:
            raise LabellingError(f"{run}: not everything could be labelled, the first reason: {reasons[0]}")
        return run

    def _spec(self, run: Path, family: Family, name: str, scenes: KnownScenes) -> TeacherSpec:
        teacher, bits = family.teachers[name], family.label_bits.get(name)
        if isinstance(teacher, TeacherSpec):
            return replace(teacher, name=name, label_bits=bits)
        path = self.folder / "teachers" / run.name / f"{name}.json"
        write_teacher(path, scenes, teacher)
        return TeacherSpec(name=name, loader=LOADER, checkpoint=str(path), label_bits=bits)


def teacher_says(family: Family, name: str) -> Mapping[str, Any]:
    """What a record says of a teacher: its errors, or the digest of its weights; without this machine's paths."""
    teacher = family.teachers[name]
    if isinstance(teacher, KnownTeacher):
        bits = family.label_bits.get(name)
        return asdict(teacher) | ({} if bits is None else {"label_bits": bits})
    folder = Path(teacher.checkpoint)
    if folder.is_dir():
        return {"checkpoint_sha256": _digest(folder)}
    return {"checkpoint": teacher.checkpoint, "revision": teacher.revision}


@cache
def _digest(folder: Path) -> str:
    return checkpoint_sha256(folder)
