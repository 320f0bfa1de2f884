"""`python -m pipeline.study --scale cpu`: does the method work, and where? An answer with intervals, or why there is none.

Labels, trains and scores through the other commands, and judges claims, each by a metric that was fixed beforehand; but first
the gates on which they rest: are close-ups better than slices, and is a student on exact depth better than the baseline?
Where a gate fails, the claims are not testable here, and their arms are not trained. Every finished piece of work leaves a
small record; killed or interrupted, the same command goes on from the records, in as many sittings as you like. Exit status: 0
all is done, 130 something is left, in both cases with a report of what is known.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import at_least, folder_problems, parse_command
from pipeline.exits import DONE, INTERRUPTED, say
from pipeline.label.config import default_workers
from pipeline.study.drive import SittingOverError
from pipeline.study.labels import Workshop
from pipeline.study.progress import Findings, Progress
from pipeline.study.report import write_reports
from pipeline.study.scales import SCALES, ScaleName
from pipeline.train.command import TrainingInterruptedError

_PROGRAM = "pipeline.study"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Ask what the method gains, and under which errors of the teachers."""

    output: Path = Path("study")
    """Folder of photographs, labels and students; nothing in it is needed once it is recorded."""
    records: Path | None = None
    """Folder of the records, of one sitting or many; by default OUTPUT/records."""
    report: Path | None = None
    """Folder of report.html, report.md and report.json; by default OUTPUT."""
    scale: ScaleName = "cpu"
    """tiny: seconds, to see that all works. cpu: hours. paper: the paper's checkpoints, on GPUs, for days."""
    preset: str = "default"
    """Starting values."""
    config: Path | None = None
    """TOML file with values for any of these."""
    workers: int | None = None
    """Processes that label, and trainings at a time; one per GPU, else one per CPU core. 0 works in this process."""
    minutes: float | None = None
    """Begin no training after so many minutes. None: until all is done."""
    only_report: bool = False
    """Write the report from the records as they are."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        found = at_least(self, {"workers": 0, "minutes": 0})
        folders = {"--output": self.output, "--records": self.records_folder, "--report": self.report_folder}
        return found + [problem for flag, folder in folders.items() for problem in folder_problems(flag, folder)]

    @property
    def records_folder(self) -> Path:
        return self.records or self.output / "records"

    @property
    def report_folder(self) -> Path:
        return self.report or self.output


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_command(
        StudyConfig, {"default": {}}, program="python -m pipeline.study", description=__doc__ or "", argv=argv
    )
    try:
        return _study(config)
    except (KeyboardInterrupt, TrainingInterruptedError) as error:
        return say(_PROGRAM, error, "Finished work is kept; the same command goes on from here.")
    except Exception as error:
        return say(_PROGRAM, error)


def _study(config: StudyConfig) -> int:
    designs = progress_of(config)
    over: SittingOverError | None = None
    if not config.only_report:
        try:
            for progress in designs:
                progress.measure_premises()
            for progress in designs:
                progress.train()
        except SittingOverError as error:
            over = error
    findings = [progress.findings() for progress in designs]
    path = write_reports(config.report_folder, config.scale, findings)
    print(f"{_account(findings)}. The report: {path}")
    if over:
        return say(_PROGRAM, over, "The same command goes on from here.")
    return INTERRUPTED if any(found.left for found in findings) else DONE


def progress_of(config: StudyConfig) -> list[Progress]:
    """The designs of a study, each with what has been done of it."""
    workers = default_workers() if config.workers is None else config.workers
    workshop = Workshop(folder=config.output, scale=SCALES[config.scale], workers=workers)
    minutes = float("inf") if config.minutes is None else config.minutes
    return [
        Progress(
            workshop=workshop,
            design=make(),
            records=config.records_folder,
            deadline=time.monotonic() + 60 * minutes,
            tell=_tell,
        )
        for make in workshop.scale.designs
    ]


def _account(findings: Sequence[Findings]) -> str:
    done, left = (sum(of(found) for found in findings) for of in (lambda f: len(f.counted), lambda f: f.left))
    hours = sum(record.cpu_s for found in findings for record in found.counted) / 3600
    return f"{done} records, {hours:.2f} CPU hours, {left} pieces of work left"


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
