"""The training itself, as one process does it: alone, or as one of several that share every batch.

The same function runs in the command's own process and in each worker of Ray Train. What a step sees depends on the seed and
the step's number alone, so it may end anywhere and go on anywhere, on one device or on eight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

from pipeline.config import resolved
from pipeline.train_card import student_space, write_card
from pipeline.train_config import FREE, TrainConfig
from pipeline.training_log import TrainingLog
from pipeline.training_state import library_versions, load_state, lock_dataset, remove_states, save_state
from stages.checkpoints import checkpoint_sha256
from stages.distillation.dataset import Batch, LabelDataset
from stages.distillation.features import feature_target_of, load_feature_target
from stages.distillation.order import BatchPlan
from stages.distillation.step import Learner, StepOutcome, gradient_step, measured_scale, not_finite
from stages.distillation.student import load_student, pinned_folder, save_student

STOPPING = "Saving the state after this step; interrupt again to end at once."
_CONSTANT = 1e-6  # a spread below this share of the output's magnitude is rounding
_GROWING_STEPS = 100  # in which a new head, whose first output is all but constant, finds a shape


class TrainingStoppedError(RuntimeError):
    """Going on would have spoilt the weights; the message says what happened where. The last state is kept."""


class TrainingInterruptedError(Exception):
    """A person or the system asked for the end; the state before `step` is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after {step} steps, all of them saved")
        self.step = step


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one process trains: its device, and its rank among those that train together."""

    device: str
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What became of a training."""

    checkpoint: Path
    steps: int
    resumed_from: int
    """Step the training went on from; 0 when it began anew, `steps` when it had been finished before."""
    images: int | None
    """Contexts in the dataset; None when the training had been finished before."""


def base_settings(config: TrainConfig) -> dict[str, Any]:
    """What decides a training's result, as far as the command says it."""
    return {name: value for name, value in resolved(config).items() if name not in FREE} | library_versions()


def run_training(
    config: TrainConfig,
    place: Place,
    stop_requested: Callable[[], bool],
    on_step: Callable[[Mapping[str, Any]], None] | None = None,
) -> TrainResult:
    """Train, or go on, to the finished checkpoint. `on_step` gets each step's line of metrics.jsonl, on rank 0.

    Raises ValueError or OSError for a run, student or output that does not fit, TrainingStoppedError before an update that
    would do harm, TrainingInterruptedError once the state is saved after `stop_requested`.
    """
    dataset, learner, settings, first_step = _agreed(partial(_prepare, config, place))
    pace = partial(learning_rate_pace, steps=config.steps, warmup_steps=config.warmup_steps, decay=config.decay)
    leads = place.rank == 0
    show = place.world_size == 1
    with TrainingLog(config, first_step, show=show) if leads else nullcontext() as log:
        batches = make_batches(config, make_plan(config, dataset, place, first_step), dataset, place.device)
        for step in range(first_step, config.steps):
            started = time.perf_counter()
            micro_batches = [batch.to(place.device) for batch in islice(batches, config.accumulation)]
            waited_s = time.perf_counter() - started
            torch.manual_seed(config.seed + step)  # dropout, where a student has any, must not depend on a resume
            outcome, disparity = gradient_step(
                learner, micro_batches, max_gradient_norm=config.max_gradient_norm, bf16=config.bf16
            )
            _refuse_harm(step, outcome, learner, micro_batches)
            for group in learner.optimizer.param_groups:
                group["lr"] = group["peak_lr"] * pace(step)
            learner.update()
            stopping = _any_rank(stop_requested())
            if log is not None:
                line = log.record(
                    step,
                    outcome,
                    teacher=micro_batches[0].teacher,
                    lr_decoder=config.lr_decoder * pace(step),
                    seconds=time.perf_counter() - started,
                    waited_s=waited_s,
                )
                log.pictures(step, micro_batches[-1], disparity)
                if on_step is not None:
                    on_step(line)
                if step + 1 < config.steps and (stopping or (step + 1) % config.checkpoint_every == 0):
                    save_state(config.output, settings, learner.state(), step + 1, config.keep_checkpoints)
            if stopping and step + 1 < config.steps:
                raise TrainingInterruptedError(step + 1)
    if leads:
        _finish(config, dataset, learner, settings)
    return TrainResult(checkpoint=config.output, steps=config.steps, resumed_from=first_step, images=len(dataset))


