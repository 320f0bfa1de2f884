"""How far a run is and what came out of it, in numbers that add up.

For every column: labelled + not_drawn + rejected + failed + pending = catalogued images, whatever state the folder is in. A
manifest that cannot be trusted, or not be read, counts as pending and is named in `damage`; all its problems are `verify`'s to
say.

Whether a run is finished is judged as the labelling judges it: by the share of rejected images, and the tolerance of damaged
sources, that run.json records.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from manifests.agreement import PairAgreement, compared_pairs, digest_of_parts, read_overview
from manifests.facts import ColumnFacts, column_facts
from manifests.licences import UNKNOWN, most_restrictive
from manifests.location import Location
from manifests.run import (
    ColumnListing,
    PartId,
    Run,
    foreign_columns,
    images_of_parts,
    list_column,
    load_failure,
    load_part,
    manifest_path,
    parts,
    read_run,
)
from manifests.schema import ColumnRecord, DepthSpace
from manifests.totals import has_totals, read_totals, totals_key, write_totals
from manifests.workers import in_order

_NAMED_REJECTIONS, _NAMED_FAR_APART = 20, 5
_WORTH_A_PROCESS = 20_000  # parts of a column, which take longer than it takes to start


@dataclass(frozen=True, kw_only=True)
class LabelTotals:
    """Over a column's committed parts: `pixels` are valid label pixels, and `min`, `max`, `mean`, `max_quantisation_error` are
    over them, in the column's depth space; `bytes` is the size of the arrays' files."""

    views: int
    pixels: int
    bytes: int
    bits_per_pixel: float | None
    min: float | None
    max: float | None
    mean: float | None
    max_quantisation_error: float | None


@dataclass(frozen=True, kw_only=True)
class ColumnSummary(LabelTotals):
    """One column. `licences` are those of the weights its labels were made with, `unknown` where none is stated. `rejected` and
    `failures` count images by kind of problem, `not_drawn` those that the training never sees for which it was labelled;
    `litter` counts .zarr folders that no manifest names; `examples` name the first rejected images, where there are more of
    them than was allowed; `parts_sha256` is a digest of what all committed parts hold."""

    name: str
    depth_space: DepthSpace | None
    licences: tuple[str, ...]
    parts_done: int
    parts_total: int
    images_total: int
    labelled: int
    rejected: Mapping[str, int]
    failed: int
    failures: Mapping[str, int]
    pending: int
    litter: int
    damage: tuple[str, ...]
    not_drawn: int = 0
    examples: tuple[str, ...] = ()
    parts_sha256: str = ""

    def excess(self, max_rejected_fraction: float | None) -> str | None:
        """That more than this share of the images was rejected, in words; None where it was not, or nothing was asked for."""
        rejected = sum(self.rejected.values())
        images = self.labelled + self.not_drawn + rejected
        if max_rejected_fraction is None or rejected <= max_rejected_fraction * images:
            return None
        return (
            f"{rejected} of {images} images rejected in {self.name} (more than the share of {max_rejected_fraction:g} allowed)"
        )


@dataclass(frozen=True, kw_only=True)
class SourceProblems:
    """What the catalogue of a source complains of: how often each kind, and an example in words."""

    source: str
    kinds: Mapping[str, int]
    example: str


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run: its columns in order, and the sources that have problems. `most_restrictive_licences` are, of all the columns'
    weights, those that bind the labels the most; empty while there are no labels. `max_rejected_fraction` (None where run.json
    does not say) and `allow_damaged_sources` are what the labelling was told to put up with. `agreement` is of the
    teachers that have been compared, two by two, with the images in which they are farthest apart."""

    run_dir: str
    parts_total: int
    images_total: int
    sources_total: int
    columns: tuple[ColumnSummary, ...]
    source_problems: tuple[SourceProblems, ...]
    most_restrictive_licences: tuple[str, ...]
    damage: tuple[str, ...]
    max_rejected_fraction: float | None = None
    allow_damaged_sources: bool = False
    agreement: tuple[PairAgreement, ...] = ()

    def complaints(self) -> list[str]:
        """Why the run is not finished and sound, in words; empty when it is."""
        found = []
        if not self.damage:  # where a record cannot be read, nobody knows
            counts = (("source", self.sources_total), ("column", len(self.columns)))
            found += [f"no {what} yet" for what, count in counts if not count]
        found += [
            f"{count} of {column.images_total} images {what} in {column.name}"
            for what in ("failed", "pending")
            for column in self.columns
            if (count := getattr(column, what))
        ]
        problems = sum(sum(source.kinds.values()) for source in self.source_problems)
        if problems and not self.allow_damaged_sources:
            found.append(f"{problems} catalogue problem{'s' * (problems != 1)}")
        if damaged := len(self.damage) + sum(len(column.damage) for column in self.columns):
            found.append(f"{damaged} damaged record{'s' * (damaged != 1)}")
        excess = [message for column in self.columns if (message := column.excess(self.max_rejected_fraction))]
        return found + excess


