"""Everything that a training can be told, and the presets: the paper, what everybody did before it, and the demo."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from manifests.location import Url
from manifests.part_cache import PartCache
from pipeline.config import AnyLocation, at_least, cuda_is_here, folder_problems, parse_command
from pipeline.help import HelpPage
from stages.depth_space import DepthConversion
from stages.distillation.draw import Draw
from stages.distillation.loss_config import LossConfig
from stages.distillation.order import Strategy

if TYPE_CHECKING:
    from stages.distillation.student import StudentStart

if TYPE_CHECKING:
    _Output: TypeAlias = Path
else:
    _Output = AnyLocation  # a URL until `bucket_output.at_hand` has given it a folder
DEMO_STUDENT = Path(__file__).parents[1] / "demo_checkpoints" / "student"
_BASELINE: dict[str, Any] = {
    "normalization_shared": "global",
    "normalization_local": "global",
    "local_global_weight": 0.0,
    "context": "whole",
}
_DEMO: dict[str, Any] = {
    "student": "demo",
    "steps": 300,
    "lr_encoder": 6e-4,
    "lr_decoder": 6e-4,
    "warmup_steps": 20,
    "decay": "cosine",
    "loader_workers": 0,
    "device": "cpu",
    "checkpoint_every": 100,
}
_PAPER: dict[str, Any] = {
    "student": "depth-anything/Depth-Anything-V2-Large-hf",
    "fresh_head": True,
    "feature_encoder": "facebook/dinov2-large",
    "bf16": True,
    "tf32": True,
    "compile": True,
}
_ABLATION = _PAPER | {"images": 50_000}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "baseline": _BASELINE,
    "paper": _PAPER,
    "paper-ablation": _ABLATION,
    "paper-baseline": _ABLATION | _BASELINE,
    "demo": _DEMO,
    "demo-baseline": _DEMO | _BASELINE,
}
"""The loss is the paper's in all but the baselines; docs/paper.md says what each setting is in the paper."""


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """What a training learns from, and where it goes."""

    run: tuple[AnyLocation, ...]
    """The labelled run, or its URL in a bucket, or several of one plan and the same teachers."""
    output: _Output
    """Folder of the trained checkpoint, its curves, and the states to resume from; or its URL in a bucket."""
    preset: str = "default"
    """default (Depth Anything v2 Small as it is), paper (table 5: the Large encoder with a new head), paper-ablation
    (the same on 50,000 images), demo (small, for a CPU); baseline, paper-baseline and demo-baseline have the usual loss: one
    global normalisation of whole pictures, no patches."""
    config: Path | None = None
    """TOML file with any of these settings."""
    allow_partial: bool = False
    """Begin though labelling has not ended: with the images that are labelled now, and with those to the end."""
    columns: tuple[str, ...] = ("primary", "assistant")
    """Columns of the run to learn from: one teacher or more."""
    ratios: tuple[float, ...] = ()
    """How often each of the columns is learned from, in proportion, under select; none given: 7 to 3 for two columns (the
    paper), equally for any other number."""
    strategy: Strategy = "select"
    """select draws one column for each step, average fuses all by their agreement."""
    convert_depth: DepthConversion = "refuse"
    """What to do with columns that are not disparity: refuse where spaces differ; metric inverts metric depth, exactly;
    approximate also inverts affine-invariant depth, whose shift nobody knows."""
    patch_agreement: float = -1
    """Leave out patches whose label correlates less than this with the same place in the whole view's label, such as crops of
    sky; -1 keeps all, as the paper does."""
    mask_disagreement: float | None = None
    """Leave out pixels in which the columns, aligned in scale and shift to the first, differ by more than this many mean
    absolute deviations of its label, such as 1; None learns from all, as the paper does."""
    context: Literal["any", "whole", "square"] = "any"
    """Refuse a run whose contexts are not whole pictures, or random squares."""
    images: int | None = None
    """Learn from this many of the labelled images alone: the same ones in every training, fewer a part of more."""


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    """The network that learns, and the frozen one that its features are held to."""

    student: str = "depth-anything/Depth-Anything-V2-Small-hf"
    """Checkpoint the student starts from: a folder, an id on the hub, or demo, the small one that comes with the package. An
    encoder alone, such as DINOv3, needs --fresh-head."""
    student_revision: str | None = None
    """Full commit of the student's hub id; None for one that is known here."""
    fresh_head: bool = False
    """Keep the encoder of --student and start with a random neck and head (the paper's table 5)."""
    from_scratch: bool = False
    """Take the architecture of --student alone and start with random weights."""
    feature_encoder: str | None = None
    """Checkpoint of the frozen encoder, such as DINOv2 or DINOv3; None takes a copy of the student's own at the start."""
    feature_revision: str | None = None
    """Full commit of the frozen encoder's hub id."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """The steps: their number, learning rates, augmentation and precision."""

    steps: int = 20_000
    """Optimizer steps."""
    batch_size: int = 8
    """Contexts in a step, on all devices together."""
    lr_encoder: float = 5e-6
    """Peak learning rate of the encoder."""
    lr_decoder: float = 5e-5
    """Peak learning rate of the decoder."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    warmup_steps: int = 200
    """Steps of linear warm-up."""
    decay: Literal["poly", "cosine", "constant"] = "poly"
    """How the learning rate falls after the warm-up: (1 - progress)^0.9, half a cosine, or not at all."""
    max_gradient_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    ema_decay: float = 0.0
    """Export an exponential moving average of the weights, such as 0.999; 0 exports the last weights."""
    flip: bool = True
    """Mirror half of the images."""
    color_jitter: float = 0.0
    """Strength of random changes of brightness, contrast, saturation and hue; only the student sees them."""
    streams: int = 1
    """Shares into which the order deals the labels, each with slots of its own in every batch: of several machines that read
    from a bucket each then fetches its share alone. Their number, or a multiple of it."""
    seed: int = 0
    """Seed of order, teachers, augmentation and new weights."""
    bf16: bool = False
    """Run encoder and neck in bfloat16."""
    tf32: bool = False
    """Let a GPU's float32 matrix products and convolutions round their inputs to TF32: faster."""
    compile: bool = False
    """Compile the student with `torch.compile`: minutes at the start, faster afterwards."""


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Where and how fast it runs. May change when a training is resumed: it changes the result by rounding at most (and by
    which paths are dropped, in students that drop any at random)."""

    resume: bool = True
    """Resume where an interrupted training in the output ended; --no-resume refuses instead."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    num_workers: int = 1
    """Devices to train on together, through Ray Train: GPUs, or processes on CPUs. 1 trains in this process."""
    address: str | None = None
    """A Ray cluster's address; without it, Ray runs on this machine for as long as the command does."""
    max_restarts: int = 3
    """How often Ray Train starts the workers again after one of them died."""
    loader_workers: int = 4
    """Processes that read labels, for each device; 0 reads in the training process."""
    cache: Path | None = None
    """Folder on this machine in which parts of a run in a bucket are kept while they are read; best on a fast disk."""
    cache_gb: float = 100
    """What these parts may take, in GB; those that were not read for longest are removed."""
    accumulation: int = 1
    """Micro-batches into which each device cuts its share of a batch, where memory is short."""
    activation_checkpointing: bool = False
    """Compute the encoder's activations twice instead of keeping them: less memory, slower."""
    checkpoint_every: int = 500
    """Steps between states to resume from."""
    keep_checkpoints: int = 2
    """How many of the latest states to keep."""
    picture_every: int = 500
    """Steps between pictures in TensorBoard."""


