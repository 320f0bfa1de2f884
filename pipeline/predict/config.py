"""What `python -m pipeline.predict` can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from pipeline.config import at_least, folder_problems, parse_command
from pipeline.help import HelpPage
from stages.depth_space import DepthSpace
from stages.models.spec import Precision


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Depth maps of photographs."""

    RENAMED: ClassVar = {"batch": "batch_size", "long_side": "network_px"}

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN...")]
    """Photographs, folders of them with all folders below, tars, Parquet files (?column=NAME where several have images), globs,
    brace patterns (shards-{0000..0099}.tar), and @LIST, a file of paths, one a line."""
    model: str
    """A student or a teacher: a folder, a hub id, or a function of your own, as in my_module:load=CHECKPOINT."""
    output: Path
    """Folder of the results; made where missing, continued where it exists."""
    npy: bool = False
    """Also write the map as float32 .npy."""
    color: bool = True
    """Also write a picture of the map in colours, near is red."""
    network_px: Annotated[int | Literal["native"] | None, tyro.conf.arg(metavar="PX|native")] = None
    """Long side of the picture as the network sees it, or the photograph's own. Without it: the size that the checkpoint
    states; where it states none, that of --tile, or the photograph's own."""
    tile: Annotated[int | None, tyro.conf.arg(metavar="PX")] = None
    """Larger photographs are also shown in square tiles of this side, for detail."""
    tile_overlap: float = 0.25
    """Share of a tile's side that its neighbour also shows, at least."""
    depth_space: DepthSpace | None = None
    """What the model's numbers mean, where the checkpoint does not say it."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    steps: int | None = None
    """Denoising steps of a model that starts from noise; by default what its checkpoint states."""
    ensemble: int = 1
    """Predictions of such a model that are merged into one, each from its own noise."""
    dtype: Precision = "float32"
    """Precision of weights and activations; maps are float32 all the same. tf32 lets a GPU round products of float32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    batch_size: int = 4
    """Photographs of one size, or tiles, that are predicted together; halved where memory runs out."""
    threads: int = 4
    """Threads that decode photographs, and as many that write results."""
    overwrite: bool = False
    """Replace what is there under a result's name: of another model, other options, another photograph, or not of ours."""
    preset: str = "default"
    """Starting values."""
    config: Path | None = None
    """A TOML file with the same keys; flags win over it."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        found = at_least(self, {"network_px": 8, "tile": 32, "batch_size": 1, "threads": 1, "steps": 1, "ensemble": 1})
        if not self.inputs:
            found.append("IN: none given; expected photographs, folders, tars or Parquet files of them, globs or @lists")
        if not 0.05 <= self.tile_overlap <= 0.9:
            what = "a share of a tile's side from 0.05, below which seams show, to 0.9"
            found.append(f"--tile-overlap is {self.tile_overlap}, expected {what}")
        return found + folder_problems("--output", self.output)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Suffixes of the results asked for."""
        from pipeline.predict.files import COLOR, MAP, VALUES

        return MAP, *([VALUES] if self.npy else []), *([COLOR] if self.color else [])


HELP = HelpPage(
    description=(
        "Photographs in, depth maps out: for each a 16-bit PNG of its size that says what its numbers mean, and a "
        "picture in colours. Run it again after any interruption: what is finished stays, what is missing is made."
    ),
    first=("inputs", "model", "output", "npy", "color", "network_px", "tile", "device", "batch_size", "overwrite", "config"),
    examples=(
        ("python -m pipeline.predict --model students/mine photos/ --output maps", "All photographs of a folder"),
        (
            "python -m pipeline.predict --model students/mine shards-{0000..0002}.tar 'more/*.jpg' --output maps",
            "Tars and a glob",
        ),
    ),
)


def read_command(argv: Sequence[str] | None = None) -> PredictConfig:
    """The configuration of a command line; exits with status 2 where there is none. Imports no torch to answer `--help`."""
    return parse_command(PredictConfig, {"default": {}}, program="python -m pipeline.predict", description=HELP, argv=argv)
