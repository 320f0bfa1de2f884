"""How large a study is: in seconds for a test, in hours on a CPU, or with the paper's checkpoints on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from pipeline.label.config import DEMO_CHECKPOINTS
from pipeline.study.design import Design
from pipeline.study.designs import demo_design, known_design, paper_design
from pipeline.train.config import PRESETS as TRAIN_PRESETS
from stages.evaluation.rendered import HELD_OUT_SEED

ScaleName = Literal["tiny", "cpu", "paper"]
FIRST_PHOTO = 600_000
"""Seed of the first scene that students are trained on; no checkpoint of ours was."""
FIRST_PREMISE = 700_000
"""Of the scenes on which close-ups are compared with slices."""
FIRST_TUNING = 1_500_000
"""Of the scenes on which the learning rate is chosen, and nothing else judged."""
FIRST_TEST = HELD_OUT_SEED + 10_000
"""Of the scenes on which claims are judged, and nothing is chosen."""
TUNING_SEED = 1_000
"""Of the trainings by which the learning rate is chosen."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Numbers of photographs, steps, seeds and scenes; the designs that are asked; settings of every training."""

    name: ScaleName
    designs: Sequence[Callable[[], Design]]
    images: int
    steps: int
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    """Learning rates to choose from."""
    tuning_scenes: int
    test_scenes: int
    premise_images: int
    premise_sides: tuple[int, ...] = (2, 3)
    """Patches per side."""
    train: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    part_size: int = 32
    claims: tuple[str, ...] = ()
    """The claims to judge, by name; none: all."""


_CPU_STUDENT = {
    **TRAIN_PRESETS["demo"],
    "student": str(DEMO_CHECKPOINTS / "primary"),
    "batch_size": 4,
    "checkpoint_every": 50,
    "keep_checkpoints": 1,
    "picture_every": 1_000_000,
}
"""The demo's better network, as it is: a student that has learned depth, as the paper's has. The small one has not."""

SCALES: Mapping[ScaleName, Scale] = {
    "tiny": Scale(
        name="tiny",
        designs=(partial(known_design, context_px=36, photo_px=72, min_square_px=42),),
        images=8,
        steps=3,
        seeds=(0, 1),
        rates=(1e-3,),
        tuning_scenes=2,
        test_scenes=3,
        premise_images=4,
        premise_sides=(2,),
        train={**TRAIN_PRESETS["demo"], "batch_size": 2, "warmup_steps": 1, "feature_weight": 0.0},
        claims=("table 2: L_lg", "figure 2: local fit", "map: sharp, right"),
    ),
    "cpu": Scale(
        name="cpu",
        designs=(partial(known_design, context_px=96, photo_px=192, min_square_px=111), demo_design),
        images=384,
        steps=150,
        seeds=(0, 1, 2, 3, 4),
        rates=(1e-4, 3e-4, 1e-3),
        tuning_scenes=64,
        test_scenes=128,
        premise_images=64,
        train=_CPU_STUDENT,
    ),
    "paper": Scale(
        name="paper",
        designs=(paper_design,),
        images=20_000,
        steps=20_000,
        seeds=(0, 1, 2, 3, 4),
        rates=(2e-5, 5e-5, 1e-4),
        tuning_scenes=256,
        test_scenes=512,
        premise_images=256,
        train={**TRAIN_PRESETS["paper"], "student": "depth-anything/Depth-Anything-V2-Small-hf", "feature_encoder": None},
        device="auto",
        part_size=64,
    ),
}