def learning_rate_pace(step: int, steps: int, warmup_steps: int, decay: str) -> float:
    """The learning rate of a step as a share of its peak, above 0 for every step there is."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    left = 1 - (step - warmup_steps) / max(steps - warmup_steps, 1)
    return {"poly": left**0.9, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[decay]


# --- before the first step ------------------------------------------------------------------------------------------


def _prepare(config: TrainConfig, place: Place) -> tuple[LabelDataset, Learner, dict[str, Any], int]:
    """Everything that can be refused is refused here, before anything is written but the output's folder."""
    disable_progress_bar()  # transformers' own, one for each file
    dataset = open_dataset(config)
    if config.context != "any" and dataset.context_kind not in (None, config.context):
        raise ValueError(
            f"{config.run}: its contexts are {dataset.context_kind!r}, expected {config.context!r}, as --context says; label "
            f"a run with --plan.context {config.context}, or train with --context any"
        )
    learner = make_learner(config, dataset, place)
    digests = {"student_sha256": checkpoint_sha256(pinned_folder(config.student_checkpoint, config.student_revision))}
    if config.feature_encoder is not None:
        digests["feature_encoder_sha256"] = checkpoint_sha256(pinned_folder(config.feature_encoder, config.feature_revision))
    settings = base_settings(config) | digests | {"depth_space": dataset.depth_space}
    if place.rank == 0:
        config.output.mkdir(parents=True, exist_ok=True)
        lock_dataset(config.output, dataset.lock())
    first_step, state = load_state(config.output, settings, place.device)
    if state is not None:
        if not config.resume:
            raise ValueError(f"{config.output}: holds a training of {first_step} steps, and --no-resume was given")
        learner.load(state)
    return dataset, learner, settings, first_step


def open_dataset(config: TrainConfig) -> LabelDataset:
    """The labels that a training reads. Raises ValueError for columns that do not belong together."""
    read_patches = config.local_global_weight > 0
    return LabelDataset(config.run, config.columns, read_patches=read_patches, conversion=config.convert_depth)


def make_learner(config: TrainConfig, dataset: LabelDataset, place: Place) -> Learner:
    """The student and all that is trained with it, as they are before the first step. Raises ValueError, OSError."""
    student = load_student(
        config.student_checkpoint,
        dataset.context_px,
        revision=config.student_revision,
        start=config.start,
        seed=config.seed,
        device=place.device,
        activation_checkpointing=config.activation_checkpointing,
        compile=config.compile,
    )
    student.network.train()
    target = None
    if config.feature_weight and config.feature_encoder is None:
        target = feature_target_of(student)
    elif config.feature_weight and config.feature_encoder is not None:
        target = load_feature_target(
            config.feature_encoder, student, revision=config.feature_revision, seed=config.seed, device=place.device
        )
    projection = target.projection.parameters() if target and target.projection else ()
    encoder, decoder = student.parameter_groups()
    rates = ((encoder, config.lr_encoder), ([*decoder, *projection], config.lr_decoder))
    optimizer = torch.optim.AdamW([{"params": ps, "peak_lr": lr} for ps, lr in rates], weight_decay=config.weight_decay)
    anchor = None
    if config.anchor_weight:
        # All of the first batch, in pieces that fit into memory, whatever the number of devices: on each the same scale.
        pieces = config.accumulation * config.num_workers
        plan = make_plan(replace(config, accumulation=pieces), dataset, Place(device=place.device), 0)
        chunks = [plan.chunk(0, micro) for micro in range(pieces)]
        anchor = measured_scale(student, [dataset.collate([dataset[r] for r in c]).to(place.device) for c in chunks])
    average = {name: p.detach().clone() for name, p in student.network.named_parameters()} if config.ema_decay else {}
    return Learner(
        student=student,
        optimizer=optimizer,
        loss=config.loss,
        target=target,
        anchor=anchor,
        ema_decay=config.ema_decay,
        average=average,
    )


