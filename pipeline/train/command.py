"""`python -m pipeline.train`: a labelled run and a student's checkpoint in, a better checkpoint out.

Interrupted at any moment, the same command resumes and ends with the same weights (bit for bit on a CPU). A finished
output is left alone; one that was begun with other settings is refused. Nothing that is not finite reaches the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.exits import say
from pipeline.interrupts import stop_requested
from pipeline.train.config import TrainConfig, read_command
from pipeline.train.labels import announce_labels, open_dataset
from pipeline.train.loop import STOPPING, TrainingInterruptedError, TrainingStoppedError, TrainResult, run_training
from pipeline.train.ranks import Process
from pipeline.train.setup import is_finished
from stages.models.find import resolve_device

__all__ = ["TrainConfig", "TrainResult", "TrainingInterruptedError", "TrainingStoppedError", "main", "train"]

_PROGRAM = "pipeline.train"


def train(config: TrainConfig, on_step: Callable[[Mapping[str, Any]], None] | None = None) -> TrainResult:
    """Train, resume, or find it done. `on_step` gets each step's line of metrics.jsonl; in this process only.

    Raises ValueError or OSError for a run, student or output that does not fit, TrainingStoppedError before an update that
    would do harm, TrainingInterruptedError after Ctrl-C or SIGTERM, once the state is saved.
    """
    if is_finished(config):
        return TrainResult(checkpoint=config.output, steps=config.steps, resumed_from=config.steps, images=None)
    if config.num_workers == 1 and config.address is None:
        with stop_requested(STOPPING) as stop:
            return run_training(config, Process(device=resolve_device(config.device)), stop, on_step)
    announce_labels(config, open_dataset(config))  # what the workers say is not seen
    from pipeline.train.on_ray import train_on_ray  # takes seconds, and most trainings have one device

    return train_on_ray(config)


def main(argv: Sequence[str] | None = None) -> int:
    return run(read_command(argv))


def run(config: TrainConfig) -> int:
    """Trains, and says how it ended; returns the exit status."""
    try:
        result = train(config)
    except TrainingInterruptedError as error:
        return say(_PROGRAM, error, "The same command resumes from there.")
    except KeyboardInterrupt as error:
        return say(_PROGRAM, error, "The same command resumes from the last saved state.")
    except Exception as error:
        return say(_PROGRAM, error)
    if result.images is None:
        print(f"{result.checkpoint}: already trained")
    else:
        print(
            f"{result.checkpoint}: trained on {result.images} contexts, {result.steps - result.resumed_from} steps in this run"
        )
    return 0
