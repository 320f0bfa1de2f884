"""`python -m pipeline.label`: photographs in, cached pseudo-depth of every teacher out.

Indexes the sources, fixes the run, and drives one unit per part and column over Ray workers. Run it again after any
interruption: what is committed stays, what is missing is made, and a finished run is left untouched. Exit status: 0 all
images are labelled or rejected, 1 something failed, a source is damaged or too much was rejected, 2 the command cannot be
run as given, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

import manifests
from pipeline.config import USAGE_ERROR, folder_problems, parse_command
from pipeline.label.drive import DriveOptions, LabelReport, drive
from pipeline.label.estimate import estimate
from pipeline.label.pool import PoolError, Resources
from pipeline.label.run import (
    RunMismatchError,
    describe_run,
    drop_second_chances,
    enter_run,
    needs_correction,
    read_sources,
    refuse_replaced,
    units_left,
)
from pipeline.label.worker import RunNotSharedError, TeacherUnusableError
from stages.models import TeacherSpec
from stages.models.known import LoaderName
from stages.sources.catalogue import SourceNotFoundError
from stages.views import ViewPlan

_PROBLEMS_SHOWN = 20
_USAGE_ERRORS = (
    FileNotFoundError,
    PoolError,
    RunMismatchError,
    RunNotSharedError,
    SourceNotFoundError,
    TeacherUnusableError,
    manifests.InvalidRecordError,
    manifests.RunInUseError,
)
DEMO_CHECKPOINTS = Path(__file__).parents[1] / "demo_checkpoints"

# Presets name checkpoints only: loader, licence and depth space are the checkpoint's own, and go when another one is named.
_PAPER_PRIMARY = TeacherSpec(name="primary", checkpoint="depth-anything/Depth-Anything-V2-Large-hf")
# GenPercept's disparity weights have no hub repository in this layout, so the folder must be named.
_PAPER_ASSISTANT = TeacherSpec(name="assistant", checkpoint="")


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Label photographs with every teacher."""

    run: Path
    """The run's folder; made where missing, continued where it exists."""
    sources: tuple[str, ...]
    """Tars, brace patterns (shards-{0000..0099}.tar), globs and folders of photographs."""
    preset: str = "paper"
    """`paper`: random squares at 560 px, the paper's teachers. `demo`: whole pictures at 192 px, the demo's teachers."""
    config: Path | None = None
    """A TOML file with the same keys; flags win over it."""
    plan: ViewPlan = field(default_factory=ViewPlan)
    """How photographs are cut into contexts and patches."""
    primary: TeacherSpec = _PAPER_PRIMARY
    """The primary teacher."""
    assistant: TeacherSpec = _PAPER_ASSISTANT
    """The assistant: a diffusion teacher with finer detail."""
    seed: int = 0
    """Decides every random choice of the views."""
    part_size: int = 64
    """Images in a part, the unit that is committed at once."""
    workers: int | None = None
    """Ray workers; one per GPU, else one per CPU core, of this machine or the cluster. 0 works in this process, without Ray."""
    batch_size: int = 8
    """Views in a teacher's batch."""
    address: str | None = None
    """A Ray cluster's address; without it, Ray runs on this machine for as long as the command does."""
    decode_threads: int = 2
    """Threads in which a worker decodes pictures ahead of its teacher."""
    max_attempts: int = 3
    """Attempts at a part before its images are tried one by one; those that fail alone are rejected."""
    stall_timeout_s: float = 600
    """A worker without a sign of life for so long, in seconds, is killed. One batch must take less."""
    max_rejected_fraction: float = 0.01
    """Exit 1 when more than this share of the images was rejected in a column."""
    allow_damaged_sources: bool = False
    """Exit 0 although a source has problems; they stay in the catalogue."""
    retry_failed: bool = False
    """Give images a second chance that were rejected because their worker died, stalled or raised an error. Parts that
    failed are always tried again."""
    dry_run: bool = False
    """Write nothing; label a small sample and say what all of it would take: hours, disk, memory."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        found = folder_problems("--run", self.run)
        found += [f"--plan: {problem}" for problem in self.plan.problems()]
        if not self.sources:
            found.append("--sources: none given; expected tars, brace patterns, globs or folders")
        for teacher in self.teachers:
            found += teacher.problems()
            if not teacher.checkpoint:
                found.append(f"--{teacher.name}.checkpoint: none given; name a folder or a hub id (or use --preset demo)")
        names = [teacher.name for teacher in self.teachers]
        if len({*names, "images"}) != len(names) + 1:
            found.append(f"the teachers are named {', '.join(names)}; they must differ from each other and from 'images'")
        least = {"part_size": 1, "batch_size": 1, "max_attempts": 1, "seed": 0, "workers": 0, "decode_threads": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                found.append(f"--{name.replace('_', '-')} is {value}, expected at least {bound}")
        if not 0 <= self.max_rejected_fraction <= 1:
            found.append(f"--max-rejected-fraction is {self.max_rejected_fraction}, expected a share from 0 to 1")
        if not self.stall_timeout_s > 0:
            found.append(f"--stall-timeout-s is {self.stall_timeout_s}, expected more than 0")
        return found

    @property
    def teachers(self) -> tuple[TeacherSpec, ...]:
        """All teachers, in the order of their columns."""
        return self.primary, self.assistant


def demo_teacher(name: str, loader: LoaderName | None = None) -> TeacherSpec:
    """The spec of a demo teacher's checkpoint, which comes with the package and says the rest itself."""
    return TeacherSpec(name=name, loader=loader, checkpoint=str(DEMO_CHECKPOINTS / name))