Counted = Callable[[PartId], bool]


def summarize(run_dir: Location, *, workers: int = 1, counted: Counted | None = None) -> RunSummary:
    """The whole run in numbers, the same for any number of worker processes (with 1, this process does the work).

    counted: which parts' images are counted in the columns; None is all. Raises NotARunError, InvalidRecordError for run.json,
    and WorkerDiedError; other damage is in the summary.
    """
    run, unread = read_run(run_dir)
    parts_total = sum(-(-source.images // run.part_size) for source in run.sources)
    damage = [_first_lines(error) for error in unread.values()]
    damage += [f"{run_dir}/columns/{name}: {message}" for name, message in foreign_columns(run_dir, run, unread).items()]
    source_problems: list[SourceProblems] = []
    for source in run.sources:
        if found := source.problems:
            example = f"{found[0].where}: {found[0].message}"
            kinds = dict(Counter(problem.kind for problem in found))
            source_problems.append(SourceProblems(source=source.source, kinds=kinds, example=example))
    known = all(has_totals(run_dir, column.name) for column in run.columns)  # then it takes less than to start a process
    workers = min(workers, len(run.columns)) if parts_total >= _WORTH_A_PROCESS and not known else 1
    columns = tuple(
        in_order((partial(_summarize_column, run_dir, column, run, counted) for column in run.columns), workers, bunch=1)
    )
    budget = _allowed_rejections(run)
    columns = tuple(
        replace(column, examples=tuple(_rejections(run_dir, column.name))) if column.excess(budget) else column
        for column in columns
    )
    return RunSummary(
        run_dir=str(run_dir),
        parts_total=parts_total,
        images_total=sum(source.images for source in run.sources),
        sources_total=len(run.sources),
        columns=columns,
        source_problems=tuple(source_problems),
        most_restrictive_licences=most_restrictive({licence for column in columns for licence in column.licences}),
        damage=tuple(damage),
        max_rejected_fraction=budget,
        allow_damaged_sources=run.configuration.get("allow_damaged_sources") is True,
        agreement=_agreement(run_dir, run, {column.name: column.parts_sha256 for column in columns}),
    )


def _agreement(run_dir: Location, run: Run, digests: Mapping[str, str]) -> tuple[PairAgreement, ...]:
    pairs = compared_pairs(run_dir, run)
    found = (read_overview(run_dir, first, second, (digests[first], digests[second])) for first, second in pairs)
    return tuple(replace(pair, farthest_apart=pair.farthest_apart[:_NAMED_FAR_APART]) for pair in found)


def _allowed_rejections(run: Run) -> float | None:
    fraction = run.configuration.get("max_rejected_fraction")
    return float(fraction) if isinstance(fraction, int | float) else None


def _rejections(run_dir: Location, column: str) -> list[str]:
    """The first rejected images of a column, with the reason."""
    named: list[str] = []
    for part in sorted(list_column(run_dir, column).manifests):
        try:
            images = load_part(run_dir, column, part).images
        except (OSError, ValueError):
            continue  # it is in `damage`
        named += [f"{part}: {image.key}: {why.message} [{why.kind}]" for image in images if (why := image.problem)]
        if len(named) >= _NAMED_REJECTIONS:
            break
    return named[:_NAMED_REJECTIONS]


def _summarize_column(run_dir: Location, column: ColumnRecord, run: Run, counted: Counted | None) -> ColumnSummary:
    damage: dict[str, str] = {}
    try:
        listing = list_column(run_dir, column.name, with_states=True)
    except OSError as error:
        listing, damage[""] = ColumnListing(), _first_lines(error)
    if counted:
        return _counted(run_dir, column, run, listing, damage, counted)
    key = totals_key(run, column, listing)
    if totals := read_totals(run_dir, column.name, key):
        with suppress(TypeError):  # of another version
            values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in totals.items()}
            return ColumnSummary(**values)
    summary = _counted(run_dir, column, run, listing, damage)
    if key and not summary.damage:
        write_totals(run_dir, column.name, key, asdict(summary))
    return summary


def _counted(
    run_dir: Location,
    column: ColumnRecord,
    run: Run,
    listing: ColumnListing,
    damage: dict[str, str],
    counted: Counted | None = None,
) -> ColumnSummary:
    """A column in numbers, from what each of its manifests says."""
    catalogued = images_of_parts(run)  # sooner made than sent to a process
    done, refused = _accounted(run_dir, column.name, column_facts(run_dir, column.name, listing), catalogued)
    damage |= refused
    unknown = tuple(f"{name}." for name in damage)  # no telling which folders a damaged manifest names
    litter = [zarr for zarr in listing.zarrs.difference(done.all("zarr")) if not zarr.startswith(unknown)]
    if counted:
        catalogued = {part.name: part.images for part in parts(run) if counted(part)}
        done = done.picked(i for i, part in enumerate(done.parts) if part in catalogued)
    failures: Counter[str] = Counter()
    for name in sorted((listing.failures - listing.manifests) & catalogued.keys()):
        try:
            kind = load_failure(run_dir, column.name, name).problem.kind
        except (OSError, ValueError) as error:
            kind = "unreadable_record"
            damage[name] = _first_lines(error)
        failures[kind] += catalogued[name]
    rejected = Counter(kind for images in done.all("rejected") for _, kind in images or ())
    images_total, not_drawn = sum(catalogued.values()), sum(done.all("not_drawn"))
    labelled = sum(done.all("images")) - not_drawn - rejected.total()
    return ColumnSummary(
        name=column.name,
        depth_space=column.depth_space,
        licences=tuple(sorted({licence or UNKNOWN for licence in done.licences()})) if column.depth_space else (),
        parts_done=len(done.parts),
        parts_total=len(catalogued),
        images_total=images_total,
        labelled=labelled,
        not_drawn=not_drawn,
        rejected=dict(rejected),
        failed=failures.total(),
        failures=dict(failures),
        pending=images_total - labelled - not_drawn - rejected.total() - failures.total(),
        litter=len(litter),
        damage=tuple(damage.values()),
        parts_sha256=digest_of_parts(zip(done.parts, done.all("digest"), strict=True)),
        **asdict(_measured(done)),
    )


def _accounted(
    run_dir: Location, column: str, facts: ColumnFacts, catalogued: Mapping[str, int]
) -> tuple[ColumnFacts, dict[str, str]]:
    """The manifests that count, and why the others do not, by part."""
    refused = {part: _first_lines(error) for part, error in facts.unread.items() if part in catalogued}
    agreed = list(map(operator.eq, map(catalogued.get, facts.parts), facts.all("images")))
    for part, images, agrees in zip(facts.parts, facts.all("images"), agreed, strict=True):
        if not agrees and part in catalogued:
            expected = f"found {images} images, expected the {catalogued[part]} of this part"
            refused[part] = f"{manifest_path(run_dir, column, part)}: {expected}"
    for part in {*facts.unread, *facts.parts} - catalogued.keys():
        refused[part] = f"{manifest_path(run_dir, column, part)}: the run has no such part"
    return facts if all(agreed) else facts.picked(itertools.compress(itertools.count(), agreed)), dict(sorted(refused.items()))


def _measured(done: ColumnFacts) -> LabelTotals:
    """The statistics of several parts as those of one."""
    pixels, size_bytes = sum(done.all("pixels")), sum(done.all("bytes"))
    means = list(done.all("mean"))
    weights = [count if mean == mean else 0 for mean, count in zip(means, done.all("pixels"), strict=True)]  # NaN is not itself
    total = sum(mean * weight for mean, weight in zip(means, weights, strict=True) if weight)

    def known(field: str) -> list[float]:
        return [value for value in done.all(field) if value == value]

    return LabelTotals(
        views=sum(done.all("views")),
        pixels=pixels,
        bytes=size_bytes,
        bits_per_pixel=8 * size_bytes / pixels if pixels else None,
        min=min(known("min"), default=None),
        max=max(known("max"), default=None),
        mean=total / sum(weights) if any(weights) else None,
        max_quantisation_error=max(known("max_quantisation_error"), default=None),
    )


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).splitlines()[:2])