def make_plan(config: TrainConfig, dataset: LabelDataset, place: Place, first_step: int) -> BatchPlan:
    """Which samples this place sees in each step from `first_step`."""
    return BatchPlan(
        part_sizes=dataset.part_sizes,
        batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        strategy=config.strategy,
        primary_ratio=config.primary_ratio,
        num_teachers=len(config.columns),
        flip=config.flip,
        color_jitter=config.color_jitter,
        first_step=first_step,
        rank=place.rank,
        world_size=place.world_size,
        accumulation=config.accumulation,
    )


def make_batches(config: TrainConfig, plan: BatchPlan, dataset: LabelDataset, device: str) -> Iterator[Batch]:
    """The plan's micro-batches, read ahead by `loader_workers` processes."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=plan,
        collate_fn=dataset.collate,
        num_workers=config.loader_workers,
        # fork hangs Zarr's threads; workers of a forkserver outlive a training that is killed
        multiprocessing_context="spawn" if config.loader_workers else None,
        pin_memory=device.startswith("cuda"),
    )
    return iter(loader)


# --- during and after -----------------------------------------------------------------------------------------------


def _refuse_harm(step: int, outcome: StepOutcome, learner: Learner, batches: list[Batch]) -> None:
    """Raises TrainingStoppedError, on all ranks alike, before an update that would spoil the weights."""
    if not math.isfinite(outcome.total + outcome.gradient_norm):
        culprits = _gathered(not_finite(learner, batches)) or _gathered([key for batch in batches for key in batch.keys])
        raise TrainingStoppedError(
            f"{_where(step, batches, culprits)}: the loss is {outcome.total} and its gradient's norm {outcome.gradient_norm}, "
            "expected finite numbers. The weights were not changed by this step. If it comes back, look at these labels, or "
            "lower the learning rates."
        )
    if outcome.output_zero_share == 1:
        what = "is 0 at every pixel. Its head ends in a ReLU that no longer lets anything through"
    elif outcome.output_spread <= _CONSTANT * abs(outcome.output_median) * (step >= _GROWING_STEPS):
        what = f"is {outcome.output_median:.4g} at every pixel: a map without a shape"
    else:
        return
    keys = _gathered([key for batch in batches for key in batch.keys])
    raise TrainingStoppedError(
        f"{_where(step, batches, keys)}: the student's output {what}, so no gradient would ever revive it. Start from another "
        "checkpoint or seed, or lower lr_decoder and begin anew; --anchor-weight 0.1 keeps an output's scale where it was."
    )


def _where(step: int, batches: list[Batch], keys: list[str]) -> str:
    return f"step {step}, labels of {batches[0].teacher!r}, images {', '.join(keys)}"


def _finish(config: TrainConfig, dataset: LabelDataset, learner: Learner, settings: dict[str, Any]) -> None:
    """The checkpoint that others load; its weights appear last, and then nothing is left to resume."""
    record = {
        "settings": settings,
        "configuration": resolved(config),
        "images": len(dataset),
        "depth_space": student_space(dataset),
        "dataset_sha256": dataset.digest(),
    }
    card = write_card(config, dataset)
    save_student(learner.student, config.output, record, card=card, weights=learner.average or None)
    remove_states(config.output)


# --- several processes ----------------------------------------------------------------------------------------------


def _agreed(prepare: Callable[[], Any]) -> Any:
    """What `prepare` returns, once it has succeeded on every rank: one that fails alone would leave the others waiting."""
    if not dist.is_initialized():
        return prepare()
    prepared, problem = None, None
    try:
        prepared = prepare()
    except (ValueError, OSError, RuntimeError) as error:
        problem = error
    problems: list[BaseException | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise found
    return prepared


def _any_rank(flag: bool) -> bool:
    return any(_gathered([flag])) if dist.is_initialized() else flag


def _gathered(items: list[Any]) -> list[Any]:
    """The items of all ranks."""
    if not dist.is_initialized():
        return items
    lists: list[list[Any]] = [[]] * dist.get_world_size()
    dist.all_gather_object(lists, items)
    return [item for one in lists for item in one]
