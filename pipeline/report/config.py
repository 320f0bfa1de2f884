"""What `python -m pipeline.report` can be told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.config import answer_version, at_least, folder_problems, url_problems
from pipeline.help import HelpPage, answer_help, program_name

_PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A run and its student as one page."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    student: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="STUDENT")] = None
    """The folder of a training, finished or not, or another depth model: a folder or a hub id. None: the labels alone."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write, which ends in .html; or a folder, which gets report.html. A report that is there is replaced."""
    photos: tuple[Path, ...] = ()
    """Photographs that are not in the run to show the student too: files, folders, tars, globs."""
    images: int = 24
    """Labelled photographs of the run to compare teachers and student on, drawn at random."""
    examples: int = 6
    """How many of these are shown, from those in which the teachers agree best to the worst; and how many of --photos."""
    seed: int = 0
    """Of what is drawn at random."""
    device: str = "auto"
    """Of the student: auto, cpu, cuda or cuda:N."""

    @property
    def page(self) -> Path:
        """The file."""
        return self.output if self.output.suffix.lower() == ".html" else self.output / _PAGE

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        found = url_problems(self) + at_least(self, {"images": 1, "examples": 1, "seed": 0})
        found += folder_problems("-o", self.page.parent)
        found += [f"-o {self.page}: a folder, expected a file"] * self.page.is_dir()
        return found + ["--photos are shown to a student: name one, or leave them out"] * (
            bool(self.photos) and not self.student
        )


HELP = HelpPage(
    description=(
        "A run and its student as one page to look at: what was labelled and what was rejected, labels from the best agreed "
        "to the worst, the training's curves, the student before and after it, costs, licences, and what to try next. One "
        "HTML file that needs no network. A run without a student, or a training that has not ended, is shown as far as it is."
    ),
    examples=(
        ("python -m pipeline.report runs/mine students/mine -o report.html", "A run and the student trained from it"),
        ("python -m pipeline.report runs/mine -o report.html", "The labels alone"),
    ),
)


def read_command(argv: Sequence[str] | None = None) -> ReportConfig:
    """The configuration of a command line; its values are not looked at yet. Imports no torch to answer `--help`."""
    arguments, program = list(sys.argv[1:] if argv is None else argv), "python -m pipeline.report"
    answer_version(arguments)
    answer_help(ReportConfig, HELP, arguments, program=program)
    return tyro.cli(ReportConfig, prog=program_name(program, arguments), description=HELP.description, args=arguments)
