"""`python -m pipeline.train`: a labelled run and a student's checkpoint in, a better checkpoint out.

Interrupted at any moment, the same command goes on and ends with the same weights (bit for bit on a CPU). A finished
output is left alone; one that was begun with other settings is refused. Nothing that is not finite reaches the weights.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.config import parse_command, resolved
from pipeline.training_state import finished_training, remove_state, restore, save_state, truncate_metrics
from stages.distillation.dataset import Batch, BatchPlan, LabelDataset
from stages.distillation.losses import LossConfig, Normalization, Segments
from stages.distillation.step import StepOutcome, backward_step
from stages.distillation.student import Student, load_student, save_student

METRICS = "metrics.jsonl"
_DEMO_STUDENT = Path(__file__).parent / "demo_checkpoints" / "student"
_DYING = 0.5  # share of exact zeros in the student's output that is worth a warning
_BASELINE: dict[str, Any] = {"normalization_shared": "global", "local_global_weight": 0.0}
_DEMO: dict[str, Any] = {
    "student": str(_DEMO_STUDENT),
    "steps": 300,
    "lr_encoder": 6e-4,
    "lr_decoder": 6e-4,
    "warmup_steps": 20,
    "decay": "cosine",
    "workers": 0,
    "device": "cpu",
    "checkpoint_every": 100,
}
PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "baseline": _BASELINE, "demo": _DEMO, "demo-baseline": _DEMO | _BASELINE}
_FREE = ("preset", "config", "run", "output", "workers", "device", "checkpoint_every")  # may change when a training goes on


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a student on the labels of a run."""

    run: Path
    """The labelled run."""
    output: Path
    """Folder of the trained checkpoint, of metrics.jsonl, and of the state to resume from."""
    preset: str = "paper"
    """paper, baseline (the usual loss: one global normalisation, no patches), demo or demo-baseline (small, for a CPU)."""
    config: Path | None = None
    """TOML file with any of these settings."""
    student: str = "depth-anything/Depth-Anything-V2-Small-hf"
    """Checkpoint the student starts from: a folder, or an id on the hub."""
    teachers: tuple[str, ...] = ("primary", "assistant")
    """Columns to learn from: the primary teacher and, if any, the assistant."""
    primary_ratio: float = 0.7
    """Share of the steps in which the primary teacher speaks."""
    normalization_shared: Normalization = "hybrid"
    """Normalisation of the whole context."""
    normalization_local: Normalization = "hybrid"
    """Normalisation of the patches."""
    segments: Segments = "range"
    """How hybrid and local normalisation cut the teacher's values: equal ranges, or equal numbers of pixels."""
    local_global_weight: float = 0.5
    """Weight of the patches' loss; 0 leaves the patches unread."""
    gradient_weight: float = 2.0
    """Weight of the gradient loss."""
    steps: int = 20_000
    """Optimizer steps."""
    batch_size: int = 8
    """Images in a step."""
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
    flip: bool = True
    """Mirror half of the images."""
    bf16: bool = False
    """Run encoder and neck in bfloat16."""
    seed: int = 0
    """Seed of order, teachers and flips."""
    workers: int = 4
    """Processes that read labels; 0 reads in this one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    checkpoint_every: int = 500
    """Steps between states to resume from."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        least = {
            **dict.fromkeys(("steps", "batch_size", "checkpoint_every"), 1),
            **dict.fromkeys(("workers", "warmup_steps", "seed", "weight_decay", "local_global_weight", "gradient_weight"), 0),
        }
        found = [
            f"{name}: found {getattr(self, name)}, expected {low} or more"
            for name, low in least.items()
            if not getattr(self, name) >= low
        ]
        found += [
            f"{name}: found {getattr(self, name)}, expected more than 0"
            for name in ("lr_encoder", "lr_decoder", "max_gradient_norm")
            if not getattr(self, name) > 0
        ]
        if not 0 <= self.primary_ratio <= 1:
            found.append(f"primary_ratio: found {self.primary_ratio}, expected a share between 0 and 1")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            found.append(f"device: found {self.device}, but torch sees no CUDA device here; use cpu or auto")
        return found


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What became of a training."""

    checkpoint: Path
    steps: int
    resumed_from: int
    """Step the training went on from; 0 when it began anew, `steps` when it had been finished before."""
    images: int | None
    """Images in the dataset; None when the training had been finished before."""


class TrainingStoppedError(RuntimeError):
    """Going on would have spoilt the weights; the message says what happened where. The last state is kept."""


def train(config: TrainConfig, on_step: Callable[[Mapping[str, Any]], None] | None = None) -> TrainResult:
    """Train, or go on, or find it done. `on_step` gets each step's line of metrics.jsonl.

    Raises ValueError for a run or an output that does not fit, TrainingStoppedError before an update that would do harm.
    """
    settings = {name: value for name, value in resolved(config).items() if name not in _FREE}
    if finished_training(config.output, settings):
        return TrainResult(checkpoint=config.output, steps=config.steps, resumed_from=config.steps, images=None)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    dataset = LabelDataset(config.run, config.teachers, read_patches=config.local_global_weight > 0)
    student = load_student(config.student, dataset.context_px, device=device)
    student.network.train()
    optimizer = _optimizer(config, student)
    settings["dataset_sha256"] = dataset.digest()
    config.output.mkdir(parents=True, exist_ok=True)
    first_step = restore(config.output, settings, student.network, optimizer, device)
    truncate_metrics(config.output / METRICS, first_step)
    loss = LossConfig(
        normalization_shared=config.normalization_shared,
        normalization_local=config.normalization_local,
        segments=config.segments,
        local_global_weight=config.local_global_weight,
        gradient_weight=config.gradient_weight,
    )
    pace = partial(learning_rate_pace, steps=config.steps, warmup_steps=config.warmup_steps, decay=config.decay)
    with (config.output / METRICS).open("a", encoding="utf-8") as metrics, _progress_bar(config, first_step) as bar:
        for step, batch in enumerate(_loader(config, dataset, first_step, device), first_step):
            torch.manual_seed(config.seed + step)  # dropout, where a student has any, must not depend on a resume
            limit = config.max_gradient_norm
            outcome = backward_step(student, batch.to(device), loss, max_gradient_norm=limit, bf16=config.bf16)
            _refuse_harm(step, outcome, batch)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * pace(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            record = {"step": step, "teacher": batch.teacher, "lr_decoder": config.lr_decoder * pace(step), **asdict(outcome)}
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
            _show(bar, record, config.batch_size)
            if on_step is not None:
                on_step(record)
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
                save_state(config.output, settings, student.network, optimizer, step + 1)
    save_student(student, config.output, {"settings": settings, "configuration": resolved(config), "images": len(dataset)})
    remove_state(config.output)
    return TrainResult(checkpoint=config.output, steps=config.steps, resumed_from=first_step, images=len(dataset))


def learning_rate_pace(step: int, steps: int, warmup_steps: int, decay: str) -> float:
    """The learning rate of a step as a share of its peak, above 0 for every step there is."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    left = 1 - (step - warmup_steps) / max(steps - warmup_steps, 1)
    return {"poly": left**0.9, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[decay]


def _optimizer(config: TrainConfig, student: Student) -> torch.optim.Optimizer:
    rates = (config.lr_encoder, config.lr_decoder)
    groups = [{"params": ps, "peak_lr": lr} for ps, lr in zip(student.parameter_groups(), rates, strict=True)]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _loader(config: TrainConfig, dataset: LabelDataset, first_step: int, device: str) -> Iterable[Batch]:
    plan = BatchPlan(
        part_sizes=dataset.part_sizes,
        batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        primary_ratio=config.primary_ratio,
        num_teachers=len(config.teachers),
        flip=config.flip,
        first_step=first_step,
    )
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=plan,
        collate_fn=dataset.collate,
        num_workers=config.workers,
        # fork hangs Zarr's threads; workers of a forkserver outlive a training that is killed
        multiprocessing_context="spawn" if config.workers else None,
        pin_memory=device.startswith("cuda"),
    )
    return loader


