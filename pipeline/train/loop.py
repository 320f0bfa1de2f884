"""The training itself, as one process does it: alone, or as one of several that share every batch.

The same function runs in the command's own process and in each worker of Ray Train. What a step sees depends on the seed and
the step's number alone, so it may end anywhere and resume anywhere, on one device or on eight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from manifests.errors import DistillError, RefusedError
from manifests.location import Location
from pipeline.config import resolved
from pipeline.train.bucket_output import at_hand
from pipeline.train.card import student_space, write_card
from pipeline.train.config import TrainConfig
from pipeline.train.log import TrainingLog
from pipeline.train.prefetch import prefetching
from pipeline.train.ranks import Process, gathered, on_all_ranks
from pipeline.train.setup import Prepared, make_batches, make_plan, prepare
from pipeline.train.state import lock_dataset, remove_states, save_state
from stages.distillation.batch import Batch, PackedBatch
from stages.distillation.step import Learner, StepOutcome, gradient_step, not_finite
from stages.distillation.student import save_student
from stages.models.dino_backbone import needs_adapting
from stages.models.precision import allow_tf32

STOPPING = "Saving the state after this step; interrupt again to end at once."
_CONSTANT = 1e-6  # a spread below this share of the output's magnitude is rounding
_MOSTLY_MASKED = 0.99  # a step with a larger share of pixels without a label says nothing of the student's output
_GROWING_STEPS = 100  # in which a new head, whose first output is all but constant, finds a shape


class TrainingStoppedError(DistillError, RuntimeError):
    """The next update would have spoilt the weights; the message says what happened where. The last state is kept."""


class TrainingInterruptedError(DistillError):
    """A person or the system asked for the end; the state before `step` is saved."""

    exit_status = 130

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after {step} steps, all of them saved")
        self.step = step


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What became of a training."""

    checkpoint: Location
    steps: int
    resumed_from: int
    """Step the training resumed from; 0 when it began anew, `steps` when it had been finished before."""
    images: int | None
    """Contexts in the dataset; None when the training had been finished before."""


def run_training(
    config: TrainConfig,
    process: Process,
    stop_requested: Callable[[], bool],
    on_step: Callable[[Mapping[str, Any]], None] | None = None,
) -> TrainResult:
    """Train, or resume, to the finished checkpoint. `on_step` gets each step's line of metrics.jsonl, on rank 0.

    Raises ValueError or OSError for a run, student or output that does not fit (RefusedError on several ranks),
    TrainingStoppedError before an update that would do harm, TrainingInterruptedError once the state is saved after
    `stop_requested`.
    """
    allow_tf32(config.tf32)
    told = config.output
    with ExitStack() as held:
        config, output = held.enter_context(at_hand(config, to_train=True))
        ready = _prepared_alike(config, process, held)
        log = None
        if process.rank == 0:
            lock_dataset(config.output, ready.dataset.lock())
            if output is not None:
                output.put_lock()
            log = held.enter_context(TrainingLog(config, ready.first_step, show=process.world_size == 1))
        plan = make_plan(config, ready.dataset, process, ready.first_step)
        fetcher = held.enter_context(prefetching(ready.dataset, plan))
        batches = make_batches(config, plan, ready.dataset, process.device)
        for step in range(ready.first_step, config.steps):
            if fetcher is not None:
                fetcher.reached(step)
            started = time.perf_counter()
            micro_batches, asked = on_all_ranks(lambda: (_next(batches, config, process), stop_requested()))
            waited_s = time.perf_counter() - started
            outcome, disparity = _take_step(config, process, ready.learner, step, micro_batches)
            saves = any(asked) or (step + 1) % config.checkpoint_every == 0
            if log is not None:
                seconds = time.perf_counter() - started
                teacher, rate = micro_batches[0].teacher, config.lr_decoder * _pace(config, step)
                line = log.record(step, outcome, teacher=teacher, lr_decoder=rate, seconds=seconds, waited_s=waited_s)
                log.pictures(step, micro_batches[-1], disparity)
                if on_step is not None:
                    on_step(line)
                if saves and step + 1 < config.steps:
                    save_state(config.output, ready.settings, ready.learner.state(), step + 1, config.keep_checkpoints)
                    if output is not None:
                        output.put_state()
            if any(asked) and step + 1 < config.steps:
                raise TrainingInterruptedError(step + 1)
        if process.rank == 0:
            _finish(config, ready, told)
            if output is not None:
                output.put_student()
    images = len(ready.dataset)
    return TrainResult(checkpoint=told, steps=config.steps, resumed_from=ready.first_step, images=images)


