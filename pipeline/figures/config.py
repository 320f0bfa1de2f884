"""What `python -m pipeline.figures` can be told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.config import url_problems
from pipeline.evaluate.config import ScoringConfig
from pipeline.exits import REFUSED
from stages.depth_space import DepthSpace

_DESCRIPTION = (
    "The paper's figures 2 and 5 for one's own models and pictures. fig2: AbsRel on the central half of every picture, once "
    "with scale and shift fitted on the whole of it and once on that half alone. fig5: one region of a photograph as labelled "
    "in a close-up, beside the same region cut out of the whole photograph's label."
)


@dataclass(frozen=True, kw_only=True)
class Fig2(ScoringConfig):
    """AbsRel on the central half, with scale and shift from the whole picture and from that half."""


@dataclass(frozen=True, kw_only=True)
class Fig5:
    """A region labelled in a close-up, beside the same region of the whole photograph's label."""

    model: str
    """A student or a teacher: a folder or a hub id."""
    image: Path
    """The photograph."""
    output: Path = Path("fig5.png")
    """PNG file to write."""
    box: tuple[int, int, int, int] | None = None
    """Region of the upright photograph: top, left, height and width in pixels. The central half by default."""
    network_px: Annotated[int | None, tyro.conf.arg(aliases=["--input-px"])] = None
    """Long side of what the model sees, of the whole photograph and of the region alike; by default what the checkpoint
    states, and else the paper's 560."""
    depth_space: DepthSpace | None = None
    """What the numbers of a model mean that does not say it."""
    steps: int | None = None
    """Denoising steps of a model that starts from noise; by default what its checkpoint states."""
    ensemble: int = 1
    """Predictions of such a model that are merged into one, each from its own noise."""
    seed: int = 0
    """Seed of that noise."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""


def read_command(argv: Sequence[str] | None = None) -> Fig2 | Fig5:
    """The configuration of a command line; exits with status 2 where there is none. Imports no torch to answer `--help`."""
    config = tyro.extras.subcommand_cli_from_dict(
        {"fig2": Fig2, "fig5": Fig5}, prog="python -m pipeline.figures", description=_DESCRIPTION, args=argv
    )
    problems = url_problems(config) + (config.problems() if isinstance(config, Fig2) else [])
    if problems:
        print("\n".join(f"pipeline.figures: {problem}" for problem in problems), file=sys.stderr)
        raise SystemExit(REFUSED)
    return config
