"""What `python -m pipeline.evaluate` and `python -m pipeline.figures fig2` can be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from pipeline.config import at_least, cuda_is_here, parse_command
from pipeline.help import HelpPage
from stages.depth_space import DepthSpace
from stages.evaluation.protocols import BenchmarkName, ProtocolName
from stages.evaluation.published import Table
from stages.evaluation.rendered import CONTEXT_PX, HELD_OUT_SEED

SetName = Literal[BenchmarkName, "scenes"]
DepthKind = Literal["depth", "disparity"]
_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Score depth models on benchmarks and on rendered scenes."""

    RENAMED: ClassVar = {"workers": "threads"}

    model: tuple[str, ...]
    """Folders of checkpoints, ids on the hub, or functions of your own, as in my_module:load=CHECKPOINT (docs/labelling.md).
    All are held at once on the device."""
    benchmark: tuple[SetName, ...] = ()
    """What to score on. None: --pairs, and without them scenes."""
    data: tuple[Path, ...] = ()
    """The benchmarks' folders or tars in the order of --benchmark, or one folder that holds one named after each."""
    lists: Annotated[tuple[Path, ...], tyro.conf.arg(name="list")] = ()
    """List files in the order of --benchmark; otherwise found in the data or beside them."""
    pairs: tuple[Path, ...] = ()
    """Sets of your own: folders of pictures with true depth (rgb/NAME.jpg and depth/NAME.png, or NAME.jpg and NAME_depth.png,
    .npy, .tif or .pfm), or lists of two columns."""
    depth_scale: float | None = None
    """In --pairs: how many units of their depth files are a metre (of disparity: 1/m). None is 1000 for integers, 1 for
    floats."""
    depth_kind: DepthKind = "depth"
    """In --pairs: what their depth files hold."""
    depth_min_m: float = 1e-3
    """In --pairs: true depth counts above this, in metres; predictions are clipped to it."""
    depth_max_m: float | None = None
    """In --pairs: true depth counts below this, in metres; predictions are clipped to it. None is no bound."""
    depth_invalid: float | None = None
    """In --pairs: a number in depth files that is no measurement; 0, negative numbers, NaN and infinity are none either."""
    protocol: Literal["auto", ProtocolName] = "auto"
    """auto is marigold-disparity for disparity models and marigold-depth for depth models."""
    output: Path | None = None
    """Folder to keep predictions in; by default `evaluations` for benchmarks, and nowhere for scenes."""
    allow_missing: bool = False
    """Take means over the images that could be read."""
    scenes: int = 64
    """Number of scenes."""
    seed_start: int = HELD_OUT_SEED
    """Seed of the first scene; the shipped demo checkpoints were trained on seeds below 1,000,000."""
    input_px: int = CONTEXT_PX
    """Side of the scenes' pictures."""
    network_px: Annotated[int | Literal["native"] | None, tyro.conf.arg(metavar="PX|native")] = None
    """Long side of the picture as networks see it, or as the protocol gives it; by default what each checkpoint states."""
    network_square: bool = False
    """Show networks squares of --network-px, whatever a picture's aspect: the paper's authors do so, with 700."""
    depth_space: DepthSpace | None = None
    """What the numbers of models mean that do not say it."""
    steps: int | None = None
    """Denoising steps of the models that start from noise; by default what each checkpoint states."""
    ensemble: int = 1
    """Predictions of such a model that are merged into one, each from its own noise."""
    seed: int = 0
    """Seed of that noise."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    batch_size: int = 8
    """Pictures of equal size that are predicted together; halved where memory runs out."""
    threads: int = 4
    """Threads that read ahead, and as many that score behind."""

    @property
    def network_long_side_px(self) -> int | None:
        """`network_px` where it is a number."""
        return self.network_px if isinstance(self.network_px, int) else None

    @property
    def own(self) -> dict[str, Path]:
        """The sets of --pairs by name: that of the folder or list after `pairs-`, so that none is taken for a benchmark."""
        return {f"pairs-{path.resolve().name if path.is_dir() else path.stem}": path for path in self.pairs}

    @property
    def sets(self) -> tuple[str, ...]:
        """All that is scored on, in order."""
        return (*(self.benchmark or (() if self.pairs else ("scenes",))), *self.own)

    @property
    def public(self) -> list[BenchmarkName]:
        """The benchmarks that need data."""
        return [name for name in self.benchmark if name != "scenes"]

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        least = {
            "scenes": 1,
            "seed_start": 0,
            "input_px": 16,
            "network_px": 16,
            "steps": 1,
            "ensemble": 1,
            "seed": 0,
            "batch_size": 1,
            "threads": 1,
        }
        found = at_least(self, least)
        if not self.model:
            found.append("--model: nothing given, expected one or more checkpoints")
        from stages.models.checkpoints import is_hub_id
        from stages.models.find import own_function

        unknown = [name for name in self.model if not (Path(name).is_dir() or is_hub_id(name) or own_function(name))]
        found += [f"--model {name}: no such folder, and not a hub id of the form owner/name" for name in unknown]
        if len(set(self.benchmark)) < len(self.benchmark):
            found.append(f"--benchmark is {' '.join(self.benchmark)!r}, expected names, each once")
        found += self._problems_of_pairs()
        if len(self.data) != len(self.public) and not (self.public and len(self.data) == 1):
            wanted = f"{len(self.public)} benchmarks, expected a path for each, or one folder for all"
            found.append(f"--data: {len(self.data)} paths for {wanted}")
        found += [f"--data {path}: not there" for path in self.data if not path.exists()]
        if self.lists and len(self.lists) != len(self.public):
            found.append(f"--list: {len(self.lists)} files for {len(self.public)} benchmarks, expected one for each")
        found += [f"--list {path}: no such file" for path in self.lists if not path.is_file()]
        if self.network_square and self.network_long_side_px is None:
            found.append("--network-square: expected --network-px with the side of the square, such as 700")
        if self.device.startswith("cuda") and not cuda_is_here():
            found.append(f"--device is {self.device}, but torch sees no CUDA device here; use cpu or auto")
        return found

    def _problems_of_pairs(self) -> list[str]:
        found = [f"--pairs {path}: not there" for path in self.pairs if not path.exists()]
        if len(self.own) < len(self.pairs):
            found.append(f"--pairs: two of {', '.join(map(str, self.pairs))} have one name; rename one")
        fields = ("depth_scale", "depth_kind", "depth_min_m", "depth_max_m", "depth_invalid")
        changed = [name for name in fields if getattr(self, name) != getattr(ScoringConfig, name)]
        if changed and not self.pairs:
            found.append(f"--{changed[0].replace('_', '-')}: for --pairs alone, and none are given")
        if self.depth_scale is not None and not 0 < self.depth_scale < math.inf:
            found.append(f"--depth-scale is {self.depth_scale}, expected units per metre, more than 0")
        if not 0 < self.depth_min_m < (self.depth_max_m or math.inf):
            found.append(f"--depth-min-m is {self.depth_min_m}, expected more than 0 and less than --depth-max-m")
        return found


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoringConfig):
    """Score depth models on benchmarks and on rendered scenes."""

    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Write models, protocols, means and published figures to this file."""
    markdown: Path | None = None
    """Write the table, with all metrics, to this file."""
    per_image: Path | None = None
    """Write every image's metrics to this file: .csv, or .parquet."""
    table: Annotated[Table | None, tyro.conf.arg(metavar="1..5")] = None
    """Set the figures of this table of the paper beside ours; by default those of table 5 and of third parties."""
    write_card: bool = False
    """Put the table into the README.md of each model's folder, between its markers for results, and the means into its YAML."""
    preset: str = "default"
    """Starting values."""
    config: Path | None = None
    """TOML file with values for any of these."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        found = super().problems()
        if self.per_image and self.per_image.suffix not in _SUFFIXES:
            found.append(f"--per-image {self.per_image}: expected a name that ends in {' or '.join(_SUFFIXES)}")
        return found


HELP = HelpPage(
    description=(
        "Score depth models, students and teachers alike, on public benchmarks and on rendered scenes: AbsRel/delta1 "
        "of each model on each, with the protocol behind each number."
    ),
    first=(
        *("model", "benchmark", "data", "lists", "pairs", "protocol", "output"),
        *("scenes", "network_px", "device", "batch_size", "json_file", "markdown", "config"),
    ),
    examples=(
        ("python -m pipeline.evaluate --model students/mine --scenes 32", "On 32 rendered scenes, which need no data"),
        (
            "python -m pipeline.evaluate --model students/mine --pairs my-scans/ --depth-scale 1000 --depth-max-m 10",
            "On pictures with depth of your own",
        ),
        (
            "python -m pipeline.evaluate --model students/neither students/both --benchmark eth3d diode "
            "--data benchmarks/ --table 2",
            "Two students on two benchmarks, beside table 2 of the paper",
        ),
    ),
)


def read_command(argv: Sequence[str] | None = None) -> EvaluateConfig:
    """The configuration of a command line; exits with status 2 where there is none. Imports no torch to answer `--help`."""
    presets = {"default": {}}
    return parse_command(EvaluateConfig, presets, program="python -m pipeline.evaluate", description=HELP, argv=argv)
