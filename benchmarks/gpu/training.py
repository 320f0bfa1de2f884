"""What a step costs a student: alone, compiled, and as one of several ranks; always by the training's own loop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Figure, figure
from benchmarks.timing import peak_memory_mb
from pipeline.train.config import PRESETS, TrainConfig
from pipeline.train.loop import run_training
from pipeline.train.ranks import Process
from stages.models.precision import tf32

_RANKED_STEPS = 8
_NEVER = 1_000_000


class _EnoughStepsError(Exception):
    """Ends a training from within, without the weights that it would save."""


def steps(bench: Bench, size: str, *, compile: bool = False) -> Iterator[Figure]:
    """Steps per second, the share of the time in which no batch was ready, and the peak of memory."""
    config, lines = _config(bench, f"student-{size}{'-compiled' * compile}", size, compile=compile), []
    first, last = bench.sizes.first_steps, bench.sizes.first_steps + bench.sizes.steps

    def on_step(line: Mapping[str, Any]) -> None:
        lines.append(line)
        if len(lines) >= last or (len(lines) > first and time.monotonic() > bench.until):
            raise _EnoughStepsError

    bench.release()
    if bench.on_card:
        torch.cuda.reset_peak_memory_stats(bench.device)
    with tf32(config.tf32), suppress(_EnoughStepsError):
        run_training(config, Process(device=bench.device), lambda: False, on_step)
    seconds, waited = _seconds(config, lines), _waited(config, lines)
    if compile:
        yield figure("first step, which compiles", "s", seconds[:1])
    yield figure(f"batches of {config.batch_size}", "steps/s", [1 / s for s in seconds[first:]])
    yield figure("share of the time in which no batch was ready", "", [sum(waited[first:]) / sum(seconds[first:])])
    if bench.on_card:
        yield figure("peak memory of the card's tensors", "MB", [torch.cuda.max_memory_allocated(bench.device) / 1e6])
    else:
        yield figure("peak memory of the process", "MB", [peak_memory_mb()])


def _config(bench: Bench, name: str, size: str, **changes: Any) -> TrainConfig:
    """The paper's settings but for what would be fetched: the frozen encoder is a copy of the student's own, as large."""
    settings: dict[str, Any] = PRESETS["paper"] | {
        "student": str(bench.vit(size)),
        "feature_encoder": None,
        "batch_size": bench.sizes.batch_size,
        "loader_workers": bench.sizes.loader_workers,
        "device": bench.device,
        "steps": _NEVER,
        "checkpoint_every": _NEVER,
        "picture_every": _NEVER,
    }
    return TrainConfig(run=(bench.labelled_run,), output=bench.folder / name, **(settings | changes))


def _seconds(config: TrainConfig, lines: Sequence[Mapping[str, Any]]) -> list[float]:
    return [config.batch_size / line["images_per_s"] for line in lines]


def _waited(config: TrainConfig, lines: Sequence[Mapping[str, Any]]) -> list[float]:
    return [line["data_wait_share"] * s for line, s in zip(lines, _seconds(config, lines), strict=True)]


# --- several ranks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Group:
    """A training on several devices of this machine."""

    config: TrainConfig
    ranks: int
    on_cards: bool
    rendezvous: Path
    """The file by which the ranks find each other."""
    lines: Path
    """Where rank 0 writes the lines of its steps."""
    timeout_s: float

    @property
    def backend(self) -> str:
        """nccl between cards, gloo between processes on a CPU."""
        return "nccl" if self.on_cards else "gloo"


def over_ranks(bench: Bench, size: str) -> Iterator[Figure]:
    """Steps of one training on all cards, each with a batch of the usual size; with one card, of a group of one rank."""
    ranks = torch.cuda.device_count() if bench.on_card else 1
    batch_size = ranks * bench.sizes.batch_size
    config = _config(bench, "ranks", size, steps=_RANKED_STEPS, compile=False, num_workers=ranks, batch_size=batch_size)
    group = _Group(
        config=config,
        ranks=ranks,
        on_cards=bench.on_card,
        rendezvous=bench.folder / "rendezvous",
        lines=bench.folder / "ranks.json",
        timeout_s=max(bench.until - time.monotonic(), 90),
    )
    bench.release()
    with tf32(config.tf32):
        _train_together(group)
    seconds = _seconds(config, json.loads(group.lines.read_text()))[_RANKED_STEPS // 2 :]
    ranks_text = "1 rank (there is no other card)" if ranks == 1 else f"{ranks} ranks"
    yield figure(f"{ranks_text} over {group.backend}, batches of {batch_size}", "steps/s", [1 / s for s in seconds])


def _train_together(group: _Group) -> None:
    """Raises what the first rank raises that fails, and TimeoutError where one of several hangs."""
    group.rendezvous.unlink(missing_ok=True)
    if group.ranks == 1:
        _train_as_rank(0, group)
        return
    started: Any = mp.spawn(_train_as_rank, (group,), nprocs=group.ranks, join=False)
    ends = time.monotonic() + group.timeout_s
    while not started.join(timeout=1):
        if time.monotonic() > ends:
            for process in started.processes:
                process.kill()
            raise TimeoutError(f"{group.ranks} ranks had not ended after {group.timeout_s:.0f} s")


def _train_as_rank(rank: int, group: _Group) -> None:
    device = f"cuda:{rank}" if group.on_cards else "cpu"
    if group.on_cards:
        torch.cuda.set_device(device)
    dist.init_process_group(
        group.backend,
        init_method=f"file://{group.rendezvous}",
        rank=rank,
        world_size=group.ranks,
        timeout=timedelta(seconds=group.timeout_s),
    )
    lines: list[Mapping[str, Any]] = []
    try:
        process = Process(device=device, rank=rank, world_size=group.ranks)
        run_training(replace(group.config, device=device), process, lambda: False, lines.append)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        group.lines.write_text(json.dumps(lines))
