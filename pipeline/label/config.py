"""What `python -m pipeline.label` can be told, and the presets: the paper's teachers, and the demo's."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

import manifests
from manifests.run import IMAGES, RUN_RECORD
from pipeline.config import AnyLocation, at_least, folder_problems, parse_command, settings_named
from pipeline.demo_notice import DEMO_CHECKPOINTS
from pipeline.help import HelpPage
from pipeline.label.shard import Shard, parse_shard
from pipeline.train.config import PRESETS as TRAIN_PRESETS
from pipeline.train.config import TrainConfig
from stages.distillation.draw import Draw
from stages.labelling.teacher import TeacherSpec
from stages.views import Resampler, ViewPlan

if TYPE_CHECKING:
    from pipeline.label.pool import Resources

# Presets name checkpoints only: loader, licence and depth space are the checkpoint's own, and go when another one is named.
_PAPER_TEACHERS = {
    "primary": TeacherSpec(name="primary", checkpoint="depth-anything/Depth-Anything-V2-Large-hf"),
    # The UNet alone: its other parts are those of the base that is known for it.
    "assistant": TeacherSpec(name="assistant", checkpoint="guangkaixu/genpercept-models/unet_disparity_v2"),
}


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Label photographs with every teacher."""

    RENAMED: ClassVar = {"decode_threads": "threads"}

    run: AnyLocation
    """The run's folder, or its URL in a bucket (s3://bucket/runs/mine); made where missing, continued where it exists."""
    sources: tuple[str, ...] = ()
    """Tars, Parquet files, brace patterns (shards-{0000..0099}.tar), globs and folders of photographs, on disk or in a bucket,
    and @LIST, a file of paths, one a line. FILE.parquet?column=NAME says which column has the images. None: those that the
    run has."""
    add_new_files: bool = False
    """Take in the files that were added to a folder since the run was made, as a further source of the run."""
    preset: str = "paper"
    """`paper`: random squares at 560 px, the paper's teachers. `lotus`: the same with Lotus-D for its assistant. `demo`: whole
    pictures at 192 px, the demo's teachers."""
    config: Path | None = None
    """A TOML file with the same keys; flags win over it."""
    plan: ViewPlan = field(default_factory=ViewPlan)
    """How photographs are cut into contexts and patches."""
    teachers: Annotated[dict[str, TeacherSpec], tyro.conf.arg(name="")] = field(default_factory=lambda: dict(_PAPER_TEACHERS))
    """The teachers, by the names of their columns: `--NAME.checkpoint`, or a table [teachers.NAME] in the file."""
    columns: tuple[str, ...] = ()
    """The teachers to label with, any number of them; names that neither the preset nor the file has are new teachers. None:
    those of the preset and the file."""
    for_training: tuple[str, ...] = ()
    """Label only what this training will draw: a preset of `pipeline.train`, a TOML file of its settings,
    or both. None: all."""
    resampler: Resampler | None = None
    """What cuts and resizes photographs. None is what the run has; for a new run the fastest that this machine has:
    fast_image_resize, of the package cykooz-resizer, which all machines of the run need then, or pillow."""
    seed: int = 0
    """Decides every random choice of the views."""
    part_size: int = 64
    """Images in a part, the unit that is committed at once."""
    workers: int | None = None
    """Ray workers; one per GPU, else one per CPU core, of this machine or the cluster. 0 works in this process, without Ray."""
    batch_size: int = 8
    """Views in a teacher's batch."""
    shard: str | None = None
    """Label one of N shares of the run, I/N from 0/N to (N-1)/N: for drivers that share it, each with another I."""
    address: str | None = None
    """A Ray cluster's address; without it, Ray runs on this machine for as long as the command does."""
    threads: int | None = None
    """Threads in which a worker decodes and cuts pictures ahead of its teacher; it packs labels behind it in as many more.
    None is the machine's share of cores for each GPU, and 2 without one."""
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
        if not self.sources and not found and not manifests.place_of(self.run).exists(RUN_RECORD):
            found.append("--sources: none given; expected tars, Parquet files, brace patterns, globs, folders or @lists")
        found += [f"--plan: {problem}" for problem in self.plan.problems()]
        if unknown := [name for name in self.columns if name not in self.teachers]:
            found.append(f"--columns: {', '.join(unknown)}: no such teacher; expected some of {', '.join(self.teachers)}")
        found += [
            f"--{name}.name is {teacher.name!r}, expected {name!r}: a column has the name of its teacher"
            for name, teacher in self.teachers.items()
            if teacher.name != name
        ]
        for teacher in self.chosen:
            found += _problems_of(teacher)
        found += self._draw_problems()
        found += self._shard_problems()
        from stages.sources.photographs import available_resamplers

        if self.resampler not in (None, *available_resamplers()):
            found.append(f"--resampler {self.resampler} is not installed here, found {', '.join(available_resamplers())}")
        found += at_least(self, {"part_size": 1, "batch_size": 1, "max_attempts": 1, "seed": 0, "workers": 0, "threads": 1})
        if not 0 <= self.max_rejected_fraction <= 1:
            found.append(f"--max-rejected-fraction is {self.max_rejected_fraction}, expected a share from 0 to 1")
        if not self.stall_timeout_s > 0:
            found.append(f"--stall-timeout-s is {self.stall_timeout_s}, expected more than 0")
        return found

    @property
    def share(self) -> Shard | None:
        """The shard that is to be labelled; None where it is the whole run."""
        return parse_shard(self.shard) if self.shard is not None else None

    def _shard_problems(self) -> list[str]:
        try:
            _ = self.share
        except ValueError as error:
            return [f"--shard: {error}"]
        return []

    @property
    def draw(self) -> Draw | None:
        """What the training draws that the labels are for; None where they are for any."""
        return self._training.draw if self.for_training else None

    @property
    def _training(self) -> TrainConfig:
        values, _ = settings_named(TrainConfig, TRAIN_PRESETS, "--for-training", self.for_training)
        return TrainConfig(**(values | {"run": (self.run,), "output": Path(), "cache": Path(), "device": "auto"}))

    def _draw_problems(self) -> list[str]:
        if not self.for_training:
            return []
        if problems := settings_named(TrainConfig, TRAIN_PRESETS, "--for-training", self.for_training)[1]:
            return problems
        found = [f"--for-training: {problem}" for problem in self._training.problems()]
        read = self._training.columns
        if others := [teacher.name for teacher in self.chosen if teacher.name not in read]:
            found.append(
                f"--for-training: that training reads {', '.join(read)}, not {', '.join(others)}; leave it out with --columns"
            )
        return found

    @property
    def chosen(self) -> tuple[TeacherSpec, ...]:
        """The teachers to label with, in the order in which they are named."""
        names = self.columns or tuple(self.teachers)
        return tuple(self.teachers[name] for name in dict.fromkeys(names) if name in self.teachers)

    @property
    def local_workers(self) -> int:
        """Workers on this machine: one per GPU where there are any, else one per CPU core, unless their number is given."""
        return default_workers() if self.workers is None else self.workers

    @property
    def resources(self) -> dict[str, Resources]:
        """What a worker of each column holds: teachers what their spec says, `images` one core."""
        from pipeline.label.pool import Resources

        teachers = {teacher.name: Resources(teacher.num_cpus, teacher.num_gpus) for teacher in self.chosen}
        return {IMAGES: Resources(num_cpus=1, num_gpus=0), **teachers}