PRESETS = {
    "paper": {},
    "demo": {
        "plan": ViewPlan(context="whole", context_px=192, patch_px=192, patches_per_side=2),
        "primary": demo_teacher("primary"),
        "assistant": demo_teacher("assistant"),
        "part_size": 16,
    },
}


def main(argv: list[str] | None = None) -> int:
    config = parse_command(LabelConfig, PRESETS, program="python -m pipeline.label", description=__doc__ or "", argv=argv)
    try:
        if config.dry_run:
            print(estimate(config, _workers(config)))
            return 0
        return _conclude(config, label(config))
    except _USAGE_ERRORS as error:
        print(f"pipeline.label: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        hint = f"What is committed in {config.run} stays; when the cause is gone, run the same command to go on."
        print(f"pipeline.label: {error}\n{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _interrupted(config)


def label(config: LabelConfig) -> LabelReport:
    """Bring the run to its end: catalogue, fix, and label whatever is missing.

    Raises RunMismatchError when the folder holds a run of other content, SourceNotFoundError for a source that is not there,
    RunInUseError while the run is repaired, or held by another command when a column is to be corrected, OSError where it
    cannot be written; and what `drive` raises.
    """
    wanted = describe_run(config, read_sources(config.sources))
    correcting = needs_correction(wanted)
    try:
        with manifests.hold_run(config.run, exclusive=config.retry_failed or correcting):
            run = enter_run(wanted, alone=config.retry_failed or correcting)
            if config.retry_failed:
                drop_second_chances(config.run)
    except manifests.RunInUseError as error:
        if not correcting:
            raise
        why = "this command has other teachers than run.json, which can be replaced only while no other command has the run"
        raise manifests.RunInUseError(f"{error}; {why}") from error
    for correction in run.corrections:
        print(correction, file=sys.stderr)
    with manifests.hold_run(config.run, exclusive=False):
        refuse_replaced(run)
        options = DriveOptions(
            workers=config.workers if config.address else _workers(config),
            resources=worker_resources(config),
            address=config.address,
            batch_size=config.batch_size,
            decode_threads=config.decode_threads,
            max_attempts=config.max_attempts,
            stall_timeout_s=config.stall_timeout_s,
        )
        return drive(run, units_left(run), options)


def _workers(config: LabelConfig) -> int:
    return default_workers() if config.workers is None else config.workers


def worker_resources(config: LabelConfig) -> dict[str, Resources]:
    """What a worker of each column holds: teachers what their spec says, `images` one core."""
    teachers = {teacher.name: Resources(teacher.num_cpus, teacher.num_gpus) for teacher in config.teachers}
    return {"images": Resources(num_cpus=1, num_gpus=0), **teachers}


def default_workers() -> int:
    """One per GPU; without any, one per CPU core."""
    return torch.cuda.device_count() or os.cpu_count() or 1


def _conclude(config: LabelConfig, report: LabelReport) -> int:
    """Say how it ended, and what to do next. The exit status is 0 only where nothing is missing and little was rejected."""
    for problem in report.source_problems[:_PROBLEMS_SHOWN]:
        print(f"source {problem.where}: {problem.kind}: {problem.message}", file=sys.stderr)
    if (more := len(report.source_problems) - _PROBLEMS_SHOWN) > 0:
        print(f"and {more} more problems of sources; all are in {config.run / 'catalog'}", file=sys.stderr)
    for failure in report.failures[:_PROBLEMS_SHOWN]:
        print(f"failed: {failure.column}/{failure.part}: {failure.problem.kind}: {failure.problem.message}", file=sys.stderr)
    for column, reason in report.columns_given_up.items():
        print(f"column {column} was given up: {reason}", file=sys.stderr)
    print(
        f"{report.parts_done} of {report.parts_total} parts are committed, {report.committed} of them by this command. "
        f"Inspect: python -m manifests summary {config.run}"
    )
    if report.interrupted:
        return _interrupted(config)
    if report.failures or report.columns_given_up:
        print(f"{len(report.failures)} parts failed; run the same command to make what is missing.", file=sys.stderr)
    damaged = bool(report.source_problems) and not config.allow_damaged_sources
    if damaged:
        print("Some sources are damaged; accept what could be read with --allow-damaged-sources.", file=sys.stderr)
    excess = _excess_of_rejections(config)
    print(*excess, sep="\n", end="\n" * bool(excess), file=sys.stderr)
    return 1 if report.failures or report.columns_given_up or damaged or excess else 0


def _excess_of_rejections(config: LabelConfig) -> list[str]:
    """A line for each column with more rejected images than the budget allows."""
    lines = []
    recorded = manifests.load_run(config.run).configuration.get("max_rejected_fraction", config.max_rejected_fraction)
    judge = "" if recorded == config.max_rejected_fraction else f" (the run was made with {recorded:g})"
    for column in manifests.summarize(config.run).columns:
        rejected, images = sum(column.rejected.values()), column.labelled + sum(column.rejected.values())
        if rejected > config.max_rejected_fraction * images:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(column.rejected.items()))
            lines.append(
                f"{column.name}: {rejected} of {images} images were rejected ({kinds}), more than --max-rejected-fraction "
                f"{config.max_rejected_fraction:g}{judge}; `python -m manifests summary` counts them, the manifests name each"
            )
    return lines


def _interrupted(config: LabelConfig) -> int:
    print(f"\nInterrupted. What is committed in {config.run} stays; run the same command to go on.", file=sys.stderr)
    return 130
