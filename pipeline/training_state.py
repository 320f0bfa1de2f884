"""What a training leaves on disk to go on from, and whether it may.

`states/step-N.pt` holds what the steps from N on depend on, together with the settings that decide the result; it appears
whole or not at all, and the latest few are kept. `dataset.lock.json` says which labels were read. Other settings, labels or
library versions in the same output are refused, naming each difference. Nothing in a state is ever executed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import manifests
from stages.distillation.columns import lock_differences
from stages.distillation.student import TRAINING, WEIGHTS

STATES, LOCK = "states", "dataset.lock.json"
_LIBRARIES = ("torch", "transformers", "zarr", "numpy")


class OutputMismatchError(ValueError):
    """The output folder belongs to a training with other settings."""


def library_versions() -> dict[str, str]:
    """The major versions of what computes a training: across them, nothing promises the same numbers."""
    return {f"{name}_major": version(name).partition(".")[0] for name in _LIBRARIES}


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


def lock_dataset(output: Path, lock: Mapping[str, str]) -> None:
    """Keep which labels a training reads. Raises OutputMismatchError, naming the parts, where it began with others."""
    path = output / LOCK
    if path.exists():
        if differences := lock_differences(lock, json.loads(path.read_text(encoding="utf-8"))):
            listed = "".join(f"\n  - {line}" for line in differences)
            raise OutputMismatchError(f"{output}: the labels are not those this training began with ({LOCK}):{listed}")
        return
    manifests.write_replacing(path, (json.dumps(lock, indent=1, sort_keys=True) + "\n").encode())


def save_state(output: Path, settings: Mapping[str, Any], state: Mapping[str, Any], step: int, keep: int) -> None:
    """Keep a learner's state before a step, and of the older ones the latest `keep` - 1."""
    folder = output / STATES
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        torch.save({"settings": json.dumps(settings), "step": step, "learner": state}, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    for old in _states(output)[:-keep]:
        old.unlink()


def load_state(output: Path, settings: Mapping[str, Any], device: str) -> tuple[int, Mapping[str, Any] | None]:
    """The latest state's step and content; 0 and None where there is none. Raises OutputMismatchError.

    A state that cannot be read (a damaged disk) is passed over for the one before it, and said so.
    """
    unreadable = []
    for path in reversed(_states(output)):
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            unreadable.append(path)
            print(f"{path}: cannot be read, trying the state before it: {error}", file=sys.stderr)
            continue
        _refuse_differences(output, json.loads(state["settings"]), settings)
        return state["step"], state["learner"]
    if unreadable:
        raise OutputMismatchError(f"{output}: none of its {len(unreadable)} states can be read; remove {STATES}/ to begin anew")
    return 0, None


def remove_states(output: Path) -> None:
    """After the checkpoint is complete: a state is three times its size."""
    shutil.rmtree(output / STATES, ignore_errors=True)


def truncate_metrics(path: Path, steps: int) -> None:
    """Drop the lines of steps that will be taken again, and a line cut short by a crash."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:steps]
        manifests.write_replacing(path, "".join(lines).encode())


def _states(output: Path) -> list[Path]:
    return sorted((output / STATES).glob("step-*.pt"))


def _refuse_differences(output: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    expected = json.loads(json.dumps(settings))
    names = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    if names:
        lines = "".join(f"\n  - {name}: begun with {found.get(name)!r}, now {expected.get(name)!r}" for name in names)
        message = f"{output}: belongs to a training with other settings; go on with those, or choose another output"
        raise OutputMismatchError(f"{message}:{lines}")
