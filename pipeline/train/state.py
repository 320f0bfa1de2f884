"""What a training leaves on disk to resume from, and whether it may.

`states/step-N.pt` holds what the steps from N on depend on, together with the settings that decide the result; it appears
whole or not at all, and the latest few are kept. `dataset.lock.json` says which labels were read. Other settings, labels or
library versions in the same output are refused, naming each difference. Nothing in a state is ever executed.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import manifests
from manifests.commit import fsync_path
from manifests.errors import RefusedError
from stages.distillation.columns import lock_differences
from stages.distillation.student import TRAINING, WEIGHTS

STATES, LOCK = "states", "dataset.lock.json"
_LIBRARIES = ("torch", "transformers", "zarr", "numpy")
_OF_OLD = {"streams": 1}
"""What settings were that records of old do not have."""
_STEP = re.compile(r'\{"step": (\d+),')


class OutputMismatchError(RefusedError):
    """The output folder belongs to a training with other settings."""


def library_versions() -> dict[str, str]:
    """The major versions of what computes a training: across them, nothing promises the same numbers."""
    return {f"{name}_major": version(name).partition(".")[0] for name in _LIBRARIES}


def finished_training(output: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the output holds the finished checkpoint of these settings; raises OutputMismatchError if of others.

    What a crash between the last two steps of a training has left behind is removed.
    """
    if not (output / WEIGHTS).exists():
        return False
    try:
        record = _OF_OLD | json.loads((output / TRAINING).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = (
            f"{output}: holds weights, but no {TRAINING} of this command that says where they come from; choose another output"
        )
        raise OutputMismatchError(message) from error
    _refuse_differences(output, {name: record.get(name) for name in settings}, settings)
    remove_states(output)
    return True


def recorded_settings(output: Path) -> Mapping[str, Any]:
    """The settings of the training in this folder, from its checkpoint or its latest state; empty where neither says them."""
    try:
        return dict(json.loads((output / TRAINING).read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    for path in reversed(_states(output)):
        try:
            return dict(json.loads(_read_state(path)["settings"]))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError, TypeError):
            continue
    return {}


# --- labels ---------------------------------------------------------------------------------------------------------


def locked_parts(output: Path) -> tuple[frozenset[str], ...] | None:
    """The parts of each run that a training in this output began with; None where none has begun."""
    lock = _read_lock(output)
    if lock is None:
        return None
    names: dict[str, set[str]] = defaultdict(set)
    for place in lock:
        *run, _, part = place.split("/")  # the run's number only where there are several
        names["".join(run)].add(part)
    return tuple(frozenset(names[run]) for run in sorted(names, key=lambda run: int(run or 0)))


def refuse_other_labels(output: Path, lock: Mapping[str, str]) -> None:
    """Raises OutputMismatchError, naming the parts, where a training in this output began with other labels."""
    if differences := lock_differences(lock, _read_lock(output) or lock):
        listed = "".join(f"\n  - {line}" for line in differences)
        raise OutputMismatchError(
            f"{output}: the labels are not those this training began with ({LOCK}):{listed}\n"
            "Bring them back, or choose another output"
        )


def lock_dataset(output: Path, lock: Mapping[str, str]) -> None:
    """Keep which labels a training reads, once it is sure to begin."""
    if _read_lock(output) is None:
        manifests.write_replacing(output / LOCK, (json.dumps(lock, indent=1, sort_keys=True) + "\n").encode())


def _read_lock(output: Path) -> dict[str, str] | None:
    path = output / LOCK
    if not path.exists():
        return None
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        lock, found = None, f"no JSON ({error})"
    else:
        found = "something else"
    if not isinstance(lock, dict) or not lock or not all(isinstance(digest, str) for digest in lock.values()):
        raise OutputMismatchError(
            f"{path}: found {found}, expected the names and digests of the parts that this training began with. It is damaged: "
            "bring it back from a copy, or choose another output"
        )
    return lock


# --- states ---------------------------------------------------------------------------------------------------------


def save_state(output: Path, settings: Mapping[str, Any], state: Mapping[str, Any], step: int, keep: int) -> None:
    """Keep a learner's state before a step, and of the older ones the latest `keep` - 1. Raises OSError on a full disk."""
    folder = output / STATES
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    aside = path.with_suffix(".part")
    try:
        with aside.open("wb") as file:
            torch.save({"settings": json.dumps(settings), "step": step, "learner": state}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        fsync_path(folder)  # its name, before those of older ones go
        fsync_path(output)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch says so of a disk that is full
        aside.unlink(missing_ok=True)
        raise OSError(
            f"{path}: the state cannot be written: {error}; make room, and the same command resumes from the state before"
        ) from error
    older = [found for found in _states(output) if found < path]
    newer = [found for found in _states(output) if found > path]  # damaged ones, which were passed over
    for old in [*older[: max(len(older) - (keep - 1), 0)], *newer]:
        old.unlink()


def load_state(output: Path, settings: Mapping[str, Any]) -> tuple[int, Mapping[str, Any] | None]:
    """The latest state's step and content, on the CPU; 0 and None where there is none. Raises OutputMismatchError.

    A state that is damaged is passed over for the one before it, and said so.
    """
    damaged = []
    for path in reversed(_states(output)):
        try:
            state = _read_state(path)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            damaged.append(path)
            print(f"{path}: cannot be read ({type(error).__name__}), trying the state before it", file=sys.stderr)
            continue
        _refuse_differences(output, _OF_OLD | json.loads(state["settings"]), settings)
        return state["step"], state["learner"]
    if damaged:
        raise OutputMismatchError(f"{output}: none of its {len(damaged)} states can be read; remove {STATES}/ to begin anew")
    return 0, None


def _read_state(path: Path) -> Mapping[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch writes checksums, and does not look at them
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(damaged)
    return torch.load(path, map_location="cpu", weights_only=True)


def remove_states(output: Path) -> None:
    """After the checkpoint is complete: a state is three times its size. Its files' names are on disk before the states go."""
    fsync_path(output)
    shutil.rmtree(output / STATES, ignore_errors=True)


def truncate_metrics(path: Path, steps: int) -> None:
    """Keep the lines of the steps before; those of steps that will be taken again go, and any that a crash cut short."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if (found := _STEP.match(line)) and int(found[1]) < steps and line.endswith("}\n")]
        manifests.write_replacing(path, "".join(kept).encode())


def _states(output: Path) -> list[Path]:
    return sorted((output / STATES).glob("step-*.pt"))


def _refuse_differences(output: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    expected = json.loads(json.dumps(settings))
    names = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    if names:
        lines = "".join(f"\n  - {name}: begun with {found.get(name)!r}, now {expected.get(name)!r}" for name in names)
        message = f"{output}: belongs to a training with other settings; resume with those, or choose another output"
        raise OutputMismatchError(f"{message}:{lines}")
