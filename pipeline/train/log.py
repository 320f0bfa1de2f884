"""How a person follows a training: a progress line, metrics.jsonl, and TensorBoard's curves and pictures.

All three show the same numbers. A resumed training continues its curves. Only the process of rank 0 writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tensorboardX import SummaryWriter

from pipeline.tally import Tally
from pipeline.train.config import TrainConfig
from pipeline.train.state import truncate_metrics
from stages.distillation.batch import Batch
from stages.distillation.progress_pictures import training_pictures
from stages.distillation.step import StepOutcome

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
_SHOWN = {"total": "total", "sc": "shared_context", "lg": "local_global", "feat": "feature", "grad": "gradient"}
_CURVES_EVERY = 10
_WORTH_SAYING = 0.005  # share of pixels without a valid label that is shown; it would be 0 % below
_DYING = 0.5  # share of exact zeros in the student's output that is worth a warning


class ProgressLine:
    """Loss terms, images/s, share of waiting for data and expected end: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, config: TrainConfig, *, show: bool = True) -> None:
        self._batch_size, self._images, self._shown = config.batch_size, config.steps * config.batch_size, show
        self._tally: Tally | None = None
        self._done = 0

    def show(self, line: Mapping[str, Any]) -> None:
        """A step's line of metrics.jsonl; steps may be left out. What was done before the first one is no speed of ours."""
        if self._tally is None:
            self._done = line["step"] * self._batch_size
            self._tally = Tally("train", self._images, "img", initial=self._done, show=self._shown)
        terms = {short: f"{line[name]:.3f}" for short, name in _SHOWN.items()}
        masked = {"masked": f"{share:.0%}"} if (share := line.get("masked_share", 0)) >= _WORTH_SAYING else {}
        done = (line["step"] + 1) * self._batch_size
        self._tally.done(done - self._done, **{**terms, **masked, "data wait": f"{line['data_wait_share']:.0%}"})
        self._done = done
        if line["output_zero_share"] > _DYING and line["step"] % 100 == 0:
            found = f"step {line['step']}: {line['output_zero_share']:.0%} of the student's output is exactly 0"
            self._tally.write(f"{found}; its head may be dying")

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self._tally:
            self._tally.close()


class TrainingLog:
    """Takes every step's outcome; a context manager. `record` gives the line as it was written."""

    def __init__(self, config: TrainConfig, first_step: int, *, show: bool = True) -> None:
        """show: the progress line, in this process."""
        self._config = config
        path = config.output / METRICS
        truncate_metrics(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(config.output / TENSORBOARD), purge_step=first_step)
        self._progress = ProgressLine(config, show=show)

    def record(
        self, step: int, outcome: StepOutcome, *, teacher: str, lr_decoder: float, seconds: float, waited_s: float
    ) -> Mapping[str, Any]:
        """Write a step's line. waited_s: the part of its seconds in which there was no batch yet."""
        line = {
            "step": step,
            "teacher": teacher,
            "lr_decoder": lr_decoder,
            **asdict(outcome),
            "images_per_s": round(self._config.batch_size / seconds, 3),
            "data_wait_share": round(waited_s / seconds, 4),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if step % _CURVES_EVERY == 0 or step + 1 == self._config.steps:
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"train/{name}", value, step)
        self._progress.show(line)
        return line

    def pictures(self, step: int, batch: Batch, disparity: torch.Tensor) -> None:
        """A grid of input, label, prediction and patch labels, where one is due."""
        if step % self._config.picture_every == 0 or step + 1 == self._config.steps:
            self._board.add_image("samples", training_pictures(batch, disparity), step, dataformats="HWC")
            self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.close()
        self._board.close()
        self._file.close()


class Follower:
    """Shows the progress of a training that other processes do, from the file in which they record it."""

    def __init__(self, config: TrainConfig) -> None:
        self._path, self._progress = config.output / METRICS, ProgressLine(config)
        self._shown = self._last_line()  # of an earlier run

    def tick(self) -> None:
        """Called often."""
        if (line := self._last_line()) and line != self._shown:
            self._progress.show(json.loads(line))
            self._shown = line

    def close(self) -> None:
        """After the last step."""
        self.tick()
        self._progress.close()

    def _last_line(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(max(file.seek(0, 2) - 4096, 0))
                complete = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return b""
        return complete.rpartition(b"\n")[2]


def mean_of_last(output: Path, names: Sequence[str], steps: int = 100) -> dict[str, float]:
    """Means of the named numbers over the last steps; what a model card states of the training."""
    lines = [json.loads(line) for line in (output / METRICS).read_text(encoding="utf-8").splitlines()[-steps:]]
    return {name: math.fsum(line[name] for line in lines) / len(lines) for name in names}


def read_metrics(output: Path) -> list[dict[str, Any]]:
    """The steps that the log in this folder has, in its order; none where there is no log. A line that was cut is left out."""
    try:
        lines = (output / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict) and isinstance(told.get("step"), int):
            found.append(told)
    return found
