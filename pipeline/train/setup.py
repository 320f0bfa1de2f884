"""What a training begins with: labels, student, order, and the settings that its output may be continued under.

Everything that can be refused is refused here, before anything is written but the output's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

import manifests
from manifests.errors import RefusedError
from pipeline.config import resolved
from pipeline.interrupts import ignore_signals, ignored_by_children
from pipeline.train.bucket_output import at_hand
from pipeline.train.config import MAY_CHANGE, TrainConfig
from pipeline.train.labels import announce_labels, open_dataset
from pipeline.train.ranks import Process
from pipeline.train.shared_memory import require_shared_memory
from pipeline.train.state import finished_training, library_versions, load_state, refuse_other_labels
from stages.distillation.batch import PackedBatch
from stages.distillation.features import feature_target_of, load_feature_target
from stages.distillation.joined import JoinedLabels
from stages.distillation.order import BatchPlan, with_stand_ins
from stages.distillation.step import Learner, measured_scale
from stages.distillation.student import WEIGHTS, load_student, pinned_folder
from stages.models.checkpoints import checkpoint_sha256
from stages.threads import keep_freed_memory

_HELD = ".training.lock"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training that may begin, or resume."""

    dataset: JoinedLabels
    learner: Learner
    settings: Mapping[str, Any]
    first_step: int

    @property
    def alike(self) -> tuple[int, Mapping[str, Any]]:
        """What must be the same on all ranks."""
        return self.first_step, self.settings


def prepare(config: TrainConfig, process: Process, held: ExitStack) -> Prepared:
    """Open the labels, build the learner and restore its latest state. Rank 0 holds the output until `held` is closed.

    Raises ValueError or OSError for a run, student or output that does not fit, RunInUseError where another training has it.
    """
    disable_progress_bar()  # transformers' own, one for each file
    dataset = open_dataset(config)
    if config.context != "any" and dataset.context_kind not in (None, config.context):
        raise RefusedError(
            f"{config.run[0]}: its contexts are {dataset.context_kind!r}, expected {config.context!r}, as --context says; "
            f"label a run with --plan.context {config.context}, or train with --context any"
        )
    announce_labels(config, dataset, say=process.world_size == 1)
    learner = make_learner(config, dataset, process)
    settings = base_settings(config) | library_versions() | dataset_settings(dataset) | checkpoint_settings(config)
    if process.rank == 0:
        config.output.mkdir(parents=True, exist_ok=True)
        in_use = f"{config.output}: in use by another training"
        held.enter_context(manifests.hold_file(config.output / _HELD, exclusive=True, in_use=in_use))
    refuse_other_labels(config.output, dataset.lock())
    first_step, state = load_state(config.output, settings)
    if state is not None:
        if not config.resume:
            raise RefusedError(f"{config.output}: holds a training of {first_step} steps, and --no-resume was given")
        learner.load(state)
    return Prepared(dataset=dataset, learner=learner, settings=settings, first_step=first_step)


def is_finished(config: TrainConfig) -> bool:
    """Whether the output holds this training's checkpoint. What is gone by now, as the run may be, is not compared.

    Raises OutputMismatchError, naming each difference, where it holds another's.
    """
    with at_hand(config, to_train=False) as (here, output):
        finished = _is_finished(here)
        if finished and output is not None:
            output.remove_states()
    return finished


def _is_finished(config: TrainConfig) -> bool:
    if not (config.output / WEIGHTS).exists():
        return False
    settings = base_settings(config)
    if all(manifests.place_of(run).exists("run.json") for run in config.run):
        settings |= dataset_settings(open_dataset(config))
    with suppress(OSError):
        settings |= checkpoint_settings(config)
    return finished_training(config.output, settings)


# --- settings -------------------------------------------------------------------------------------------------------


def base_settings(config: TrainConfig) -> dict[str, Any]:
    """What decides a training's result, as far as the command says it."""
    return {name: value for name, value in resolved(config).items() if name not in MAY_CHANGE}


