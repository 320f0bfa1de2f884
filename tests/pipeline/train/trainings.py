"""What the tests of training do and read again and again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.train.command import train
from pipeline.train.config import TrainConfig

ROOT = Path(__file__).parents[3]


def small_training(run: Path, student: Path, output: Path, **settings: Any) -> TrainConfig:
    """A few steps on a CPU that change the student, with states to resume from."""
    common = {"batch_size": 4, "lr_encoder": 1e-3, "lr_decoder": 1e-3, "warmup_steps": 2, "loader_workers": 0, "device": "cpu"}
    return TrainConfig(run=(run,), output=output, student=str(student), **{**common, "checkpoint_every": 3, **settings})


def metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the machine's mood."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("images_per_s", "data_wait_share")} for line in lines]


def arguments(config: TrainConfig) -> list[str]:
    named = ("output", "student", "steps", "batch_size", "lr_encoder", "lr_decoder", "warmup_steps", "loader_workers")
    flags = [
        word for name in (*named, "checkpoint_every") for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))
    ]
    return [sys.executable, "-m", "pipeline.train", "--device", "cpu", "--run", *map(str, config.run), *flags]


def with_weights(student: Path, folder: Path, change: Any) -> Path:
    """A copy of the student's checkpoint with changed weights."""
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text((student / name).read_text())
    weights = load_file(student / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def one_bit_flipped(content: bytes) -> bytes:
    """In the midst of the file, which is the midst of a tensor."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def interrupt_at(step: int, config: TrainConfig) -> None:
    """Train, and end as if killed just after a step's line was written."""

    def interrupt(line: Any) -> None:
        if line["step"] == step:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, interrupt)