def _refuse_harm(step: int, outcome: StepOutcome, batch: Batch) -> None:
    where = f"step {step}, labels of {batch.teacher!r}, images {', '.join(batch.keys)}"
    if not math.isfinite(outcome.total + outcome.gradient_norm):
        raise TrainingStoppedError(
            f"{where}: the loss is {outcome.total} and its gradient's norm {outcome.gradient_norm}, expected finite numbers. "
            "The weights were not changed by this step. If it comes back, look at these labels, or lower the learning rates."
        )
    if outcome.output_zero_share == 1:
        raise TrainingStoppedError(
            f"{where}: the student's output is 0 at every pixel. Its head ends in a ReLU that no longer lets anything "
            "through, so no gradient would ever revive it. Start from another checkpoint, or lower lr_decoder and begin anew."
        )


def _progress_bar(config: TrainConfig, first_step: int) -> tqdm:
    images, done = config.steps * config.batch_size, first_step * config.batch_size
    return tqdm(total=images, initial=done, unit="img", desc="train", mininterval=0.5 if sys.stderr.isatty() else 20)


def _show(bar: tqdm, record: Mapping[str, Any], images: int) -> None:
    terms = {name: f"{record[name]:.3f}" for name in ("total", "shared_context", "local_global", "gradient")}
    bar.set_postfix(terms, refresh=False)
    bar.update(images)
    if record["output_zero_share"] > _DYING and record["step"] % 100 == 0:
        found = f"step {record['step']}: {record['output_zero_share']:.0%} of the student's output is exactly 0"
        bar.write(f"{found}; its head may be dying", file=sys.stderr)


def main() -> None:
    """The command."""
    config = parse_command(TrainConfig, PRESETS, program="python -m pipeline.train", description=__doc__ or "")
    try:
        result = train(config)
    except (TrainingStoppedError, ValueError, OSError) as error:
        raise SystemExit(f"pipeline.train: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\npipeline.train: interrupted; the same command goes on from the last saved state") from None
    if result.images is None:
        print(f"{result.checkpoint}: already trained")
    else:
        print(f"{result.checkpoint}: trained on {result.images} images, {result.steps - result.resumed_from} steps in this run")


if __name__ == "__main__":
    main()
