"""What `python -m pipeline.show` can be told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.config import answer_version, url_problems
from pipeline.help import HelpPage, answer_help, program_name


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """A photograph's labels as one picture."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    key: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KEY")]
    """The photograph: its path in its folder, or its name in its tar up to the first dot."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """PNG file to write; made from the key, in the working directory, where the terminal cannot draw."""
    source: str | None = None
    """The source of the photograph, where several have one of this key."""
    columns: tuple[str, ...] = ()
    """Teachers to show; the others are compared with the first one. All that the run has where none is named."""
    context: int = 0
    """Which context, from 0, where the run draws several squares of each photograph."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        wrong = self.output is not None and self.output.suffix.lower() != ".png"
        return url_problems(self) + [f"-o {self.output}: expected a name that ends in .png"] * wrong


HELP = HelpPage(
    description=(
        "A photograph's labels as one picture, to look at: what the teachers saw, each one's label of the whole view, "
        "its close-ups stitched, where it has no label, and how far the teachers are from each other once scale and "
        "shift are fitted. It is drawn in the terminal where that is kitty, Ghostty, iTerm2 or WezTerm, and else, or "
        "with -o, written as a PNG file."
    ),
    examples=(("python -m pipeline.show runs/mine 1.png -o labels.png", "The labels of 1.png as a file"),),
)


def read_command(argv: Sequence[str] | None = None) -> ShowConfig:
    """The configuration of a command line; its values are not looked at yet. Imports no torch to answer `--help`."""
    arguments, program = list(sys.argv[1:] if argv is None else argv), "python -m pipeline.show"
    answer_version(arguments)
    answer_help(ShowConfig, HELP, arguments, program=program)
    return tyro.cli(ShowConfig, prog=program_name(program, arguments), description=HELP.description, args=arguments)
