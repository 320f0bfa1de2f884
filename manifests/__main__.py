"""`python -m manifests summary RUN` and `python -m manifests verify RUN`: what a run holds, and whether it is sound.

Exit status 0: finished and sound. 1: not so, and it says why. 2: the command line is wrong, or RUN is not a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from manifests.run import NotARunError
from manifests.schema import InvalidRecordError
from manifests.summary import ColumnSummary, RunSummary, summarize
from manifests.verify import Damage, count_checks, examine

SOUND, PROBLEMS, USAGE_ERROR = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m manifests", description="What a run holds, and whether it is sound.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("summary", "numbers of every column: how far it is, what was rejected and why"),
        ("verify", "reads every file of the run and names all damage"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
        command.add_argument("--json", action="store_true", help="for programs: JSON instead of a table")
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names on disk may hold what the terminal cannot show
    try:
        return (_summary if arguments.command == "summary" else _verify)(arguments.run, as_json=arguments.json)
    except NotARunError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return USAGE_ERROR
    except (InvalidRecordError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return PROBLEMS


def _summary(run_dir: Path, *, as_json: bool) -> int:
    summary = summarize(run_dir)
    complaints = summary.complaints()
    if as_json:
        print(json.dumps(dataclasses.asdict(summary) | {"complaints": complaints}, indent=2))
    else:
        print("\n".join(_summary_lines(summary)))
        print(f"Not finished or not sound: {', '.join(complaints)}." if complaints else "Finished, no problems.")
    return PROBLEMS if complaints else SOUND


def _summary_lines(summary: RunSummary) -> list[str]:
    sources = f"{summary.sources_total} source{'s' * (summary.sources_total != 1)}"
    lines = [f"{summary.run_dir}: {summary.images_total} images, {summary.parts_total} parts, {sources}", ""]
    lines += [*_table([_row(column) for column in summary.columns]), ""]
    for column in summary.columns:
        if column.rejected:
            lines.append(f"{column.name}: rejected {_kinds(column.rejected)}")
        if column.failures:
            lines.append(f"{column.name}: failed {_kinds(column.failures)}: the next run tries these parts again")
        if column.litter:
            lines.append(
                f"{column.name}: {column.litter} .zarr folders that no manifest names: litter, unless an attempt is running"
            )
        lines += [f"{column.name}: damaged record: {message}" for message in column.damage]
    lines += [f"damaged record: {message}" for message in summary.damage]
    for source in summary.source_problems:
        lines.append(f"source {source.source}: {_kinds(source.kinds)}, for example {source.example}")
    licensed = [f"{column.name} {', '.join(column.licences)}" for column in summary.columns if column.licences]
    return [*lines, *([f"Licences of the labels' weights: {'; '.join(licensed)}"] if licensed else [])]


def _row(column: ColumnSummary) -> dict[str, str]:
    return {
        "column": column.name,
        "parts": f"{column.parts_done}/{column.parts_total}",
        "labelled": str(column.labelled),
        "rejected": str(sum(column.rejected.values())),
        "failed": str(column.failed),
        "pending": str(column.pending),
        "min": _number(column.min),
        "mean": _number(column.mean),
        "max": _number(column.max),
        "max error": _number(column.max_quantisation_error),
        "MB": f"{column.bytes / 1e6:.1f}",
        "bits/px": _number(column.bits_per_pixel),
        "depth space": column.depth_space or "-",
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _kinds(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(counts).most_common())


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Numbers to the right, the first and last column to the left."""
    heads = list(rows[0])
    cells = [heads, *([row[head] for head in heads] for row in rows)]
    columns = []
    for i, column in enumerate(zip(*cells, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if i in (0, len(heads) - 1) else cell.rjust(width) for cell in column])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _verify(run_dir: Path, *, as_json: bool) -> int:
    damage: list[Damage] = []
    total, live = count_checks(run_dir), sys.stderr.isatty()
    for done, found in enumerate(examine(run_dir), start=1):
        damage += found
        if live:
            end = "\n" if done == total else ""
            print(f"\r{done}/{total} records checked, {len(damage)} problems ", end=end, file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"run_dir": str(run_dir), "damage": [item._asdict() for item in damage]}, indent=2))
    else:
        for item in damage:
            print(f"{item.where}: {item.message} [{item.kind}]")
        print(f"{run_dir}: {len(damage)} problem{'s' * (len(damage) != 1)} found" if damage else f"{run_dir}: sound")
    return PROBLEMS if damage else SOUND


if __name__ == "__main__":
    sys.exit(main())