def dataset_settings(dataset: JoinedLabels) -> dict[str, Any]:
    """What decides it among the labels."""
    return {"dataset_sha256": dataset.digest(), "depth_space": dataset.depth_space}


def checkpoint_settings(config: TrainConfig) -> dict[str, Any]:
    """What decides it among the weights that it begins with."""
    found = {"student_sha256": checkpoint_sha256(pinned_folder(config.student_checkpoint, config.student_revision))}
    if config.feature_encoder is not None:
        found["feature_encoder_sha256"] = checkpoint_sha256(pinned_folder(config.feature_encoder, config.feature_revision))
    return found


# --- what a training is made of -------------------------------------------------------------------------------------


def make_learner(config: TrainConfig, dataset: JoinedLabels, process: Process) -> Learner:
    """The student and all that is trained with it, as they are before the first step. Raises ValueError, OSError."""
    student = load_student(
        config.student_checkpoint,
        dataset.context_px,
        revision=config.student_revision,
        start=config.start,
        seed=config.seed,
        device=process.device,
        activation_checkpointing=config.activation_checkpointing,
        compile=config.compile,
    )
    target = None
    if config.feature_weight and config.feature_encoder is None:
        target = feature_target_of(student)
    elif config.feature_weight and config.feature_encoder is not None:
        target = load_feature_target(
            config.feature_encoder, student, revision=config.feature_revision, seed=config.seed, device=process.device
        )
    projection = target.projection.parameters() if target and target.projection else ()
    encoder, decoder = student.parameter_groups()
    rates = ((encoder, config.lr_encoder), ([*decoder, *projection], config.lr_decoder))
    optimizer = torch.optim.AdamW([{"params": ps, "peak_lr": lr} for ps, lr in rates], weight_decay=config.weight_decay)
    anchor = None
    if config.anchor_weight:
        # All of the first batch, in pieces that fit into memory, whatever the number of devices: on each the same scale.
        pieces = config.accumulation * config.num_workers
        plan = make_plan(replace(config, accumulation=pieces), dataset, Process(device=process.device), 0)
        chunks = [plan.chunk(0, micro) for micro in range(pieces)]
        anchor = measured_scale(student, [dataset.collate([dataset[r] for r in c]).to(process.device) for c in chunks])
    student.network.train()  # from here on: the copy and the measurement above are of a network that does not drop paths
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


def make_plan(config: TrainConfig, dataset: JoinedLabels, process: Process, first_step: int) -> BatchPlan:
    """Which samples this process sees in each step from `first_step`."""
    plan = BatchPlan(
        part_sizes=dataset.places,
        samples=dataset.samples_of_places(),
        batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        strategy=config.strategy,
        ratios=config.shares,
        flip=config.flip,
        color_jitter=config.color_jitter,
        first_step=first_step,
        rank=process.rank,
        world_size=process.world_size,
        accumulation=config.accumulation,
        streams=config.streams,
    )
    return with_stand_ins(plan)


def _begin_reading(worker: int) -> None:
    """In a loader's process. A signal to all lets the step at work end, and that needs its batch."""
    ignore_signals(worker)
    keep_freed_memory()


def make_batches(config: TrainConfig, plan: BatchPlan, dataset: JoinedLabels, device: str) -> Iterator[PackedBatch]:
    """The plan's micro-batches, read ahead by `loader_workers` processes.

    Raises RefusedError as `require_shared_memory` does.
    """
    require_shared_memory(dataset, plan, config.loader_workers)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=plan,
        collate_fn=dataset.collate,
        num_workers=config.loader_workers,
        # fork hangs Zarr's threads; workers of a forkserver outlive a training that is killed
        multiprocessing_context="spawn" if config.loader_workers else None,
        pin_memory=device.startswith("cuda"),
        worker_init_fn=_begin_reading,
    )
    with ignored_by_children():
        return iter(loader)
