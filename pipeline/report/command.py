"""`python -m pipeline.report RUN STUDENT -o page.html`: a run and its student as one page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from manifests.checker import printable
from manifests.errors import RefusedError
from pipeline.exits import DONE, REFUSED, say
from pipeline.report.config import ReportConfig, read_command
from pipeline.report.page import GENERATOR, write_report
from pipeline.report.run_report import Options, run_report

_PROGRAM = "pipeline.report"
_HEAD_BYTES = 2048


def main(argv: Sequence[str] | None = None) -> int:
    return run(read_command(argv))


def run(config: ReportConfig) -> int:
    """Writes the page, or says why not; returns the exit status."""
    if problems := config.problems():
        print(*(printable(f"{_PROGRAM}: {problem}") for problem in problems), sep="\n", file=sys.stderr)
        return REFUSED
    try:
        _refuse_other_file(config.page)
        options = Options(images=config.images, examples=config.examples, seed=config.seed, device=config.device)
        content = run_report(config.run, config.student, options, photos=config.photos)
        write_report(config.page, content)
    except (Exception, KeyboardInterrupt) as error:
        return say(_PROGRAM, error)
    print(*map(printable, [*content.notices, f"The report: {config.page}"]), sep="\n")
    return DONE


def _refuse_other_file(path: Path) -> None:
    """Raises RefusedError where there is something and no report."""
    if path.exists():
        with path.open("rb") as file:
            if f'content="{GENERATOR}"'.encode() not in file.read(_HEAD_BYTES):
                raise RefusedError(f"-o {path}: found a file that is no report, which would be replaced; give a new name")
