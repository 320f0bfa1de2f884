"""`python -m manifests COMMAND RUN`: what a run holds, whether it is sound, and what to do where it is not.

Exit status 0: finished, sound, mended, the same. 1: not so, and it says why. 2: the command line is wrong, or RUN is no run.
141: whoever read the output has closed it. What comes from a run is printed without control characters.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from manifests.agreement import QUANTILES, PairAgreement
from manifests.checker import printable
from manifests.compare import compare
from manifests.errors import DistillError
from manifests.finding import FoundColumn, FoundImage, find_images
from manifests.licences import licence_class
from manifests.listing import STATUSES, ListedImage, list_images
from manifests.litter import clean
from manifests.location import Location, Url, location_of, refuse_other_schemes
from manifests.place import place_of
from manifests.repair import repair
from manifests.run import RUN_RECORD, is_record
from manifests.summary import ColumnSummary, RunSummary, summarize
from manifests.tables import aligned
from manifests.verify import Damage, count_checks, examine
from manifests.version import software_version

SOUND, PROBLEMS, OUTPUT_CLOSED = 0, 1, 128 + signal.SIGPIPE
_SHOWN_DIFFERENCES = 50
_MEASURES = {"AbsRel": "abs_rel", "correlation": "correlation", "edge F1": "edge_f1"}
_CORES = len(os.sched_getaffinity(0))
_WORTH_A_PROCESS, _WORTH_A_PROCESS_QUICK = 16, 1000  # records, which take longer than it takes to start
_REWRITE = (
    "run.json, catalog/ and each column.json say what the run is, and cannot be made from the rest of it. Restore the damaged "
    "ones from a copy; or move them out of the run and give the command that made it again: with the same settings over the "
    "same sources it writes them anew, and the parts that are committed stay."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names on disk may hold what the terminal cannot show
    commands = {
        "summary": _summary,
        "list": _list,
        "find": _find,
        "verify": _verify,
        "repair": _repair,
        "clean": _clean,
        "compare": _compare,
    }
    options = vars(arguments)
    try:
        status = commands[options.pop("command")](**options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would complain at its end
        return OUTPUT_CLOSED
    except DistillError as error:
        _complain(parser.prog, error)
        return error.exit_status
    except (OSError, ImportError, MemoryError) as error:
        _complain(parser.prog, error)
        return PROBLEMS


def _complain(program: str, error: Exception) -> None:
    lines = f"{program}: {str(error) or type(error).__name__}".split("\n")
    print(*map(printable, lines), sep="\n", file=sys.stderr)


def _say(line: str) -> None:
    print(printable(line))


def _run_folder(argument: str) -> Location:
    """RUN as it was given; its run.json stands for it."""
    try:
        location = location_of(argument)
        if isinstance(location, Url):
            refuse_other_schemes(location)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    is_record = location.name == RUN_RECORD and place_of(location.parent).exists(RUN_RECORD)
    return location.parent if is_record else location


class _Parser(argparse.ArgumentParser):
    """One that says what a misspelt word was probably meant to be."""

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = difflib.get_close_matches(choice[1], re.findall(r"[\w-]+", choice[2]), 1)
            message += f"; did you mean {near[0]!r}?" if near else ""
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m manifests", description="What a run holds, and whether it is sound.")
    parser.add_argument("--version", action="version", version=software_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *runs: str, **flags: str) -> None:
        command = commands.add_parser(name, help=text, description=text)
        for run in runs or ("RUN",):
            command.add_argument(run.lower(), type=_run_folder, metavar=run, help="the run's folder, or its URL in a bucket")
        for flag, meaning in flags.items():
            command.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=meaning)
        command.add_argument("--json", dest="as_json", action="store_true", help="for programs: JSON instead of text")

    add("summary", "numbers of every column: how far it is, what was rejected and why, which licences bind its labels")
    add(
        "verify",
        "reads every record, looks for every file and its size, and names all damage",
        deep="read every byte of the arrays too, and decode every chunk",
    )
    dry_run = "only say what would be removed"
    add(
        "repair",
        "drops exactly the parts that are damaged, so that labelling again makes them anew; reads every byte",
        quick="drop only what `verify` finds without --deep",
        dry_run=dry_run,
    )
    add("clean", "removes what interrupted work has left: folders and files that no record names", dry_run=dry_run)
    add(
        "list",
        "one line for each image and column: status, column, source, key, part, place in it, and why it has no labels, or how "
        "far the teachers agree",
    )
    listed = commands.choices["list"]
    listed.add_argument("keys", nargs="*", metavar="KEY", help="only these keys; patterns such as 'cats/*' too")
    listed.add_argument("--status", nargs="+", choices=STATUSES, default=[], help="only these")
    listed.add_argument(
        "--kind", nargs="+", default=[], metavar="KIND", help="only problems of these kinds, as `summary` counts them"
    )
    listed.add_argument("--source", nargs="+", default=[], metavar="SOURCE", help="only these")
    listed.add_argument("--column", nargs="+", default=[], metavar="COLUMN", help="only these")
    above = "only images in which teachers are farther apart, where `python -m pipeline.agreement` has compared them"
    listed.add_argument("--abs-rel-above", type=float, metavar="X", help=above)
    add("find", "where images are, how each stands in every column and why, and which files hold its labels")
    commands.choices["find"].add_argument(
        "keys", nargs="+", metavar="KEY", help="a key, a file's name or its path in its source, or a pattern such as '*/1.png'"
    )
    add("compare", "names every setting, part, image and array in which two runs differ", "RUN_A", "RUN_B")
    for name in ("verify", "repair"):
        text = "processes that check parts; one for each core of this machine unless given"
        commands.choices[name].add_argument("--workers", type=_workers, default=_CORES, metavar="N", help=text)
    return parser


def _workers(argument: str) -> int:
    if not argument.isdecimal() or not int(argument):
        raise argparse.ArgumentTypeError(f"found {argument!r}, expected a number of processes, 1 or more")
    return int(argument)


def _print_json(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _summary(run: Location, as_json: bool) -> int:
    summary = summarize(run, workers=_CORES)
    complaints = summary.complaints()
    if as_json:
        _print_json(dataclasses.asdict(summary) | {"complaints": complaints})
    else:
        for line in _summary_lines(summary):
            _say(line)
        _say(f"Not finished or not sound: {', '.join(complaints)}." if complaints else "Finished, no problems.")
    return PROBLEMS if complaints else SOUND


def _list(
    run: Location,
    keys: list[str],
    status: list[str],
    kind: list[str],
    source: list[str],
    column: list[str],
    abs_rel_above: float | None,
    as_json: bool,
) -> int:
    wanted = {"columns": column, "sources": source, "statuses": status, "kinds": kind, "keys": keys}
    unreadable = 0
    for image in list_images(run, **wanted, abs_rel_above=abs_rel_above):
        unreadable += image.status == "unreadable"
        if as_json:
            print(json.dumps(dataclasses.asdict(image)))
        else:
            why = _apart(image) if image.kind is None else f"{image.kind}: {image.message}"
            fields = (image.status, image.column, image.source, image.key, image.part, str(image.image), why)
            print("\t".join(map(printable, fields)))
    return PROBLEMS if unreadable else SOUND


def _find(run: Location, keys: list[str], as_json: bool) -> int:
    missing, unread = set(keys), False
    for image in find_images(run, keys):
        missing.difference_update(image.names)
        unread |= any(column.unread or column.status == "unreadable" for column in image.columns)
        if as_json:
            print(json.dumps(dataclasses.asdict(image)))
        else:
            print(*map(printable, _found_lines(image)), sep="\n")
    for key in sorted(missing):
        print(printable(f"{run}: no image has the key or file name {key!r}"), file=sys.stderr)
    return PROBLEMS if missing or unread else SOUND


def _found_lines(image: FoundImage) -> list[str]:
    lines = [f"{image.source} {image.key}: image {image.image} of part {image.part}, row {image.row} of its source"]
    known = [f"{image.size_bytes} bytes"]
    known += [f"{_px(image.photograph_px)} px"] if image.photograph_px else []
    known += [f"sha256 {image.content_sha256}"] if image.content_sha256 else []
    inside = f" at byte {image.offset}" * (image.source_kind == "tar")
    lines.append(f"  {image.source_kind} {image.location}: {image.member}{inside}, {', '.join(known)}")
    for column in image.columns:
        lines.append(f"  {column.column}: {', '.join(_stands(column))}")
        for file in column.files:
            lines.append(f"    columns/{column.column}/{file.path}, {file.size_bytes} bytes, sha256 {file.sha256}")
    return lines


def _stands(column: FoundColumn) -> list[str]:
    found = [column.status]
    found += [f"{column.kind}: {column.message}"] if column.kind else []
    found += [f"{_px(size)} px" if any(size) else "a context without a label" for size in column.sizes_px]
    found += [_counted(sum(column.patches), "close-up")] if column.patches else []
    found += [column.licence] if column.licence else []
    return found + ([f"its arrays cannot be read: {column.unread}"] if column.unread else [])


def _px(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _apart(image: ListedImage) -> str:
    """How far the teachers agree, in words; empty where that is not known."""
    told = ((name, getattr(image, measure)) for name, measure in _MEASURES.items())
    return ", ".join(f"{name} {_number(value)}" for name, value in told if value is not None)


def _summary_lines(summary: RunSummary) -> list[str]:
    sources = f"{summary.sources_total} source{'s' * (summary.sources_total != 1)}"
    lines = [f"{summary.run_dir}: {summary.images_total} images, {summary.parts_total} parts, {sources}", ""]
    if summary.columns:
        lines += [*_columns_table(summary.columns), ""]
    for column in summary.columns:
        if column.not_drawn:
            lines.append(f"{column.name}: {column.not_drawn} images are never drawn by the training it was labelled for")
        if column.rejected:
            lines.append(f"{column.name}: rejected {_kinds(column.rejected)}")
        lines += [f"{column.name}: rejected {example}" for example in column.examples]
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
    lines += [line for pair in summary.agreement for line in _agreement_lines(pair)]
    licensed = [f"{column.name} {', '.join(column.licences)}" for column in summary.columns if column.licences]
    if licensed:
        strictest = " and ".join(summary.most_restrictive_licences)
        lines.append(f"Licences of the labels' weights: {'; '.join(licensed)}")
        lines.append(f"Most restrictive: {strictest} ({licence_class(summary.most_restrictive_licences[0])})")
    return lines


def _agreement_lines(pair: PairAgreement) -> list[str]:
    """How far two teachers agree: the median, what the worst tenth of the images is beyond, and the worst."""
    what = f"{pair.first} and {pair.second}"
    if not pair.up_to_date:
        return [f"{what}: compared, but not all that they hold now: run `python -m pipeline.agreement` again"]
    rows = [[f"agreement of {what} in {pair.images} images", "median", "worst tenth from", "worst"]]
    for name, measure in _MEASURES.items():
        beyond = (0.9, 1) if measure == "abs_rel" else (0.1, 0)
        at = dict(zip(QUANTILES, pair.quantiles.get(measure, ()), strict=False))
        rows += [[name, *(_number(at[quantile]) for quantile in (0.5, *beyond))]] if at else []
    far_apart = [f"far apart: {image.part}: {image.key}: AbsRel {_number(image.abs_rel)}" for image in pair.farthest_apart]
    return ["", *aligned(rows), *far_apart, ""]


def _columns_table(columns: Sequence[ColumnSummary]) -> list[str]:
    rows = [_row(column) for column in columns]
    return aligned([list(rows[0]), *(list(row.values()) for row in rows)], left=(0, len(rows[0]) - 1))


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


def _verify(run: Location, deep: bool, workers: int, as_json: bool) -> int:
    damage = list(_examined(run, deep, workers))
    if as_json:
        _print_json({"run_dir": str(run), "deep": deep, "damage": [item._asdict() for item in damage]})
    else:
        _print_damage(damage)
        problems = f"{_counted(len(damage), 'problem')} found; `python -m manifests repair` drops what is proven damaged"
        sound = "sound" if deep else "sound as far as records, places and sizes tell; --deep reads the arrays too"
        _say(f"{run}: {problems if damage else sound}")
    return PROBLEMS if damage else SOUND


def _examined(run: Location, deep: bool, workers: int) -> Iterator[Damage]:
    """What `verify` yields, with a line of progress where somebody sees it; from as many processes as there is work for."""
    total, found_so_far, live = count_checks(run), 0, sys.stderr.isatty()
    workers = min(workers, total // (_WORTH_A_PROCESS if deep else _WORTH_A_PROCESS_QUICK) or 1)
    for done, found in enumerate(examine(run, deep=deep, workers=workers), start=1):
        found_so_far += len(found)
        yield from found
        if live:
            line = f"\r{done}/{total} records checked, {found_so_far} problems "
            print(line, end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print_damage(damage: Sequence[Damage]) -> None:
    for item in damage:
        _say(f"{item.where}: {item.message} [{item.kind}]")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _repair(run: Location, quick: bool, workers: int, dry_run: bool, as_json: bool) -> int:
    report = repair(run, _examined(run, not quick, workers), dry_run=dry_run)
    if as_json:
        left = [item._asdict() for item in report.left]
        _print_json({"run_dir": str(run), "dry_run": dry_run} | dataclasses.asdict(report) | {"left": left})
    else:
        for item in report.dropped:
            _say(f"{'would drop' if dry_run else 'dropped'} {item.column}/{item.part}: {item.why}")
        for name in report.removed:
            _say(f"{'would remove' if dry_run else 'removed'} {name}")
        if report.left:
            print("Not to be repaired here:")
            _print_damage(report.left)
        if any(is_record(item.where) for item in report.left):
            print(_REWRITE)
        again = "it" if len(report.dropped) == 1 else "them"
        advice = f"; to make {again} again, give the command that made the run" if report.dropped else ""
        _say(f"{run}: {_counted(len(report.dropped), 'part')} {'to drop' if dry_run else 'dropped'}{advice}")
    return PROBLEMS if report.left else SOUND


def _clean(run: Location, dry_run: bool, as_json: bool) -> int:
    removed = clean(run, dry_run=dry_run)
    if as_json:
        _print_json({"run_dir": str(run), "dry_run": dry_run, "removed": removed})
    else:
        for name in removed:
            _say(f"{'would remove' if dry_run else 'removed'} {name}")
        _say(f"{run}: {len(removed)} pieces of litter" if removed else f"{run}: no litter")
    return SOUND


def _compare(run_a: Location, run_b: Location, as_json: bool) -> int:
    differences = compare(run_a, run_b)
    if as_json:
        found = [difference._asdict() for difference in differences]
        _print_json({"run_a": str(run_a), "run_b": str(run_b), "differences": found})
    else:
        for item in differences[:_SHOWN_DIFFERENCES]:
            _say(f"{item.where}: {item.field}{': ' * bool(item.field)}{item.a} in A, {item.b} in B")
        if (more := len(differences) - _SHOWN_DIFFERENCES) > 0:
            print(f"... and {more} more: --json prints them all")
        print(f"{_counted(len(differences), 'difference')}" if differences else "The same, volatile fields aside.")
    return PROBLEMS if differences else SOUND


if __name__ == "__main__":
    sys.exit(main())
