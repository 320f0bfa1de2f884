"""`python -m pipeline.export RUN -o DIR --format webdataset|folder`: a run's labels as files that other trainers read.

It says first how much it will be. Give it again after any interruption, or when the run has grown: parts that are written and
whose labels are the same stay. Images that are rejected, failed or pending are named. docs/export.md says what the files are.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
import json
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import tyro
from tqdm import tqdm

from manifests.checker import printable
from manifests.errors import DistillError, RefusedError
from manifests.facts import ColumnFacts, column_facts
from manifests.licences import UNKNOWN, most_restrictive
from manifests.listing import ListedImage, list_images
from manifests.run import IMAGES, list_column
from manifests.summary import summarize
from manifests.version import software_version
from manifests.workers import in_order
from pipeline.config import answer_version
from pipeline.exits import DONE, PROBLEMS, REFUSED, exit_status, say
from pipeline.export import output
from pipeline.export.config import ExportConfig
from pipeline.export.samples import METRES, file_place, label_suffix, samples_of
from pipeline.interrupts import stop_requested
from stages.label_store import OpenRun, open_run

_PROGRAM = "pipeline.export"
_SAMPLED_PARTS, _SAMPLED_IMAGES = 3, 4
_WORTH_PROCESSES = 500  # images, which take longer than processes to start
_NAMED = 20
_LINE_EVERY_S = 15.0
MISSING = "missing.jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    answer_version(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(ExportConfig, prog="python -m pipeline.export", description=__doc__, args=argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a key may hold what the terminal cannot show
    if problems := config.problems():
        print(*(printable(f"{_PROGRAM}: {problem}") for problem in problems), sep="\n", file=sys.stderr)
        return REFUSED
    try:
        problems = export(config)
    except (Exception, KeyboardInterrupt) as error:
        hint = f"Parts that are written in {config.output} stay; the same command resumes."
        return say(_PROGRAM, error, "" if exit_status(error) == REFUSED else hint)
    for problem in problems:
        print(printable(f"{_PROGRAM}: {problem}"), file=sys.stderr)
    return PROBLEMS if problems else DONE


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is to be written: the numbers of the parts that all columns have, each with its recipe, by the part's name."""

    config: ExportConfig
    run: OpenRun
    settings: Mapping[str, object]
    sources: Mapping[str, str]
    facts: Mapping[str, ColumnFacts]
    recipes: Mapping[str, str]
    images: int
    left: list[int] = field(default_factory=list)


def export(config: ExportConfig) -> list[str]:
    """Writes what is not there yet, and returns what is wrong with the run or its export in words.

    Raises RefusedError for what cannot be exported as asked, before anything is written, what reading a run raises, OSError
    where nothing can be written, and KeyboardInterrupt.
    """
    if config.format == "webdataset" and importlib.util.find_spec("webdataset") is None:
        raise RefusedError("--format webdataset needs the package webdataset: pip install webdataset (the extra `export`)")
    plan = _planned(config)
    print(printable(_sizes(plan)))
    if config.dry_run:
        return []
    with output.claimed(config.output, plan.settings, plan.sources):
        output.write_about(config.output, _about(plan, finished=False))
        problems = _write_parts(plan)
        problems += _write_lists(plan)
        problems += _holes(plan)
        output.write_about(config.output, _about(plan, finished=not problems))
    return problems


def _planned(config: ExportConfig) -> _Plan:
    run = open_run(config.run)
    config = replace(config, columns=tuple(config.columns or run))
    _refuse_columns(run, config)
    settings = {name: getattr(config, name) for name in ("format", "views", "labels")} | {"columns": list(config.columns)}
    sources = {source.source: source.rows_sha256 for source in run.images.run.sources}
    output.refuse_another(config.output, settings, sources)
    names = [IMAGES, *config.columns]
    listings = {name: list_column(config.run, name, with_states=True) for name in names}
    facts = {name: column_facts(config.run, name, listing) for name, listing in listings.items()}
    digests = {name: dict(zip(found.parts, found.all("digest"), strict=True)) for name, found in facts.items()}
    everywhere = set.intersection(*(set(parts) for parts in digests.values()))
    parts = {part.name: number for number, part in enumerate(run.images.parts) if part.name in everywhere}
    recipes = {part: output.recipe_of(settings, {name: digests[name][part] for name in names}) for part in parts}
    left = [number for part, number in parts.items() if not _is_written(config, part, recipes[part])]
    return _Plan(
        config=config,
        run=run,
        settings=settings,
        sources=sources,
        facts=facts,
        recipes=recipes,
        images=int(run.images.start[-1]),
        left=left,
    )


