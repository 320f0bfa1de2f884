"""What a training leaves on disk to go on from, and whether it may.

`state.pt` holds weights, optimizer and the next step, together with the settings that decide the result; it is replaced
in one step, never changed in place. Other settings in the same output are refused, naming each field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.distillation.student import TRAINING, WEIGHTS

STATE = "state.pt"


class OutputMismatchError(ValueError):
    """The output folder belongs to a training with other settings."""


def finished_training(output: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the output holds the finished checkpoint of these settings; raises OutputMismatchError if of others."""
    if not (output / WEIGHTS).exists():
        return False
    try:
        record = json.loads((output / TRAINING).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError) as error:
        message = (
            f"{output}: holds weights, but no {TRAINING} of this command that says where they come from; choose another output"
        )
        raise OutputMismatchError(message) from error
    _refuse_differences(output, {name: record.get(name) for name in settings}, settings)
    return True


def save_state(
    output: Path, settings: Mapping[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Keep everything that the steps from `step` on depend on."""
    aside = output / f"{STATE}.part"
    weights, moments = network.state_dict(), optimizer.state_dict()
    state = {"settings": json.dumps(settings), "step": step, "network": weights, "optimizer": moments}
    with aside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(output / STATE)


def restore(
    output: Path, settings: Mapping[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer, device: str
) -> int:
    """The step to go on with: 0, with nothing loaded, where no state is kept. Raises OutputMismatchError."""
    if not (output / STATE).exists():
        return 0
    state = torch.load(output / STATE, map_location=device, weights_only=True)
    _refuse_differences(output, json.loads(state["settings"]), settings)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def remove_state(output: Path) -> None:
    """After the checkpoint is complete: the state is three times its size."""
    for name in (STATE, f"{STATE}.part"):
        (output / name).unlink(missing_ok=True)


def truncate_metrics(path: Path, steps: int) -> None:
    """Drop the lines of steps that will be taken again, and a line cut short by a crash."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:steps]
        aside = path.with_suffix(".part")
        aside.write_text("".join(lines), encoding="utf-8")
        aside.replace(path)


def _refuse_differences(output: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    expected = json.loads(json.dumps(settings))
    names = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    if names:
        lines = "".join(f"\n  - {name}: begun with {found.get(name)!r}, now {expected.get(name)!r}" for name in names)
        message = f"{output}: belongs to a training with other settings; go on with those, or choose another output"
        raise OutputMismatchError(f"{message}:{lines}")
