"""`python -m pipeline.label`: photographs in, cached pseudo-depth of every teacher out.

Indexes the sources, fixes the run, and drives one unit per part and column over Ray workers. Run it again after any
interruption: what is committed stays, what is missing is made, and a finished run is left untouched. Exit status: 0 all
images are labelled or rejected, 1 something failed or a source is damaged, 2 the command cannot be run as given.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

import manifests
from pipeline.config import USAGE_ERROR, parse_command
from pipeline.label_engine import LabelReport, drive
from pipeline.label_run import RunMismatchError, open_run, units_left
from stages.labelling.catalogue import SourceNotFoundError
from stages.labelling.teachers import TeacherSpec
from stages.views import ViewPlan

DEMO_CHECKPOINTS = Path(__file__).parent / "demo_checkpoints"

_PAPER_PRIMARY = TeacherSpec(
    name="primary",
    loader="transformers",
    checkpoint="depth-anything/Depth-Anything-V2-Large-hf",
    depth_space="disparity_affine_invariant",
    licence="CC-BY-NC-4.0",
)
# GenPercept's disparity weights have no hub repository in this layout, so the folder must be named.
_PAPER_ASSISTANT = TeacherSpec(
    name="assistant",
    loader="genpercept",
    checkpoint="",
    depth_space="disparity_affine_invariant",
    licence="unresolved; research only",
)


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
    """Ray workers; one per GPU, else one per CPU core. 0 works in this process, without Ray."""
    batch_size: int = 8
    """Views in a teacher's batch."""
    address: str | None = None
    """A Ray cluster's address; without it, Ray runs on this machine for as long as the command does."""
    max_attempts: int = 3
    """Attempts at a unit before it counts as failed."""
    allow_damaged_sources: bool = False
    """Exit 0 although a source has problems; they stay in the catalogue."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        found = [f"--plan: {problem}" for problem in self.plan.problems()]
        for teacher in self.teachers:
            found += teacher.problems()
            if not teacher.checkpoint:
                found.append(f"--{teacher.name}.checkpoint: none given; name a folder or a hub id (or use --preset demo)")
        names = [teacher.name for teacher in self.teachers]
        if len({*names, "images"}) != len(names) + 1:
            found.append(f"the teachers are named {', '.join(names)}; they must differ from each other and from 'images'")
        least = {"part_size": 1, "batch_size": 1, "max_attempts": 1, "seed": 0, "workers": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                found.append(f"--{name.replace('_', '-')} is {value}, expected at least {bound}")
        return found

    @property
    def teachers(self) -> tuple[TeacherSpec, ...]:
        """All teachers, in the order of their columns."""
        return self.primary, self.assistant


def demo_teacher(name: str, loader: str) -> TeacherSpec:
    """The spec of a demo teacher's checkpoint, which comes with the package."""
    return TeacherSpec(
        name=name,
        loader=loader,  # type: ignore[arg-type]
        checkpoint=str(DEMO_CHECKPOINTS / name),
        depth_space="disparity_affine_invariant",
        licence="Apache-2.0",
    )


PRESETS = {
    "paper": {},
    "demo": {
        "plan": ViewPlan(context="whole", context_px=192, patch_px=192, max_patches_short_side=2),
        "primary": demo_teacher("primary", "transformers"),
        "assistant": demo_teacher("assistant", "genpercept"),
        "part_size": 16,
    },
}


def main(argv: list[str] | None = None) -> int:
    config = parse_command(LabelConfig, PRESETS, program="python -m pipeline.label", description=__doc__ or "", argv=argv)
    try:
        report = label(config)
    except (RunMismatchError, SourceNotFoundError, manifests.InvalidRecordError, FileNotFoundError) as error:
        print(f"pipeline.label: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(f"\nInterrupted. What is committed in {config.run} stays; run the same command to go on.", file=sys.stderr)
        return 130
    return _conclude(config, report)


def label(config: LabelConfig) -> LabelReport:
    """Bring the run to its end: catalogue, fix, and label whatever is missing.

    Raises RunMismatchError when the folder holds a run of other content, SourceNotFoundError for a source that is not there.
    """
    run = open_run(config)
    units = units_left(run)
    workers = default_workers() if config.workers is None else config.workers
    return drive(
        run, units, workers=workers, batch_size=config.batch_size, max_attempts=config.max_attempts, address=config.address
    )


def default_workers() -> int:
    """One per GPU; without any, one per CPU core."""
    return torch.cuda.device_count() or os.cpu_count() or 1


def _conclude(config: LabelConfig, report: LabelReport) -> int:
    for problem in report.source_problems:
        print(f"source {problem.where}: {problem.kind}: {problem.message}", file=sys.stderr)
    for failure in report.failures:
        print(f"failed: {failure.column}/{failure.part}: {failure.problem.kind}: {failure.problem.message}", file=sys.stderr)
    print(f"{report.committed} of {report.parts_total} parts committed now. Inspect: python -m manifests summary {config.run}")
    if report.failures:
        print(f"{len(report.failures)} parts failed; run the same command to try them again.", file=sys.stderr)
    damaged = report.source_problems and not config.allow_damaged_sources
    if damaged:
        print("Some sources are damaged; accept what could be read with --allow-damaged-sources.", file=sys.stderr)
    return 1 if report.failures or damaged else 0


if __name__ == "__main__":
    raise SystemExit(main())