def default_workers() -> int:
    """One per GPU; without any, one per CPU core."""
    import torch  # takes seconds, and the command line is read without it

    return torch.cuda.device_count() or os.cpu_count() or 1


def _problems_of(teacher: TeacherSpec) -> list[str]:
    from stages.models import problems_of

    found = [f"teacher {problem}" for problem in problems_of(teacher)]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", teacher.name) or teacher.name == IMAGES:
        found.append(f"a teacher is named {teacher.name!r}, expected letters, digits, - and _, and not {IMAGES!r}")
    if teacher.label_bits is not None and not 8 <= teacher.label_bits <= 16:
        found.append(f"--{teacher.name}.label-bits is {teacher.label_bits}, expected 8 to 16")
    if not teacher.checkpoint and not teacher.is_custom:
        found.append(f"--{teacher.name}.checkpoint: none given; name a folder or a hub id (or use --preset demo)")
    return found


def demo_teacher(name: str, loader: str | None = None) -> TeacherSpec:
    """The spec of a demo teacher's checkpoint, which comes with the package and says the rest itself."""
    return TeacherSpec(name=name, loader=loader, checkpoint=str(DEMO_CHECKPOINTS / name))


PRESETS = {
    "paper": {"teachers": _PAPER_TEACHERS},
    "lotus": {
        "teachers": _PAPER_TEACHERS
        | {"assistant": TeacherSpec(name="assistant", checkpoint="jingheya/lotus-depth-d-v2-0-disparity")}
    },
    "demo": {
        "plan": ViewPlan(context="whole", context_px=192, patch_px=192, patches_per_side=2),
        "teachers": {name: demo_teacher(name) for name in ("primary", "assistant")},
        "part_size": 16,
    },
}


HELP = HelpPage(
    description=(
        "Photographs in, cached pseudo-depth of every teacher out. Run it again after any interruption: what is "
        "committed stays, what is missing is made."
    ),
    first=("run", "sources", "preset", "config", "columns", "add_new_files", "workers", "batch_size", "dry_run"),
    examples=(
        (
            "python -m pipeline.label --run runs/mine --sources photos/ --preset demo --dry-run",
            "What it would take: hours, disk, memory",
        ),
        ("python -m pipeline.label --run runs/mine --sources photos/ --preset demo", "Label a folder with the demo's teachers"),
        (
            "python -m pipeline.label --run runs/mine --sources photos/ --preset demo --add-new-files",
            "Take in the photographs that were added since",
        ),
    ),
)


def read_command(argv: Sequence[str] | None = None) -> LabelConfig:
    """The configuration of a command line; exits with status 2 where there is none. Imports no torch to answer `--help`."""
    return parse_command(
        LabelConfig,
        PRESETS,
        program="python -m pipeline.label",
        description=HELP,
        argv=argv,
        complete=_with_new_teachers,
    )


def _with_new_teachers(values: dict[str, Any], arguments: Sequence[str]) -> None:
    """Makes room for the teachers that only the command line names, by `--columns`; names each as its table is."""
    teachers = {name: replace(spec, name=name) for name, spec in values.get("teachers", _PAPER_TEACHERS).items()}
    named = [*values.get("columns", ()), *_values_of("--columns", arguments)]
    values["teachers"] = teachers | {name: TeacherSpec(name=name, checkpoint="") for name in named if name not in teachers}


def _values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    found, taking = [], False
    for argument in arguments:
        if argument.startswith("-"):
            taking = argument == flag
        elif taking:
            found.append(argument)
    return found