def _is_written(config: ExportConfig, part: str, recipe: str) -> bool:
    written = output.part_written(config.output, part)
    if written is None or written.recipe != recipe:
        return False
    return output.is_there(config.output, config.format, part, written)


def _refuse_columns(run: OpenRun, config: ExportConfig) -> None:
    """Raises RefusedError where there are none, or where these labels cannot be had of one."""
    if not config.columns:
        raise RefusedError(f"{config.run}: the run has no teacher's column yet; label first")
    run.pictures  # noqa: B018  # which says what to do where there are none
    spaces = {name: run[name].depth_space for name in config.columns}
    if config.labels in METRES and (others := [f"{name} has {it}" for name, it in spaces.items() if it != "depth_metric"]):
        raise RefusedError(
            f"--labels {config.labels} takes metric depth (depth_metric), and {', '.join(others)}; take codes or npy, "
            "or name other --columns"
        )


def _sizes(plan: _Plan) -> str:
    """How much it will be, from samples of some parts encoded in memory."""
    config, left = plan.config, plan.left
    images = sum(plan.run.images.parts[number].images for number in left)
    what = f"{config.run}: {plan.images} images; {', '.join(config.columns)} to {config.output} as {config.format}"
    if not left:
        return f"{what}: all {len(plan.recipes)} parts that are labelled are written already."
    numbers = sorted({left[i * (len(left) - 1) // max(_SAMPLED_PARTS - 1, 1)] for i in range(_SAMPLED_PARTS)})
    sizes = [size for number in numbers for size in _image_sizes(plan, number)]
    size = sum(sizes) / len(sizes) * images if sizes else 0.0
    free = shutil.disk_usage(next(place for place in (config.output, *config.output.absolute().parents) if place.exists())).free
    there = f", {len(plan.recipes) - len(left)} are written already" if len(left) < len(plan.recipes) else ""
    return (
        f"{what}: {len(left)} of {len(plan.run.images.parts)} parts to write{there}. About {_bytes(size)} for {images} images, "
        f"by {len(sizes)} of them; {_bytes(free)} are free."
    )


def _image_sizes(plan: _Plan, number: int) -> list[int]:
    """What some images of a part take, 0 for one that is not labelled; none where it cannot be read, which is named later."""
    first, part = int(plan.run.images.start[number]), plan.run.images.parts[number]
    try:
        return [
            sum(
                _on_disk(file, plan.config) for sample in samples_of(plan.run, i, plan.config) for file in sample.files.values()
            )
            for i in range(first, first + min(part.images, _SAMPLED_IMAGES))
        ]
    except DistillError:
        return []


def _on_disk(content: bytes, config: ExportConfig) -> int:
    """Bytes of a file, with its header and its padding in a tar."""
    return len(content) if config.format == "folder" else 512 + -(-len(content) // 512) * 512


def _write_parts(plan: _Plan) -> list[str]:
    """Writes the parts that are left; why some could not be."""
    problems, command = [], uuid.uuid4().hex
    calls = (partial(_write_part, plan.config, command, n, plan.recipes[plan.run.images.parts[n].name]) for n in plan.left)
    images = sum(plan.run.images.parts[number].images for number in plan.left)
    workers = min(plan.config.workers, len(plan.left)) if images >= _WORTH_PROCESSES else 1  # one: threads of this process
    with (
        stop_requested("Interrupted: the parts at work are finished first; interrupt again to leave at once.") as stopping,
        tqdm(total=len(plan.left), desc="export", unit="part", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar,
    ):
        last = time.monotonic()
        for done, (size_bytes, problem) in enumerate(in_order(calls, workers, bunch=1), start=1):
            problems += [problem] if problem else []
            bar.update()
            if bar.disable and time.monotonic() - last > _LINE_EVERY_S:
                last = time.monotonic()
                print(f"export: {done}/{len(plan.left)} parts, the last of {_bytes(size_bytes)}", file=sys.stderr, flush=True)
            if stopping():
                raise KeyboardInterrupt
    return problems


@lru_cache(1)
def _opened(run: Path, command: str) -> OpenRun:
    """The run as a process sees it during one command."""
    return open_run(run)


def _write_part(config: ExportConfig, command: str, number: int, recipe: str) -> tuple[int, str | None]:
    """Writes one part: its size in bytes, and why it could not be written, where its labels cannot be read or trusted."""
    run = _opened(config.run, command)
    part, first = run.images.parts[number], int(run.images.start[number])
    samples = itertools.chain.from_iterable(samples_of(run, first + i, config) for i in range(part.images))
    try:
        return output.write_part(config.output, config.format, part.name, samples, recipe).bytes, None
    except DistillError as error:
        return 0, f"{part.name}: not exported: {error}"


def _written(plan: _Plan) -> Iterator[output.PartWritten]:
    """The records of the parts as the run has them, in its order."""
    for part, recipe in plan.recipes.items():
        if (written := output.part_written(plan.config.output, part)) and written.recipe == recipe:
            yield written


def _write_lists(plan: _Plan) -> list[str]:
    """In a folder, for each column the lists of pictures and depth maps; and what is there and is not of the run any more."""
    config = plan.config
    if config.format == "folder":
        for column in config.columns:
            if config.views != "patches":
                output.write_lines(config.output / f"{column}.txt", _pairs(plan, column, patches=False))
            if config.views != "whole":
                output.write_lines(config.output / f"{column}.patches.txt", _pairs(plan, column, patches=True))
    stale = output.other_parts(config.output, set(plan.recipes))
    where = f"{config.output}/{output.STATE}"
    return [f"{part}: written earlier, and the run has it no more: remove {where}/{part}.json and its files" for part in stale]


def _pairs(plan: _Plan, column: str, *, patches: bool) -> Iterator[str]:
    suffix = label_suffix(plan.config.labels)
    for written in _written(plan):
        for name, count in written.samples:
            for patch in range(count) if patches else (None,):
                rgb = file_place("folder", name, ".jpg" if patch is None else ".png", None, patch)
                yield f"{rgb} {file_place('folder', name, suffix, column, patch)}"


def _holes(plan: _Plan) -> list[str]:
    """Names the images that were not exported, all in a file; and why the run is not finished, as `summary` judges it."""
    config, columns = plan.config, [IMAGES, *plan.config.columns]
    statuses = [{"rejected"}, {"failed", "pending"}]  # each without the parts that have none
    if any(sum(facts.all("not_drawn")) for facts in plan.facts.values()):
        statuses.append({"not_drawn"})
    counts, named = Counter[str](), []

    def missing() -> Iterator[str]:
        for image in itertools.chain.from_iterable(list_images(config.run, columns=columns, statuses=it) for it in statuses):
            counts[image.status] += 1
            if len(named) < _NAMED:
                named.append(_shown(image))
            yield json.dumps(dataclasses.asdict(image))

    output.write_lines(config.output / MISSING, missing())
    samples = sum(len(written.samples) for written in _written(plan))
    size = _bytes(sum(written.bytes for written in _written(plan)))
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{samples} samples of {plan.images} images in {config.output}, {size}.")
    if told:
        print(f"Not exported, by image and column: {told}; all are in {config.output / MISSING}:")
        print(*named, sep="\n")
        if more := counts.total() - len(named):
            print(f"  and {more} more")
    summary = summarize(config.run)
    return replace(summary, columns=tuple(column for column in summary.columns if column.name in columns)).complaints()


def _shown(image: ListedImage) -> str:
    why = "" if image.kind is None else f": {image.kind}: {image.message}"
    return printable(f"  {image.status} in {image.column}: {image.source} {image.key or image.part}{why}")


def _about(plan: _Plan, *, finished: bool) -> dict[str, object]:
    columns = {
        name: {
            "depth_space": plan.run[name].depth_space,
            "licences": sorted({licence or UNKNOWN for licence in plan.facts[name].licences()}),
        }
        for name in plan.config.columns
    }
    licences = {licence for column in columns.values() for licence in column["licences"]}
    return {
        "settings": plan.settings,
        "sources": plan.sources,
        "columns": columns,
        "most_restrictive_licences": list(most_restrictive(licences)),
        "software": software_version(),
        "finished": finished,
    }


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
