"""What the sections share: device, sizes, and checkpoints, photographs and labels that are made when first asked for."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from benchmarks.gpu.networks import save_diffusion, save_vit
from benchmarks.gpu.sizes import Sizes
from benchmarks.worker import write_photographs
from manifests.location import on_disk
from pipeline.label.command import label
from pipeline.label.config import LabelConfig, demo_teacher
from stages.labelling.teacher import TeacherSpec
from stages.models import DepthModel, load_model
from stages.models.spec import Precision
from stages.views import ViewPlan

TeacherName = Literal["Depth Anything v2 Small", "Depth Anything v2 Large", "GenPercept", "Lotus-D"]
_VITS: Mapping[str, str] = {"Depth Anything v2 Small": "S", "Depth Anything v2 Large": "L"}


@dataclass(kw_only=True)
class Bench:
    """One machine being measured."""

    device: str
    sizes: Sizes
    folder: Path
    until: float = math.inf
    """When the section at work is to end, on the clock of `time.monotonic`."""
    _loaded: dict[tuple[TeacherName, Precision], DepthModel] = field(default_factory=dict)

    @property
    def on_card(self) -> bool:
        """Whether the device is a CUDA card."""
        return self.device.startswith("cuda")

    @cached_property
    def plan(self) -> ViewPlan:
        """The paper's: random squares, native patches."""
        return replace(ViewPlan(), **self.sizes.plan_changes)

    def unit_images(self, name: TeacherName) -> int:
        """Photographs in the unit that a worker with this teacher is timed on: fewer for one that takes long."""
        return self.sizes.unit_images[0 if name in _VITS else 1]

    def photographs(self, count: int) -> Path:
        """A tar of so many."""
        path, (width, height) = self.folder / f"photographs{count}.tar", self.sizes.photograph_px
        return path if path.exists() else write_photographs(path, count, width=width, height=height)

    def vit(self, size: str) -> Path:
        """The checkpoint of a Depth Anything v2 of size S, B or L."""
        if not (folder := self.folder / f"vit-{size}").exists():
            save_vit(self.sizes.vits[size], folder, self.device)
        return folder

    def teacher_spec(self, name: TeacherName, dtype: Precision, *, compile: bool = False) -> TeacherSpec:
        """The teacher's checkpoint, and how it is to be loaded."""
        if name in _VITS:
            folder = self.vit(_VITS[name])
        elif not (folder := self.folder / name).exists():
            save_diffusion(self.sizes.diffusion, folder, self.device, lotus=name == "Lotus-D")
        return TeacherSpec(
            name="teacher",
            checkpoint=str(folder),
            depth_space="disparity_affine_invariant",
            dtype=dtype,
            compile=compile,
        )

    def teacher(self, name: TeacherName, dtype: Precision) -> DepthModel:
        """The teacher on the device; kept until another teacher is asked for, or `release` is called."""
        if any(other != name for other, _ in self._loaded):
            self.release()
        if (name, dtype) not in self._loaded:
            self._loaded[name, dtype] = load_model(self.teacher_spec(name, dtype), device=self.device)
        return self._loaded[name, dtype]

    def release(self, *, keep: Precision | None = None) -> None:
        """Forget the teachers, but for those of one precision, and give their memory back."""
        self._loaded = {key: teacher for key, teacher in self._loaded.items() if key[1] == keep}
        gc.collect()
        if self.on_card:
            torch.cuda.empty_cache()

    @cached_property
    def labelled_run(self) -> Path:
        """Photographs that the demo's two teachers have labelled, at the size of the students' contexts."""
        config = LabelConfig(
            run=self.folder / "run",
            sources=(str(self.photographs(self.sizes.run_images)),),
            plan=self.plan,
            teachers={name: demo_teacher(name) for name in ("primary", "assistant")},
            workers=0,
        )
        report = label(config)
        if report.committed != report.parts_total:
            raise RuntimeError(f"the labels of the demo's teachers: {report}")
        return on_disk(config.run)