MAY_CHANGE = frozenset(
    {"preset", "config", "run", "output", "allow_partial"} | {field.name for field in fields(RuntimeSettings)}
)
"""What a resumed training need not have as it was."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RuntimeSettings, StepSettings, LossConfig, StudentSettings, LabelSettings):
    """Train a student on the labels of one run or more.

    The groups are one namespace, as the flags, the presets and the keys of a TOML file are.
    """

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        weights = ("shared_weight", "local_global_weight", "feature_weight", "gradient_weight", "anchor_weight")
        counts = (
            "steps",
            "batch_size",
            "accumulation",
            "checkpoint_every",
            "keep_checkpoints",
            "num_workers",
            "picture_every",
            "streams",
        )
        others = ("loader_workers", "warmup_steps", "seed", "weight_decay", "max_restarts")
        least: dict[str, float] = {**dict.fromkeys((*counts, "images"), 1), **dict.fromkeys((*weights, *others), 0)}
        found = at_least(self, least)
        found += [
            f"{name}: found {getattr(self, name)}, expected more than 0"
            for name in ("lr_encoder", "lr_decoder", "max_gradient_norm")
            if not getattr(self, name) > 0
        ]
        found += self._column_problems() + self._scale_problems()
        found += [
            f"{name}: found {getattr(self, name)}, expected 0 or more and less than 1"
            for name in ("trim_fraction", "ema_decay", "color_jitter")
            if not 0 <= getattr(self, name) < 1
        ]
        if not any(getattr(self, name) for name in ("shared_weight", "local_global_weight")):
            found.append("shared_weight and local_global_weight are both 0: nothing would be learned from the teachers")
        if self.fresh_head and self.from_scratch:
            found.append("fresh_head and from_scratch: found both, expected one of them at most")
        if self.from_scratch and self.feature_weight and self.feature_encoder is None:
            found.append(
                "from_scratch: the student's own encoder at the start is random, and L_feat would hold it there; name a "
                "feature_encoder, or set feature_weight to 0"
            )
        if self.batch_size < self.num_workers * self.accumulation:
            found.append(
                f"batch_size: found {self.batch_size}, expected at least num_workers x accumulation = "
                f"{self.num_workers * self.accumulation}"
            )
        if self.streams > self.batch_size:
            found.append(
                f"streams: found {self.streams}, expected batch_size = {self.batch_size} at most: each has a slot or more"
            )
        if not -1 <= self.patch_agreement <= 1:
            found.append(f"patch_agreement: found {self.patch_agreement}, expected a correlation, between -1 and 1")
        if not -1 <= self.feature_margin <= 1:
            found.append(f"feature_margin: found {self.feature_margin}, expected a cosine, between -1 and 1")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            found.append(f"device: found {self.device!r}, expected auto, cpu, cuda or cuda:N")
        elif self.device.startswith("cuda") and self.address is None and not cuda_is_here():
            found.append(f"device: found {self.device}, but torch sees no CUDA device here; use cpu or auto")
        return found

    @property
    def student_checkpoint(self) -> str:
        """The folder or hub id behind `student`."""
        return str(DEMO_STUDENT) if self.student == "demo" else self.student

    @property
    def part_cache(self) -> PartCache | None:
        """Where parts of runs in a bucket are kept."""
        return None if self.cache is None else PartCache(self.cache.absolute(), int(self.cache_gb * 1e9))

    @property
    def start(self) -> StudentStart:
        """Which of the student's weights are new."""
        return "scratch" if self.from_scratch else "fresh-head" if self.fresh_head else "checkpoint"

    @property
    def draw(self) -> Draw:
        """What decides which labels are read."""
        return Draw(
            seed=self.seed,
            steps=self.steps,
            batch_size=self.batch_size,
            strategy=self.strategy,
            columns=self.columns,
            ratios=self.shares,
            images=self.images,
            patches=self.local_global_weight > 0,
            compared=self.mask_disagreement is not None,
            streams=self.streams,
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """The ratio of each column."""
        return self.ratios or ((0.7, 0.3) if len(self.columns) == 2 else (1.0,) * len(self.columns))

    @property
    def loss(self) -> LossConfig:
        """The part of the settings that is the loss; its fields have the same names."""
        return LossConfig(**{field.name: getattr(self, field.name) for field in fields(LossConfig)})

    def _scale_problems(self) -> list[str]:
        """Under select the teachers alternate from step to step, and each has a scale of its own."""
        used = {"shared": self.shared_weight, "local": self.local_global_weight}
        raw = [f"normalization_{name}" for name in used if used[name] and getattr(self, f"normalization_{name}") == "none"]
        drawn = [name for name, share in zip(self.columns, self.shares, strict=False) if share > 0]
        if not raw or len(drawn) < 2 or self.strategy != "select" or self.convert_depth == "metric":
            return []
        return [
            f"{' and '.join(raw)}: none compares raw values, and {', '.join(drawn)} have scales of their own; learn from one, "
            f"as in --columns {drawn[0]}"
        ]

    def _column_problems(self) -> list[str]:
        found = []
        if not 1 <= len(set(self.columns)) == len(self.columns):
            found.append(f"columns: found {self.columns}, expected the names of one or more different columns")
        if self.ratios and len(self.ratios) != len(self.columns):
            found.append(f"ratios: found {len(self.ratios)}, expected one for each of the {len(self.columns)} columns, or none")
        if not all(ratio >= 0 for ratio in self.ratios) or (self.ratios and not sum(self.ratios) > 0):
            found.append(f"ratios: found {self.ratios}, expected numbers of 0 or more, not all 0")
        if self.strategy == "average" and len(self.columns) < 2:
            found.append(f"strategy: average needs two columns or more, found {self.columns}")
        if self.mask_disagreement is not None and not self.mask_disagreement > 0:
            found.append(
                f"mask_disagreement: found {self.mask_disagreement}, expected more than 0, or none to learn from all pixels"
            )
        if self.mask_disagreement is not None and len(self.columns) < 2:
            found.append(
                f"mask_disagreement: needs two columns or more to compare, found {self.columns}; name another in --columns, "
                "or leave it out"
            )
        if self.cache is None and (remote := [str(run) for run in self.run if isinstance(run, Url)]):
            found.append(f"cache: none given, but {', '.join(remote)} is read through a folder of this machine; name one")
        if not self.cache_gb > 0:
            found.append(f"cache_gb: found {self.cache_gb}, expected more than 0")
        if isinstance(self.output, Url):
            found += folder_problems("--output", self.output)
            if self.num_workers > 1 or self.address is not None:
                found.append(
                    f"output: found {self.output} with num_workers {self.num_workers} or an address; processes that train "
                    "together need a folder that all of them see"
                )
        if not self.run or len(set(self.run)) != len(self.run):
            found.append(f"run: found {', '.join(map(str, self.run)) or 'none'}, expected one or more different runs")
        return found


HELP = HelpPage(
    description=(
        "A labelled run and a student's checkpoint in, a better checkpoint out. Interrupted at any moment, the same "
        "command resumes and ends with the same weights (bit for bit on a CPU)."
    ),
    first=(
        *("run", "output", "preset", "config", "columns", "allow_partial", "student", "steps", "batch_size"),
        *("device", "num_workers", "loader_workers"),
    ),
    examples=(
        (
            "python -m pipeline.train --run runs/mine --output students/mine --preset demo",
            "Train the small student on a CPU, from labels of the demo's teachers",
        ),
        ("python -m pipeline.train --run runs/mine --output students/mine", "Train Depth Anything v2 Small"),
        ("python -m pipeline.train --run runs/mine --output students/mine --num-workers 8", "On eight GPUs"),
    ),
)


def read_command(argv: Sequence[str] | None = None) -> TrainConfig:
    """The configuration of a command line; exits with status 2 where there is none. Imports no torch to answer `--help`."""
    return parse_command(TrainConfig, PRESETS, program="python -m pipeline.train", description=HELP, argv=argv)
