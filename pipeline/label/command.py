"""`python -m pipeline.label`: photographs in, cached pseudo-depth of every teacher out.

Indexes the sources, fixes the run, and drives one unit per part and column over Ray workers. Run it again after any
interruption: what is committed stays, what is missing is made, and a finished run is left untouched. Exit status: 0 all
images are labelled or rejected, 1 something failed, a source is damaged or too much was rejected, 2 the command cannot be
run as given, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import manifests
from manifests.checker import printable
from pipeline.demo_notice import DEMO_CHECKPOINTS, ONLY_SCENES
from pipeline.exits import INTERRUPTED, PROBLEMS, exit_status, say
from pipeline.label.config import LabelConfig, read_command
from pipeline.label.drive import DriveOptions, LabelReport, drive
from pipeline.label.estimate import estimate
from pipeline.label.run import (
    OpenRun,
    describe_run,
    drop_second_chances,
    enter_run,
    needs_correction,
    refuse_replaced,
    units_left,
)
from pipeline.label.sources import columns_taken, read_sources, recorded_sources

_PROBLEMS_SHOWN = 20
_PROGRAM = "pipeline.label"
_STAYS = "What is committed in {} stays; when the cause is gone, the same command resumes."


def main(argv: list[str] | None = None) -> int:
    return run(read_command(argv))


def run(config: LabelConfig) -> int:
    """Does what the command line says, and says how it ended; returns the exit status."""
    try:
        if config.dry_run:
            print(estimate(config, config.local_workers))
            return 0
        return _conclude(config, *label_run(config))
    except KeyboardInterrupt:
        return _interrupted(config)
    except Exception as error:
        return say(_PROGRAM, error, _STAYS.format(config.run) if exit_status(error) == PROBLEMS else "")


def label(config: LabelConfig) -> LabelReport:
    """Bring the run to its end: list the photographs, fix what decides the labels, and label whatever is missing.

    Raises RunMismatchError when the folder holds a run of other content, SourceNotFoundError for a source that is not there,
    RunInUseError while the run is repaired, or held by another command when a column is to be corrected, OSError where it
    cannot be written; and what `drive` raises.
    """
    return label_run(config)[1]


def label_run(config: LabelConfig) -> tuple[OpenRun, LabelReport]:
    """The same, with the run as it was opened."""
    found = read_sources(config.sources or recorded_sources(config.run))
    for line in columns_taken(found):
        print(printable(line), file=sys.stderr)
    wanted = describe_run(config, found)
    correcting = needs_correction(wanted)
    try:
        with manifests.hold_run(config.run, exclusive=config.retry_failed or correcting):
            alone = config.retry_failed or correcting
            run = enter_run(wanted, found, alone=alone, add_new_files=config.add_new_files)
            if config.retry_failed:
                drop_second_chances(config.run, config.share)
    except manifests.RunInUseError as error:
        if not correcting:
            raise
        why = (
            "this command has another teacher of a recorded name, which can be replaced only while no other command has the run"
        )
        raise manifests.RunInUseError(f"{error}; {why}") from error
    for correction in run.corrections:
        print(correction, file=sys.stderr)
    with manifests.hold_run(config.run, exclusive=False):
        refuse_replaced(run)
        options = DriveOptions(
            workers=config.workers if config.address else config.local_workers,
            resources=config.resources,
            address=config.address,
            batch_size=config.batch_size,
            decode_threads=config.threads,
            max_attempts=config.max_attempts,
            stall_timeout_s=config.stall_timeout_s,
        )
        return run, drive(run, units_left(run), options)


def _conclude(config: LabelConfig, run: OpenRun, report: LabelReport) -> int:
    """Say how it ended, and what to do next. The exit status is 0 only where nothing is missing and little was rejected."""
    for problem in report.source_problems[:_PROBLEMS_SHOWN]:
        print(f"source {problem.where}: {problem.kind}: {problem.message}", file=sys.stderr)
    if (more := len(report.source_problems) - _PROBLEMS_SHOWN) > 0:
        print(f"and {more} more problems of sources; all are in {config.run / 'catalog'}", file=sys.stderr)
    for failure in report.failures[:_PROBLEMS_SHOWN]:
        print(f"failed: {failure.column}/{failure.part}: {failure.problem.kind}: {failure.problem.message}", file=sys.stderr)
    for column, reason in report.columns_given_up.items():
        print(f"column {column} was given up: {reason}", file=sys.stderr)
    shard, whole = (f"shard {run.shard}: ", _of_the_whole(config)) if run.shard else ("", "")
    print(
        f"{shard}{report.parts_done} of {report.parts_total} parts are committed, {report.committed} of them by this command"
        f"{whole}. Inspect: python -m manifests summary {config.run}"
    )
    if any(Path(teacher.checkpoint).parent == DEMO_CHECKPOINTS for teacher in config.chosen):
        print(ONLY_SCENES)
    if report.interrupted:
        return _interrupted(config)
    if report.failures or report.columns_given_up:
        print(f"{len(report.failures)} parts failed; run the same command to make what is missing.", file=sys.stderr)
    damaged = bool(report.source_problems) and not config.allow_damaged_sources
    if damaged:
        print("Some sources are damaged; accept what could be read with --allow-damaged-sources.", file=sys.stderr)
    incomplete = _what_is_missing(config, run, report)
    print(*incomplete, sep="\n", end="\n" * bool(incomplete), file=sys.stderr)
    return PROBLEMS if report.failures or report.columns_given_up or damaged or incomplete else 0


def _of_the_whole(config: LabelConfig) -> str:
    """How far the run is that this command has labelled a share of, as this machine sees it."""
    columns = manifests.summarize(config.run).columns
    done, total = (sum(getattr(column, name) for column in columns) for name in ("parts_done", "parts_total"))
    return f"; of the whole run {done} of {total}" + ("" if done == total else ", the rest is for the other shards")


def _what_is_missing(config: LabelConfig, run: OpenRun, report: LabelReport) -> list[str]:
    """A line for each reason why the run is less than it might be taken for, where the report does not say so: too many
    rejections, files that are not in it, and what this command has not named; all of that in its shard, if it has one."""
    summary = manifests.summarize(config.run, counted=run.shard.has if run.shard else None)
    lines = []
    recorded = summary.max_rejected_fraction
    judge = "" if recorded in (None, config.max_rejected_fraction) else f" (the run was made with {recorded:g})"
    for column in summary.columns:
        if excess := column.excess(config.max_rejected_fraction):
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(column.rejected.items()))
            lines.append(f"{excess}: {kinds}{judge}; `python -m manifests summary` counts them, the manifests name each")
    lines += [f"{words}; take them in with --add-new-files" for words in run.left_out]
    if not report.failures and not report.columns_given_up:
        left = {column.name: column.failed + column.pending for column in summary.columns if column.failed + column.pending}
        lines += [
            f"{count} images are not labelled in the column {name}: of sources or teachers that this command does not name; "
            f"name them, or remove the folder columns/{name} if it is not wanted"
            for name, count in left.items()
        ]
    return lines


def _interrupted(config: LabelConfig) -> int:
    print(f"\nInterrupted. What is committed in {config.run} stays; the same command resumes.", file=sys.stderr)
    return INTERRUPTED
