"""Runs of `python -m pipeline.label` in processes of their own, and what a run holds in the end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import manifests
from manifests.location import Location
from tests.faults.steps import Fault, to_environment

_ROOT = Path(__file__).parents[2]
_STARTED: list[subprocess.Popen[str]] = []
VOLATILE = ("volatile", "zarr", "record_sha256")
"""What may differ between the manifests of two equal runs; and run.json's `configuration`, which has the run's own name."""


class Ended(NamedTuple):
    """How a process ended: its exit status, or minus the signal that killed it; and what it printed."""

    status: int
    output: str


def label_arguments(run: Location, source: Path, checkpoints: Path, *more: str) -> list[str]:
    """Arguments that label `source` with the small teachers, two images to a part."""
    teachers = [
        [f"--{name}.checkpoint", str(checkpoints / name), f"--{name}.licence", "Apache-2.0"]
        for name in ("primary", "assistant")
    ]
    plan = [
        "--plan.context",
        "whole",
        "--plan.context-px",
        "48",
        "--plan.patch-px",
        "48",
        "--plan.min-image-px",
        "8",
        "--part-size",
        "2",
    ]
    return ["--run", str(run), "--sources", str(source), *plan, *teachers[0], *teachers[1], *more]


def environment(faults: Sequence[Fault] = (), marks: Path | None = None) -> dict[str, str]:
    """The environment of a process that is to meet these faults, it or what it starts."""
    paths = os.pathsep.join([str(_ROOT / "tests/faults/site"), str(_ROOT)])
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "HF_HUB_OFFLINE": "1"}
    if faults and marks:
        marks.mkdir(exist_ok=True)
        settings["LABEL_FAULTS"] = to_environment(faults, marks)
    return os.environ | settings


def start(arguments: Sequence[str], faults: Sequence[Fault] = (), marks: Path | None = None) -> subprocess.Popen[str]:
    """`python -m pipeline.label` at the head of a process group of its own, as in a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.label", *arguments],
        env=environment(faults, marks),
        cwd=_ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _STARTED.append(process)
    return process


def kill_what_is_left() -> None:
    """Kills every command that `start` has started and that still runs, as after a test that failed."""
    while _STARTED:
        if (process := _STARTED.pop()).poll() is None:
            process.kill()
            process.communicate()


class Zygote:
    """Starts runs in processes that need not import anything; see tests/faults/zygote.py. Used as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            env=environment(),
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(
        self,
        arguments: Sequence[object],
        faults: Sequence[Fault] = (),
        call: str = "pipeline.label.command:main",
        *,
        variables: Mapping[str, str] | None = None,
    ) -> int:
        """The id of a process that calls a function: by default, with one list of arguments, the command. `variables` are
        added to its environment."""
        self._count += 1
        marks = self._folder / f"marks{self._count}"
        marks.mkdir()
        asked = {
            "call": call,
            "faults": to_environment(faults, marks),
            "output": str(self._folder / str(self._count)),
            "environment": dict(variables or {}),
            "arguments": [arguments] if call == "pipeline.label.command:main" else arguments,
        }
        pid = self._ask(asked)
        (self._folder / f"{pid}.output").symlink_to(asked["output"])
        return pid

    def wait(self, pid: int) -> Ended:
        """How the process ends."""
        link = self._folder / f"{pid}.output"
        ended = Ended(self._ask({"wait": pid}), link.read_text())
        link.unlink()  # the id may come again
        return ended

    def run(self, arguments: Sequence[str], *faults: Fault) -> Ended:
        """The command, from start to end."""
        return self.wait(self.start(arguments, faults))

    def _ask(self, request: Mapping[str, object]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def content(run: Path) -> dict[str, object]:
    """Every file of a run by its path, in which the attempt's name is left out: the bytes' digest; of manifests and run.json
    what they say, less the volatile fields. Two runs are byte-identical, these aside, where this is equal."""
    found: dict[str, object] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = re.sub(r"\.[0-9a-f]{8}\.zarr/", ".zarr/", path.relative_to(run).as_posix())
        assert name not in found, f"two files are {name}"
        found[name] = _said(path) if re.fullmatch(r"run\.json|columns/[^/]+/[^/]+\.json", name) else _digest(path)
    return found


def _said(path: Path) -> dict[str, object]:
    said = json.loads(path.read_bytes())
    for field in (*VOLATILE, "configuration"):
        said.pop(field, None)
    for file in said.get("files", ()):
        file["path"] = re.sub(r"\.[0-9a-f]{8}\.zarr/", ".zarr/", file["path"])
    return said


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(run: Path, uninterrupted: Path) -> list[str]:
    """What tells a run that was cleaned from an uninterrupted one, and what `verify --deep` and `compare` say of it."""
    _clean(run)
    ours, theirs = content(run), content(uninterrupted)
    names = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    found = [f"{name}: {ours.get(name, 'absent')}, expected {theirs.get(name, 'absent')}" for name in sorted(names)]
    found += [str(damage) for damage in manifests.verify(run, deep=True)]
    return found or [str(difference) for difference in manifests.compare(run, uninterrupted)]


def _clean(run: Path) -> None:
    """Waits for workers that outlive their driver by a part."""
    for _ in range(300):
        try:
            manifests.clean(run)
        except manifests.InvalidRecordError:
            return  # which shows in the comparison
        except manifests.RunInUseError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{run} is still held")


def workers_of(driver: int, actor: str = "LabelWorker") -> list[int]:
    """The processes of the Ray actors of a class below a driver."""
    parents, titles = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile

    def is_below(pid: int) -> bool:
        return pid == driver or (pid in parents and is_below(parents[pid]))

    return [pid for pid, title in titles.items() if title.startswith(f"ray::{actor}") and is_below(pid)]


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended and that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def committed(run: Path) -> list[Path]:
    """The manifests of a run's parts."""
    return [
        path
        for path in run.glob("columns/*/*.json")
        if not path.name.startswith(".") and path.name != "column.json" and "failure" not in path.name
    ]