def _prepared_alike(config: TrainConfig, process: Process, held: ExitStack) -> Prepared:
    """What `prepare` gives, once it gives the same on all ranks: labels, weights and state may be seen late on some node."""

    def make() -> tuple[Prepared, Any]:
        ready = prepare(config, process, held)
        return ready, ready.alike

    ready, (first, *others) = on_all_ranks(make)
    for rank, other in enumerate(others, 1):
        if other != first:
            names = ["step"] * (other[0] != first[0])
            names += [name for name in first[1] if other[1].get(name) != first[1][name]]
            raise RefusedError(
                f"{config.output}: rank {rank} would resume from step {other[0]}, rank 0 from step {first[0]}; they differ in "
                f"{', '.join(names)}. The run, the output and the checkpoints must be the same for all workers"
            )
    return ready


def _next(batches: Iterator[PackedBatch], config: TrainConfig, process: Process) -> list[Batch]:
    return [batch.to(process.device) for batch in islice(batches, config.accumulation)]


def _take_step(
    config: TrainConfig, process: Process, learner: Learner, step: int, batches: list[Batch]
) -> tuple[StepOutcome, torch.Tensor]:
    """One update of the weights; what it saw, and the last micro-batch's disparity."""
    # Dropped paths, where a student has any, must not depend on a resume, and differ between ranks.
    torch.manual_seed(int(np.random.SeedSequence([config.seed, step, process.rank]).generate_state(1)[0]))
    outcome, disparity = gradient_step(learner, batches, max_gradient_norm=config.max_gradient_norm, bf16=config.bf16)
    _refuse_harm(step, outcome, learner, batches)
    for group in learner.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * _pace(config, step)
    learner.update()
    return outcome, disparity


def _pace(config: TrainConfig, step: int) -> float:
    return learning_rate_pace(step, config.steps, config.warmup_steps, config.decay)


def learning_rate_pace(step: int, steps: int, warmup_steps: int, decay: str) -> float:
    """The learning rate of a step as a share of its peak, above 0 for every step there is."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    left = 1 - (step - warmup_steps) / max(steps - warmup_steps, 1)
    return {"poly": left**0.9, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[decay]


# --- during and after -----------------------------------------------------------------------------------------------


def _refuse_harm(step: int, outcome: StepOutcome, learner: Learner, batches: list[Batch]) -> None:
    """Raises TrainingStoppedError, on all ranks alike, before an update that would spoil the weights."""
    if not math.isfinite(outcome.total + outcome.gradient_norm):
        culprits = gathered(not_finite(learner, batches)) or gathered([key for batch in batches for key in batch.keys])
        raise TrainingStoppedError(
            f"{_where(step, batches, culprits)}: the loss is {outcome.total} and its gradient's norm {outcome.gradient_norm}, "
            "expected finite numbers. The weights were not changed by this step. If it comes back, look at these labels, or "
            "lower the learning rates."
        )
    if outcome.masked_share > _MOSTLY_MASKED:
        return
    if outcome.output_zero_share == 1:
        what = "is 0 at every pixel. Its head ends in a ReLU that no longer lets anything through"
    elif outcome.output_spread <= _CONSTANT * abs(outcome.output_median) * (step >= _GROWING_STEPS):
        what = f"is {outcome.output_median:.4g} at every pixel: a map without a shape"
    else:
        return
    keys = gathered([key for batch in batches for key in batch.keys])
    raise TrainingStoppedError(
        f"{_where(step, batches, keys)}: the student's output {what}, so no gradient would ever revive it. Start from another "
        "checkpoint or seed, or lower lr_decoder and begin anew; --anchor-weight 0.1 keeps an output's scale where it was."
    )


def _where(step: int, batches: list[Batch], keys: list[str]) -> str:
    return f"step {step}, labels of {batches[0].teacher!r}, images {', '.join(keys)}"


def _finish(config: TrainConfig, ready: Prepared, told: Location) -> None:
    """The checkpoint that others load; its weights appear last, and then nothing is left to resume. told: what the command
    calls the output."""
    record = {
        "settings": ready.settings,
        "configuration": resolved(config) | {"output": str(told)},
        "images": len(ready.dataset),
        "depth_space": student_space(ready.dataset),
    }
    student, average = ready.learner.student, ready.learner.average or None
    card = write_card(config, ready.dataset, runs_in_library=not needs_adapting(student.network.config))
    save_student(student, config.output, record, card=card, weights=average)
    remove_states(config.output)
